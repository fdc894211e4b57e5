package bpf_test

import (
	"fmt"
	"net"
	"slices"
	"testing"

	"github.com/gopacket/gopacket/layers"
	"golang.org/x/sys/unix"

	"github.com/xdplb/xdplb/bpf"
	"github.com/xdplb/xdplb/maps"
)

var tagStacks = [][]tag{
	nil,
	{{layers.EthernetTypeDot1Q, 5, false, 100}},
	{{layers.EthernetTypeQinQ, 3, true, 200}, {layers.EthernetTypeDot1Q, 1, true, 4094}},
}

// mutation changes a base packet into another that is ours as well.
type mutation struct {
	name   string
	family int // 0: either
	apply  func(*packet)
}

// hopByHop and the like: the first byte is set when the packet is written.
func paddedExtension(proto uint8, size int) extension {
	body := make([]byte, size)
	body[1] = byte(size/8 - 1)
	body[2], body[3] = 1, byte(size-4) // PadN
	return extension{proto, body}
}

var mutations = []mutation{
	{"plain", 0, func(*packet) {}},
	{"no payload", 0, func(p *packet) { p.payload = nil }},
	{"one byte", 0, func(p *packet) { p.payload = bytesOf(1) }},
	{"padded", 0, func(p *packet) { p.payload, p.padding = nil, 6 }},
	{"large", 0, func(p *packet) { p.payload = bytesOf(1400) }},
	{"all TOS bits", 0, func(p *packet) { p.tos = 0xff }},
	{"no TOS bits", 0, func(p *packet) { p.tos = 0 }},
	{"TTL 2", 0, func(p *packet) { p.ttl = 2 }},
	{"TTL 255", 0, func(p *packet) { p.ttl = 255 }},
	{"SYN with options", 0, func(p *packet) {
		p.tcp = layers.TCP{SYN: true, Options: []layers.TCPOption{{OptionType: 2, OptionLength: 4, OptionData: []byte{5, 180}}}}
	}},
	{"FIN", 0, func(p *packet) { p.tcp = layers.TCP{FIN: true, ACK: true} }},
	{"may be fragmented", 4, func(p *packet) { p.df = false }},
	{"router alert", 4, func(p *packet) { p.options = []byte{148, 4, 0, 0} }},
	{"full options", 4, func(p *packet) { p.options = append([]byte{7, 40, 40}, bytesOf(37)...) }},
	{"hop-by-hop", 6, func(p *packet) { p.extensions = []extension{paddedExtension(unix.IPPROTO_HOPOPTS, 8)} }},
	{"destination options", 6, func(p *packet) { p.extensions = []extension{paddedExtension(unix.IPPROTO_DSTOPTS, 64)} }},
	{"routing header used up", 6, func(p *packet) {
		p.extensions = []extension{{unix.IPPROTO_ROUTING, []byte{0, 0, 4, 0, 0, 0, 0, 0}}}
	}},
	{"atomic fragment", 6, func(p *packet) { p.part = &part{id: 7} }},
	{"six extension headers", 6, func(p *packet) {
		for range 6 {
			p.extensions = append(p.extensions, paddedExtension(unix.IPPROTO_DSTOPTS, 16))
		}
	}},
}

// mutate calls f with every mutation of p.
func mutate(p packet, f func(name string, p packet)) {
	for _, m := range mutations {
		if p.ipv6() && m.family == 4 || !p.ipv6() && m.family == 6 {
			continue
		}
		q := p
		m.apply(&q)
		f(m.name, q)
	}
}

// way is one way for a frame to leave.
type way struct {
	name    string
	backend string
	edits   []func(*maps.Backend)
}

func ways(ipv6 bool) []way {
	direct := "10.0.0.11"
	if ipv6 {
		direct = "2001:db8:a::11"
	}
	var all []way
	for _, w := range []way{
		{"dr", direct, nil},
		{"tun by IPv4", "10.0.0.12", []func(*maps.Backend){tunnel}},
		{"tun by IPv6", "2001:db8:a::12", []func(*maps.Backend){tunnel}},
	} {
		all = append(all, w, way{w.name + " redirected", w.backend, append(slices.Clone(w.edits), farther)})
	}
	return all
}

var vipNames = []string{"192.0.2.%d:80/tcp", "192.0.2.%d:80/udp", "[2001:db8::%d]:80/tcp", "[2001:db8::%d]:80/udp"}

// Every mode, family, protocol, number of tags, and way out.
func TestFrames(t *testing.T) {
	w := newWorld(t)
	n := 0
	for _, pattern := range vipNames {
		for i, way := range ways(pattern[0] == '[') {
			s := w.vip(fmt.Sprintf(pattern, 10+i))
			b := s.backend(way.backend, way.edits...)
			s.settle()
			for _, tags := range tagStacks {
				p := s.base()
				p.tags = tags
				mutate(p, func(name string, p packet) {
					what := fmt.Sprintf("%s, %s, %d tags, %s", s.VIP, way.name, len(tags), name)
					w.goes(what, p, b)
					n++
				})
				for _, size := range []int{8, 20, len(p.transport(t))} {
					if p.proto == unix.IPPROTO_UDP && size > 8 && size < len(p.transport(t)) {
						continue
					}
					q := p.quoting(t, size)
					verdict, reason := uint32(xdpTX), bpf.XdplbReasonTransmitted
					if b.Link.Interface == outside {
						verdict, reason = xdpRedirect, bpf.XdplbReasonRedirected
					}
					what := fmt.Sprintf("%s, %s, %d tags, ICMP error quoting %d bytes", s.VIP, way.name, len(tags), size)
					w.demand(what, q.bytes(t), verdict, reason, w.forwardedAs(q, b, p.tuple()))
					n++
				}
			}
		}
	}
	if n < 1000 {
		t.Errorf("only %d frames", n)
	}
}

// The header's checksum is changed, not computed: every carry shows for some id.
func TestHeaderChecksums(t *testing.T) {
	w := newWorld(t)
	s := w.vip("192.0.2.10:80")
	b := s.backend("10.0.0.11")
	s.settle()
	p := s.base()
	p.payload = nil
	seen := map[byte]bool{}
	for id := 0; id < 1<<16; id += 37 {
		p.id = uint16(id)
		seen[p.bytes(t)[24]] = true
		w.goes(fmt.Sprintf("id %d", id), p, b)
	}
	if len(seen) != 256 {
		t.Errorf("checksums of %d kinds", len(seen))
	}
}

// The outer source of IPv4 tunnels varies within --tun-spread.
func TestTunnelSpread(t *testing.T) {
	w := newWorld(t)
	s := w.vip("192.0.2.10:80")
	b := s.backend("10.0.0.12", tunnel)
	s.settle()
	w.settings.SpreadPrefix = 10 | 9<<8
	w.settings.SpreadMask = 0xffff0000
	w.putSettings()
	seen := map[string]bool{}
	for port := range uint16(64) {
		p := s.base()
		p.client = withPort(p.client, 30000+port)
		w.goes("spread", p, b)
		seen[net.IP(w.send(p.bytes(t)).frame[26:30]).String()] = true
	}
	if len(seen) < 60 {
		t.Errorf("64 flows have %d outer sources", len(seen))
	}
}

// A next hop on a VLAN sets the outermost tag or adds one, and priority stays; one on none takes them off.
func TestNextHopVLAN(t *testing.T) {
	w := newWorld(t)
	for _, pattern := range vipNames {
		for i, way := range ways(pattern[0] == '[') {
			for j, vlan := range []uint16{0xabc, untagged} {
				s := w.vip(fmt.Sprintf(pattern, 10+10*j+i))
				b := s.backend(way.backend, append(way.edits, func(b *maps.Backend) { b.Mac.Vlan = vlan })...)
				s.settle()
				for _, tags := range tagStacks {
					p := s.base()
					p.tags = tags
					w.goes(fmt.Sprintf("%s, %s, %d tags to VLAN %#x", s.VIP, way.name, len(tags), vlan), p, b)
				}
			}
		}
	}
}

// Frames of several buffers.
func TestLargeFrames(t *testing.T) {
	w := newWorld(t)
	jumbo := func(b *maps.Backend) { b.Link.Mtu = 20000 }
	for _, pattern := range vipNames {
		for i, way := range ways(pattern[0] == '[') {
			s := w.vip(fmt.Sprintf(pattern, 10+i))
			b := s.backend(way.backend, append(way.edits, jumbo)...)
			s.settle()
			for _, size := range []int{3400, 3600, 9000, 18000} {
				p := s.base()
				p.payload = bytesOf(size)
				w.goes(fmt.Sprintf("%s, %s, %d bytes", s.VIP, way.name, size), p, b)
				p.vip = withPort(p.vip, 81)
				w.passes(fmt.Sprintf("%d bytes to no VIP", size), p.bytes(t))
			}
		}
	}
}
