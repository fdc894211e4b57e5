package bpf_test

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"testing"

	"github.com/gopacket/gopacket/layers"

	"github.com/xdplb/xdplb/bpf"
	"github.com/xdplb/xdplb/maps"
)

// everything is a world with VIPs of every port, in every mode, settled and moving.
func everything(t testing.TB) (w *world, vips []*service) {
	w = newWorld(t)
	for i, name := range []string{"192.0.2.10:0/tcp", "192.0.2.10:0/udp", "[2001:db8::10]:0/tcp", "[2001:db8::10]:0/udp"} {
		s := w.vip(name)
		s.backend("10.0.0.12", tunnel)
		s.backend("2001:db8:a::12", tunnel, farther)
		s.backend(map[bool]string{false: "10.0.0.11", true: "2001:db8:a::11"}[s.Addr.Is6()], func(b *maps.Backend) { b.Mac.Vlan = 9 })
		b := s.backend(map[bool]string{false: "10.0.0.13", true: "2001:db8:a::13"}[s.Addr.Is6()])
		s.settle()
		if i%2 == 0 {
			s.drain(b)
		}
		vips = append(vips, s)
	}
	return w, vips
}

// bases are frames of every kind, as made by change from base packets.
func bases(t testing.TB, vips []*service, change func(*packet)) (frames [][]byte) {
	for i, s := range vips {
		for port, tags := range tagStacks {
			p := s.base()
			p.tags, p.vip = tags, withPort(p.vip, uint16(80+port))
			change(&p)
			mutate(p, func(_ string, p packet) { frames = append(frames, p.bytes(t)) })
			for _, part := range p.fragments(uint32(i)) {
				frames = append(frames, part.bytes(t))
			}
			frames = append(frames, p.quoting(t, 8).bytes(t), p.echo().bytes(t))
			p.ttl = 1
			frames = append(frames, p.bytes(t))
			p.ttl, p.payload = 3, bytesOf(1500)
			frames = append(frames, p.bytes(t))
		}
	}
	return frames
}

// elsewhere has a packet go to addresses near those of VIPs, or to another MAC.
func elsewhere(p *packet) {
	if len(p.tags) == 1 {
		p.to = net.HardwareAddr{2, 0, 0, 0, 1, 77}
		return
	}
	p.vip = withAddr(p.vip, map[bool]string{false: "192.0.3.11", true: "2001:db8:1::11"}[p.ipv6()])
}

// scramble changes some bytes of a frame, or where it ends.
func scramble(r *rand.Rand, frame []byte) []byte {
	frame = bytes.Clone(frame)
	for range 1 + r.IntN(4) {
		at := r.IntN(len(frame))
		if r.IntN(2) == 0 { // headers matter most
			at = r.IntN(min(len(frame), 80))
		}
		switch r.IntN(8) {
		case 0, 1:
			frame[at] = byte(r.Uint32())
		case 2:
			frame[at] ^= 1 << r.IntN(8)
		case 3:
			extremes := []uint16{0, 1, 7, 8, 19, 20, 28, 39, 40, 0x7fff, 0x8000, 0xffff, uint16(len(frame))}
			if at+2 <= len(frame) {
				binary.BigEndian.PutUint16(frame[at:], extremes[r.IntN(len(extremes))])
			}
		case 4:
			frame = frame[:max(14, at)]
		case 5:
			frame = append(frame, bytesOf(r.IntN(64))...)
		case 6:
			n := min(1+r.IntN(16), len(frame)-at)
			frame = append(frame[:at:at], append(bytes.Clone(frame[at:at+n]), frame[at:]...)...)
		case 7:
			n := min(1+r.IntN(8), len(frame)-at)
			frame = append(frame[:at:at], frame[at+n:]...)
			for len(frame) < 14 {
				frame = append(frame, 0)
			}
		}
	}
	return frame
}

func noise(r *rand.Rand) []byte {
	frame := make([]byte, 14+r.IntN(300))
	for i := range frame {
		frame[i] = byte(r.Uint32())
	}
	if r.IntN(4) > 0 {
		copy(frame, interfaceMAC(inside))
	}
	types := []layers.EthernetType{layers.EthernetTypeIPv4, layers.EthernetTypeIPv6, layers.EthernetTypeDot1Q, layers.EthernetTypeQinQ, layers.EthernetTypeARP}
	binary.BigEndian.PutUint16(frame[12:], uint16(types[r.IntN(len(types))]))
	return frame
}

var vipAddresses = []netip.Addr{netip.MustParseAddr("192.0.2.10"), netip.MustParseAddr("2001:db8::10")}

// maybeOurs reports whether a frame is to one of our MACs and has the address of a
// VIP anywhere in it. Any other is surely foreign.
func maybeOurs(frame []byte) bool {
	if !bytes.HasPrefix(frame, interfaceMAC(inside)) {
		return false
	}
	for _, a := range vipAddresses {
		if bytes.Contains(frame, a.AsSlice()) {
			return true
		}
	}
	return false
}

// comesBack demands that a foreign frame passes unchanged.
func (w *world) comesBack(frame []byte) {
	verdict, out := w.run(frame)
	if verdict != xdpPass || !bytes.Equal(frame, out) {
		w.Errorf("verdict %d for a foreign frame:\n%x\n%x", verdict, frame, out)
	}
}

func TestForeignFramesComeBack(t *testing.T) {
	const frames = 100000
	w, vips := everything(t)
	all := bases(t, vips, elsewhere)
	r := rand.New(rand.NewPCG(9, 10))
	for n := 0; n < frames && !t.Failed(); {
		frame := noise(r)
		if n%10 > 0 {
			frame = scramble(r, all[r.IntN(len(all))])
		}
		if !maybeOurs(frame) {
			w.comesBack(frame)
			n++
		}
	}
	if got := w.reasons()[bpf.XdplbReasonPassed]; got != frames {
		t.Errorf("%d frames were counted as passed, want %d", got, frames)
	}
	w.balanced(frames)
}

func FuzzForeign(f *testing.F) {
	w, vips := everything(f)
	for i, frame := range bases(f, vips, elsewhere) {
		if i%7 == 0 {
			f.Add(frame)
		}
	}
	f.Fuzz(func(t *testing.T, frame []byte) {
		if len(frame) < 14 || len(frame) > 9000 || maybeOurs(frame) {
			t.Skip()
		}
		w := *w
		w.TB = t
		w.comesBack(frame)
	})
}

func TestOurFramesLeaveWellFormed(t *testing.T) {
	const frames = 30000
	w, vips := everything(t)
	all := bases(t, vips, func(*packet) {})
	r := rand.New(rand.NewPCG(11, 12))
	left := map[string]int{}
	for i := 0; i < frames && !t.Failed(); i++ {
		if i%1000 == 0 {
			w.wait(testHz) // for new messages
		}
		left[w.wellFormed(claim(scramble(r, all[r.IntN(len(all))])))]++
	}
	for _, reason := range []bpf.XdplbReason{
		bpf.XdplbReasonPassed, bpf.XdplbReasonTransmitted, bpf.XdplbReasonRedirected, bpf.XdplbReasonTtlExceeded,
		bpf.XdplbReasonTooBig, bpf.XdplbReasonEchoAnswered, bpf.XdplbReasonFragmentUnknown,
	} {
		if left[names[reason]] < frames/500 {
			t.Errorf("only %d of %d frames ended as %s", left[names[reason]], frames, names[reason])
		}
	}
}

func FuzzOurs(f *testing.F) {
	w, vips := everything(f)
	for i, frame := range bases(f, vips, func(*packet) {}) {
		if i%7 == 0 {
			f.Add(frame)
		}
	}
	f.Fuzz(func(t *testing.T, frame []byte) {
		if len(frame) < 14 || len(frame) > 9000 {
			t.Skip()
		}
		w := *w
		w.TB = t
		w.wellFormed(claim(frame))
	})
}

// claim sends a frame to our MAC and, if it holds an IP packet, to a VIP.
func claim(frame []byte) []byte {
	frame = bytes.Clone(frame)
	copy(frame, interfaceMAC(inside))
	_, l3 := linkOf(frame)
	if l3 >= len(frame) {
		return frame
	}
	switch ip := frame[l3:]; {
	case ip[0]>>4 == 4 && len(ip) >= 20:
		copy(ip[16:20], vipAddresses[0].AsSlice())
	case ip[0]>>4 == 6 && len(ip) >= 40:
		copy(ip[24:40], vipAddresses[1].AsSlice())
	}
	return frame
}

// linkOf finds the ethertype behind up to two tags, and where the rest begins.
func linkOf(frame []byte) (proto layers.EthernetType, at int) {
	at = 14
	for range 3 {
		proto = layers.EthernetType(binary.BigEndian.Uint16(frame[at-2:]))
		if proto != layers.EthernetTypeDot1Q && proto != layers.EthernetTypeQinQ || at+4 > len(frame) {
			break
		}
		at += 4
	}
	return proto, at
}

func (f fate) String() string { return fmt.Sprintf("verdict %d, %s", f.verdict, names[f.reason]) }
