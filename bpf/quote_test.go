package bpf_test

import (
	"fmt"
	"net/netip"
	"testing"

	"github.com/gopacket/gopacket/layers"
	"golang.org/x/sys/unix"

	"github.com/xdplb/xdplb/bpf"
	"github.com/xdplb/xdplb/maps"
)

// An ICMP error goes where the flow goes that it quotes, also by the flow's pin,
// which it neither makes nor changes.
func TestErrorsFollowPins(t *testing.T) {
	w := newWorld(t)
	for _, s := range w.fourVIPs() {
		first := s.backends[0]
		second := s.backend(map[bool]string{false: "10.0.0.12", true: "2001:db8:a::12"}[s.Addr.Is6()])
		s.drain(first)
		unpinned := s.base()
		unpinned.client = withPort(unpinned.client, 1)
		old := first
		if s.Proto == unix.IPPROTO_UDP { // beyond the grace what has no pin is new
			w.wait(w.settings.UdpGrace)
			old = second
		}
		send := func(what string, p packet, b *maps.Backend) {
			w.Helper()
			q := p.quoting(t, 8)
			w.demand(fmt.Sprintf("%s: %s", s.VIP, what), q.bytes(t), xdpTX, bpf.XdplbReasonTransmitted, w.forwardedAs(q, b, p.tuple()))
		}
		send("an error about a flow without a pin", unpinned, old)
		if n := len(w.pins(s.VIP)); n != 0 {
			t.Errorf("%s: an ICMP error left %d pins", s.VIP, n)
		}
		p := s.base()
		p.tcp = layers.TCP{SYN: true}
		w.goes("a new flow", p, second)
		send("an error about a half-open flow", p, second)
		s.enable(first)
		s.drain(second)
		before := w.pins(s.VIP)
		w.wait(5)
		send("an error about a pinned flow", p, second)
		if after := w.pins(s.VIP); len(after) != 1 || after[p.tuple()] != before[p.tuple()] {
			t.Errorf("%s: an ICMP error changed the pin from %v to %v", s.VIP, before, after)
		}
	}
}

// Quotes that are no packets of a VIP.
func TestForeignErrors(t *testing.T) {
	w := newWorld(t)
	for _, s := range w.fourVIPs() {
		for what, change := range map[string]func(p, q *packet){
			"another port quoted":     func(p, q *packet) { p.vip = withPort(p.vip, 81); *q = p.quoting(t, 8) },
			"another protocol quoted": func(p, q *packet) { p.proto = 132; *q = p.quoting(t, 8) },
			"another source quoted": func(p, q *packet) {
				vip := p.vip
				p.vip = withAddr(p.vip, map[bool]string{false: "192.0.2.99", true: "2001:db8::99"}[p.ipv6()])
				*q = p.quoting(t, 8)
				q.vip = vip
			},
			"a type that is no error":    func(p, q *packet) { q.icmp.kind = map[bool]uint8{false: 5, true: 137}[p.ipv6()] },
			"a type of the other family": func(p, q *packet) { q.icmp.kind = map[bool]uint8{false: 2, true: 11}[p.ipv6()] },
			"another version quoted":     func(p, q *packet) { q.payload[0] = 0x25 },
			"sent to another address": func(p, q *packet) {
				q.vip = withAddr(q.vip, map[bool]string{false: "192.0.2.98", true: "2001:db8::98"}[p.ipv6()])
			},
			"source quench, type 0 (v6)": func(p, q *packet) { q.icmp.kind = map[bool]uint8{false: 4, true: 0}[p.ipv6()] },
		} {
			p := s.base()
			q := p.quoting(t, 8)
			change(&p, &q)
			w.passes(fmt.Sprintf("%s: ICMP error, %s", s.VIP, what), q.bytes(t))
		}
	}
}

// A later fragment shows no ports, so an error about it belongs to no flow, not
// even where a VIP has every port.
func TestErrorsAboutLaterFragments(t *testing.T) {
	w, vips := everything(t)
	for _, s := range vips {
		sent := s.base()
		sent.client, sent.vip = s.base().vip, s.base().client
		sent.part = &part{id: 3, offset: 16}
		q := s.base().quoting(t, 8)
		q.payload = sent.ip(t)
		w.passes(fmt.Sprintf("%s: an error about a later fragment", s.VIP), q.bytes(t))
	}
}

// tunnelled is a router's error about the outer packet that carries p to b: it
// quotes all of it, or its first size bytes.
func (w *world) tunnelled(p packet, b *maps.Backend, mtu uint32, size int) packet {
	w.Helper()
	sent := w.forwarded(p, b)[p.l3():]
	if size > 0 {
		sent = sent[:size]
	}
	q := packet{
		to: p.to, from: p.from, ttl: 60, proto: unix.IPPROTO_ICMP, icmp: icmp{3, 4, mtu},
		client: netip.MustParseAddrPort("10.0.0.254:0"), vip: netip.AddrPortFrom(maps.Addr(b.Source), 0),
	}
	if b.Addr().Is6() {
		q.client, q.proto, q.icmp = netip.MustParseAddrPort("[2001:db8:a::fe]:0"), unix.IPPROTO_ICMPV6, icmp{2, 0, mtu}
	}
	q.payload = sent
	return q
}

// What a router says about the path of a tunnel, the client is told with its next
// packet; what is no such message changes nothing.
func TestPathMTUOfTunnels(t *testing.T) {
	w := newWorld(t)
	for _, pattern := range vipNames {
		for i, way := range ways(pattern[0] == '[')[2:] {
			s := w.vip(fmt.Sprintf(pattern, 10+i))
			b := s.backend(way.backend, way.edits...)
			s.settle()
			p := s.base()
			p.payload = bytesOf(1300)
			outer, lowest := 20, uint32(576)
			if b.Addr().Is6() {
				outer, lowest = 40, 1280
			}
			what := fmt.Sprintf("%s, %s", s.VIP, way.name)
			says := func(why string, q packet) {
				t.Helper()
				w.passes(what+": "+why, q.bytes(t))
				w.goes(what+": after "+why, p, b)
			}
			stranger := *b
			stranger.Address = maps.Address(netip.MustParseAddr(map[bool]string{false: "10.0.0.99", true: "2001:db8:a::99"}[b.Addr().Is6()]))
			elsewhere := p
			elsewhere.vip = withPort(p.vip, 81)
			good := w.tunnelled(p, b, 1300, 0)
			short, expired, misled := w.tunnelled(p, b, 1300, outer+19), good, good
			expired.icmp.kind, expired.icmp.code = map[bool]uint8{false: 11, true: 3}[good.ipv6()], 0
			misled.vip = withAddr(misled.vip, map[bool]string{false: "10.0.0.2", true: "2001:db8:a::2"}[good.ipv6()])
			says("more than the link has", w.tunnelled(p, b, linkMTU+1, 0))
			large := p
			large.payload = bytesOf(linkMTU)
			w.demand(what+": as before", large.bytes(t), xdpTX, bpf.XdplbReasonTooBig, large.tooBig(t, linkMTU-outer).bytes(t))
			if good.ipv6() {
				says("more than 16 bits hold", w.tunnelled(p, b, 1<<16+1300, 0))
			}
			says("less than any link has", w.tunnelled(p, b, lowest-1, 0))
			says("0", w.tunnelled(p, b, 0, 0))
			says("another destination", w.tunnelled(p, &stranger, 1300, 0))
			says("no VIP", w.tunnelled(elsewhere, b, 1300, 0))
			says("too little quoted", short)
			says("another error", expired)
			says("another source", misled)

			w.passes(what+": the error", good.bytes(t))
			w.demand(what+": after the error", p.bytes(t), xdpTX, bpf.XdplbReasonTooBig, p.tooBig(t, 1300-outer).bytes(t))
			w.passes(what+": the least there is", w.tunnelled(p, b, lowest, 0).bytes(t))
			w.demand(what+": after that", p.bytes(t), xdpTX, bpf.XdplbReasonTooBig, p.tooBig(t, int(lowest)-outer).bytes(t))
			p.payload = bytesOf(400)
			w.goes(what+": a packet that fits", p, b)

			s.backend(way.backend, way.edits...)
			s.drain(b)
			w.passes(what+": an error about a flow without a pin", w.tunnelled(p, b, lowest, 0).bytes(t))
			if n := len(w.pins(s.VIP)); n != 0 {
				t.Errorf("%s: an error left %d pins", what, n)
			}
		}
	}
}
