package maps

import (
	"encoding/binary"
	"fmt"
	"math"
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
			asm.FnKtimeGetNs.Call(),
			asm.StoreMem(asm.R6, 8, asm.R0, asm.DWord),
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
	jiffies, _, err := c.read()
	return jiffies, err
}

// read returns the jiffies and the time since the kernel started.
func (c *Clock) read() (jiffies uint64, uptime time.Duration, err error) {
	out := make([]byte, 16)
	if _, err := c.program.Run(&ebpf.RunOptions{Context: out, ContextOut: out}); err != nil {
		return 0, 0, fmt.Errorf("reading the kernel's clock: %w", err)
	}
	return binary.LittleEndian.Uint64(out), time.Duration(binary.LittleEndian.Uint64(out[8:])), nil
}

// Hz finds out how many jiffies a second has. The kernel tells nobody. But it begins to count 300 seconds before
// the lower 32 bits overflow (INITIAL_JIFFIES of include/linux/jiffies.h), so each rate says when it started, and
// only the true one says so rightly. Measuring is worse: on a busy machine ticks come late, in heaps.
func (c *Clock) Hz() (uint32, error) {
	start, began, err := c.read()
	if err != nil {
		return 0, err
	}
	if hz, ok := hzOf(start, began); ok {
		return hz, nil
	}
	time.Sleep(time.Second)
	now, at, err := c.read()
	return nearestHz(func(hz float64) float64 {
		return math.Abs(math.Log(float64(now-start) / (at - began).Seconds() / hz))
	}), err
}

// overflowAt is when the lower 32 bits of jiffies overflow for the first time.
const overflowAt = 300 * time.Second

// hzOf knows nothing near the overflow: there all rates say nearly the same.
func hzOf(jiffies uint64, uptime time.Duration) (hz uint32, ok bool) {
	const near = 24 * time.Second // far more than the time between the first tick and the clock's start
	if d := uptime - overflowAt; d.Abs() < near {
		return 0, false
	}
	return nearestHz(func(hz float64) float64 {
		return math.Abs(float64(int64(jiffies-1<<32))/hz - (uptime - overflowAt).Seconds())
	}), true
}

// nearestHz is the rate of kernel/Kconfig.hz that has the least error.
func nearestHz(errorOf func(hz float64) float64) (nearest uint32) {
	least := math.Inf(1)
	for _, hz := range []uint32{100, 250, 300, 1000} {
		if e := errorOf(float64(hz)); e < least {
			nearest, least = hz, e
		}
	}
	return nearest
}
