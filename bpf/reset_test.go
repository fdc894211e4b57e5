package bpf_test

import (
	"fmt"
	"testing"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
	"golang.org/x/sys/unix"

	"github.com/xdplb/xdplb/bpf"
	"github.com/xdplb/xdplb/maps"
)

// Sequence numbers of every TCP packet of these tests: packet.transport.
const (
	tcpSeq = 0x01020304
	tcpAck = 0x05060708
)

// refused is the RST that answers p (RFC 9293, 3.10.7.1).
func (p packet) refused(t testing.TB) []byte {
	t.Helper()
	size := uint32(len(p.payload))
	if p.tcp.SYN {
		size++
	}
	if p.tcp.FIN {
		size++
	}
	answer := p.answer(icmp{}, nil)
	ip := answer.network(unix.IPPROTO_TCP)
	tcp := layers.TCP{SrcPort: layers.TCPPort(p.vip.Port()), DstPort: layers.TCPPort(p.client.Port()), RST: true}
	if p.tcp.ACK {
		tcp.Seq = tcpAck
	} else {
		tcp.ACK, tcp.Ack = true, tcpSeq+size
	}
	must(t, tcp.SetNetworkLayerForChecksum(ip))
	return answer.framed(t, serialize(t, ip.(gopacket.SerializableLayer), gopacket.Payload(serialize(t, &tcp))))
}

// resets demands that p is answered with a RST.
func (w *world) resets(what string, p packet, reason bpf.XdplbReason) {
	w.Helper()
	w.demand(what, p.bytes(w), xdpTX, reason, p.refused(w))
}

// refusing are the VIPs that adopt no flow, of TCP: in FULL-NAT nobody knows its source, and by these schedulers
// or with affinity, nobody knows its backend.
func refusing(t *testing.T) (all []*service) {
	w := translating(t)
	for _, pattern := range []string{vipNames[0], vipNames[2]} {
		all = append(all, w.translatedVIP(fmt.Sprintf(pattern, 10), bpf.XdplbModeModeFullnat))
		for _, s := range []*service{
			w.scheduled(fmt.Sprintf(pattern, 20), maps.SchedulerRR, 1, 1),
			w.scheduled(fmt.Sprintf(pattern, 21), maps.SchedulerLC, 1, 1),
			w.affine(fmt.Sprintf(pattern, 22), maps.SchedulerMaglev, 1, 1),
		} {
			for _, b := range s.backends {
				b.Mode = uint8(bpf.XdplbModeModeNat)
				w.WriteBackend(b)
			}
			all = append(all, s)
		}
	}
	return all
}

var refusedFlags = []layers.TCP{
	{ACK: true}, {ACK: true, PSH: true}, {ACK: true, FIN: true}, {ACK: true, SYN: true}, {FIN: true}, {}, {PSH: true, URG: true},
	{FIN: true, Options: []layers.TCPOption{{OptionType: 2, OptionLength: 4, OptionData: []byte{5, 180}}}},
}

// A TCP packet of no flow gets a RST, where flows cannot be adopted.
func TestResets(t *testing.T) {
	for _, s := range refusing(t) {
		for _, tags := range tagStacks {
			for _, flags := range refusedFlags {
				p := s.base()
				p.tags = tags
				mutate(p, func(name string, p packet) {
					p.tcp = flags
					s.resets(fmt.Sprintf("%s: %d tags, %s, %s", s.VIP, len(tags), flagsText(flags), name), p, bpf.XdplbReasonFlowUnknown)
				})
				s.wait(testHz) // the limit is not at issue here
			}
		}
		if n := len(s.pins(s.VIP)); n != 0 {
			t.Errorf("%s: packets of no flow left %d entries", s.VIP, n)
		}
	}
}

// What gets no RST: a RST, an ICMP error, a later fragment, and nobody in particular.
func TestNoResetAboutIt(t *testing.T) {
	for i, s := range refusing(t) {
		p := s.base()
		for _, flags := range []layers.TCP{{RST: true}, {RST: true, ACK: true}, {RST: true, FIN: true, ACK: true}} {
			p.tcp = flags
			s.drops(fmt.Sprintf("%s: a RST", s.VIP), p.bytes(t), bpf.XdplbReasonFlowUnknown)
		}
		p = s.base()
		if got := s.send(p.quoting(t, 8).bytes(t)); got.verdict != xdpDrop {
			t.Errorf("%s: an ICMP error of no flow: verdict %d under %q", s.VIP, got.verdict, names[got.reason])
		}
		parts := p.fragments(uint32(100 + i))
		if got := s.send(parts[0].bytes(t)); got.reason != bpf.XdplbReasonFlowUnknown || got.verdict != xdpTX {
			t.Errorf("%s: the first fragment: verdict %d under %q", s.VIP, got.verdict, names[got.reason])
		}
		s.drops(fmt.Sprintf("%s: a later fragment", s.VIP), parts[1].bytes(t), bpf.XdplbReasonFlowUnknown)
		nobody := []string{"0.0.0.0", "127.0.0.1", "224.0.0.1", "255.255.255.255"}
		if s.Addr.Is6() {
			nobody = []string{"::", "ff02::1"}
		}
		for _, from := range nobody {
			p := s.base()
			p.client = withAddr(p.client, from)
			s.drops(fmt.Sprintf("%s: from %s", s.VIP, from), p.bytes(t), bpf.XdplbReasonFlowUnknown)
		}
	}
}

// RSTs have a limit of their own.
func TestResetLimit(t *testing.T) {
	onOneCPU(t)
	w := translating(t)
	s := w.translatedVIP("192.0.2.10:80", bpf.XdplbModeModeFullnat)
	p := s.base()
	frame := p.bytes(t)
	for round := range 2 {
		for n := range 1000 {
			if got := w.send(frame); got.reason != bpf.XdplbReasonFlowUnknown || got.verdict != xdpTX {
				t.Fatalf("round %d: RST %d: verdict %d under %q", round, n+1, got.verdict, names[got.reason])
			}
		}
		w.drops("beyond the limit", frame, bpf.XdplbReasonRateLimited)
		echo := p.echo()
		w.demand("an echo", echo.bytes(t), xdpTX, bpf.XdplbReasonEchoAnswered, echo.echoed().bytes(t))
		p.tcp = rst
		w.drops("a RST beyond the limit", p.bytes(t), bpf.XdplbReasonFlowUnknown)
		p.tcp = s.base().tcp
		w.wait(testHz)
	}
}

// NAT adopts: the table names the backend, and the client's port is its own.
func TestAdoption(t *testing.T) {
	w := translating(t)
	for _, pattern := range vipNames {
		s := w.translatedVIP(fmt.Sprintf(pattern, 10), bpf.XdplbModeModeNat)
		for j, scheduler := range []maps.Scheduler{maps.SchedulerMaglev, maps.SchedulerSource} {
			s.Function.Scheduler = uint8(scheduler)
			s.put()
			for i, flags := range []layers.TCP{ack, fin, synAck, {ACK: true, PSH: true}} {
				p := s.base().numbered(8000 + 10*j + i)
				p.tcp = flags
				d := s.opensWith("adopted by "+flagsText(flags), p)
				d.back("its reply", answerFlags(d.reply(s.base())))
			}
		}
		if p := s.base(); p.proto == unix.IPPROTO_TCP {
			p.tcp = rst
			w.drops(fmt.Sprintf("%s: a RST of no flow", s.VIP), p.bytes(t), bpf.XdplbReasonFlowUnknown)
			w.drops(fmt.Sprintf("%s: an error of no flow", s.VIP), p.quoting(t, 8).bytes(t), bpf.XdplbReasonFlowUnknown)
		}
	}
}

// FULL-NAT without a flow needs a new one for UDP, which shows no beginning.
func TestBeginningsOfUDP(t *testing.T) {
	w := translating(t)
	for _, pattern := range vipNames {
		s := w.translatedVIP(fmt.Sprintf(pattern, 10), bpf.XdplbModeModeFullnat)
		if s.Proto != unix.IPPROTO_UDP {
			continue
		}
		seen := map[uint16]bool{}
		for i := range 100 {
			d := s.opensWith("UDP", s.base().numbered(8000+i))
			d.back("its reply", d.reply(s.base()))
			seen[d.source.Port()] = true
		}
		if len(seen) != 100 {
			t.Errorf("%s: 100 flows have %d ports", s.VIP, len(seen))
		}
	}
}
