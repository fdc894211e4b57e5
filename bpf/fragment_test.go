package bpf_test

import (
	"fmt"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/xdplb/xdplb/bpf"
	"github.com/xdplb/xdplb/maps"
)

const fragmentSeconds = 30 // net.ipv4.ipfrag_time

// fragments cuts p into three.
func (p packet) fragments(id uint32) [3]packet {
	var parts [3]packet
	p.payload = bytesOf(300)
	for i := range parts {
		parts[i] = p
		parts[i].part = &part{id: id, offset: 104 * i, size: 104}
	}
	parts[2].part.size = 0
	return parts
}

// Later fragments go where the first one went.
func TestFragments(t *testing.T) {
	w := newWorld(t)
	id := uint32(1)
	for _, pattern := range vipNames {
		for i, way := range ways(pattern[0] == '[') {
			s := w.vip(fmt.Sprintf(pattern, 10+i))
			b := s.backend(way.backend, way.edits...)
			s.settle()
			for _, tags := range tagStacks {
				p := s.base()
				p.tags = tags
				p.options = []byte{148, 4, 0, 0}
				p.extensions = []extension{paddedExtension(unix.IPPROTO_HOPOPTS, 16)}
				what := fmt.Sprintf("%s, %s, %d tags", s.VIP, way.name, len(tags))
				parts := p.fragments(id)
				w.passes(what+": last fragment before the first", parts[2].bytes(t))
				w.goes(what+": first fragment", parts[0], b)
				w.goes(what+": last fragment", parts[2], b)
				w.goes(what+": middle fragment", parts[1], b)
				id++
			}
		}
	}
}

// A fragment may be as small as eight bytes; the first with its ports is enough.
func TestSmallestFragments(t *testing.T) {
	w := newWorld(t)
	for i, s := range w.fourVIPs() {
		b, p := s.backends[0], s.base()
		for offset := 0; offset < 40; offset += 8 {
			p.part = &part{id: uint32(i), offset: offset, size: 8}
			if s.Proto == unix.IPPROTO_TCP { // a header in pieces is the stack's business
				w.passes("fragment of a TCP header", p.bytes(t))
			} else {
				w.goes(fmt.Sprintf("%s: fragment at %d", s.VIP, offset), p, b)
			}
		}
	}
}

// Fragments belong together by addresses, protocol and id, for a while.
func TestFragmentsOfOthers(t *testing.T) {
	w := newWorld(t)
	for i, s := range w.fourVIPs() {
		b, id := s.backends[0], uint32(1<<15+16*i)
		parts := s.base().fragments(id)
		w.goes("first fragment", parts[0], b)
		for what, change := range map[string]func(*packet){
			"id": func(p *packet) { p.part.id++ },
			"client": func(p *packet) {
				p.client = withAddr(p.client, map[bool]string{false: "198.51.100.8", true: "2001:db8:c::8"}[p.ipv6()])
			},
			"address": func(p *packet) {
				p.vip = withAddr(p.vip, map[bool]string{false: "192.0.2.11", true: "2001:db8::11"}[p.ipv6()])
			},
			"protocol": func(p *packet) { p.proto ^= unix.IPPROTO_TCP ^ unix.IPPROTO_UDP; p.payload = bytesOf(320) },
		} {
			p := s.base().fragments(id)[1]
			change(&p)
			w.passes(fmt.Sprintf("%s: later fragment of another %s", s.VIP, what), p.bytes(t))
		}
		w.goes("later fragment", parts[1], b)
		w.wait(fragmentSeconds * testHz)
		w.goes("later fragment just in time", parts[1], b)
		w.wait(1)
		w.passes("later fragment too late", parts[1].bytes(t))
		w.goes("first fragment again", parts[0], b)
		w.goes("later fragment after all", parts[1], b)
		other := s.base()
		other.vip = withPort(other.vip, 81)
		foreign := other.fragments(id + 2)
		w.passes("first fragment to no VIP", foreign[0].bytes(t))
		w.passes("later fragment to no VIP", foreign[1].bytes(t))
	}
}

// The first fragment alone has the ports: the others must go by the same pin.
func TestFragmentsFollowPins(t *testing.T) {
	w := newWorld(t)
	for _, s := range w.fourVIPs() {
		first := s.backends[0]
		s.backend(map[bool]string{false: "10.0.0.12", true: "2001:db8:a::12"}[s.Addr.Is6()])
		s.drain(first)
		parts := s.base().fragments(5)
		w.goes("first fragment", parts[0], first)
		if s.Proto == unix.IPPROTO_UDP {
			w.wait(w.settings.UdpGrace)
		}
		before := w.pins(s.VIP)
		w.goes("later fragment", parts[1], first)
		if after := w.pins(s.VIP); len(before) != 1 || len(after) != 1 || before[parts[0].tuple()] != after[parts[0].tuple()] {
			t.Errorf("%s: a later fragment changed the pins from %v to %v", s.VIP, before, after)
		}
	}
}

// Where a VIP has every port, a later fragment is surely its own.
func TestFragmentsOfEveryPort(t *testing.T) {
	w := newWorld(t)
	for _, s := range w.fourVIPs() {
		parts := s.base().fragments(9)
		w.passes("later fragment", parts[1].bytes(t))
		all := w.vip(map[bool]string{false: "192.0.2.10:0", true: "[2001:db8::10]:0"}[s.Addr.Is6()] + "/" + maps.ProtoName(s.Proto))
		all.backend(s.backends[0].Addr().String())
		all.settle()
		w.drops("later fragment to a VIP with every port", parts[1].bytes(t), bpf.XdplbReasonFragmentUnknown)
		elsewhere := parts[1]
		elsewhere.vip = withAddr(elsewhere.vip, map[bool]string{false: "192.0.2.11", true: "2001:db8::11"}[s.Addr.Is6()])
		w.passes("later fragment to another address", elsewhere.bytes(t))
		w.goes("first fragment", parts[0], s.backends[0])
		w.goes("later fragment", parts[1], s.backends[0])
		parts[0].vip, parts[1].vip = withPort(parts[0].vip, 4242), withPort(parts[1].vip, 4242)
		parts[0].part.id, parts[1].part.id = 10, 10
		w.goes("first fragment to another port", parts[0], all.backends[0])
		w.goes("later fragment to another port", parts[1], all.backends[0])
	}
}

// A fragment header that the packet is too short for stands in the padding.
func TestFragmentHeadersInPadding(t *testing.T) {
	w := newWorld(t)
	for _, s := range w.fourVIPs()[2:] {
		parts := s.base().fragments(12)
		w.goes("first fragment", parts[0], s.backends[0])
		frame := parts[1].bytes(t)
		copy(frame[parts[1].l3()+4:], word(7))
		w.passes("a later fragment whose header is cut short", frame)
		w.goes("the later fragment", parts[1], s.backends[0])
	}
}
