package lab

import (
	"bufio"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// witness is a node outside of the lab under test that knows each of its namespaces by a number. The kernel
// drops a number with its namespace.
func witness(t *testing.T) *Node {
	t.Helper()
	l := must(New())(t)
	t.Cleanup(func() { check(t, l.Close()) })
	return must(l.Node("witness"))(t)
}

func (n *Node) number(t *testing.T, other *Node, number int) {
	t.Helper()
	check(t, n.Do(func() error { return netlink.SetNetNsIdByFd(int(other.net.Fd()), number) }))
}

// numbers lists the namespaces that still exist.
func (n *Node) numbers(t *testing.T) (numbers []uint32) {
	t.Helper()
	check(t, n.Do(func() error {
		request := nl.NewNetlinkRequest(unix.RTM_GETNSID, unix.NLM_F_DUMP)
		request.AddData(&nl.RtGenMsg{RtGenmsg: unix.RtGenmsg{Family: unix.AF_UNSPEC}})
		messages, err := request.Execute(unix.NETLINK_ROUTE, unix.RTM_NEWNSID)
		for _, m := range messages {
			const header = 4 // struct rtgenmsg, with padding
			attrs, err := nl.ParseRouteAttr(m[header:])
			if err != nil {
				return err
			}
			for _, a := range attrs {
				if a.Attr.Type == unix.NETNSA_NSID {
					numbers = append(numbers, binary.NativeEndian.Uint32(a.Value))
				}
			}
		}
		return err
	}))
	return numbers
}

// here is what this process can see: its devices and its mounts.
func here(t *testing.T) (all []string) {
	t.Helper()
	for _, dev := range must(net.Interfaces())(t) {
		all = append(all, "device "+dev.Name)
	}
	mounts := string(must(os.ReadFile("/proc/thread-self/mountinfo"))(t))
	return append(all, strings.Split(mounts, "\n")...)
}

func TestNothingIsLeft(t *testing.T) {
	before := here(t)
	w := witness(t)
	n := must(BuildNetwork(Plan{Shape: TwoArmed, RouteVIPs: true}))(t)
	for i, node := range n.Nodes() {
		w.number(t, node, i)
	}

	// Everything that could outlive the lab: a pinned program, a child, open connections and a download.
	pinned := must(ebpf.NewProgram(&ebpf.ProgramSpec{Type: ebpf.XDP, License: "MIT", Instructions: reflector(0x88b5)}))(t)
	info := must(pinned.Info())(t)
	id, _ := info.ID()
	check(t, n.Balancer.Do(func() error { return pinned.Pin("/sys/fs/bpf/pinned") }))
	check(t, pinned.Close())
	child := n.Servers[0].Command(t.Context(), "sleep", "1000")
	check(t, child.Start())
	check(t, n.Servers[1].ServeHTTP(80))
	response, err := n.Client.HTTPClient().Get(fmt.Sprintf("http://%s/download/1000", n.Servers4[1]))
	check(t, err)
	defer response.Body.Close()
	_ = must(n.Servers[2].Listen("tcp", ":81"))(t)
	_ = must(n.Client.DialContext(t.Context(), "tcp", netip.AddrPortFrom(n.Servers6[2], 81).String()))

	if got, want := len(w.numbers(t)), len(n.Nodes()); got != want {
		t.Fatalf("%d namespaces before Close, want %d", got, want)
	}
	if program, err := ebpf.NewProgramFromID(id); err != nil {
		t.Fatalf("the pinned program is gone before Close: %v", err)
	} else {
		check(t, program.Close())
	}

	check(t, n.Close())
	if err := syscall.Kill(child.Process.Pid, 0); err != syscall.ESRCH {
		t.Errorf("the child still exists: %v", err)
	}
	gone(t, w, id)
	if diff := cmp.Diff(before, here(t)); diff != "" {
		t.Errorf("devices and mounts (-before +after):\n%s", diff)
	}
	if _, err := n.Lab.Node("late"); err == nil {
		t.Error("a closed lab made a node")
	}
	check(t, n.Close())
}

// gone waits until no namespace of the lab and not the program pinned in it are left.
func gone(t *testing.T, w *Node, id ebpf.ProgramID) {
	t.Helper()
	eventually(t, "no namespace is left", func() bool { return len(w.numbers(t)) == 0 })
	eventually(t, "the pinned program is gone", func() bool {
		program, err := ebpf.NewProgramFromID(id)
		if err == nil {
			check(t, program.Close())
		}
		return err != nil
	})
}

// A process with a lab is killed in the middle of a download: its namespaces, pins and children go too.
func TestNothingIsLeftWhenKilled(t *testing.T) {
	if os.Getenv("LAB_TEST_VICTIM") != "" {
		victim(t)
	}
	w := witness(t)
	cmd := exec.Command("/proc/self/exe", "-test.run=^TestNothingIsLeftWhenKilled$")
	cmd.Env = append(os.Environ(), "LAB_TEST_VICTIM=1")
	cmd.Stderr = os.Stderr
	stdout := must(cmd.StdoutPipe())(t)
	check(t, cmd.Start())
	defer cmd.Wait()
	defer cmd.Process.Kill()

	// The victim prints the id of a pinned program and of a child, then its namespaces' descriptors.
	var id ebpf.ProgramID
	var child int
	var descriptors []int
	lines := bufio.NewScanner(stdout)
	for lines.Scan() {
		line := lines.Text()
		if line == "ready" {
			break
		}
		var fd int
		switch {
		case scans(line, "program %d", &id), scans(line, "child %d", &child):
		case scans(line, "namespace %d", &fd):
			descriptors = append(descriptors, fd)
		}
	}
	if id == 0 || child == 0 || len(descriptors) == 0 {
		t.Fatalf("the victim said too little: program %d, child %d, %d namespaces", id, child, len(descriptors))
	}
	for i, fd := range descriptors {
		ns := must(os.Open(fmt.Sprintf("/proc/%d/fd/%d", cmd.Process.Pid, fd)))(t)
		w.number(t, &Node{net: ns}, i)
		check(t, ns.Close())
	}
	if got, want := len(w.numbers(t)), len(descriptors); got != want {
		t.Fatalf("%d namespaces before the kill, want %d", got, want)
	}

	check(t, cmd.Process.Kill())
	gone(t, w, id)
	eventually(t, "the child is gone", func() bool { return syscall.Kill(child, 0) == syscall.ESRCH })
}

func scans(line, format string, into any) bool {
	_, err := fmt.Sscanf(line, format, into)
	return err == nil
}

// victim builds a lab, says what is in it, and waits to be killed.
func victim(t *testing.T) {
	n := must(BuildNetwork(Plan{}))(t)
	pinned := must(ebpf.NewProgram(&ebpf.ProgramSpec{Type: ebpf.XDP, License: "MIT", Instructions: reflector(0x88b5)}))(t)
	id, _ := must(pinned.Info())(t).ID()
	check(t, n.Balancer.Do(func() error { return pinned.Pin("/sys/fs/bpf/pinned") }))
	child := n.Servers[0].Command(t.Context(), "sleep", "1000")
	check(t, child.Start())
	check(t, n.Servers[1].ServeHTTP(80))
	response := must(n.Client.HTTPClient().Get(fmt.Sprintf("http://%s/download/1000", n.Servers4[1])))(t)
	fmt.Printf("program %d\nchild %d\n", id, child.Process.Pid)
	for _, node := range slices.Backward(n.Nodes()) {
		fmt.Printf("namespace %d\n", node.net.Fd())
	}
	fmt.Println("ready")
	_, _ = io.Copy(io.Discard, response.Body)
	select {}
}
