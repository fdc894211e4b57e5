package loader

import (
	"net/netip"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/xdplb/xdplb/bpf"
	"github.com/xdplb/xdplb/maps"
)

// local is the record of the local stack; its Id is 0 if there is none.
func (b *bench) local(v maps.VIP) (found maps.Backend) {
	id := b.service(v).Id
	for _, r := range b.Maps.ReadBackends(func(vip uint32) bool { return vip == id }) {
		if IsLocalStack(v, &r) {
			found = r
		}
	}
	return found
}

// expire makes the time of a VIP's handover lie long ago, and its last change.
func (b *bench) expire(v maps.VIP) {
	b.Helper()
	if l := b.local(v); l.Id != 0 {
		h := handoverOf(&l)
		h.until = 1
		h.writeTo(&l.XdplbBackend)
		b.Maps.WriteBackend(&l)
	}
	b.age(v)
}

// age makes the last change to a VIP lie long ago.
func (b *bench) age(v maps.VIP) {
	b.Helper()
	s := b.service(v)
	s.ChangedAt = 1
	must(b.T, b.Maps.PutService(&s))
}

// over settles a VIP whose time is over.
func (b *bench) over(v maps.VIP) {
	b.Helper()
	b.expire(v)
	_, err := b.Refresh()
	must(b.T, err)
}

// settle settles what can be.
func (b *bench) settle(v maps.VIP) {
	b.Helper()
	b.age(v)
	_, err := b.Refresh()
	must(b.T, err)
}

// index is the number of an interface.
func (b *bench) index(iface string) int {
	b.Helper()
	link, err := linkByName(iface)
	must(b.T, err)
	return link.Attrs().Index
}

// slots looks whether every slot is as f says.
func (b *bench) slots(v maps.VIP, when string, f func(maps.Slot) bool) {
	b.Helper()
	_, slots := b.moving(v)
	for i, s := range slots {
		if !f(s) {
			b.Fatalf("%s: slot %d is %+v", when, i, s)
		}
	}
}

func TestHandoverTables(t *testing.T) {
	b := newBench(t, AttachOptions{})
	hour := time.Hour
	for _, scheduler := range []maps.Scheduler{maps.SchedulerMaglev, maps.SchedulerRR, maps.SchedulerLC} {
		v := b.vip("192.0.2.10:80", VIPOptions{Handover: &hour, Scheduler: &scheduler})
		l := b.local(v)
		if l.Id == 0 || l.Listed() || !l.Up() || l.Link.Flags != uint32(bpf.XdplbHopFlagHopLocal|bpf.XdplbHopFlagHopResolved) {
			t.Fatalf("the local stack's record: %+v", l)
		}
		from := func(backends ...uint32) func(maps.Slot) bool {
			return func(s maps.Slot) bool {
				for _, id := range backends {
					if s.Backend == id {
						return s.Moving && s.Old == l.Id
					}
				}
				return false
			}
		}
		b.slots(v, "without backends", from(l.Id))
		b.add(v, ModeNAT, "10.0.0.11:8080")
		nat := b.listed(v).Id
		b.slots(v, "with one of nat", from(nat))
		b.add(v, ModeDR, "10.0.0.12")
		views, err := b.Views(&v, false)
		must(t, err)
		if h := views[0].Handover; h == nil || h.Back || h.Left <= hour-time.Minute || h.Left > hour || len(views[0].Backends) != 2 {
			t.Errorf("viewed as %+v", views[0])
		}
		must(t, b.DeleteBackends(v, at(t, "10.0.0.12")))
		_, err = b.Drain(Selection{At: at(t, "10.0.0.11")[0]})
		must(t, err)
		b.slots(v, "with none that takes new flows", from(l.Id))
		_, err = b.Enable(Selection{At: at(t, "10.0.0.11")[0]})
		must(t, err)
		b.slots(v, "enabled", from(nat))
		b.settle(v)
		b.slots(v, "long after the last change, within the time", from(nat))

		// A flow of the local stack keeps its record; without one it goes.
		now, err := b.Now()
		must(t, err)
		b.claim(b.Maps.XdplbMaps.Flows, l.Id, "10.0.0.99:5000", "192.0.2.10:80", bpf.XdplbFlowDirectionFlowToBackend, now)
		b.over(v)
		if b.local(v).Id == 0 {
			t.Fatalf("%s: the record is gone while it has a flow", scheduler)
		}
		b.claim(b.Maps.XdplbMaps.Flows, l.Id, "10.0.0.99:5000", "192.0.2.10:80", bpf.XdplbFlowDirectionFlowToBackend, now-b.Settings.TcpIdle-1)
		b.over(v)
		if b.local(v).Id != 0 || b.records(v) != 1 {
			t.Errorf("%s: %d records are left", scheduler, b.records(v))
		}
		b.slots(v, "taken over", func(s maps.Slot) bool { return s.Backend == nat && s.Old != l.Id })

		// And back.
		must(t, b.GiveBack(&v, hour))
		l = b.local(v)
		b.slots(v, "given back", func(s maps.Slot) bool { return s.Backend == l.Id && s.Moving && s.Old == nat })
		must(t, b.SetVIP(v, VIPOptions{Handover: &hour}))
		b.slots(v, "taken again", func(s maps.Slot) bool { return s.Backend == nat && s.Moving && s.Old == nat })
		must(t, b.GiveBack(&v, hour))
		b.settle(v)
		if !b.hasVIP(v) {
			t.Fatalf("%s: the VIP is gone within the time", scheduler)
		}
		b.claim(b.Maps.XdplbMaps.Flows, nat, "10.0.0.99:5001", "192.0.2.10:80", bpf.XdplbFlowDirectionFlowToBackend, now)
		b.over(v)
		if !b.hasVIP(v) {
			t.Fatalf("%s: the VIP is gone while it has a flow", scheduler)
		}
		b.claim(b.Maps.XdplbMaps.Flows, nat, "10.0.0.99:5001", "192.0.2.10:80", bpf.XdplbFlowDirectionFlowToBackend, now-b.Settings.TcpIdle-1)
		b.over(v)
		if all := b.Maps.ReadBackends(func(uint32) bool { return true }); b.hasVIP(v) || len(all) != 0 {
			t.Errorf("%s: the VIP or %d records are left", scheduler, len(all))
		}
	}
}

// One of two VIPs that are given back ends while the other has connections, whose replies look like its own.
func TestHandoverEndsAlone(t *testing.T) {
	b := newBench(t, AttachOptions{})
	hour := time.Hour
	busy, idle := b.vip("192.0.2.10:80", VIPOptions{}), b.vip("192.0.2.11:80", VIPOptions{})
	for _, v := range []maps.VIP{busy, idle} {
		b.add(v, ModeFullNAT, "10.0.0.11:8080")
	}
	must(t, b.GiveBack(nil, hour))
	now, err := b.Now()
	must(t, err)
	reply := func(seen uint64) {
		b.claim(b.Maps.XdplbMaps.Flows, b.listed(busy).Id, "10.0.0.11:8080", "10.0.0.2:20000", bpf.XdplbFlowDirectionFlowToClient, seen)
	}
	reply(now)
	b.over(idle)
	if b.hasVIP(idle) {
		t.Error("it is there while another VIP has connections")
	}
	b.over(busy)
	if !b.hasVIP(busy) {
		t.Fatal("the other one is gone while it has a connection")
	}
	reply(now - b.Settings.TcpIdle - 1)
	b.over(busy)
	if b.hasVIP(busy) {
		t.Error("it is there without connections")
	}
}

// A command that was killed before it swapped the table has given nothing back: nobody knows who has connections.
func TestHandoverKilledBeforeTheTable(t *testing.T) {
	b := newBench(t, AttachOptions{})
	hour := time.Hour
	v := b.vip("192.0.2.10:80", VIPOptions{})
	b.add(v, ModeDR, "10.0.0.11")
	_, before := b.moving(v)
	must(t, b.GiveBack(&v, hour))
	must(t, b.Maps.PutTable(b.service(v).Id, before))
	b.over(v)
	if !b.hasVIP(v) {
		t.Fatal("the VIP is gone, and its connections with it")
	}
	l := b.local(v)
	b.slots(v, "finished", func(s maps.Slot) bool { return s.Backend == l.Id && s.Moving && s.Old == b.listed(v).Id })
	b.settle(v)
	if b.hasVIP(v) {
		t.Error("it does not end")
	}
}

// A VIP that was added keeps the record that its table names, also if something fails afterwards.
func TestHandoverAddedAndFailed(t *testing.T) {
	b := newBench(t, AttachOptions{MaxVIPs: 2})
	// Room for the VIP, and none for the mark of its address.
	var others []maps.Service
	for port := range uint16(3) {
		s := maps.Service{VIP: maps.VIP{Addr: netip.MustParseAddr("192.0.2.11"), Port: 80 + port, Proto: unix.IPPROTO_TCP}}
		must(t, b.Maps.PutService(&s))
		others = append(others, s)
	}
	v, err := maps.ParseVIP("192.0.2.10:80")
	must(t, err)
	hour := time.Hour
	if err := b.AddVIP(v, VIPOptions{Handover: &hour}); err == nil {
		t.Fatal("nothing failed")
	}
	l := b.local(v)
	if !l.Up() {
		t.Errorf("the local stack's record: %+v", l)
	}
	b.slots(v, "added", func(s maps.Slot) bool { return s.Backend == l.Id && s.Old == l.Id })
	for _, s := range others {
		must(t, b.Maps.DeleteService(s.VIP))
	}
	must(t, b.DeleteVIP(v))
}

// Nobody is asked for the local stack's address, which need not be this host's.
func TestHandoverIsNoServer(t *testing.T) {
	b := newBench(t, AttachOptions{})
	hour := time.Hour
	v := b.vip("192.0.2.10:80", VIPOptions{Handover: &hour})
	b.add(v, ModeDR, "10.0.0.11")
	servers, err := b.Servers()
	must(t, err)
	if want := Addresses(at(t, "10.0.0.11")); !slices.Equal(servers, want) {
		t.Errorf("servers %v, want %v", servers, want)
	}
}

func TestHandoverDurations(t *testing.T) {
	for _, d := range []time.Duration{0, -time.Minute, time.Second - 1, MaxHandover + 1} {
		if CheckHandover(d) == nil {
			t.Errorf("%s is taken", d)
		}
	}
	for _, h := range []handover{{0, false, 0}, {1, true, 1}, {1<<63 - 1, true, maxAffinity}, {4294937296, false, 0}} {
		var b maps.Backend
		h.writeTo(&b.XdplbBackend)
		if got := handoverOf(&b); got != h {
			t.Errorf("%+v is read as %+v", h, got)
		}
	}
}
