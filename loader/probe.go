package loader

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/features"
)

// probeKernel names what the kernel lacks.
func probeKernel() error {
	lacks := func(what, since string, err error) error {
		if !errors.Is(err, ebpf.ErrNotSupported) {
			return nil // could not be asked; loading will tell
		}
		return fmt.Errorf("this kernel lacks %s (Linux %s); run Linux 5.18 or later with BPF enabled", what, since)
	}
	return errors.Join(
		lacks("XDP programs", "4.8", features.HaveProgramType(ebpf.XDP)),
		lacks("LRU hash maps", "4.10", features.HaveMapType(ebpf.LRUHash)),
		lacks("arrays of maps", "4.12", features.HaveMapType(ebpf.ArrayOfMaps)),
		lacks("device maps", "4.14", features.HaveMapType(ebpf.DevMap)),
		lacks("bpf_jiffies64", "5.6", features.HaveProgramHelper(ebpf.XDP, asm.FnJiffies64)),
		lacks("syscall programs", "5.14", features.HaveProgramType(ebpf.Syscall)),
		lacks("XDP on frames of several buffers", "5.18", features.HaveProgramHelper(ebpf.XDP, asm.FnXdpGetBuffLen)),
	)
}

// JITEnabled reports whether BPF programs are compiled; an interpreter costs
// several times as much. Kernels built without the choice always compile.
func JITEnabled() bool {
	b, err := os.ReadFile("/proc/sys/net/core/bpf_jit_enable")
	return err != nil || strings.TrimSpace(string(b)) != "0"
}
