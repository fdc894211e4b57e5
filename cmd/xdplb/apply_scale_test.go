package main

import (
	"bytes"
	"context"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/xdplb/xdplb/cmd/xdplb/internal/lab"
)

const (
	manyVIPs     = 1000
	manyBackends = 10
)

// manyFile asks for many VIPs, with the servers' addresses repeated on several ports.
func manyFile(n *liveNet, weight int) string {
	var text strings.Builder
	text.WriteString("interfaces: [eth0]\nvips:\n")
	for i := range manyVIPs {
		fmt.Fprintf(&text, "- vip: 198.18.%d.%d:80\n  mode: nat\n  assign: eth0\n  backends:\n", i/250, i%250+1)
		for j := range manyBackends {
			fmt.Fprintf(&text, "  - {address: %s:%d, weight: %d}\n", n.Servers4[j%len(n.Servers4)], 8000+j, weight)
		}
	}
	return text.String()
}

// TestApplyMany applies a thousand VIPs with ten backends each. How long it takes is printed, and judged by readers.
func TestApplyMany(t *testing.T) {
	n := buildLive(t, 3)
	path := filepath.Join(t.TempDir(), "many.yaml")
	apply := func(weight int, want string) {
		t.Helper()
		n.check(os.WriteFile(path, []byte(manyFile(n, weight)), 0o600))
		began := time.Now()
		out, err := n.output(n.Balancer, "apply", path)
		n.check(err)
		if lines := strings.Split(strings.TrimSpace(string(out)), "\n"); lines[len(lines)-1] != want {
			t.Fatalf("%s; want %s", lines[len(lines)-1], want)
		}
		t.Logf("%s: %.1f s", want, time.Since(began).Seconds())
	}
	apply(1, fmt.Sprintf("%d added, 0 changed, 0 removed", manyVIPs*(manyBackends+2)))
	apply(1, "nothing to do")
	if places := n.status().Places; places.VIPs.Used != manyVIPs || places.Backends.Used != manyVIPs*manyBackends {
		t.Errorf("places: %+v", places)
	}
	if v := n.vip("198.18.3.250:80"); v.MovingSlots != 0 || len(v.Backends) != manyBackends {
		t.Errorf("the last VIP: %+v", v)
	}
	apply(2, fmt.Sprintf("0 added, %d changed, 0 removed", manyVIPs*manyBackends))
	n.check(os.WriteFile(path, []byte("vips: []\n"), 0o600))
	began := time.Now()
	n.must("apply", path)
	t.Logf("all removed: %.1f s", time.Since(began).Seconds())
	if places := n.status().Places; places.VIPs.Used != 0 || places.Backends.Used != 0 {
		t.Errorf("places after all: %+v", places)
	}
}

// TestKilledMany kills an apply of a thousand VIPs in the middle. A client of a VIP that stays asks all the time.
func TestKilledMany(t *testing.T) {
	n := buildLive(t, 2)
	stays := fmt.Sprintf("- {vip: %s:80, backends: [%s, %s]}\n", n.VIP4, n.Servers4[0], n.Servers4[1])
	path := filepath.Join(t.TempDir(), "many.yaml")
	n.check(os.WriteFile(path, []byte("vips:\n"+stays), 0o600))
	n.must("apply", path)
	n.check(os.WriteFile(path, []byte(manyFile(n, 1)+stays), 0o600))
	r := &rules{takes: map[string]bool{"server1": true, "server2": true}, deleted: make(map[string]int)}
	crowd := newCrowd(n, netip.AddrPortFrom(n.VIP4, livePort), r, time.Minute)
	crowd.join(20, 20*time.Millisecond)
	cmd := selfCommand(t.Context(), n.Balancer, "apply", path)
	n.check(cmd.Start())
	for n.status().Places.VIPs.Used < 100 {
		if t.Context().Err() != nil {
			t.Fatal("it does not begin")
		}
	}
	n.check(cmd.Process.Kill())
	_ = cmd.Wait()
	if used := n.status().Places.VIPs.Used; used > manyVIPs {
		t.Fatalf("it was done before it was killed: %d VIPs", used)
	}
	n.must("apply", path)
	out, err := n.output(n.Balancer, "apply", path)
	if n.check(err); strings.TrimSpace(string(out)) != "nothing to do" {
		t.Errorf("after that: %.200s", out)
	}
	if places := n.status().Places; places.VIPs.Used != manyVIPs+1 || places.Backends.Used != manyVIPs*manyBackends+2 {
		t.Errorf("places: %+v", places)
	}
	if failures := crowd.dismiss(); len(failures) > 0 {
		t.Error(strings.Join(failures, "\n"))
	}
}

// TestProgress: a terminal shows how far it is, and a pipe does not.
func TestProgress(t *testing.T) {
	t.Parallel()
	n := buildLive(t, 1)
	path := filepath.Join(t.TempDir(), "vips.yaml")
	n.check(os.WriteFile(path, fmt.Appendf(nil, "vips: [{vip: %s:80, backends: [%s]}, {vip: %[1]s:81}]\n", n.VIP4, n.Servers4[0]), 0o600))
	terminal, name := openTerminal(t)
	ctx, cancel := context.WithTimeout(t.Context(), livePatience)
	defer cancel()
	shown := make(chan string)
	go func() {
		var all strings.Builder
		buffer := make([]byte, 1024)
		for {
			count, err := terminal.Read(buffer)
			if all.Write(buffer[:count]); err != nil { // EIO: nobody has it open any more
				shown <- all.String()
				return
			}
		}
	}()
	line, err := os.OpenFile(name, os.O_RDWR|unix.O_NOCTTY, 0)
	n.check(err)
	cmd := selfCommand(ctx, n.Balancer, "apply", path)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, line
	err = cmd.Start()
	line.Close()
	n.check(err)
	n.check(cmd.Wait())
	if text := <-shown; !strings.Contains(text, "2 of 2 VIPs") || !strings.HasSuffix(text, "\x1b[K") {
		t.Errorf("on a terminal: %q", text)
	}
	if strings.Contains(out.String(), "\r") {
		t.Errorf("on standard output: %q", out.String())
	}
	n.must("vip", "del", n.VIP4.String()+":80")
	cmd = selfCommand(ctx, n.Balancer, "apply", path)
	if out, err := cmd.CombinedOutput(); err != nil || strings.Contains(string(out), "\r") {
		t.Errorf("in a pipe: %q, %v", out, err)
	}
}

// selfCommand is a command of this binary as xdplb: see TestMain.
func selfCommand(ctx context.Context, node *lab.Node, args ...string) *lab.Cmd {
	cmd := node.Command(ctx, "/proc/self/exe", args...)
	cmd.Args[0] = "xdplb"
	return cmd
}

// openTerminal returns the controlling end of a new terminal, and the name of the other.
func openTerminal(t *testing.T) (*os.File, string) {
	t.Helper()
	controller, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { controller.Close() })
	if err := unix.IoctlSetPointerInt(int(controller.Fd()), unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	number, err := unix.IoctlGetInt(int(controller.Fd()), unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	return controller, "/dev/pts/" + strconv.Itoa(number)
}
