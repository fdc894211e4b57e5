package bpf_test

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"testing"

	"github.com/gopacket/gopacket/layers"
	"golang.org/x/sys/unix"

	"github.com/xdplb/xdplb/bpf"
	"github.com/xdplb/xdplb/maps"
)

// eachTranslation calls f with a VIP for each mode, family and protocol, and way out.
func eachTranslation(t *testing.T, f func(t *testing.T, s *service)) {
	for _, mode := range translatingModes {
		t.Run(mode.name, func(t *testing.T) {
			w := translating(t)
			for _, pattern := range vipNames {
				f(t, w.translatedVIP(fmt.Sprintf(pattern, 10), mode.mode))
				f(t, w.translatedVIP(fmt.Sprintf(pattern, 11), mode.mode, farther, func(b *maps.Backend) { b.Port++ }))
			}
		})
	}
}

// answerFlags are of replies: a backend sends no SYN without ACK.
func answerFlags(r packet) packet {
	r.tcp.ACK = true
	return r
}

// Every mode, family, protocol, number of tags, and way out, in both directions.
func TestTranslation(t *testing.T) {
	eachTranslation(t, func(t *testing.T, s *service) {
		for _, tags := range tagStacks {
			p := s.base()
			p.tags = tags
			for _, what := range []string{"the backend is attached to one interface", "to another"} {
				s.enterBy(inside)
				d := s.establish(fmt.Sprintf("%d tags, %s", len(tags), what), p)
				mutate(p, func(name string, p packet) { d.forth(name, p) })
				if what == "to another" {
					s.enterBy(outside)
				}
				mutate(p, func(name string, p packet) { d.back("reply, "+name, answerFlags(d.reply(p))) })
				s.enterBy(inside)
				p = p.numbered(int(p.client.Port()) + 1)
			}
		}
	})
}

// A reply takes the tag of the client's last frame, or none.
func TestTagsOfReplies(t *testing.T) {
	eachTranslation(t, func(t *testing.T, s *service) {
		for i, comes := range tagStacks {
			for j, replies := range tagStacks {
				p := s.base().numbered(1000 + 10*i + j)
				p.tags = comes
				d := s.establish(fmt.Sprintf("%d tags, %d on replies", len(comes), len(replies)), p)
				r := d.reply(p)
				r.tags = replies
				d.back("a reply", r)
			}
		}
		p := s.base().numbered(2000)
		d := s.establish("another VLAN", p)
		p.tags = []tag{{tpid: layers.EthernetTypeDot1Q, priority: 2, id: 77}}
		d.forth("a client that moved into a VLAN", p)
		r := d.reply(p)
		r.tags = []tag{{tpid: layers.EthernetTypeDot1Q, priority: 4, id: 88}}
		d.back("a reply from another VLAN", r)
	})
}

// Replies go where the client's last frame came from.
func TestLastHop(t *testing.T) {
	eachTranslation(t, func(t *testing.T, s *service) {
		p := s.base()
		d := s.establish("the last hop", p)
		for i := range byte(3) {
			p.from = append(p.from[:5:5], 0xe0+i)
			d.forth("a frame of another router", p)
			d.back("its reply", d.reply(p))
		}
		s.enterBy(outside)
		p.to = interfaceMAC(outside)
		d.forth("a frame by the other interface", p)
		d.back("its reply", d.reply(p))
		s.enterBy(inside)
		d.back("its reply by the first interface", d.reply(p))
	})
}

// A backend on a VLAN, and one on none.
func TestTranslationToVLAN(t *testing.T) {
	for _, mode := range translatingModes {
		t.Run(mode.name, func(t *testing.T) {
			w := translating(t)
			for _, pattern := range vipNames {
				for i, vlan := range []uint16{0xabc, untagged} {
					s := w.translatedVIP(fmt.Sprintf(pattern, 10+i), mode.mode, func(b *maps.Backend) { b.Mac.Vlan = vlan })
					for _, tags := range tagStacks[:2] {
						p := s.base().numbered(3000 + 10*i + len(tags))
						p.tags = tags
						d := s.establish(fmt.Sprintf("%d tags to VLAN %#x", len(tags), vlan), p)
						d.forth("data", p)
						r := d.reply(p)
						if r.tags = nil; vlan != untagged {
							r.tags = []tag{{tpid: layers.EthernetTypeDot1Q, id: vlan}}
						}
						d.back("reply", r)
					}
				}
			}
		})
	}
}

// udpCheck is where a frame has its UDP checksum.
func udpCheck(frame []byte, payload int) []byte {
	at := len(frame) - payload - 2
	return frame[at : at+2]
}

// A UDP checksum of zero stays: it says that there is none (RFC 768; RFC 6936). One
// that comes to zero is sent in its other form.
func TestChecksumsOfUDP(t *testing.T) {
	eachTranslation(t, func(t *testing.T, s *service) {
		if s.Proto != unix.IPPROTO_UDP {
			return
		}
		p := s.base()
		d := s.establish("checksums", p)
		way := func(in, out packet, by uint32) {
			t.Helper()
			verdict, reason := s.away(by)
			frames := [2][]byte{in.bytes(t), out.bytes(t)}
			for _, frame := range frames {
				copy(udpCheck(frame, len(in.payload)), []byte{0, 0})
			}
			s.demand(d.name+": no checksum", frames[0], verdict, reason, frames[1])

			in.payload, out.payload = append([]byte{0, 0}, in.payload...), append([]byte{0, 0}, out.payload...)
			check := udpCheck(out.bytes(t), len(out.payload))
			copy(in.payload, check)
			copy(out.payload, check)
			frame := out.bytes(t)
			got := udpCheck(frame, len(out.payload))
			if sum := binary.BigEndian.Uint16(got); sum != 0 && sum != 0xffff {
				t.Fatalf("the checksum to be is %#x", sum)
			}
			copy(got, []byte{0xff, 0xff})
			s.demand(d.name+": a checksum that comes to zero", in.bytes(t), verdict, reason, frame)
		}
		way(p, d.atBackend(p), uint32(d.b.Link.Interface))
		r := d.reply(p)
		way(r, d.atClient(r), d.comes)
	})
}

// Checksums are changed and not computed: wrong ones stay wrong.
func TestWrongChecksumsStayWrong(t *testing.T) {
	eachTranslation(t, func(t *testing.T, s *service) {
		p := s.base()
		d := s.establish("wrong checksums", p)
		p.payload = bytesOf(21)
		for i, way := range [][2]packet{{p, d.atBackend(p)}, {d.reply(p), d.atClient(d.reply(p))}} {
			in, want := way[0].bytes(t), way[1].bytes(t)
			last := len(in) - 1
			in[last] ^= 0x10 // in data that the checksum covers
			want[last] ^= 0x10
			by := uint32(d.b.Link.Interface)
			if i == 1 {
				by = d.comes
			}
			verdict, reason := s.away(by)
			s.demand(d.name+": a byte is wrong", in, verdict, reason, want)
		}
	})
}

// Every carry of the checksums shows for some address and port.
func TestTranslatedChecksums(t *testing.T) {
	for _, mode := range translatingModes {
		t.Run(mode.name, func(t *testing.T) {
			w := translating(t, worldOptions{flows: 1 << 14})
			for _, pattern := range vipNames {
				s := w.translatedVIP(fmt.Sprintf(pattern, 10), mode.mode)
				for n := range 1000 {
					p := s.base().numbered(1024 + 61*n)
					last := p.client.Addr().As16()
					binary.BigEndian.PutUint16(last[14:], uint16(n*65537/997))
					p.client = netip.AddrPortFrom(netip.AddrFrom16(last).Unmap(), p.client.Port())
					p.payload = []byte{byte(n >> 8), byte(n), byte(n * 31)}
					d := s.opens(fmt.Sprintf("flow %d", n), p)
					d.back("reply", answerFlags(d.reply(p)))
				}
			}
		})
	}
}

// Later fragments follow the first one, in both directions.
func TestTranslatedFragments(t *testing.T) {
	eachTranslation(t, func(t *testing.T, s *service) {
		for i, tags := range tagStacks[:2] {
			id := 10*s.Id + uint32(i)
			p := s.base().numbered(5000 + len(tags))
			p.tags = tags
			p.options = []byte{148, 4, 0, 0}
			p.extensions = []extension{paddedExtension(unix.IPPROTO_HOPOPTS, 16)}
			d := s.establish("fragments", p)
			parts := p.fragments(id)
			s.passes(d.name+": last fragment before the first", parts[2].bytes(t))
			d.forth("first fragment", parts[0])
			d.forth("last fragment", parts[2])
			d.forth("middle fragment", parts[1])
			replies := d.reply(p).fragments(id)
			s.passes(d.name+": last fragment of a reply before the first", replies[2].bytes(t))
			d.back("first fragment of a reply", replies[0])
			d.back("last fragment of a reply", replies[2])
			d.back("middle fragment of a reply", replies[1])
			s.wait(fragmentSeconds*testHz + 1)
			s.passes(d.name+": a fragment of a reply too late", replies[1].bytes(t))
		}
	})
}

// A packet that begins a flow may come in fragments.
func TestFlowsThatBeginWithFragments(t *testing.T) {
	eachTranslation(t, func(t *testing.T, s *service) {
		if s.Proto != unix.IPPROTO_UDP {
			return
		}
		p := s.base()
		parts := p.fragments(77)
		d := s.opensWith("a flow that begins in fragments", parts[0])
		d.forth("middle fragment", parts[1])
		d.forth("last fragment", parts[2])
		for _, r := range d.reply(p).fragments(78) {
			d.back("fragment of a reply", r)
		}
	})
}

// Nothing of a packet is changed that is not forwarded.
func TestRepliesOfNoFlow(t *testing.T) {
	eachTranslation(t, func(t *testing.T, s *service) {
		p := s.base().numbered(4000 + int(s.Id)) // none but this flow has it
		d := s.establish("replies", p)
		for what, change := range map[string]func(*packet){
			"another port of the backend":  func(r *packet) { r.client = withPort(r.client, 9) },
			"another port of its receiver": func(r *packet) { r.vip = withPort(r.vip, r.vip.Port()+1) },
			"another backend": func(r *packet) {
				r.client = withAddr(r.client, map[bool]string{false: "10.0.0.32", true: "2001:db8:a::32"}[r.ipv6()])
			},
			"another receiver": func(r *packet) {
				r.vip = withAddr(r.vip, map[bool]string{false: "10.0.0.4", true: "2001:db8:a::4"}[r.ipv6()])
			},
			"the other protocol": func(r *packet) { r.proto ^= unix.IPPROTO_TCP ^ unix.IPPROTO_UDP },
			"another MAC":        func(r *packet) { r.to = interfaceMAC(outside) },
		} {
			if what == "the other protocol" && s.fullNAT() && s.Proto == unix.IPPROTO_UDP {
				continue // an earlier flow of TCP may have got the same port
			}
			for _, tags := range tagStacks {
				r := d.reply(p)
				r.tags = tags
				change(&r)
				mutate(r, func(name string, r packet) { s.passes(d.name+": "+what+", "+name, r.bytes(t)) })
				if what != "another MAC" {
					q := r.quoting(t, 8)
					s.passes(d.name+": an error, "+what, q.bytes(t))
				}
			}
		}
		d.back("a reply", d.reply(p))
		s.settings.SetFlag(bpf.XdplbSettingFlagSettingTranslates, false)
		s.putSettings()
		s.passes(d.name+": a reply where nothing is translated", d.reply(p).bytes(t))
		s.settings.SetFlag(bpf.XdplbSettingFlagSettingTranslates, true)
		s.putSettings()
	})
}

// TTLs that run out, and packets that are too big, in both directions.
func TestMessagesAboutTranslated(t *testing.T) {
	eachTranslation(t, func(t *testing.T, s *service) {
		for _, tags := range tagStacks {
			p := s.base().numbered(6000 + len(tags))
			p.tags = tags
			d := s.establish(fmt.Sprintf("messages, %d tags", len(tags)), p)
			r := d.reply(p)
			for what, p := range map[string]packet{"the client": p, "the backend": r} {
				for ttl := range uint8(2) {
					mutate(p, func(name string, p packet) {
						p.ttl = ttl
						if what == "the backend" {
							p = answerFlags(p)
						}
						s.demand(fmt.Sprintf("%s: %s, %s, TTL %d", d.name, what, name, ttl), p.bytes(t), xdpTX, bpf.XdplbReasonTtlExceeded, p.exceeded(t).bytes(t))
					})
				}
				p.payload = nil
				headers := len(p.ip(t))
				for _, size := range []int{linkMTU + 1, 2000, 9000} {
					p.payload = bytesOf(size - headers)
					s.demand(fmt.Sprintf("%s: %s, %d bytes", d.name, what, size), p.bytes(t), xdpTX, bpf.XdplbReasonTooBig, p.tooBig(t, linkMTU).bytes(t))
				}
			}
			s.wait(testHz) // the limit is not at issue here
			p.payload = nil
			p.payload = bytesOf(linkMTU - len(p.ip(t)))
			d.forth("as much as the MTU", p)
			d.back("as much as the MTU, reply", d.reply(p))
		}
	})
}
