package lab

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"github.com/google/go-cmp/cmp"
)

// patience bounds a wait for something that is going to happen.
const patience = 20 * time.Second

func must[T any](v T, err error) func(testing.TB) T {
	return func(t testing.TB) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func network(t *testing.T, plan Plan) *Network {
	t.Helper()
	n := must(BuildNetwork(plan))(t)
	t.Cleanup(func() { check(t, n.Close()) })
	return n
}

// eventually waits until f is true.
func eventually(t testing.TB, what string, f func() bool) {
	t.Helper()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	deadline := time.After(patience)
	for !f() {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("in vain waited until %s", what)
		}
	}
}

func TestTrafficCrossesSwitch(t *testing.T) {
	for _, shape := range []struct {
		name string
		Shape
	}{{"flat", Flat}, {"routed", Routed}, {"two-armed", TwoArmed}} {
		t.Run(shape.name, func(t *testing.T) {
			n := network(t, Plan{Shape: shape.Shape})
			for i, server := range n.Servers {
				check(t, server.ServeHTTP(80))
				for _, addr := range []netip.Addr{n.Servers4[i], n.Servers6[i]} {
					url := fmt.Sprintf("http://%s/", netip.AddrPortFrom(addr, 80))
					got, err := WhoAnswers(t.Context(), n.Client.HTTPClient(), url)
					if err != nil || got != server.Name {
						t.Errorf("%s answered %q, %v; want %s", url, got, err, server.Name)
					}
					udpEcho(t, n.Client, server, netip.AddrPortFrom(addr, 7))
				}
			}
		})
	}
}

// udpEcho has the server answer one datagram with its own words.
func udpEcho(t *testing.T, client, server *Node, addr netip.AddrPort) {
	t.Helper()
	socket := must(server.ListenPacket("udp", addr.String()))(t)
	defer socket.Close()
	go func() {
		buffer := make([]byte, 100)
		size, from, err := socket.ReadFrom(buffer)
		if err == nil {
			_, _ = socket.WriteTo(append([]byte(server.Name+" heard "), buffer[:size]...), from)
		}
	}()
	conn := must(client.DialContext(t.Context(), "udp", addr.String()))(t)
	defer conn.Close()
	check(t, conn.SetDeadline(time.Now().Add(patience)))
	must(conn.Write([]byte("hello")))(t)
	buffer := make([]byte, 100)
	size := must(conn.Read(buffer))(t)
	if got, want := string(buffer[:size]), server.Name+" heard hello"; got != want {
		t.Errorf("%s answered %q, want %q", addr, got, want)
	}
}

func TestDownloadArrivesWhole(t *testing.T) {
	const mib = 5
	n := network(t, Plan{})
	check(t, n.Servers[0].ServeHTTP(80))
	url := fmt.Sprintf("http://%s/download/%d", n.Servers4[0], mib)
	response := must(n.Client.HTTPClient().Get(url))(t)
	defer response.Body.Close()
	got := must(DigestOf(response.Body))(t)
	if want := Digest(mib); got != want {
		t.Errorf("digest %x, want %x", got, want)
	}
	if got := response.Header.Get(ServerHeader); got != "server1" {
		t.Errorf("%s answered, want server1", got)
	}
	if got := must(DigestOf(Download(mib - 1)))(t); got == Digest(mib) {
		t.Error("the digest does not depend on the bytes")
	}
}

// A frame that comes in on eth0 and leaves it again by XDP_TX reaches the other node: the switch's port passes.
func TestTransmittedFrameArrives(t *testing.T) {
	n := network(t, Plan{})
	const etherType = 0x88b5 // IEEE 802, local experiments
	reflect := must(ebpf.NewProgram(&ebpf.ProgramSpec{
		Type: ebpf.XDP, License: "MIT", Instructions: reflector(etherType),
	}))(t)
	defer reflect.Close()
	check(t, n.Balancer.Do(func() error {
		dev, err := net.InterfaceByName("eth0")
		if err != nil {
			return err
		}
		attached, err := link.AttachXDP(link.XDPOptions{
			Program: reflect, Interface: dev.Index, Flags: link.XDPDriverMode,
		})
		if err != nil {
			return err
		}
		t.Cleanup(func() { attached.Close() })
		return nil
	}))

	fd, index := packetSocket(t, n.Client, "eth0", etherType)
	client := must(n.Client.MAC("eth0"))(t)
	balancer := must(n.Balancer.MAC("eth0"))(t)
	frame := append(append([]byte{}, balancer...), client...)
	frame = append(frame, etherType>>8, etherType&0xff)
	frame = append(frame, make([]byte, 46)...)
	to := &syscall.SockaddrLinklayer{Ifindex: index, Halen: 6}
	check(t, syscall.Sendto(fd, frame, 0, to))
	buffer := make([]byte, 2000)
	size, _, err := syscall.Recvfrom(fd, buffer, 0)
	check(t, err)
	want := append(append([]byte{}, client...), balancer...)
	if diff := cmp.Diff(want, buffer[:min(size, 12)]); diff != "" {
		t.Errorf("the frame that came back, addresses only (-want +got):\n%s", diff)
	}
}

// reflector sends frames of one EtherType back to whom they came from and passes all others.
func reflector(etherType uint16) asm.Instructions {
	swapped := int32(etherType>>8 | etherType<<8)
	return asm.Instructions{
		asm.LoadMem(asm.R2, asm.R1, 0, asm.Word), // data
		asm.LoadMem(asm.R3, asm.R1, 4, asm.Word), // data_end
		asm.Mov.Reg(asm.R4, asm.R2),
		asm.Add.Imm(asm.R4, 14),
		asm.JGT.Reg(asm.R4, asm.R3, "pass"),
		asm.LoadMem(asm.R5, asm.R2, 12, asm.Half),
		asm.JNE.Imm(asm.R5, swapped, "pass"),
		asm.LoadMem(asm.R5, asm.R2, 0, asm.Word),
		asm.LoadMem(asm.R6, asm.R2, 4, asm.Half),
		asm.LoadMem(asm.R7, asm.R2, 6, asm.Word),
		asm.LoadMem(asm.R8, asm.R2, 10, asm.Half),
		asm.StoreMem(asm.R2, 0, asm.R7, asm.Word),
		asm.StoreMem(asm.R2, 4, asm.R8, asm.Half),
		asm.StoreMem(asm.R2, 6, asm.R5, asm.Word),
		asm.StoreMem(asm.R2, 10, asm.R6, asm.Half),
		asm.Mov.Imm(asm.R0, 3), // XDP_TX
		asm.Return(),
		asm.Mov.Imm(asm.R0, xdpPass).WithSymbol("pass"),
		asm.Return(),
	}
}

// packetSocket returns a packet socket that gives up reading when patience ends, and its device's index.
func packetSocket(t *testing.T, n *Node, dev string, etherType uint16) (fd, index int) {
	t.Helper()
	protocol := etherType>>8 | etherType<<8
	check(t, n.Do(func() error {
		device, err := net.InterfaceByName(dev)
		if err != nil {
			return err
		}
		index = device.Index
		fd, err = syscall.Socket(syscall.AF_PACKET, syscall.SOCK_RAW|syscall.SOCK_CLOEXEC, int(protocol))
		if err != nil {
			return err
		}
		t.Cleanup(func() { syscall.Close(fd) })
		limit := syscall.NsecToTimeval(patience.Nanoseconds())
		if err := syscall.SetsockoptTimeval(fd, syscall.SOL_SOCKET, syscall.SO_RCVTIMEO, &limit); err != nil {
			return err
		}
		return syscall.Bind(fd, &syscall.SockaddrLinklayer{Protocol: protocol, Ifindex: index})
	}))
	return fd, index
}

func TestCommandRunsInNode(t *testing.T) {
	n := network(t, Plan{})
	node := n.Balancer
	script := "readlink /proc/self/ns/net; ls /sys/class/net; stat -fc %T /sys/fs/bpf; pwd"
	out, err := node.Command(t.Context(), "sh", "-c", script).Output()
	check(t, err)
	dir := must(os.Getwd())(t)
	want := fmt.Sprintf("net:[%d]\neth0\nlo\nbpf_fs\n%s\n", node.inode, dir)
	if diff := cmp.Diff(want, string(out)); diff != "" {
		t.Errorf("child in %s (-want +got):\n%s", node.Name, diff)
	}
	if home := must(os.Readlink("/proc/self/ns/net"))(t); strings.Contains(string(out), home) {
		t.Errorf("the child is in this process's namespace %s", home)
	}

	_, err = node.Command(t.Context(), "sh", "-c", "echo so it failed >&2; exit 3").Output()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != 3 || !strings.Contains(err.Error(), "so it failed") {
		t.Errorf("a child that failed gave %v", err)
	}
}

func TestPinsOfNodesAreApart(t *testing.T) {
	n := network(t, Plan{})
	run := func(node *Node, script string) {
		t.Helper()
		check(t, node.Command(t.Context(), "sh", "-c", script).Run())
	}
	dir := fmt.Sprintf("/sys/fs/bpf/lab_test_%d", os.Getpid())
	run(n.Balancer, "mkdir "+dir)
	run(n.Balancer, "test -d "+dir)
	run(n.Servers[0], "test ! -e "+dir)
	if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%s shows outside of the lab: %v", dir, err)
	}
}

func TestProcesses(t *testing.T) {
	n := network(t, Plan{})
	empty := func() bool { return len(must(n.Balancer.Processes())(t)) == 0 }
	eventually(t, "the namespace is empty", empty)

	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	cat := n.Balancer.Command(ctx, "cat")
	stdin := must(cat.StdinPipe())(t)
	defer stdin.Close()
	stdout := must(cat.StdoutPipe())(t)
	check(t, cat.Start())
	must(stdin.Write([]byte("x")))(t)
	must(io.ReadFull(stdout, make([]byte, 1)))(t) // now it is cat, not a copy of this process
	want := []Process{{PID: cat.Process.Pid, Name: "cat"}}
	if diff := cmp.Diff(want, must(n.Balancer.Processes())(t)); diff != "" {
		t.Errorf("processes in the node (-want +got):\n%s", diff)
	}
	cancel()
	if err := cat.Wait(); err == nil {
		t.Error("the child ended well though its context had ended")
	}
	eventually(t, "the namespace is empty again", empty)
}
