package bpf_test

import (
	"fmt"
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/xdplb/xdplb/bpf"
	"github.com/xdplb/xdplb/maps"
)

// replace deletes the VIP's only backend and adds the same server again, as scripts do that renew their servers.
func (s *service) replace() *maps.Backend {
	s.Helper()
	old := s.backends[0]
	b := *old
	b.Id += 1 << bpf.XdplbBackendIdPartBackendIndexBits // its place, and the next generation
	s.WriteBackend(&b)
	s.backends = []*maps.Backend{&b}
	s.change()
	return &b
}

// What flows of a deleted backend hold is free at once, also where the same server is added again.
func TestClaimsOfDeletedBackend(t *testing.T) {
	eachTranslation(t, func(t *testing.T, s *service) {
		s.ports(1)
		for i, end := range []func(*dialogue){func(*dialogue) {}, says(true, fin), says(false, fin)} {
			port := 100 + i
			d := s.establish(fmt.Sprintf("before %d", i), s.base().numbered(port))
			if s.Proto == unix.IPPROTO_TCP {
				end(d)
			}
			s.replace()
			s.wait(1)
			d = s.establish(fmt.Sprintf("from the same port %d", i), s.base().numbered(port))
			d.forth("data", d.client)
			d.back("a reply", d.reply(d.client))
			s.replace()
			s.wait(1)
		}
	})
}

// A connection of NAT goes on where its server was deleted and added again: the table names it.
func TestAdoptedAfterDeletion(t *testing.T) {
	w := translating(t)
	for _, pattern := range []string{vipNames[0], vipNames[2]} {
		s := w.translatedVIP(fmt.Sprintf(pattern, 10), bpf.XdplbModeModeNat)
		d := s.establish("before", s.base())
		d.b = s.replace()
		s.wait(1)
		d.forth("data", d.client)
		d.back("a reply", d.reply(d.client))
	}
}

// A tuple that was promoted once keeps its place; a handshake there gives way as any other.
func TestHalfOpenGivesWayWherePromoted(t *testing.T) {
	w := translating(t)
	w.ports(1)
	for i, answered := range []bool{false, true} {
		s := w.translatedVIP(fmt.Sprintf("192.0.2.%d:80", 10+i), bpf.XdplbModeModeFullnat, func(b *maps.Backend) { b.Port += uint16(i) })
		d := s.establish("that promotes the tuple", s.base().numbered(1))
		d.says(true, fin)
		d.says(false, fin)
		d.says(true, ack)
		w.wait(testHz + 1)
		d = s.opens("half-open", s.base().numbered(2))
		if answered {
			d.says(false, synAck)
		}
		w.wait(3 * testHz)
		s.refuses("while it is young", 3)
		w.wait(1)
		s.establish("in its place", s.base().numbered(3))
	}
}

// A handshake that lost its port to another learns it with its next packet.
func TestHalfOpenLearnsThatItGaveWay(t *testing.T) {
	w := translating(t)
	w.ports(1)
	s := w.translatedVIP("192.0.2.10:80", bpf.XdplbModeModeFullnat)
	for port := 1; port < 9; port += 2 {
		slow := s.opens("slow", s.base().numbered(port))
		w.wait(3*testHz + 1)
		d := s.establish("quick", s.base().numbered(port+1))
		again := slow.segment(syn)
		s.drops("a SYN sent again", again.bytes(t), bpf.XdplbReasonTwinLost)
		d.back("a reply", d.reply(d.client))
		d.says(true, rst)
		w.wait(testHz + 1)
	}
}

// With scheduler source each flow of a client begins at a port of its own, and is found again there.
func TestSourceHashedFlowsAreFoundAgain(t *testing.T) {
	w := translating(t)
	s := w.translatedVIP("192.0.2.10:80", bpf.XdplbModeModeFullnat)
	s.Function = bpf.XdplbSlotFunction{Scheduler: uint8(maps.SchedulerSource), SourcePrefix: 128}
	s.put()
	ports := map[netip.AddrPort]bool{}
	for i := range 8 {
		d := s.establish(fmt.Sprintf("flow %d of the client", i), s.base().numbered(100+i))
		forth, _ := d.keys()
		s.remove(forth)
		d.forth("data after its entry was evicted", d.client)
		ports[d.source] = true
	}
	if len(ports) != 8 {
		t.Errorf("8 flows have sources %v", ports)
	}
}

// Where a client keeps its backend, UDP that has no pin is new, and goes there, as soon as all others have pins.
func TestAffinityOfUDPAfterChange(t *testing.T) {
	w := newWorld(t)
	for _, name := range vipNames[1:2] {
		s := w.affine(fmt.Sprintf(name, 10), maps.SchedulerRR, 1, 1, 1)
		s.wait(s.settings.UdpIdle)
		to := s.keeps("settled", "198.51.100.1", 1000)
		s.ChangedAt = s.settings.Clock
		s.put()
		if again := s.keeps("right after a change", "198.51.100.1", 2000); again != to {
			t.Errorf("the client went to backend %d, and after a change to %d", to, again)
		}
	}
}
