package bpf_test

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"testing"

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
	if layoutOf(networkOf(frame)).later { // clients with one identification would be mixed up, as on any wire
		w.send(frame)
		return "later fragment"
	}
	return w.thereAndBack(frame)
}

// thereAndBack is roundTrip, of later fragments too: if no other packet has their identification.
func (w *world) thereAndBack(frame []byte) string {
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
	if back.reason == bpf.XdplbReasonPassed { // its entry was evicted: the other one mends it soon
		w.wait(twinLag)
		w.send(frame)
		back = w.send(reply)
	}
	want, _ := swap(hops(frame, 2))
	came := plain(back.frame)
	if want = plain(want); onVLAN0(frame) { // which is none
		want, came = networkOf(want), networkOf(came)
	}
	switch {
	case back.reason == bpf.XdplbReasonTtlExceeded || back.reason == bpf.XdplbReasonRateLimited:
		return "no way back"
	case back.verdict != xdpTX || back.reason != bpf.XdplbReasonTransmitted:
		w.Errorf("the reply: verdict %d under %q\nin    %x\nthere %x", back.verdict, names[back.reason], frame, got.frame)
	case !bytes.Equal(want, came):
		w.Errorf("there and back again is another packet\nin    %x\nthere %x\nback  %x\nwant  %x", frame, got.frame, back.frame, want)
	}
	return "there and back"
}

func networkOf(frame []byte) []byte { _, at := linkOf(frame); return frame[at:] }

func onVLAN0(frame []byte) bool {
	_, at := linkOf(frame)
	return at > 14 && binary.BigEndian.Uint16(frame[14:])&0xfff == 0
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
			id := uint32(0)
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
				id++
				for i, part := range p.fragments(id) {
					if ended := w.thereAndBack(part.bytes(w)); ended != "there and back" {
						t.Fatalf("%v: fragment %d: %s", p, i, ended)
					}
				}
			})
		})
	}
}

// halfCheck is how much of a packet is quoted if the quote ends within its checksum.
var halfCheck = map[uint8]int{unix.IPPROTO_TCP: 17, unix.IPPROTO_UDP: 7}

// Errors about packets of every make: what they quote is what their receiver sent, in both directions.
func TestErrorsThereAndBackByProperties(t *testing.T) {
	for _, mode := range translatingModes {
		t.Run(mode.name, func(t *testing.T) {
			w, vips := translating(t), []*service(nil)
			for _, pattern := range vipNames {
				vips = append(vips, w.translatedVIP(fmt.Sprintf(pattern, 10), mode.mode))
			}
			rapid.Check(t, func(t *rapid.T) {
				s := rapid.SampledFrom(vips).Draw(t, "VIP")
				p := s.base().numbered(int(rapid.Uint16Min(1).Draw(t, "client's port")))
				p.tags = rapid.SampledFrom(tagStacks).Draw(t, "tags")
				p.tos = rapid.Uint8().Draw(t, "TOS")
				p.payload = rapid.SliceOfN(rapid.Byte(), 0, 64).Draw(t, "payload")
				d := s.establish("errors", p)
				from := rapid.SampledFrom(messengers).Draw(t, "from")
				size := rapid.IntRange(4, len(p.transport(w))).Draw(t, "quoted")
				if size == halfCheck[p.proto] { // which stays as it is: nobody can verify it
					size++
				}
				q := d.atBackend(p)
				d.tells(from, "error to the backend", p.quoting(w, size), q.quoting(w, size), p, q, uint32(d.b.Link.Interface), d.fullNAT())
				r := d.reply(p)
				q = d.atClient(r)
				d.tells(from, "error to the client", r.quoting(w, size), q.quoting(w, size), r, q, d.comes, true)
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
			one := *w
			one.TB = t
			one.roundTrip(claim(frame))
			one.wellFormed(claim(frame))
			w.settings = one.settings // time goes on
		}
	})
}
