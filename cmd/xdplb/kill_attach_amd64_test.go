package main

import (
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
)

// TestKilledAttach kills the first attach and the purge: what is left is taken up by the next attach, and nothing
// stays in the end.
func TestKilledAttach(t *testing.T) {
	t.Parallel()
	n := buildKill(t)
	n.must("detach", "--all", "--purge")
	attach, purge := []string{"attach", "eth0"}, []string{"detach", "--all", "--purge"}
	points := n.killRounds(func(point killPoint) killed {
		n.checkNothing(fmt.Sprintf("attach, before it is %v", point))
		k := n.kill(point, attach...)
		n.must(attach...)
		n.serves(fmt.Sprintf("attach, %v, before %s", point, k.last))
		n.must(purge...)
		return k
	})
	t.Logf("attach killed at %d points", points)
	points = n.killRounds(func(point killPoint) killed {
		where := fmt.Sprintf("purge, %v", point)
		n.must(attach...)
		n.serves(where)
		k := n.kill(point, purge...)
		if err := n.on(n.Balancer, purge...); err != nil && !strings.Contains(err.Error(), "not attached") {
			t.Fatalf("%s, before %s: %v", where, k.last, err)
		}
		n.must(attach...)
		n.serves(where + ", before " + k.last)
		n.must(purge...)
		n.checkNothing(where)
		return k
	})
	t.Logf("detach --all --purge killed at %d points", points)
}

// serves adds a VIP, and makes a request.
func (n *killNet) serves(where string) {
	n.t.Helper()
	n.must("vip", "add", n.crowded)
	n.must("backend", "add", n.crowded, n.backend(0), n.backend(1))
	if _, err := n.askOnce(netip.Addr{}, netip.MustParseAddrPort(n.crowded)); err != nil {
		n.t.Fatalf("%s: %v", where, err)
	}
	if !n.attached() {
		n.t.Fatalf("%s: not attached: %+v", where, n.status())
	}
}

// checkNothing: no pins, and no program.
func (n *killNet) checkNothing(where string) {
	n.t.Helper()
	n.check(n.Balancer.Do(func() error {
		pins, err := filepath.Glob("/sys/fs/bpf/xdplb*")
		if err != nil || len(pins) > 0 {
			return errors.Join(err, fmt.Errorf("%s: left: %v", where, pins))
		}
		link, err := netlink.LinkByName("eth0")
		if err == nil && link.Attrs().Xdp != nil && link.Attrs().Xdp.Attached {
			err = fmt.Errorf("%s: a program is left on eth0", where)
		}
		return err
	}))
}
