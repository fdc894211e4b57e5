package bpf_test

import (
	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"golang.org/x/sys/unix"
)

// poisoned is a program that fills the headroom with 0xff and goes on as the
// world's: a byte of a new header that is never written shows as 0xff, not as a
// lucky 0. (BPF_PROG_RUN zeroes the headroom; drivers do not.)
func (w *world) poisoned() *ebpf.Program {
	w.Helper()
	const room = 128 // more than the largest headers that are added
	code := asm.Instructions{
		asm.Mov.Imm(asm.R2, -room),
		asm.FnXdpAdjustHead.Call(),
		asm.JNE.Imm(asm.R0, 0, "out"),
		asm.LoadMem(asm.R2, asm.R6, 0, asm.Word), // data
		asm.LoadMem(asm.R3, asm.R6, 4, asm.Word), // data_end
		asm.Mov.Reg(asm.R4, asm.R2),
		asm.Add.Imm(asm.R4, room),
		asm.JGT.Reg(asm.R4, asm.R3, "out"),
		asm.Mov.Imm(asm.R5, -1),
	}
	for at := int16(0); at < room; at += 8 {
		code = append(code, asm.StoreMem(asm.R2, at, asm.R5, asm.DWord))
	}
	return w.before(append(code,
		asm.Mov.Reg(asm.R1, asm.R6),
		asm.Mov.Imm(asm.R2, room),
		asm.FnXdpAdjustHead.Call(),
		asm.JNE.Imm(asm.R0, 0, "out"),
	))
}

// narrowed is a program that takes some of the headroom, as metadata, and goes on
// as the world's. BPF_PROG_RUN returns metadata in front of the frame.
func (w *world) narrowed(taken int32) *ebpf.Program {
	w.Helper()
	return w.before(asm.Instructions{
		asm.Mov.Imm(asm.R2, -taken),
		asm.FnXdpAdjustMeta.Call(),
		asm.JNE.Imm(asm.R0, 0, "out"),
	})
}

// before is a program that runs code, with the context in R1 and R6, before the
// world's. At "out" it ends with XDP_ABORTED, which no test expects.
func (w *world) before(code asm.Instructions) *ebpf.Program {
	w.Helper()
	tail, err := ebpf.NewMap(&ebpf.MapSpec{Name: "tail", Type: ebpf.ProgramArray, KeySize: 4, ValueSize: 4, MaxEntries: 1})
	must(w, err)
	w.Cleanup(func() { tail.Close() })
	entry, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Name: "entry", Type: ebpf.XDP, AttachType: ebpf.AttachXDP, Flags: unix.BPF_F_XDP_HAS_FRAGS, License: "GPL",
		Instructions: append(append(asm.Instructions{asm.Mov.Reg(asm.R6, asm.R1)}, code...),
			asm.Mov.Reg(asm.R1, asm.R6),
			asm.LoadMapPtr(asm.R2, tail.FD()),
			asm.Mov.Imm(asm.R3, 0),
			asm.FnTailCall.Call(),
			asm.Mov.Imm(asm.R0, 0).WithSymbol("out"),
			asm.Return(),
		),
	})
	must(w, err)
	w.Cleanup(func() { entry.Close() })
	must(w, tail.Put(uint32(0), w.program))
	return entry
}
