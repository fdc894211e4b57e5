package loader

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/xdplb/xdplb/bpf"
	"github.com/xdplb/xdplb/maps"
)

func ptr[T any](v T) *T { return &v }

// finds compares where clients of a VIP find a server.
func (b *bench) finds(when string, v maps.VIP, addr string, port uint16) {
	b.Helper()
	id, err := b.Maps.Server(b.service(v).Id, netip.MustParseAddr(addr))
	must(b.T, err)
	want := uint32(0)
	for _, record := range b.Maps.ReadBackends(func(vip uint32) bool { return vip == b.service(v).Id }) {
		if record.Listed() && record.AddrPort() == netip.AddrPortFrom(netip.MustParseAddr(addr), port) {
			want = record.Id
		}
	}
	if id != want || port != 0 && want == 0 {
		b.Errorf("%s: clients find %s as backend %d, want %d", when, addr, id, want)
	}
}

// Clients find the server that there is, in each change.
func TestServersFollowChanges(t *testing.T) {
	b := newBench(t, AttachOptions{})
	v := b.vip("192.0.2.10:80", VIPOptions{})
	b.add(v, ModeDR, "10.0.0.11")
	b.finds("no affinity", v, "10.0.0.11", 0)
	must(t, b.SetVIP(v, VIPOptions{Affinity: ptr(time.Minute)}))
	b.finds("affinity", v, "10.0.0.11", 80)
	b.add(v, ModeNAT, "10.0.0.12:8080", "10.0.0.12:8081")
	b.finds("added", v, "10.0.0.12", 8080)
	must(t, b.SetBackends(v, at(t, "10.0.0.11"), BackendOptions{Mode: ptr(ModeNAT)}))
	b.finds("set to nat", v, "10.0.0.11", 80)
	must(t, b.SetBackends(v, at(t, "10.0.0.12:8080"), BackendOptions{Weight: ptr(uint16(0))}))
	b.finds("the first port takes none", v, "10.0.0.12", 8081)
	must(t, b.DeleteBackends(v, at(t, "10.0.0.12:8081")))
	b.finds("the other port is deleted", v, "10.0.0.12", 8080)
	must(t, b.DeleteBackends(v, at(t, "10.0.0.12:8080")))
	b.finds("deleted", v, "10.0.0.12", 0)
	must(t, b.SetVIP(v, VIPOptions{Affinity: ptr(time.Duration(0))}))
	b.finds("no affinity any more", v, "10.0.0.11", 0)
	must(t, b.SetVIP(v, VIPOptions{Affinity: ptr(time.Hour)}))
	id := b.service(v).Id
	must(t, b.DeleteVIP(v))
	if server, err := b.Maps.Server(id, netip.MustParseAddr("10.0.0.11")); server != 0 || err != nil {
		t.Errorf("of a VIP that is no more clients find backend %d (%v)", server, err)
	}
}

// Whoever needs pins has them, and as long.
func TestPinsAllForItsScheduler(t *testing.T) {
	b := newBench(t, AttachOptions{})
	v := b.vip("192.0.2.10:80", VIPOptions{Scheduler: ptr(maps.SchedulerRR)})
	b.add(v, ModeDR, "10.0.0.11", "10.0.0.12")
	if s := b.expect(v, "rr from the first", true, false); s.PinnedSince != 1 {
		t.Errorf("pinned since %d", s.PinnedSince)
	}
	_, slots := b.moving(v)
	for i := range slots {
		if slots[i].Backend != slots[i%2].Backend || slots[0].Backend == slots[1].Backend {
			t.Fatalf("slot %d: the table is no sequence", i)
		}
	}
	for _, c := range []struct {
		what   string
		o      VIPOptions
		pinned bool
	}{
		{"lc", VIPOptions{Scheduler: ptr(maps.SchedulerLC)}, true},
		{"source", VIPOptions{Scheduler: ptr(maps.SchedulerSource)}, false},
		{"source with affinity", VIPOptions{Affinity: ptr(time.Minute)}, true},
		{"rr with affinity", VIPOptions{Scheduler: ptr(maps.SchedulerRR)}, true},
		{"rr without", VIPOptions{Affinity: ptr(time.Duration(0)), TrackAll: ptr(false)}, true},
		{"maglev", VIPOptions{Scheduler: ptr(maps.SchedulerMaglev)}, false},
	} {
		must(t, b.SetVIP(v, c.o))
		b.expect(v, c.what, c.pinned, false)
		if n, slots := b.moving(v); n != len(slots) {
			t.Errorf("%s: %d of %d slots move", c.what, n, len(slots))
		}
	}
}

// VIPs that give one name share a number that no other group has.
func TestAffinityGroups(t *testing.T) {
	b := newBench(t, AttachOptions{})
	group := func(name string) VIPOptions {
		return VIPOptions{Affinity: ptr(time.Minute), AffinityGroup: &name}
	}
	a, c, e := b.vip("192.0.2.10:80", group("web")), b.vip("192.0.2.10:443", group("web")), b.vip("192.0.2.11:25", group("mail"))
	number := func(v maps.VIP) uint32 { return b.service(v).AffinityGroup }
	if number(a) == 0 || number(a) != number(c) || number(e) == 0 || number(e) == number(a) {
		t.Errorf("groups %d, %d and %d", number(a), number(c), number(e))
	}
	must(t, b.SetVIP(a, VIPOptions{Affinity: ptr(time.Hour)}))
	if number(a) != number(c) {
		t.Error("another duration leaves the group")
	}
	must(t, b.SetVIP(a, group("")))
	must(t, b.SetVIP(c, VIPOptions{Affinity: ptr(time.Duration(0))}))
	for _, v := range []maps.VIP{a, c} {
		if s := b.service(v); s.AffinityGroup != 0 || s.Group() != "" {
			t.Errorf("%s: group %d %q", v, s.AffinityGroup, s.Group())
		}
	}
}

// What lc compares is counted anew by what lists and what changes.
func TestRecounts(t *testing.T) {
	b := newBench(t, AttachOptions{})
	v := b.vip("192.0.2.10:80", VIPOptions{})
	b.add(v, ModeDR, "10.0.0.11")
	index := maps.Index(b.listed(v).Id)
	drift := func(want uint64, f func() error) {
		t.Helper()
		must(t, b.Maps.Loads.Put(index, uint64(7)))
		must(t, f())
		var load uint64
		must(t, b.Maps.Loads.Lookup(index, &load))
		if load != want {
			t.Errorf("the load is %d, want %d", load, want)
		}
	}
	list := func() error { _, err := b.Views(nil, true); return err }
	drift(7, list) // nobody compares it
	must(t, b.SetVIP(v, VIPOptions{Scheduler: ptr(maps.SchedulerLC)}))
	drift(0, list)
	drift(0, func() error {
		locked, err := OpenLocked(b.dir)
		if err != nil {
			return err
		}
		return locked.Close()
	})
	locked, err := OpenLocked(b.dir)
	must(t, err)
	defer locked.Close()
	drift(7, list) // who changes has counted, and goes on counting
}

func TestParseScheduler(t *testing.T) {
	for _, s := range []maps.Scheduler{maps.SchedulerMaglev, maps.SchedulerSource, maps.SchedulerRR, maps.SchedulerLC} {
		if got, err := ParseScheduler(s.String()); got != s || err != nil {
			t.Errorf("%s is read as %s, %v", s, got, err)
		}
	}
	for _, s := range []string{"", "wrr", "RR", "scheduler 4"} {
		if _, err := ParseScheduler(s); err == nil || !strings.HasSuffix(err.Error(), "unknown; use maglev, source, rr or lc") {
			t.Errorf("%q: error %v", s, err)
		}
	}
	if bpf.XdplbSchedulerSchedulerRr != bpf.XdplbScheduler(maps.SchedulerRR) || bpf.XdplbSchedulerSchedulerLc != bpf.XdplbScheduler(maps.SchedulerLC) {
		t.Error("C has other numbers")
	}
}
