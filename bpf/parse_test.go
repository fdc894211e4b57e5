package bpf_test

import (
	"encoding/binary"
	"fmt"
	"net"
	"strings"
	"testing"

	"github.com/gopacket/gopacket/layers"
	"golang.org/x/sys/unix"

	"github.com/xdplb/xdplb/bpf"
	"github.com/xdplb/xdplb/maps"
)

// fourVIPs are one VIP of each family and protocol, settled on one backend.
func (w *world) fourVIPs() (all []*service) {
	w.Helper()
	for _, pattern := range vipNames {
		s := w.vip(fmt.Sprintf(pattern, 10))
		backend := "10.0.0.11"
		if s.Addr.Is6() {
			backend = "2001:db8:a::11"
		}
		s.backend(backend)
		all = append(all, s.settle())
	}
	return all
}

// A frame that ends too early is not ours, wherever it ends.
func TestTruncation(t *testing.T) {
	w := newWorld(t)
	for _, s := range w.fourVIPs() {
		for _, tags := range tagStacks {
			p := s.base()
			p.payload, p.tags = bytesOf(10), tags
			mutate(p, func(name string, p packet) {
				p.padding = 0
				full := p.bytes(t)
				for size := 14; size < len(full); size += 1 + size/200*97 { // headers byte by byte
					w.passes(fmt.Sprintf("%s, %d tags, %s, %d of %d bytes", s.VIP, len(tags), name, size, len(full)), full[:size])
				}
			})
		}
		w.truncatedErrors(s)
	}
}

// truncatedErrors sends ICMP errors that end before the quoted ports, in the frame
// or by what their IP header says.
func (w *world) truncatedErrors(s *service) {
	w.Helper()
	for size := range 4 {
		w.passes(fmt.Sprintf("%s: quoting %d bytes", s.VIP, size), s.base().quoting(w, size).bytes(w))
		p := s.base().quoting(w, size)
		p.padding = 8 - size
		w.passes(fmt.Sprintf("%s: quoting %d bytes, and padding", s.VIP, size), p.bytes(w))
	}
	full := s.base().quoting(w, 4).bytes(w)
	for size := 14; size < len(full); size++ {
		w.passes(fmt.Sprintf("%s: ICMP error of %d bytes", s.VIP, size), full[:size])
	}
}

// patch is bytes to be written at an offset from the IP header.
type patch struct {
	name   string
	family int   // 0: either
	proto  uint8 // 0: either
	at     int
	bytes  []byte
}

// behind is an offset that counts from the transport header.
const behind = 1000

func word(n int) []byte { return binary.BigEndian.AppendUint16(nil, uint16(n)) }

var malformed = []patch{
	{"version 0", 0, 0, 0, []byte{0x05}},
	{"version 5", 0, 0, 0, []byte{0x55}},
	{"IPv6 in an IPv4 frame", 4, 0, 0, []byte{0x65}},
	{"IPv4 in an IPv6 frame", 6, 0, 0, []byte{0x45}},
	{"header of 0 words", 4, 0, 0, []byte{0x40}},
	{"header of 4 words", 4, 0, 0, []byte{0x44}},
	{"header longer than the packet", 4, 0, 2, word(19)},
	{"no room for the transport header", 4, unix.IPPROTO_TCP, 2, word(39)},
	{"no room for the transport header", 4, unix.IPPROTO_UDP, 2, word(27)},
	{"longer than the frame", 4, 0, 2, word(10000)},
	{"as long as can be", 4, 0, 2, word(65535)},
	{"no length", 4, 0, 2, word(0)},
	{"another protocol", 4, 0, 9, []byte{132}},
	{"no payload", 6, 0, 4, word(0)},
	{"no room for the transport header", 6, unix.IPPROTO_TCP, 4, word(19)},
	{"no room for the transport header", 6, unix.IPPROTO_UDP, 4, word(7)},
	{"longer than the frame", 6, 0, 4, word(10000)},
	{"as long as can be", 6, 0, 4, word(65535)},
	{"no next header", 6, 0, 6, []byte{59}},
	{"another protocol", 6, 0, 6, []byte{132}},
	{"authentication header", 6, 0, 6, []byte{51}},
	{"ICMP of the other family", 6, 0, 6, []byte{unix.IPPROTO_ICMP}},
	{"ICMP of the other family", 4, 0, 9, []byte{unix.IPPROTO_ICMPV6}},
	{"doff 0", 0, unix.IPPROTO_TCP, behind + 12, []byte{0x00}},
	{"doff 4", 0, unix.IPPROTO_TCP, behind + 12, []byte{0x40}},
	{"doff longer than the packet", 0, unix.IPPROTO_TCP, behind + 12, []byte{0xf0}},
	{"UDP length 0", 0, unix.IPPROTO_UDP, behind + 4, word(0)},
	{"UDP length 7", 0, unix.IPPROTO_UDP, behind + 4, word(7)},
	{"UDP length beyond the packet", 0, unix.IPPROTO_UDP, behind + 4, word(19)},
}

func (f patch) fits(p packet) bool {
	return (f.family == 0 || p.ipv6() == (f.family == 6)) && (f.proto == 0 || f.proto == p.proto)
}

func (f patch) apply(t testing.TB, p packet) []byte {
	frame, at := p.bytes(t), p.l3()+f.at
	if f.at >= behind {
		at = p.l3() + f.at - behind + len(p.ip(t)) - len(p.transport(t))
	}
	copy(frame[at:], f.bytes)
	return frame
}

func TestMalformed(t *testing.T) {
	w := newWorld(t)
	for _, s := range w.fourVIPs() {
		for _, tags := range tagStacks {
			p := s.base()
			p.tags, p.payload = tags, bytesOf(10)
			for _, f := range malformed {
				if f.fits(p) {
					w.passes(fmt.Sprintf("%s, %d tags: %s", s.VIP, len(tags), f.name), f.apply(t, p))
				}
			}
		}
	}
}

func TestForeignHeaders(t *testing.T) {
	w := newWorld(t)
	for _, s := range w.fourVIPs() {
		foreign := func(what string, change func(*packet)) {
			t.Helper()
			p := s.base()
			change(&p)
			w.passes(fmt.Sprintf("%s: %s", s.VIP, what), p.bytes(t))
		}
		foreign("three tags", func(p *packet) { p.tags = append(tagStacks[2][:2:2], tagStacks[1]...) })
		foreign("another port", func(p *packet) { p.vip = withPort(p.vip, 81) })
		other := w.vip(strings.Replace(s.String(), ":80/", ":8080/", 1))
		other.settle()
		w.drops("a VIP without backends", other.base().bytes(t), bpf.XdplbReasonNoBackend)
		foreign("the other protocol", func(p *packet) {
			p.vip = withPort(p.vip, 8080)
			p.proto ^= unix.IPPROTO_TCP ^ unix.IPPROTO_UDP
		})
		must(t, w.DeleteService(other.VIP))
		foreign("from the VIP", func(p *packet) { p.client, p.vip = p.vip, p.client })
		if !s.Addr.Is6() {
			foreign("a VIP's last bytes", func(p *packet) { p.vip = withAddr(p.vip, "191.0.2.10") })
			continue
		}
		foreign("a VIP's last bytes", func(p *packet) { p.vip = withAddr(p.vip, "2002:db8::10") })
		foreign("seven extension headers", func(p *packet) {
			for range 7 {
				p.extensions = append(p.extensions, paddedExtension(unix.IPPROTO_DSTOPTS, 8))
			}
		})
		foreign("a routing header with segments left", func(p *packet) {
			p.extensions = []extension{{unix.IPPROTO_ROUTING, []byte{0, 0, 4, 1, 0, 0, 0, 0}}}
		})
		foreign("extension headers longer than the packet", func(p *packet) {
			p.extensions = []extension{{unix.IPPROTO_DSTOPTS, []byte{0, 255, 1, 4, 0, 0, 0, 0}}}
		})
	}
	arp := base(maps.VIP{Addr: clientOf4, Port: 80, Proto: unix.IPPROTO_TCP})
	frame := arp.bytes(t)
	binary.BigEndian.PutUint16(frame[12:], uint16(layers.EthernetTypeARP))
	w.passes("another ethertype", frame)
}

// Frames that were not sent to one of our MACs belong to somebody else.
func TestOtherMACs(t *testing.T) {
	w := newWorld(t)
	services := w.fourVIPs()
	accepted := []net.HardwareAddr{{0, 0, 0x5e, 0, 1, 1}, {0, 0, 0x5e, 0, 2, 1}}
	others := []net.HardwareAddr{
		{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}, {1, 0, 0x5e, 0, 0, 1}, {0x33, 0x33, 0, 0, 0, 1},
		interfaceMAC(outside), clientMAC, {0, 0, 0, 0, 0, 0},
	}
	for i := range 6 { // near misses
		mac := append(net.HardwareAddr(nil), interfaceMAC(inside)...)
		mac[i] ^= 0x80
		others = append(others, mac)
	}
	send := func(s *service, mac net.HardwareAddr, ours bool) {
		t.Helper()
		for _, tags := range tagStacks {
			p := s.base()
			p.to, p.tags = mac, tags
			what := fmt.Sprintf("%s to %s", s.VIP, mac)
			if ours {
				w.goes(what, p, s.backends[0])
			} else {
				w.passes(what, p.bytes(t))
			}
			echo := p.echo()
			if ours {
				w.demand(what+" echo", echo.bytes(t), xdpTX, bpf.XdplbReasonEchoAnswered, nil)
			} else {
				w.passes(what+" echo", echo.bytes(t))
			}
		}
	}
	for _, s := range services {
		for _, mac := range append(others, accepted...) {
			send(s, mac, false)
		}
	}
	r := maps.Interface{Number: inside, XdplbInterface: bpf.XdplbInterface{Mac: maps.MACWord(interfaceMAC(inside)), Ifindex: 1}}
	r.Accept[0], r.Accept[5] = maps.MACWord(accepted[0]), maps.MACWord(accepted[1])
	must(t, w.PutInterface(r))
	for _, s := range services {
		for _, mac := range others {
			send(s, mac, false)
		}
		for _, mac := range append(accepted, interfaceMAC(inside)) {
			send(s, mac, true)
		}
	}
}
