package main

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"
)

// TestKilledSettling kills a command that does nothing but settle a VIP: with live connections, dead pins, and a
// record that was replaced. Each point has a VIP of its own, for settling takes time to come due.
func TestKilledSettling(t *testing.T) {
	t.Parallel()
	const most, idle = 24, time.Second
	n := buildKill(t)
	n.base()
	n.must("timeout", "--tcp", idle.String())
	r := &rules{takes: map[string]bool{}, deleted: make(map[string]int)}
	for _, server := range n.Servers {
		r.takes[server.Name] = true
	}
	var crowds []*crowd
	vips := make([]string, most)
	for i := range vips {
		port := 1000 + i
		vips[i] = fmt.Sprintf("%s:%d", n.VIP4, port)
		for _, server := range n.Servers[:3] {
			n.serveNamesAt(server, port)
		}
		n.must("vip", "add", vips[i])
		n.must("backend", "add", vips[i], n.backend(0), n.backend(1))
		c := newCrowd(n.liveNet, netip.MustParseAddrPort(vips[i]), r, idle)
		c.join(4, idle/5)
		crowds = append(crowds, c)
		n.must("backend", "set", vips[i], n.backend(0), "--mode", "tun")
		n.must("backend", "add", vips[i], n.backend(2))
		for range 3 {
			c.open(netip.Addr{}).leave()
		}
	}
	settle := func(vip string) []string { return []string{"enable", n.backend(1), "--vip", vip} }
	n.eventually("the last VIP can settle", func() bool {
		n.must(settle(vips[most-1])...)
		return n.vip(vips[most-1]).MovingSlots <= 4
	})
	all := vips
	points := n.killRounds(func(point killPoint) killed {
		if len(vips) == 1 {
			t.Fatalf("more than %d points; make more VIPs", most-1)
		}
		vip := vips[0]
		vips = vips[1:]
		before := n.vip(vip).MovingSlots
		k := n.kill(point, settle(vip)...)
		where := fmt.Sprintf("settling %s, %v, before %s", vip, point, k.last)
		if _, err := n.askOnce(netip.Addr{}, netip.MustParseAddrPort(vip)); err != nil {
			t.Fatalf("%s: %v", where, err)
		}
		n.must(settle(vip)...)
		if after := n.vip(vip).MovingSlots; before < 1000 || after > 4 {
			t.Errorf("%s: of %d moving slots %d are left", where, before, after)
		}
		return k
	})
	t.Logf("settling killed at %d points", points)
	for _, c := range crowds {
		if failures := c.dismiss(); len(failures) > 0 {
			t.Fatal(strings.Join(failures, "\n"))
		}
		if c.on < 4-1 {
			t.Errorf("of 4 connections only %d are left: %v", c.on, c)
		}
	}
	for _, vip := range all {
		n.must("vip", "del", vip)
	}
	if used := n.status().Places.Backends; used != n.places {
		t.Errorf("%d places of backends are taken after all; %d were", used.Used, n.places.Used)
	}
}

// TestKilledChangeSettlesNoEarlier: when a change is killed right after it swapped the table, the idle timeout
// counts from that change, and not from the one before.
func TestKilledChangeSettlesNoEarlier(t *testing.T) {
	t.Parallel()
	const most, idle = 32, 4 * time.Second
	n := buildKill(t)
	n.must("timeout", "--tcp", idle.String())
	vips := make([]string, most)
	for i := range vips {
		vips[i] = fmt.Sprintf("%s:%d", n.VIP4, 1000+i)
		for _, server := range n.Servers {
			n.serveNamesAt(server, 1000+i)
		}
		n.must("vip", "add", vips[i])
		n.must("backend", "add", vips[i], n.backend(0), n.backend(1))
	}
	n.must("backend", "add", vips[most-1], n.backend(2))
	n.eventually("what changed before can settle", func() bool {
		n.must("enable", n.backend(1), "--vip", vips[most-1])
		return n.vip(vips[most-1]).MovingSlots == 0
	})
	swapped := 0
	points := n.killRounds(func(point killPoint) killed {
		if len(vips) == 1 {
			t.Fatalf("more than %d points; make more VIPs", most-1)
		}
		n.subject = vips[0]
		vips = vips[1:]
		members := n.connect() // and then silent
		k := n.kill(point, "backend", "add", n.subject, n.backend(2), n.backend(3))
		before := n.vip(n.subject).MovingSlots
		n.must("enable", n.backend(1), "--vip", n.subject)
		if after := n.vip(n.subject).MovingSlots; after < before {
			t.Errorf("%v, before %s: %d slots moved, and the next command settled all but %d", point, k.last, before, after)
		}
		for _, m := range members {
			if server, err := m.name(); server != m.server {
				t.Errorf("%v, before %s: a connection to %s: %q answered, %v", point, k.last, m.server, server, err)
			}
			m.leave()
		}
		if before > 0 {
			swapped++
		}
		return k
	})
	if swapped < 3 {
		t.Errorf("of %d points only %d were after the swap", points, swapped)
	}
}
