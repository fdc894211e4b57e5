package bpf_test

import (
	"fmt"
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/xdplb/xdplb/bpf"
	"github.com/xdplb/xdplb/maps"
)

// complaint is what a router on the way to b says of the outer packet that p
// became: it fits mtu not. It quotes size bytes behind the outer header.
func (w *world) complaint(p packet, b *maps.Backend, mtu, size int) packet {
	w.Helper()
	outer := w.forwarded(p, b)[14:]
	header := 20
	router := netip.MustParseAddr("203.0.113.1")
	message := packet{
		to: interfaceMAC(inside), from: clientMAC, ttl: 60,
		proto: unix.IPPROTO_ICMP, icmp: icmp{3, 4, uint32(mtu)},
	}
	if b.Addr().Is6() {
		header, router = 40, netip.MustParseAddr("2001:db8:d::1")
		message.proto, message.icmp = unix.IPPROTO_ICMPV6, icmp{2, 0, uint32(mtu)}
	}
	message.client = netip.AddrPortFrom(router, 0)
	message.vip = netip.AddrPortFrom(maps.Addr(b.Source), 0)
	message.payload = outer[:min(header+size, len(outer))]
	return message
}

// A router's error about an outer packet passes to the stack, and the client's
// next large packet is answered with what the tunnel leaves of the router's MTU.
func TestTunnelLearnsPathMTU(t *testing.T) {
	w := newWorld(t)
	for _, pattern := range vipNames {
		for i, at := range []string{"10.0.0.12", "2001:db8:a::12"} {
			s := w.vip(fmt.Sprintf(pattern, 10+i))
			b := s.backend(at, tunnel)
			s.settle()
			p := s.base()
			p.payload = bytesOf(1400 - len(p.ip(t)) + len(p.payload)) // an IP packet of 1,400 bytes
			what := fmt.Sprintf("%s to %s", s.VIP, at)
			w.goes(what+", before", p, b)

			other := p
			other.vip = withAddr(p.vip, map[bool]string{false: "192.0.2.99", true: "2001:db8::99"}[p.ipv6()])
			for name, useless := range map[string]packet{
				"too little is quoted":  w.complaint(p, b, 1390, 8),
				"too small to be true":  w.complaint(p, b, 500, 128),
				"larger than before":    w.complaint(p, b, 9000, 128),
				"about no VIP of ours":  w.complaint(other, b, 1390, 128),
				"not a size complaint":  notAboutSize(w.complaint(p, b, 1390, 128)),
				"sent by somebody else": fromElsewhere(w.complaint(p, b, 1390, 128)),
			} {
				w.passes(what+", "+name, useless.bytes(t))
				w.goes(what+", after an error: "+name, p, b)
			}

			room := 1390 - 20
			if b.Addr().Is6() {
				room -= 20
			}
			w.passes(what+", the error", w.complaint(p, b, 1390, 128).bytes(t))
			w.demand(what+", after it", p.bytes(t), xdpTX, bpf.XdplbReasonTooBig, p.tooBig(t, room).bytes(t))
			p.payload = p.payload[:len(p.payload)-(1400-room)]
			b.Link.Mtu = 1390
			w.goes(what+", as the client was told", p, b)
		}
	}
}

func notAboutSize(p packet) packet {
	p.icmp.code = 1 // IPv4: host unreachable
	if p.ipv6() {
		p.icmp.kind = 1 // destination unreachable
	}
	return p
}

// fromElsewhere is addressed to us, and quotes a packet that has another source.
func fromElsewhere(p packet) packet {
	p.payload = append([]byte(nil), p.payload...)
	at := 15
	if p.ipv6() {
		at = 23
	}
	p.payload[at] ^= 1
	return p
}
