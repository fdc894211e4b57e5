package bpf_test

import (
	"fmt"
	"net/netip"
	"testing"

	"github.com/gopacket/gopacket/layers"

	"github.com/xdplb/xdplb/bpf"
	"github.com/xdplb/xdplb/maps"
)

// ports has FULL-NAT send from so many ports.
func (w *world) ports(n uint16) {
	w.Helper()
	w.settings.SnatLow, w.settings.SnatHigh = snatLow, snatLow+n-1
	w.putSettings()
}

// refuses demands that a SYN finds no port.
func (s *service) refuses(what string, port int) {
	s.Helper()
	p := s.base().numbered(port)
	p.tcp, p.payload = syn, nil
	s.drops(fmt.Sprintf("%s: %s", s.VIP, what), p.bytes(s), bpf.XdplbReasonSnatExhausted)
}

// When every port is taken a SYN is refused; the range of each backend is its own.
func TestExhaustion(t *testing.T) {
	for _, pattern := range []string{vipNames[0], vipNames[2]} {
		t.Run(fmt.Sprintf(pattern, 10), func(t *testing.T) {
			const room = 100
			w := translating(t)
			w.ports(room)
			s := w.translatedVIP(fmt.Sprintf(pattern, 10), bpf.XdplbModeModeFullnat)
			seen := map[uint16]bool{}
			var last *dialogue
			for i := range room {
				last = s.establish(fmt.Sprintf("flow %d", i), s.base().numbered(10000+i))
				if seen[last.source.Port()] {
					t.Fatalf("flow %d got %v, which another one has", i, last.source)
				}
				seen[last.source.Port()] = true
			}
			s.refuses("a SYN beyond the range", 1)
			s.refuses("another", 2)
			other := w.translatedVIP(fmt.Sprintf(pattern, 11), bpf.XdplbModeModeFullnat, func(b *maps.Backend) { b.Port++ })
			other.establish("of another backend", other.base().numbered(10000))
			last.says(true, fin)
			last.says(false, fin)
			last.says(true, ack)
			s.refuses("a port that was just closed", 3)
			s.world.wait(testHz + 1)
			again := s.establish("a port that was closed", s.base().numbered(4))
			if again.source != last.source {
				t.Errorf("the port that was free is %v, and the flow got %v", last.source, again.source)
			}
			s.refuses("a SYN beyond the range", 5)
		})
	}
}

// When a port may be used again: how its last flow ended says so.
func TestPortReuse(t *testing.T) {
	both := []func(*dialogue){says(true, fin), says(false, fin), says(true, ack)}
	tcp, udp := []string{vipNames[0], vipNames[2]}, []string{vipNames[1], vipNames[3]}
	for name, c := range map[string]struct {
		vips    []string
		steps   []func(*dialogue)
		jiffies uint64
	}{
		"closed by the client first": {tcp, both, 100},
		"reset by the client":        {tcp, []func(*dialogue){says(true, rst)}, 100},
		"reset by the backend":       {tcp, []func(*dialogue){says(false, layers.TCP{RST: true, ACK: true})}, 100},
		// A thirty-second more than they live, and 4 s at most: the other entry may have been touched so much later.
		"closed by the backend first": {tcp, []func(*dialogue){says(false, fin), says(true, fin)}, 6187},
		"closed by the client alone":  {tcp, []func(*dialogue){says(true, fin)}, 12375},
		"closed by the backend alone": {tcp, []func(*dialogue){says(false, fin)}, 12375},
		"expired while established":   {tcp, nil, 90400},
		"expired, of UDP":             {udp, nil, 30400},
	} {
		t.Run(name, func(t *testing.T) {
			w := translating(t)
			w.ports(1)
			for _, pattern := range c.vips {
				s := w.translatedVIP(fmt.Sprintf(pattern, 10), bpf.XdplbModeModeFullnat)
				d := s.establish(name, s.base().numbered(1))
				for _, step := range c.steps {
					step(d)
				}
				w.wait(c.jiffies - 1)
				s.refuses("a moment too early", 2)
				w.wait(2)
				again := s.establish(name+", then of another client", s.base().numbered(2))
				again.forth("data", again.client)
				again.back("a reply", again.reply(again.client))
				p := d.segment(layers.TCP{ACK: true})
				if got := s.send(p.bytes(t)); got.verdict == xdpTX && got.reason == bpf.XdplbReasonTransmitted {
					t.Errorf("%s: a packet of the flow that lost its port was forwarded: %x", d.name, got.frame)
				}
				again.back("a reply still", again.reply(again.client))
			}
		})
	}
}

// A handshake that nobody ends gives its port up to whoever needs one.
func TestHalfOpenGivesWay(t *testing.T) {
	w := translating(t)
	w.ports(1)
	s := w.translatedVIP("192.0.2.10:80", bpf.XdplbModeModeFullnat)
	s.opens("half-open", s.base().numbered(1))
	w.wait(2 * testHz)
	s.refuses("while it is young", 2)
	w.wait(testHz + 1)
	d := s.establish("in its place", s.base().numbered(2))
	d.back("a reply", d.reply(d.client))
	w.wait(10 * testHz)
	s.refuses("while the flow is established", 3)
}

// Two VIPs share a backend: flows tell replies apart, unless one port of a client
// talks to both.
func TestClash(t *testing.T) {
	for _, pattern := range []string{vipNames[0], vipNames[2]} {
		t.Run(fmt.Sprintf(pattern, 10), func(t *testing.T) {
			w := translating(t)
			one := w.translatedVIP(fmt.Sprintf(pattern, 10), bpf.XdplbModeModeNat)
			two := w.translatedVIP(fmt.Sprintf(pattern, 11), bpf.XdplbModeModeNat)
			a := one.establish("one", one.base().numbered(1))
			b := two.establish("two", two.base().numbered(2))
			for range 2 {
				a.forth("data", a.client)
				b.forth("data", b.client)
				a.back("reply", a.reply(a.client))
				b.back("reply", b.reply(b.client))
			}
			p := two.base().numbered(1)
			p.tcp, p.payload = syn, nil
			w.resets("the port that talks to the other VIP", p, bpf.XdplbReasonNatClash)
			p.payload = bytesOf(10) // TCP fast open
			w.resets("the same with data", p, bpf.XdplbReasonNatClash)
			a.back("reply after the clash", a.reply(a.client))
			a.says(true, fin)
			a.says(false, fin)
			w.wait(testHz + 1)
			c := two.establish("the port is free", two.base().numbered(1))
			c.back("reply", c.reply(c.client))

			reply := a.reply(a.segment(ack)) // the backend's tuple is the other VIP's now
			c.back("a reply on the tuple", reply)
		})
	}
}

// Without a pool the VIP's own address is the source, also beside a VIP of every port.
func TestOwnAddress(t *testing.T) {
	for _, pattern := range []string{"192.0.2.10", "[2001:db8::10]"} {
		t.Run(pattern, func(t *testing.T) {
			w := translating(t)
			must(t, w.PutSNATPool(&w.settings, nil))
			s := w.translatedVIP(pattern+":80", bpf.XdplbModeModeFullnat)
			d := s.establish("own address", s.base())
			d.forth("data", d.client)
			d.back("reply", d.reply(d.client))

			all := w.vip(pattern + ":0")
			to := all.backend(map[bool]string{false: "10.0.0.41", true: "2001:db8:a::41"}[s.Addr.Is6()])
			all.settle()
			d.back("reply beside a VIP of every port", d.reply(d.client))
			other := d.reply(d.client)
			other.vip = withPort(other.vip, other.vip.Port()^1)
			w.goes("a packet to another port", other, to)
			q := d.reply(d.client)
			e := q.quoting(t, 8)
			d.tells(messengers[1], "error beside a VIP of every port", e, d.atClient(q).quoting(t, 8), q, d.atClient(q), d.comes, true)
			again := s.establish("another", s.base().numbered(2))
			again.back("reply", again.reply(again.client))
		})
	}
}

// A port that a VIP listens on is never claimed on its address.
func TestOwnAddressOfAnotherVIP(t *testing.T) {
	w := translating(t)
	must(t, w.PutSNATPool(&w.settings, nil))
	s := w.translatedVIP("192.0.2.10:80", bpf.XdplbModeModeFullnat)
	w.ports(2)
	listens := w.vip(fmt.Sprintf("192.0.2.10:%d", snatLow))
	listens.backend("10.0.0.41")
	listens.settle()
	d := s.establish("beside a VIP within the range", s.base().numbered(1))
	if d.source.Port() != snatLow+1 {
		t.Errorf("the source is %v", d.source)
	}
	s.refuses("the VIP's own port", 2)
}

// A VIP may have SNAT addresses of its own; several take turns.
func TestOwnSNATAddresses(t *testing.T) {
	w := translating(t)
	w.ports(2)
	s := w.translatedVIP("192.0.2.10:80", bpf.XdplbModeModeFullnat)
	own := []netip.Addr{netip.MustParseAddr("10.0.0.5"), netip.MustParseAddr("10.0.0.6")}
	must(t, w.PlaceSNAT(&w.settings, &s.Service, own))
	s.put()
	seen := map[netip.AddrPort]bool{}
	for i := range 4 {
		p := s.base().numbered(1 + i)
		p.tcp, p.payload = syn, nil
		got := s.send(p.bytes(t))
		if got.verdict != xdpTX {
			t.Fatalf("flow %d: verdict %d under %q", i, got.verdict, names[got.reason])
		}
		source := sourceOf(got.frame, p.proto)
		if source.Addr() != own[0] && source.Addr() != own[1] {
			t.Errorf("flow %d has source %v", i, source)
		}
		seen[source] = true
	}
	if len(seen) != 4 {
		t.Errorf("four flows have sources %v", seen)
	}
	s.refuses("a fifth", 9)
}
