package main

import (
	"debug/elf"
	"debug/gosym"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/xdplb/xdplb/cmd/xdplb/internal/lab"
)

// A command that is killed between any two of its writes. No product code takes part: the child is traced.
//
// Writes are the system calls of isWrite, and the stores to mapped memory: backends and interfaces are arrays
// that Go maps and writes by one instruction for each word of 8 bytes, all of them in words.write of package
// maps. A breakpoint there makes each a place to be killed at, too. (Hence amd64 only.)

// killPoint is where a command is killed: after this many system calls that write, and stores since the last of
// them. It is not one number: which words of a record are stored depends on what was there before.
type killPoint struct{ calls, stores int }

func (p killPoint) String() string {
	return fmt.Sprintf("killed after %d calls and %d stores", p.calls, p.stores)
}

// killed is how a traced command ended.
type killed struct {
	died   bool   // before it was done
	last   string // the write that it did not do
	next   killPoint
	status int
	stderr string
}

// killAt runs a command on a node and kills it on the threshold of the first write beyond point. If there is none,
// it runs to its end. Taking each next point visits every write.
func killAt(node *lab.Node, point killPoint, args ...string) (k killed, err error) {
	err = node.Do(func() error {
		out, err := os.CreateTemp("", "killed")
		if err != nil {
			return err
		}
		defer os.Remove(out.Name())
		defer out.Close()
		cmd := exec.Command("/proc/self/exe", args...)
		cmd.Args[0], cmd.Stderr = "xdplb", out
		// The tracer is the thread that starts the child: this one, which does nothing else.
		cmd.SysProcAttr = &syscall.SysProcAttr{Ptrace: true, Pdeathsig: syscall.SIGKILL}
		if err := cmd.Start(); err != nil {
			return err
		}
		t := &tracer{pid: cmd.Process.Pid, point: point}
		err = t.run()
		_ = cmd.Process.Release()
		text, readErr := os.ReadFile(out.Name())
		k = killed{died: t.died, last: t.last, next: t.next, status: t.status, stderr: strings.TrimSpace(string(text))}
		return errors.Join(err, readErr)
	})
	return k, err
}

type tracer struct {
	pid         int
	point, done killPoint
	next        killPoint
	last        string // the write that it is about to do
	died        bool
	status      int
	stores      map[uint64]byte // address of an instruction → the byte under the breakpoint
}

const breakpoint = 0xcc // INT3

func (t *tracer) run() error {
	var ws unix.WaitStatus
	if _, err := unix.Wait4(t.pid, &ws, 0, nil); err != nil { // stopped by its exec
		return fmt.Errorf("tracing: %w", err)
	}
	options := unix.PTRACE_O_TRACECLONE | unix.PTRACE_O_TRACESYSGOOD | unix.PTRACE_O_EXITKILL
	err := unix.PtraceSetOptions(t.pid, options)
	if err == nil {
		err = t.setBreakpoints()
	}
	if err == nil {
		err = unix.PtraceSyscall(t.pid, 0)
	}
	for err == nil {
		var tid int
		// Not the children of other threads.
		if tid, err = unix.Wait4(-1, &ws, unix.WALL|unix.WNOTHREAD, nil); err != nil {
			break
		}
		if ws.Exited() || ws.Signaled() {
			if tid == t.pid {
				t.status = ws.ExitStatus()
				return nil
			}
			continue
		}
		if err = t.stopped(tid, ws); errors.Is(err, unix.ESRCH) {
			err = nil // it is dying: of our signal, or it is the last thread's turn
		}
	}
	_ = unix.Kill(t.pid, unix.SIGKILL)
	return fmt.Errorf("tracing: %w", err)
}

// stopped looks why a thread stopped, and lets it go on.
func (t *tracer) stopped(tid int, ws unix.WaitStatus) error {
	deliver := 0
	switch signal := ws.StopSignal(); {
	case signal == unix.SIGTRAP|0x80:
		if err := t.systemCall(tid); err != nil {
			return err
		}
	case signal == unix.SIGTRAP && ws.TrapCause() > 0: // a new thread
	case signal == unix.SIGTRAP:
		if err := t.store(tid); err != nil {
			return err
		}
	case signal == unix.SIGSTOP: // a new thread's first stop
	default:
		deliver = int(signal)
	}
	if t.died {
		return nil
	}
	return unix.PtraceSyscall(tid, deliver)
}

// write is told of each write before it is done, and done is how it will have been. A thread that is killed on the
// threshold of a system call does not enter it.
func (t *tracer) write(what string, done killPoint) error {
	if t.died {
		return nil
	}
	if t.last = what; t.done.calls >= t.point.calls && (done.calls > t.point.calls || done.stores > t.point.stores) {
		t.died, t.next = true, done
		return unix.Kill(t.pid, unix.SIGKILL)
	}
	t.done = done
	return nil
}

// syscallInfo is struct ptrace_syscall_info of linux/ptrace.h.
type syscallInfo struct {
	op   uint8
	_    [23]byte
	nr   uint64
	args [6]uint64
	_    [16]byte
}

func (t *tracer) systemCall(tid int) error {
	const getSyscallInfo, entry = 0x420e, 1 // PTRACE_GET_SYSCALL_INFO, PTRACE_SYSCALL_INFO_ENTRY
	var info syscallInfo
	_, _, errno := unix.Syscall6(unix.SYS_PTRACE, getSyscallInfo, uintptr(tid), unsafe.Sizeof(info), uintptr(unsafe.Pointer(&info)), 0, 0)
	if errno != 0 {
		return errno
	}
	if info.op != entry {
		return nil
	}
	if name := t.isWrite(tid, info); name != "" {
		return t.write(name, killPoint{t.done.calls + 1, 0})
	}
	return nil
}

// From enum bpf_cmd of linux/bpf.h.
var bpfWrites = map[uint64]string{
	unix.BPF_MAP_UPDATE_ELEM: "MAP_UPDATE_ELEM", unix.BPF_MAP_DELETE_ELEM: "MAP_DELETE_ELEM",
	unix.BPF_MAP_UPDATE_BATCH: "MAP_UPDATE_BATCH", unix.BPF_MAP_DELETE_BATCH: "MAP_DELETE_BATCH",
	unix.BPF_MAP_LOOKUP_AND_DELETE_ELEM: "MAP_LOOKUP_AND_DELETE_ELEM", unix.BPF_OBJ_PIN: "OBJ_PIN",
	unix.BPF_LINK_CREATE: "LINK_CREATE", unix.BPF_LINK_UPDATE: "LINK_UPDATE", unix.BPF_LINK_DETACH: "LINK_DETACH",
	unix.BPF_RAW_TRACEPOINT_OPEN: "RAW_TRACEPOINT_OPEN",
}

var otherWrites = map[uint64]string{
	unix.SYS_RENAME: "rename", unix.SYS_RENAMEAT: "renameat", unix.SYS_RENAMEAT2: "renameat2",
	unix.SYS_UNLINK: "unlink", unix.SYS_UNLINKAT: "unlinkat", unix.SYS_RMDIR: "rmdir",
	unix.SYS_MKDIR: "mkdir", unix.SYS_MKDIRAT: "mkdirat",
}

// isWrite names a system call that changes something that outlives the process, or returns "".
func (t *tracer) isWrite(tid int, info syscallInfo) string {
	switch info.nr {
	case unix.SYS_BPF:
		return bpfWrites[info.args[0]]
	case unix.SYS_SENDTO: // netlink: of each four message types one asks only (linux/rtnetlink.h)
		header := make([]byte, 8)
		if _, err := unix.PtracePeekData(tid, uintptr(info.args[1]), header); err != nil {
			return ""
		}
		if kind := uint16(header[4]) | uint16(header[5])<<8; kind >= unix.RTM_BASE && kind < unix.RTM_MAX && kind%4 != 2 {
			return "netlink"
		}
	}
	return otherWrites[info.nr]
}

// setBreakpoints sets one at each store of words.write.
func (t *tracer) setBreakpoints() error {
	stores, err := findStores()
	if err != nil {
		return err
	}
	t.stores = make(map[uint64]byte)
	for _, at := range stores {
		old := make([]byte, 1)
		if _, err := unix.PtracePeekText(t.pid, uintptr(at), old); err != nil {
			return err
		}
		if _, err := unix.PtracePokeText(t.pid, uintptr(at), []byte{breakpoint}); err != nil {
			return err
		}
		t.stores[at] = old[0]
	}
	return nil
}

// store handles a breakpoint: it does the instruction that is due and sets the breakpoint again.
func (t *tracer) store(tid int) error {
	var regs unix.PtraceRegs
	if err := unix.PtraceGetRegs(tid, &regs); err != nil {
		return err
	}
	at := regs.Rip - 1
	old, ours := t.stores[at]
	if !ours {
		return fmt.Errorf("stopped by an unknown trap at %#x", regs.Rip)
	}
	if err := t.write("store", killPoint{t.done.calls, t.done.stores + 1}); err != nil || t.died {
		return err
	}
	regs.Rip = at
	if err := unix.PtraceSetRegs(tid, &regs); err != nil {
		return err
	}
	if _, err := unix.PtracePokeText(tid, uintptr(at), []byte{old}); err != nil {
		return err
	}
	if err := t.step(tid); err != nil {
		return err
	}
	_, err := unix.PtracePokeText(tid, uintptr(at), []byte{breakpoint})
	return err
}

// step does one instruction, and keeps signals for later.
func (t *tracer) step(tid int) error {
	var later []unix.Signal
	for {
		if err := unix.PtraceSingleStep(tid); err != nil {
			return err
		}
		var ws unix.WaitStatus
		if _, err := unix.Wait4(tid, &ws, unix.WALL, nil); err != nil {
			return err
		}
		if !ws.Stopped() {
			return unix.ESRCH
		}
		if ws.StopSignal() == unix.SIGTRAP {
			break
		}
		later = append(later, ws.StopSignal())
	}
	for _, signal := range later {
		if err := unix.Tgkill(t.pid, tid, signal); err != nil && !errors.Is(err, unix.ESRCH) {
			return err
		}
	}
	return nil
}

// findStores finds the XCHGQ instructions, as atomic.StoreUint64 is compiled, of words.write in this binary.
func findStores() ([]uint64, error) {
	const function = "github.com/xdplb/xdplb/maps.words.write"
	file, err := elf.Open("/proc/self/exe")
	if err != nil {
		return nil, err
	}
	defer file.Close()
	if file.Type != elf.ET_EXEC {
		return nil, errors.New("the test binary is not at a fixed address; build it without -buildmode=pie")
	}
	text := file.Section(".text")
	lines, err := file.Section(".gopclntab").Data()
	if err != nil {
		return nil, err
	}
	table, err := gosym.NewTable(nil, gosym.NewLineTable(lines, text.Addr))
	if err != nil {
		return nil, err
	}
	f := table.LookupFunc(function)
	if f == nil {
		return nil, fmt.Errorf("%s: not in this binary; kill points in it would be missed", function)
	}
	code := make([]byte, f.End-f.Entry)
	if _, err := text.ReadAt(code, int64(f.Entry-text.Addr)); err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	var stores []uint64
	for i := 1; i < len(code)-1; i++ {
		if code[i-1]&0xf8 == 0x48 && code[i] == 0x87 && code[i+1]>>6 != 3 { // REX.W, XCHG, memory
			stores = append(stores, f.Entry+uint64(i-1))
		}
	}
	if len(stores) != 1 {
		return nil, fmt.Errorf("%s: %d stores found, want 1; the breakpoints need a new look", function, len(stores))
	}
	return stores, nil
}
