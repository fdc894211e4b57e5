package bpf_test

import (
	"fmt"
	"testing"

	"github.com/xdplb/xdplb/bpf"
	"github.com/xdplb/xdplb/maps"
)

func TestEveryPort(t *testing.T) {
	w := newWorld(t)
	exact := w.vip("192.0.2.10:80")
	one := exact.backend("10.0.0.11")
	exact.settle()
	udp := w.vip("192.0.2.10:80/udp")
	three := udp.backend("10.0.0.13")
	udp.settle()
	at := func(port uint16) packet { p := exact.base(); p.vip = withPort(p.vip, port); return p }

	w.goes("the VIP's port", at(80), one)
	w.passes("another port", at(81).bytes(t))
	all := w.vip("192.0.2.10:0")
	two := all.backend("10.0.0.12")
	w.drops("a VIP without backends", at(81).bytes(t), bpf.XdplbReasonNoBackend)
	all.settle()
	for _, port := range []uint16{0, 1, 79, 81, 65535} {
		w.goes(fmt.Sprintf("port %d", port), at(port), two)
	}
	w.goes("the VIP's port still", at(80), one)
	w.goes("the other protocol", udp.base(), three)
	p := udp.base()
	p.vip = withPort(p.vip, 81)
	w.passes("another port of the other protocol", p.bytes(t))
	q := at(4242)
	e := q.quoting(t, 8)
	w.demand("ICMP error about any port", e.bytes(t), xdpTX, bpf.XdplbReasonTransmitted, w.forwardedAs(e, two, q.tuple()))
	must(t, w.DeleteService(exact.VIP))
	w.goes("the port of a VIP that was deleted", at(80), two)
	must(t, w.DeleteService(all.VIP))
	w.passes("a VIP that was deleted", at(81).bytes(t))
}

func TestUndeliverable(t *testing.T) {
	w := newWorld(t)
	for _, s := range w.fourVIPs() {
		b, p := s.backends[0], s.base()
		with := func(what string, reason bpf.XdplbReason, edit func(*maps.Backend)) {
			t.Helper()
			changed := *b
			edit(&changed)
			w.WriteBackend(&changed)
			w.drops(fmt.Sprintf("%s: %s", s.VIP, what), p.bytes(t), reason)
			w.WriteBackend(b)
			w.goes(fmt.Sprintf("%s: after %s", s.VIP, what), p, b)
		}
		with("unresolved", bpf.XdplbReasonNoNextHop, func(b *maps.Backend) { b.Link.Flags = 0 })
		with("by an interface that is not attached", bpf.XdplbReasonNoNextHop, func(b *maps.Backend) { b.Link.Interface = 3 })
		with("by an interface that cannot be", bpf.XdplbReasonNoNextHop, func(b *maps.Backend) { b.Link.Interface = 64 })
		with("another generation of the record", bpf.XdplbReasonNoBackend, func(b *maps.Backend) { b.Id += 1 << 20 })
		must(t, w.FreeBackend(b))
		w.drops("a record that is free", p.bytes(t), bpf.XdplbReasonNoBackend)
		w.WriteBackend(b)
		s.slots = make([]maps.Slot, testTable)
		must(t, w.PutTable(s.Id, s.slots))
		w.drops("an empty table", p.bytes(t), bpf.XdplbReasonNoBackend)
		must(t, w.DeleteTable(s.Id))
		w.drops("no table", p.bytes(t), bpf.XdplbReasonNoBackend)
		counted, err := w.BackendCounters(b.Id)
		must(t, err)
		if counted.Packets != 4 {
			t.Errorf("%s: %d packets counted, want 4", s.VIP, counted.Packets)
		}
	}
	s := w.vip("192.0.2.77:80")
	b := s.backend("10.0.0.11", farther)
	s.settle()
	must(t, w.Devices.Delete(uint32(outside)))
	w.drops("by an interface that is being detached", s.base().bytes(t), bpf.XdplbReasonNoNextHop)
	must(t, w.DeleteInterface(outside))
	w.drops("by an interface that was detached", s.base().bytes(t), bpf.XdplbReasonNoNextHop)
	if c, err := w.BackendCounters(b.Id); err != nil || c.Packets != 0 {
		t.Errorf("%+v counted of packets that were dropped (%v)", c, err)
	}
}

// A backend that is this host is the stack's business.
func TestLocalBackend(t *testing.T) {
	w := newWorld(t)
	for _, s := range w.fourVIPs() {
		b := s.backends[0]
		b.Link = bpf.XdplbHopLink{Flags: uint32(bpf.XdplbHopFlagHopLocal) | uint32(bpf.XdplbHopFlagHopResolved), Mtu: 65535}
		w.WriteBackend(b)
		for _, tags := range tagStacks {
			p := s.base()
			p.tags = tags
			mutate(p, func(name string, p packet) { w.passes("local backend: "+name, p.bytes(t)) })
			p.ttl = 1
			w.passes("local backend: TTL 1", p.bytes(t))
		}
		counted, err := w.BackendCounters(b.Id)
		must(t, err)
		if counted.Packets == 0 {
			t.Error("packets of a local backend are not counted")
		}
	}
}

// A backend's next hop may change while packets flow.
func TestNextHopChanges(t *testing.T) {
	w := newWorld(t)
	for _, s := range w.fourVIPs() {
		b := s.backends[0]
		for _, edit := range []func(){
			func() {},
			func() { b.Mac.Mac = [6]uint8{2, 1, 2, 3, 4, 5} },
			func() { b.Mac.Vlan = 7 },
			func() { b.Link.Interface = outside },
			func() { b.Mac.Vlan, b.Link.Interface = 0, inside },
		} {
			edit()
			w.WriteBackend(b)
			w.goes("next hop", s.base(), b)
		}
	}
}

// A driver may leave too little room before the frame for what is added.
func TestHeadroom(t *testing.T) {
	w := newWorld(t)
	roomy := w.entry
	for _, way := range ways(false)[2:] {
		for _, vlan := range []uint16{0, 5} {
			s := w.vip(fmt.Sprintf("192.0.2.%d:80", 1+w.vips))
			b := s.backend(way.backend, append(way.edits, func(b *maps.Backend) { b.Mac.Vlan = vlan })...)
			s.settle()
			var fits, lacks, told, silent int
			for taken := int32(128); taken <= 212; taken += 4 {
				w.entry, w.metadata = w.narrowed(taken), int(taken)
				what := fmt.Sprintf("%s, VLAN %d, %d bytes taken", way.name, vlan, taken)
				p := s.base()
				if w.send(p.bytes(t)).reason == bpf.XdplbReasonNoHeadroom {
					w.drops(what, p.bytes(t), bpf.XdplbReasonNoHeadroom)
					lacks++
				} else {
					w.goes(what, p, b)
					fits++
				}
				p.ttl = 1
				if w.send(p.bytes(t)).verdict == xdpDrop {
					w.drops(what+", TTL 1", p.bytes(t), bpf.XdplbReasonTtlExceeded)
					silent++
				} else {
					w.demand(what+", TTL 1", p.bytes(t), xdpTX, bpf.XdplbReasonTtlExceeded, p.exceeded(t).bytes(t))
					told++
				}
			}
			w.entry, w.metadata = roomy, 0
			if fits == 0 || lacks == 0 || told == 0 || silent == 0 {
				t.Errorf("%s: %d fit and %d do not, %d messages and %d not", way.name, fits, lacks, told, silent)
			}
			c, err := w.BackendCounters(b.Id)
			must(t, err)
			if c.Packets != uint64(2*fits) {
				t.Errorf("%s: %d packets counted, want %d", way.name, c.Packets, 2*fits)
			}
		}
	}
}

// Of many VIPs each finds its own table.
func TestManyVIPs(t *testing.T) {
	w := newWorld(t)
	type pair struct {
		s *service
		b *maps.Backend
	}
	var all []pair
	for i := range 40 {
		s := w.vip(fmt.Sprintf(vipNames[i%4], 100+i))
		b := s.backend(map[bool]string{false: "10.0.0.11", true: "2001:db8:a::11"}[s.Addr.Is6()])
		all = append(all, pair{s.settle(), b})
	}
	for _, p := range all {
		w.goes(p.s.String(), p.s.base(), p.b)
	}
}
