// Package lab builds small networks out of Linux network namespaces: nodes, cables, switches, and the
// client–balancer–servers network of `xdplb demo` and of the end-to-end tests.
//
// The namespaces have no names. They live as long as a file descriptor of this process, a socket or a child
// names them, so nothing is left behind even when the process is killed. Every node also has its own mount
// namespace with its own /sys and its own bpffs at /sys/fs/bpf, as a machine of its own would.
//
// All of this needs root. Errors are one line and start with the node or device that they are about.
package lab

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
)

// Lab owns nodes and all that lives in them. Its methods may be called from several goroutines.
type Lab struct {
	pass *ebpf.Program

	mu      sync.Mutex
	nodes   []*Node
	sockets map[io.Closer]struct{}
	running map[*Cmd]struct{}
	closed  bool
}

// New returns a lab without nodes. It fails without the privilege to load an XDP program.
func New() (*Lab, error) {
	pass, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Name:         "lab_pass",
		Type:         ebpf.XDP,
		License:      "MIT",
		Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, xdpPass), asm.Return()},
		Flags:        xdpHasFrags,
	})
	if err != nil {
		if errors.Is(err, os.ErrPermission) {
			err = os.ErrPermission // the library adds advice that does not help here
		}
		return nil, fmt.Errorf("XDP program: cannot be loaded: %w; run as root", err)
	}
	return &Lab{pass: pass, sockets: map[io.Closer]struct{}{}, running: map[*Cmd]struct{}{}}, nil
}

// From linux/bpf.h.
const (
	xdpPass     = 2
	xdpHasFrags = 1 << 5
)

// Nodes returns the nodes made so far, switches included, oldest first.
func (l *Lab) Nodes() []*Node {
	l.mu.Lock()
	defer l.mu.Unlock()
	return append([]*Node(nil), l.nodes...)
}

// Close kills the children that still run, closes the sockets that Listen and Dial made, and lets go of the
// namespaces; the kernel then removes their devices, mounts and pins. Closing twice is harmless.
func (l *Lab) Close() error {
	l.mu.Lock()
	var children []*Cmd
	for c := range l.running {
		children = append(children, c)
	}
	sockets := l.sockets
	l.sockets = map[io.Closer]struct{}{}
	nodes := l.nodes
	l.nodes = nil
	l.closed = true
	l.mu.Unlock()

	for _, c := range children {
		_ = c.kill()
		_ = c.Wait()
	}
	for s := range sockets {
		abort(s)
	}
	for s := range sockets {
		_ = s.Close()
	}
	var errs []error
	for _, n := range nodes {
		errs = append(errs, n.net.Close(), n.mnt.Close())
	}
	errs = append(errs, l.pass.Close())
	return errors.Join(errs...)
}

func (l *Lab) add(n *Node) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return errors.New("its lab is closed")
	}
	l.nodes = append(l.nodes, n)
	return nil
}

// abort closes a TCP connection at once: in the ordinary way the kernel would keep its namespace until the
// peer has answered.
func abort(s io.Closer) {
	if c, ok := s.(*net.TCPConn); ok {
		_ = c.SetLinger(0)
		_ = c.Close()
	}
}

// track remembers what Close has to close.
func (l *Lab) track(s io.Closer) {
	l.mu.Lock()
	closed := l.closed
	if !closed {
		l.sockets[s] = struct{}{}
	}
	l.mu.Unlock()
	if closed {
		abort(s)
		_ = s.Close()
	}
}
