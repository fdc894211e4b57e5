package bpf_test

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"testing"

	"github.com/gopacket/gopacket"
	"golang.org/x/sys/unix"
	"pgregory.net/rapid"

	"github.com/xdplb/xdplb/bpf"
)

// everythingTranslated is a world whose VIPs have every port: of one mode.
func everythingTranslated(t testing.TB, mode bpf.XdplbMode) (w *world, vips []*service) {
	w = translating(t, worldOptions{flows: 1 << 14})
	w.translates = true
	for _, name := range []string{"192.0.2.10:0/tcp", "192.0.2.10:0/udp", "[2001:db8::10]:0/tcp", "[2001:db8::10]:0/udp"} {
		vips = append(vips, w.translatedVIP(name, mode))
	}
	return w, vips
}

// layout is where an IP packet has its parts.
type layout struct {
	proto uint8
	l4    int  // 0: unknown
	later bool // a fragment without ports
	part  bool // any fragment
	end   int
}

func layoutOf(ip []byte) (l layout) {
	if len(ip) < 20 || ip[0]>>4 == 6 && len(ip) < 40 {
		return layout{}
	}
	l.end = min(lengthOf(ip), len(ip))
	if ip[0]>>4 == 4 {
		fragment := binary.BigEndian.Uint16(ip[6:])
		l.proto, l.l4 = ip[9], int(ip[0]&15)*4
		l.part, l.later = fragment&0x3fff != 0, fragment&0x1fff != 0
		return l
	}
	l.proto, l.l4 = ip[6], 40
	for l.l4+8 <= l.end {
		size := 8
		switch l.proto {
		default:
			return l
		case unix.IPPROTO_FRAGMENT:
			offset := binary.BigEndian.Uint16(ip[l.l4+2:])
			l.part, l.later = l.part || offset&0xfff9 != 0, offset&0xfff8 != 0
			if l.later {
				l.proto = ip[l.l4]
				return l
			}
		case unix.IPPROTO_HOPOPTS, unix.IPPROTO_DSTOPTS, unix.IPPROTO_ROUTING:
			size += 8 * int(ip[l.l4+1])
		}
		l.proto, l.l4 = ip[l.l4], l.l4+size
	}
	return l
}

// addressesOf are the parts of an IP header.
func addressesOf(ip []byte) (src, dst []byte) {
	if ip[0]>>4 == 4 {
		return ip[12:16], ip[16:20]
	}
	return ip[8:24], ip[24:40]
}

// checkOf is a transport checksum, nil if the packet does not show it.
func (l layout) checkOf(ip []byte) []byte {
	at := map[uint8]int{unix.IPPROTO_TCP: 16, unix.IPPROTO_UDP: 6, unix.IPPROTO_ICMP: 2, unix.IPPROTO_ICMPV6: 2}[l.proto]
	if at == 0 || l.later || l.l4+at+2 > l.end {
		return nil
	}
	return ip[l.l4+at : l.l4+at+2]
}

// summed reports whether the transport checksum of a whole packet is right.
func (l layout) summed(ip []byte) bool {
	size := l.end - l.l4
	if l.proto == unix.IPPROTO_UDP {
		size = min(size, int(binary.BigEndian.Uint16(ip[l.l4+4:])))
	}
	var sum uint32
	if l.proto != unix.IPPROTO_ICMP {
		src, dst := addressesOf(ip)
		sum = gopacket.ComputeChecksum(append(bytes.Clone(src), dst...), uint32(size)+uint32(l.proto))
	}
	return gopacket.FoldChecksum(gopacket.ComputeChecksum(ip[l.l4:l.l4+size], sum)) == 0
}

// translatedWell says what is wrong with out, if in was translated to it: beside
// addresses, ports, checksums and TTL nothing may differ.
func translatedWell(in, out []byte) string {
	before, at := linkOf(in)
	after, outAt := linkOf(out)
	ip, got := in[at:], out[outAt:]
	if before != after || len(ip) != len(got) {
		return "another ethertype or length"
	}
	l := layoutOf(ip)
	want := bytes.Clone(ip)
	copyAddresses(want, got)
	if ip[0]>>4 == 4 {
		if summed(ip[:l.l4]) != summed(got[:l.l4]) {
			return "the header's checksum changed between right and wrong"
		}
		want[8]--
		copy(want[10:12], got[10:12])
	} else {
		want[7]--
	}
	if !l.later {
		if why := l.transportWell(ip, got, want); why != "" {
			return why
		}
	}
	if !bytes.Equal(want, got) {
		return "more changed than addresses, ports, checksums and TTL"
	}
	return ""
}

func copyAddresses(to, from []byte) {
	src, dst := addressesOf(to)
	newSrc, newDst := addressesOf(from)
	copy(src, newSrc)
	copy(dst, newDst)
}

// transportWell puts into want what may change behind the IP header.
func (l layout) transportWell(ip, got, want []byte) string {
	if !l.part && l.summed(ip) != l.summed(got) && !l.without(ip) {
		return "the transport checksum changed between right and wrong"
	}
	if l.without(ip) != l.without(got) {
		return "a UDP checksum appeared or went away"
	}
	copy(l.checkOf(want), l.checkOf(got))
	if l.proto == unix.IPPROTO_TCP || l.proto == unix.IPPROTO_UDP {
		copy(want[l.l4:l.l4+4], got[l.l4:])
		return ""
	}
	quote, newQuote := want[l.l4+8:l.end], got[l.l4+8:l.end]
	q := layoutOf(quote)
	copyAddresses(quote, newQuote)
	if quote[0]>>4 == 4 {
		copy(quote[10:12], newQuote[10:12])
	}
	copy(quote[q.l4:q.l4+4], newQuote[q.l4:])
	q.end = len(quote)
	if q.without(quote) != q.without(newQuote) {
		return "a UDP checksum appeared in a quote or went away"
	}
	copy(q.checkOf(quote), q.checkOf(newQuote))
	return ""
}

// without reports whether a UDP packet has no checksum.
func (l layout) without(ip []byte) bool {
	check := l.checkOf(ip)
	return l.proto == unix.IPPROTO_UDP && check != nil && check[0] == 0 && check[1] == 0
}

// resetWell says what is wrong with a RST about in.
func resetWell(in, out []byte) string {
	_, at := linkOf(in)
	if len(out) < at+40 || !bytes.Equal(out[:6], in[6:12]) || !bytes.Equal(out[6:12], in[:6]) || !bytes.Equal(out[12:at], in[12:at]) {
		return "another link header"
	}
	cause, ip := in[at:], out[at:]
	was, is := layoutOf(cause), layoutOf(ip)
	src, dst := addressesOf(cause)
	newSrc, newDst := addressesOf(ip)
	if !bytes.Equal(src, newDst) || !bytes.Equal(dst, newSrc) || ip[0]>>4 == 4 && !summed(ip[:20]) {
		return "a wrong IP header"
	}
	if is.proto != unix.IPPROTO_TCP || is.end != len(ip) || lengthOf(ip) != len(ip) || len(ip)-is.l4 != 20 || !is.summed(ip) {
		return "a wrong length or checksum"
	}
	refused, tcp := cause[was.l4:], ip[is.l4:]
	if !bytes.Equal(tcp[:2], refused[2:4]) || !bytes.Equal(tcp[2:4], refused[:2]) || tcp[13]&4 == 0 || refused[13]&4 != 0 {
		return "another flow, or no RST"
	}
	return ""
}

// swap turns a frame of TCP or UDP around, as an echo server would that leaves
// all else as it is. False if it is something else.
func swap(frame []byte) ([]byte, bool) {
	frame = bytes.Clone(frame)
	_, at := linkOf(frame)
	if at >= len(frame) {
		return nil, false
	}
	ip := frame[at:]
	l := layoutOf(ip)
	if l.l4 == 0 || l.proto != unix.IPPROTO_TCP && l.proto != unix.IPPROTO_UDP || l.l4+4 > len(ip) {
		return nil, false
	}
	exchange := func(a, b []byte) {
		c := bytes.Clone(a)
		copy(a, b)
		copy(b, c)
	}
	exchange(frame[:6], frame[6:12])
	exchange(addressesOf(ip))
	if !l.later {
		exchange(ip[l.l4:l.l4+2], ip[l.l4+2:l.l4+4])
	}
	return frame, true
}

// hops is a frame some hops on.
func hops(frame []byte, n byte) []byte {
	frame = bytes.Clone(frame)
	_, at := linkOf(frame)
	ip := frame[at:]
	if ip[0]>>4 == 6 {
		ip[7] -= n
		return frame
	}
	sum := uint32(^binary.BigEndian.Uint16(ip[10:])) + uint32(^(uint16(n) << 8)) // RFC 1624
	ip[8] -= n
	binary.BigEndian.PutUint16(ip[10:], ^uint16(sum%0xffff))
	return frame
}

// plain has checksums that are all ones, another form of zero, in that other form:
// incremental updates lose which it was. Only wrong checksums are.
func plain(frame []byte) []byte {
	frame = bytes.Clone(frame)
	_, at := linkOf(frame)
	ip := frame[at:]
	l := layoutOf(ip)
	checks := [][]byte{}
	if ip[0]>>4 == 4 {
		checks = append(checks, ip[10:12])
	}
	if l.proto == unix.IPPROTO_TCP {
		checks = append(checks, l.checkOf(ip))
	}
	for _, check := range checks {
		if check != nil && check[0] == 0xff && check[1] == 0xff {
			copy(check, []byte{0, 0})
		}
	}
	return frame
}

// roundTrip demands that a packet to a VIP which is turned around at the backend
// comes back as itself, but for its TTL. It returns what became of it.
func (w *world) roundTrip(frame []byte) string {
	w.Helper()
	got := w.send(frame)
	if got.reason == bpf.XdplbReasonFlowUnknown {
		if opening, ok := opened(frame); ok {
			w.send(opening)
			got = w.send(frame)
		}
	}
	reply, ok := swap(got.frame)
	if got.verdict != xdpTX || got.reason != bpf.XdplbReasonTransmitted || !ok {
		return names[got.reason]
	}
	back := w.send(reply)
	want, _ := swap(hops(frame, 2))
	switch {
	case back.reason == bpf.XdplbReasonTtlExceeded:
		return "no way back"
	case back.verdict != xdpTX || back.reason != bpf.XdplbReasonTransmitted:
		w.Errorf("the reply: verdict %d under %q\nin    %x\nthere %x", back.verdict, names[back.reason], frame, got.frame)
	case !bytes.Equal(plain(want), plain(back.frame)):
		w.Errorf("there and back again is another packet\nin    %x\nthere %x\nback  %x\nwant  %x", frame, got.frame, back.frame, want)
	}
	return "there and back"
}

// opened is the SYN that begins the flow of a TCP packet.
func opened(frame []byte) ([]byte, bool) {
	frame = bytes.Clone(frame)
	_, at := linkOf(frame)
	l := layoutOf(frame[at:])
	if l.proto != unix.IPPROTO_TCP || l.later || at+l.l4+14 > len(frame) {
		return nil, false
	}
	frame[at+l.l4+13] = 2
	return frame, true
}

func eachTranslatingWorld(t *testing.T, f func(t *testing.T, w *world, frames [][]byte)) {
	for _, mode := range translatingModes {
		t.Run(mode.name, func(t *testing.T) {
			w, vips := everythingTranslated(t, mode.mode)
			f(t, w, bases(t, vips, func(*packet) {}))
		})
	}
}

// un-NAT(NAT(p)) is p.
func TestThereAndBack(t *testing.T) {
	const frames = 15000
	eachTranslatingWorld(t, func(t *testing.T, w *world, all [][]byte) {
		r, ended := rand.New(rand.NewPCG(13, 14)), map[string]int{}
		for i := 0; i < frames && !t.Failed(); i++ {
			if i%500 == 0 {
				w.wait(testHz) // for new messages
			}
			frame := all[r.IntN(len(all))]
			if i%3 > 0 {
				frame = scramble(r, frame)
			}
			ended[w.roundTrip(claim(frame))]++
		}
		if ended["there and back"] < frames/4 {
			t.Errorf("of %d frames these came back: %v", frames, ended)
		}
	})
}

// Packets of every make, by their properties.
func TestThereAndBackByProperties(t *testing.T) {
	for _, mode := range translatingModes {
		t.Run(mode.name, func(t *testing.T) {
			w, vips := everythingTranslated(t, mode.mode)
			rapid.Check(t, func(t *rapid.T) {
				p := rapid.SampledFrom(vips).Draw(t, "VIP").base()
				p.vip = withPort(p.vip, rapid.Uint16().Draw(t, "port"))
				p = p.numbered(int(rapid.Uint16Min(1).Draw(t, "client's port")))
				p.tags = rapid.SampledFrom(tagStacks).Draw(t, "tags")
				p.ttl, p.tos = rapid.Uint8Min(3).Draw(t, "TTL"), rapid.Uint8().Draw(t, "TOS")
				p.payload = rapid.SliceOfN(rapid.Byte(), 0, 64).Draw(t, "payload")
				if ended := w.roundTrip(p.bytes(w)); ended != "there and back" {
					t.Fatalf("%v: %s", p, ended)
				}
			})
		})
	}
}

func TestTranslatedFramesLeaveWellFormed(t *testing.T) {
	const frames = 15000
	eachTranslatingWorld(t, func(t *testing.T, w *world, all [][]byte) {
		r, left := rand.New(rand.NewPCG(15, 16)), map[string]int{}
		for _, frame := range all { // flows to scramble packets of
			if opening, ok := opened(frame); ok {
				w.send(opening)
			}
		}
		for i := 0; i < frames && !t.Failed(); i++ {
			if i%500 == 0 {
				w.wait(testHz)
			}
			left[w.wellFormed(claim(scramble(r, all[r.IntN(len(all))])))]++
		}
		for _, reason := range []bpf.XdplbReason{bpf.XdplbReasonPassed, bpf.XdplbReasonTransmitted, bpf.XdplbReasonTtlExceeded} {
			if left[names[reason]] < frames/500 {
				t.Errorf("only %d of %d frames ended as %s: %v", left[names[reason]], frames, names[reason], left)
			}
		}
	})
}

// FuzzNAT feeds frames to VIPs, and what leaves for the backend back as its reply.
func FuzzNAT(f *testing.F) {
	var worlds []*world
	for _, mode := range translatingModes {
		w, vips := everythingTranslated(f, mode.mode)
		worlds = append(worlds, w)
		for i, frame := range bases(f, vips, func(*packet) {}) {
			if i%7 == 0 && mode.mode == bpf.XdplbModeModeNat {
				f.Add(frame)
			}
		}
	}
	f.Fuzz(func(t *testing.T, frame []byte) {
		if len(frame) < 14 || len(frame) > 9000 {
			t.Skip()
		}
		for _, w := range worlds {
			w := *w
			w.TB = t
			w.roundTrip(claim(frame))
			w.wellFormed(claim(frame))
		}
	})
}
