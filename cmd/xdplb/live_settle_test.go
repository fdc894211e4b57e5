package main

import (
	"net/netip"
	"testing"
	"time"
)

// TestSettling: a while after the last change the next command settles what it can. Connections that live stay
// where they are before and after; records that were replaced go with the last of theirs, and so do dead pins.
func TestSettling(t *testing.T) {
	t.Parallel()
	const idle, connections = 3 * time.Second, 60
	n := buildLive(t, 4)
	n.giveSources(8, false)
	at := netip.AddrPortFrom(n.VIP4, livePort)
	vip := at.String()
	n.must("timeout", "--tcp", idle.String())
	n.must("vip", "add", vip)
	n.must("backend", "add", vip, n.backend(0), n.backend(1), n.backend(2))
	if moving := n.vip(vip).MovingSlots; moving != 0 {
		t.Fatalf("%d slots of a new VIP move, which has no connections yet", moving)
	}
	takes := map[string]bool{"server1": true, "server2": true, "server3": true, "server4": true}
	r := &rules{takes: takes, deleted: make(map[string]int)}
	c := newCrowd(n, at, r, idle)
	c.join(connections, 100*time.Millisecond)
	c.join(20, idle*4/5)

	n.must("backend", "add", vip, n.backend(3))
	n.must("backend", "set", vip, n.backend(0), "--mode", "tun") // a new record; the old one keeps its connections
	n.must("drain", n.backend(1))
	if status := n.status(); status.Places.Backends.Used != 5 {
		t.Errorf("%d records; want those of 4 backends and one that was replaced", status.Places.Backends.Used)
	}
	whole := n.vip(vip)
	if whole.MovingSlots == 0 {
		t.Fatal("no slot moves after three changes")
	}
	n.must("refresh")
	if moving := n.vip(vip).MovingSlots; moving != whole.MovingSlots {
		t.Errorf("%d slots moved and %d do right after: they settle before the idle timeout", whole.MovingSlots, moving)
	}
	n.eventually("no slots move but those that a live pin holds", func() bool {
		n.must("refresh")
		moving := n.vip(vip).MovingSlots
		return 0 < moving && moving <= connections+20
	})
	if status := n.status(); status.Places.Backends.Used != 5 {
		t.Errorf("%d records while connections of the replaced one live; want 5", status.Places.Backends.Used)
	}
	c.pause(idle) // all speak once more, in settled slots and in moving ones
	if failures := c.dismiss(); len(failures) > 0 {
		t.Fatal(failures)
	}
	if t.Log(c.String()); c.on < connections+20-2 {
		t.Error("too few connections lived to the end")
	}

	n.eventually("all pins are dead", func() bool {
		var flows struct{ Count int }
		n.ask(&flows, "flows", "--count")
		return flows.Count == 0
	})
	n.must("backend", "set", vip, n.backend(2), "--weight", "2") // settles what moved, and moves anew
	n.eventually("every slot has settled", func() bool {
		n.must("refresh")
		return n.vip(vip).MovingSlots == 0
	})
	status := n.status()
	if p := status.Places; p.Backends.Used != 4 {
		t.Errorf("%d records are left of 4 backends", p.Backends.Used)
	}
	n.checkNoPins(status, vip)
}

// checkNoPins: of pins in slots that settled before they died some may be left, which nobody reads; they go when
// their slot has moved and settled again.
func (n *liveNet) checkNoPins(status statusJSON, vip string) {
	n.t.Helper()
	before := status.Places.Flows.Used + status.Places.HalfOpen.Used
	n.must("vip", "set", vip, "--scheduler", "source")
	n.eventually("every slot has settled again", func() bool {
		n.must("refresh")
		return n.vip(vip).MovingSlots == 0
	})
	p := n.status().Places
	if p.Flows.Used != 0 || p.HalfOpen.Used != 0 {
		n.t.Errorf("%d and %d dead pins are left, of %d", p.Flows.Used, p.HalfOpen.Used, before)
	}
}
