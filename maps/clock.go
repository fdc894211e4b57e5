package maps

import (
	"encoding/binary"
	"fmt"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"golang.org/x/sys/unix"
)

// Clock reads the kernel's jiffies, which user space cannot: a program of type
// syscall does it. The data path stamps flows with them because reading them is
// one load.
type Clock struct{ program *ebpf.Program }

// NewClock loads the program.
func NewClock() (*Clock, error) {
	program, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Name: "jiffies", Type: ebpf.Syscall, Flags: unix.BPF_F_SLEEPABLE, License: "GPL",
		Instructions: asm.Instructions{
			asm.Mov.Reg(asm.R6, asm.R1),
			asm.FnJiffies64.Call(),
			asm.StoreMem(asm.R6, 0, asm.R0, asm.DWord),
			asm.Mov.Imm(asm.R0, 0),
			asm.Return(),
		},
	})
	if err != nil {
		return nil, fmt.Errorf("reading the kernel's clock: %w", err)
	}
	return &Clock{program}, nil
}

// Close unloads the program.
func (c *Clock) Close() error { return c.program.Close() }

// Jiffies is the time now.
func (c *Clock) Jiffies() (uint64, error) {
	out := make([]byte, 8)
	if _, err := c.program.Run(&ebpf.RunOptions{Context: out, ContextOut: out}); err != nil {
		return 0, fmt.Errorf("reading the kernel's clock: %w", err)
	}
	return binary.LittleEndian.Uint64(out), nil
}

// Hz measures how many jiffies a second has. The kernel tells nobody, but builds
// with few values (kernel/Kconfig.hz); 40 ms tell them apart.
func (c *Clock) Hz() (uint32, error) {
	start, err := c.Jiffies()
	if err != nil {
		return 0, err
	}
	began := time.Now()
	for {
		now, err := c.Jiffies()
		if err != nil {
			return 0, err
		}
		if took := time.Since(began); took >= 40*time.Millisecond {
			return nearestHz(float64(now-start) / took.Seconds()), nil
		}
	}
}

func nearestHz(measured float64) uint32 {
	nearest, distance := uint32(0), 0.0
	for _, hz := range []uint32{100, 250, 300, 1000} {
		if d := max(measured, float64(hz)) / max(min(measured, float64(hz)), 1); nearest == 0 || d < distance {
			nearest, distance = hz, d
		}
	}
	return nearest
}
