package loader

import (
	"net"
	"net/netip"
	"testing"

	"github.com/vishvananda/netlink"

	"github.com/xdplb/xdplb/bpf"
	"github.com/xdplb/xdplb/maps"
)

// bench is a balancer on eth0 (10.0.0.2, 2001:db8::2) whose neighbours are known.
type bench struct {
	*testing.T
	*Balancer
}

func newBench(t *testing.T, o AttachOptions) *bench {
	t.Helper()
	pins, lan := realserverHost(t)
	for _, addr := range []string{"10.0.0.11", "10.0.0.12", "2001:db8::11", "2001:db8::12"} {
		must(t, netlink.NeighSet(&netlink.Neigh{
			LinkIndex: lan.near.Attrs().Index, IP: net.ParseIP(addr), HardwareAddr: lan.far.Attrs().HardwareAddr, State: netlink.NUD_PERMANENT,
		}))
	}
	_, err := Attach(pins, []string{"eth0"}, o)
	must(t, err)
	t.Cleanup(func() {
		_, err := Detach(pins, nil, true)
		must(t, err)
	})
	b, err := Open(pins)
	must(t, err)
	t.Cleanup(func() { b.Close() })
	return &bench{t, b}
}

func (b *bench) vip(s string, o VIPOptions) maps.VIP {
	b.Helper()
	v, err := maps.ParseVIP(s)
	must(b.T, err)
	must(b.T, b.AddVIP(v, o))
	return v
}

func (b *bench) add(v maps.VIP, mode Mode, backends ...string) {
	b.Helper()
	_, err := b.AddBackends(v, at(b.T, backends...), BackendOptions{Mode: &mode})
	must(b.T, err)
}

func at(t *testing.T, backends ...string) (all []netip.AddrPort) {
	t.Helper()
	for _, s := range backends {
		a, err := ParseBackend(s)
		must(t, err)
		all = append(all, a)
	}
	return all
}

func (b *bench) service(v maps.VIP) (s maps.Service) {
	b.Helper()
	s.VIP = v
	if !b.Maps.LookupVIP(v, &s.XdplbVip) {
		b.Fatalf("%s: no such VIP", v)
	}
	return s
}

// expect compares whether all flows of a VIP are pinned and whether replies may come, as the data path sees it.
func (b *bench) expect(v maps.VIP, when string, pinned, replies bool) maps.Service {
	b.Helper()
	s := b.service(v)
	settings, err := b.Maps.ReadSettings()
	must(b.T, err)
	if is := s.Has(bpf.XdplbVipFlagVipPinAll); is != pinned || (s.PinnedSince != 0) != pinned {
		b.Errorf("%s: pins all: %v, since %d; want %v", when, is, s.PinnedSince, pinned)
	}
	if is := settings.Has(bpf.XdplbSettingFlagSettingTranslates); is != replies {
		b.Errorf("%s: replies expected: %v, want %v", when, is, replies)
	}
	return s
}

func (b *bench) moving(v maps.VIP) (moving int, slots []maps.Slot) {
	b.Helper()
	slots, err := b.Maps.Table(b.service(v).Id)
	must(b.T, err)
	return maps.Moving(slots), slots
}

func TestPinsAllWhileABackendTranslates(t *testing.T) {
	b := newBench(t, AttachOptions{})
	v := b.vip("192.0.2.10:80", VIPOptions{})
	b.add(v, ModeDR, "10.0.0.11")
	b.expect(v, "dr alone", false, false)
	if n, _ := b.moving(v); n != 0 {
		t.Fatalf("%d slots move", n)
	}
	_, before := b.moving(v)

	b.add(v, ModeNAT, "10.0.0.12:8080")
	since := b.expect(v, "with nat", true, true).PinnedSince
	n, after := b.moving(v)
	if n != len(after) {
		t.Errorf("%d of %d slots move", n, len(after))
	}
	for i := range after {
		if after[i].Old != before[i].Backend {
			t.Fatalf("slot %d was %d, and old is %d", i, before[i].Backend, after[i].Old)
		}
	}
	yes, no := true, false
	must(t, b.SetVIP(v, VIPOptions{TrackAll: &yes}))
	if s := b.expect(v, "with nat, and wished", true, true); s.PinnedSince != since {
		t.Errorf("pinned since %d, and then since %d", since, s.PinnedSince)
	}
	must(t, b.DeleteBackends(v, at(t, "10.0.0.12:8080")))
	if s := b.expect(v, "wished alone", true, false); s.PinnedSince != since {
		t.Errorf("pinned since %d, and then since %d", since, s.PinnedSince)
	}
	must(t, b.SetVIP(v, VIPOptions{TrackAll: &no}))
	b.expect(v, "no longer", false, false)
	if n, slots := b.moving(v); n != len(slots) {
		t.Errorf("%d of %d slots move: flows that the pins alone know would be lost", n, len(slots))
	}
}

// A record that was replaced counts until it goes: its flows need it.
func TestPinsAllUntilTheLastRecordGoes(t *testing.T) {
	b := newBench(t, AttachOptions{})
	v := b.vip("192.0.2.10:80", VIPOptions{})
	b.add(v, ModeDR, "10.0.0.11")
	id := b.listed(v).Id
	for _, mode := range []Mode{ModeFullNAT, ModeDR} {
		must(t, b.SetBackends(v, at(t, "10.0.0.11"), BackendOptions{Mode: &mode}))
		b.expect(v, "set to "+mode.String(), true, true)
		if now := b.listed(v); now.Id == id || Mode(now.Mode) != mode {
			t.Fatalf("id %d in mode %s, was %d; want another id in mode %s", now.Id, Mode(now.Mode), id, mode)
		}
	}
	if n := b.records(v); n != 3 {
		t.Fatalf("%d records", n)
	}
	now, err := b.Now()
	must(t, err)
	long := now - b.Settings.TcpIdle - 1
	fullnat := b.translating(v)
	for _, c := range []struct {
		when string
		seen uint64 // of a reply
		live bool
	}{{"with a flow of which one entry is left", now, true}, {"settled", long, false}} {
		b.claim(b.Maps.XdplbMaps.Flows, fullnat, "10.0.0.11:80", "10.0.0.2:20000", bpf.XdplbFlowDirectionFlowToClient, c.seen)
		s := b.service(v)
		s.ChangedAt = 1 // long ago
		must(t, b.Maps.PutService(&s))
		_, err = b.Refresh()
		must(t, err)
		b.expect(v, c.when, c.live, c.live)
	}
	if n := b.records(v); n != 1 {
		t.Errorf("%d records are left", n)
	}
}

func (b *bench) listed(v maps.VIP) (found maps.Backend) {
	id := b.service(v).Id
	for _, r := range b.Maps.ReadBackends(func(vip uint32) bool { return vip == id }) {
		if r.Listed() {
			found = r
		}
	}
	return found
}

func (b *bench) translating(v maps.VIP) (id uint32) {
	vip := b.service(v).Id
	for _, r := range b.Maps.ReadBackends(func(of uint32) bool { return of == vip }) {
		if Mode(r.Mode).translates() {
			id = r.Id
		}
	}
	return id
}

func (b *bench) records(v maps.VIP) int {
	id := b.service(v).Id
	return len(b.Maps.ReadBackends(func(vip uint32) bool { return vip == id }))
}

// A VIP that had no backend has no flows that nobody saw.
func TestPinsAllFromTheFirst(t *testing.T) {
	b := newBench(t, AttachOptions{})
	v := b.vip("192.0.2.10:80", VIPOptions{})
	b.expect(v, "empty", false, false)
	b.add(v, ModeFullNAT, "10.0.0.11:8080")
	if s := b.expect(v, "fullnat", true, true); s.PinnedSince != 1 {
		t.Errorf("pinned since %d, want 1: from the first", s.PinnedSince)
	}
	if n, _ := b.moving(v); n != 0 {
		t.Errorf("%d slots move that nothing came from", n)
	}
	views, err := b.Views(&v, true)
	must(t, err)
	if active := views[0].Active; active != (Active{Known: true}) {
		t.Errorf("active %+v, want none, known", active)
	}
	other := b.vip("192.0.2.11:80", VIPOptions{})
	b.add(other, ModeNAT, "10.0.0.12")
	must(t, b.DeleteVIP(v))
	b.expect(other, "one of two deleted", true, true)
	must(t, b.DeleteVIP(other))
	if settings, err := b.Maps.ReadSettings(); err != nil || settings.Has(bpf.XdplbSettingFlagSettingTranslates) {
		t.Errorf("replies are expected by nobody (%v)", err)
	}
}
