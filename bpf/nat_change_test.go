package bpf_test

import (
	"fmt"
	"math/rand/v2"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/xdplb/xdplb/bpf"
	"github.com/xdplb/xdplb/maps"
)

// Backends of every mode serve one VIP; each flow keeps to its own.
func TestMixedModes(t *testing.T) {
	w := translating(t)
	for _, pattern := range vipNames {
		s := w.vip(fmt.Sprintf(pattern, 10))
		family := map[bool]string{false: "10.0.0.5%d", true: "2001:db8:a::5%d"}[s.Addr.Is6()]
		for i, mode := range []bpf.XdplbMode{bpf.XdplbModeModeDr, bpf.XdplbModeModeTun, bpf.XdplbModeModeNat, bpf.XdplbModeModeFullnat} {
			s.backend(fmt.Sprintf(family, i), func(b *maps.Backend) { b.Mode = uint8(mode) })
		}
		s.pinAll()
		s.settle()
		flows := map[uint8][]*dialogue{}
		for port := range 100 {
			p := s.base().numbered(2000 + port)
			p.tcp = syn
			b := s.backends[s.slots[s.slotOf(p)].Backend-s.backends[0].Id]
			d := s.begun(fmt.Sprintf("mixed, mode %d", b.Mode), p, b)
			flows[b.Mode] = append(flows[b.Mode], d)
		}
		if len(flows) != 4 {
			t.Fatalf("%s: flows of %d modes", s.VIP, len(flows))
		}
		for _, b := range s.backends[1:] { // all flows to come are the first one's
			s.drain(b)
		}
		for _, all := range flows {
			for _, d := range all {
				p := d.segment(ack)
				if d.b.Mode == uint8(bpf.XdplbModeModeDr) || d.b.Mode == uint8(bpf.XdplbModeModeTun) {
					w.goes(d.name, p, d.b)
					continue
				}
				d.back("reply after the change", d.reply(d.segment(synAck)))
				d.forth("data after the change", p)
			}
		}
	}
}

// slotOf is the slot of a packet's flow.
func (s *service) slotOf(p packet) uint32 {
	return uint32(uint64(uint32(s.hash(p.tuple())>>32)) * uint64(s.TableSize) >> 32)
}

// begun is a flow that begins with p and goes to b, of whatever mode.
func (s *service) begun(what string, p packet, b *maps.Backend) *dialogue {
	s.Helper()
	d := &dialogue{service: s, name: fmt.Sprintf("%s: %s", s.VIP, what), b: b, client: p, source: p.client}
	switch bpf.XdplbMode(b.Mode) {
	case bpf.XdplbModeModeNat, bpf.XdplbModeModeFullnat:
		d.adopt("the first packet", p)
	default:
		s.goes(d.name, p, b)
	}
	return d
}

// A backend that is down has no flows: TCP of FULL-NAT is told, all else goes on.
func TestTranslatedBackendDown(t *testing.T) {
	eachTranslation(t, func(t *testing.T, s *service) {
		d := s.establish("down", s.base())
		b := d.b
		other := s.backend(map[bool]string{false: "10.0.0.61", true: "2001:db8:a::61"}[s.Addr.Is6()], func(o *maps.Backend) {
			o.Mode, o.Port, o.Link = b.Mode, b.Port, b.Link
		})
		b.SetFlag(bpf.XdplbBackendFlagBackendDown, true)
		s.WriteBackend(b)
		s.wait(s.settings.UdpGrace)
		s.change()
		s.wait(s.settings.UdpGrace)
		s.passes(d.name+": a reply of a backend that is down", d.reply(d.segment(ack)).bytes(t))
		if s.fullNAT() && s.Proto == unix.IPPROTO_TCP {
			s.resets(d.name+": data", d.segment(ack), bpf.XdplbReasonFlowUnknown)
			p := d.segment(syn)
			d = s.begun("a new connection", p, other)
		} else {
			d = s.begun("taken over", d.segment(ack), other)
		}
		d.back("a reply of the other backend", d.reply(d.segment(synAck)))
		d.forth("data", d.segment(ack))
	})
}

// What flows count, in both directions.
func TestTranslatedCounters(t *testing.T) {
	eachTranslation(t, func(t *testing.T, s *service) {
		d := s.establish("counted", s.base())
		for range 3 {
			d.forth("data", d.client)
		}
		for range 5 {
			d.back("reply", d.reply(d.client))
		}
		forth, back := uint64(len(d.segment(ack).ip(t))), uint64(len(d.client.ip(t)))
		want := maps.Counters{
			Packets: 5, Bytes: 2*forth + 3*back, Connections: 1,
			ReplyPackets: 6, ReplyBytes: forth + 5*back,
		}
		got, err := s.BackendCounters(d.b.Id)
		must(t, err)
		want.ReplyConnections = got.ReplyConnections
		if got != want {
			t.Errorf("%s: %+v, want %+v", d.name, got, want)
		}
	})
}

// Frames of several buffers.
func TestLargeTranslatedFrames(t *testing.T) {
	for _, mode := range translatingModes {
		t.Run(mode.name, func(t *testing.T) {
			w := translating(t)
			must(t, w.PutInterface(maps.Interface{Number: inside, XdplbInterface: bpf.XdplbInterface{
				Mac: maps.MACWord(interfaceMAC(inside)), Mtu: 20000, Ifindex: 1,
			}}))
			for _, pattern := range vipNames {
				s := w.translatedVIP(fmt.Sprintf(pattern, 10), mode.mode, func(b *maps.Backend) { b.Link.Mtu = 20000 })
				p := s.base()
				d := s.establish("large frames", p)
				for _, size := range []int{3400, 3600, 9000, 18000} {
					p.payload = bytesOf(size)
					d.forth(fmt.Sprintf("%d bytes", size), p)
					d.back(fmt.Sprintf("%d bytes back", size), d.reply(p))
				}
			}
		})
	}
}

// SYNs of nobody push out only each other: established flows go on in both directions.
func TestFloodLeavesTranslatedFlowsAlone(t *testing.T) {
	const places, established, flood = 4096, 300, 20000
	for _, mode := range translatingModes {
		t.Run(mode.name, func(t *testing.T) {
			w := translating(t, worldOptions{flows: places})
			s := w.translatedVIP("192.0.2.10:80", mode.mode)
			var all []*dialogue
			for i := range established {
				all = append(all, s.establish(fmt.Sprintf("flow %d", i), s.base().numbered(10000+i)))
			}
			r := rand.New(rand.NewPCG(17, 18))
			p := s.base()
			p.tcp, p.payload = syn, nil
			frame := p.bytes(t)
			for range flood {
				p = p.randomClient(r)
				p.writeClient(frame)
				if verdict, _ := w.run(frame); verdict != xdpTX && verdict != xdpDrop {
					t.Fatalf("%v: verdict %d", p.tuple(), verdict)
				}
			}
			for _, d := range all {
				d.forth("after the flood", d.client)
				d.back("its reply", d.reply(d.client))
			}
			refused := w.reasons()[bpf.XdplbReasonSnatExhausted] + w.reasons()[bpf.XdplbReasonNatClash]
			if sent := w.reasons()[bpf.XdplbReasonTransmitted]; refused > flood/2 || sent < flood/2 {
				t.Errorf("of %d SYNs %d were refused, and %d frames sent", flood, refused, sent)
			}
		})
	}
}
