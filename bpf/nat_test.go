package bpf_test

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/gopacket/gopacket/layers"
	"golang.org/x/sys/unix"

	"github.com/xdplb/xdplb/bpf"
	"github.com/xdplb/xdplb/maps"
)

// States of a flow, as both of its entries have them.
const (
	spoken       = uint64(bpf.XdplbFlowStateFlowSpoken)
	closing      = uint64(bpf.XdplbFlowStateFlowClosing)
	answered     = uint64(bpf.XdplbFlowStateFlowAnswered)
	finished     = uint64(bpf.XdplbFlowStateFlowFinished)
	wasReset     = uint64(bpf.XdplbFlowStateFlowReset)
	backendFirst = uint64(bpf.XdplbFlowStateFlowBackendFirst)
)

// stateOf is of an entry.
func stateOf(e entry) uint64 { return e.Stamp & (1<<uint64(bpf.XdplbFlowStampFlowStampShift) - 1) }

// keys are those of the flow's entries: as the client sends it, and as the backend does.
func (d *dialogue) keys() (forth, back bpf.XdplbTuple) {
	key := func(src, dst netip.AddrPort) bpf.XdplbTuple {
		return bpf.XdplbTuple{Src: maps.Address(src.Addr()), Dst: maps.Address(dst.Addr()), Sport: src.Port(), Dport: dst.Port(), Proto: d.Proto}
	}
	return key(d.client.client, d.client.vip), key(d.b.AddrPort(), d.source)
}

// expect demands that both entries are there, have these states, and one id.
func (d *dialogue) expect(what string, states uint64, halfOpen bool) {
	d.Helper()
	all := d.entriesNow()
	forth, back := d.keys()
	one, ok := all[forth]
	two, ok2 := all[back]
	if !ok || !ok2 {
		d.Fatalf("%s: %s: an entry is missing (%v, %v) of %d", d.name, what, ok, ok2, len(all))
	}
	for name, e := range map[string]entry{"to the backend": one, "to the client": two} {
		if stateOf(e) != states || e.halfOpen != halfOpen || e.Backend != d.b.Id {
			d.Errorf("%s: %s: the entry %s: states %#x, half-open %v, backend %d; want %#x, %v, %d", d.name, what, name,
				stateOf(e), e.halfOpen, e.Backend, states, halfOpen, d.b.Id)
		}
	}
	if one.Id != two.Id || one.Id == 0 {
		d.Errorf("%s: %s: ids %x and %x", d.name, what, one.Id, two.Id)
	}
	if one.Direction != uint8(bpf.XdplbFlowDirectionFlowToBackend) || two.Direction != uint8(bpf.XdplbFlowDirectionFlowToClient) {
		d.Errorf("%s: %s: directions %d and %d", d.name, what, one.Direction, two.Direction)
	}
	far := func(e entry) netip.AddrPort { return netip.AddrPortFrom(maps.Addr(e.Far), e.FarPort) }
	if far(one) != d.source || far(two) != d.client.client || netip.AddrPortFrom(maps.Addr(two.Vip), two.VipPort) != d.client.vip {
		d.Errorf("%s: %s: far ends %v and %v", d.name, what, far(one), far(two))
	}
}

// id is the flow's.
func (d *dialogue) id() uint64 {
	d.Helper()
	forth, _ := d.keys()
	return d.entriesNow()[forth].Id
}

// translatedTCP calls f with a VIP of each mode and family.
func translatedTCP(t *testing.T, f func(t *testing.T, s *service)) {
	for _, mode := range translatingModes {
		t.Run(mode.name, func(t *testing.T) {
			w := translating(t)
			for _, pattern := range []string{vipNames[0], vipNames[2]} {
				f(t, w.translatedVIP(fmt.Sprintf(pattern, 10), mode.mode))
			}
		})
	}
}

// What segments leave in both entries of a flow.
func TestStatesOfTwins(t *testing.T) {
	type step struct {
		client   bool
		flags    layers.TCP
		states   uint64
		halfOpen bool
	}
	open := []step{
		{false, synAck, answered, true},
		{true, ack, spoken | answered, false},
	}
	scenarios := map[string][]step{
		"the client closes first": append(open[:2:2],
			step{true, fin, spoken | answered | closing, false},
			step{false, ack, spoken | answered | closing, false},
			step{false, fin, spoken | answered | closing | finished, false},
			step{true, ack, spoken | answered | closing | finished, false}),
		"the backend closes first": append(open[:2:2],
			step{false, fin, spoken | answered | finished | backendFirst, false},
			step{true, ack, spoken | answered | finished | backendFirst, false},
			step{true, fin, spoken | answered | closing | finished | backendFirst, false}),
		"the client resets":           append(open[:2:2], step{true, rst, spoken | answered | closing | wasReset, false}),
		"the backend resets":          append(open[:2:2], step{false, layers.TCP{RST: true, ACK: true}, spoken | answered | wasReset, false}),
		"a port is closed":            {{false, layers.TCP{RST: true, ACK: true}, answered | wasReset, true}},
		"a SYN again":                 {{true, syn, 0, true}, {false, synAck, answered, true}, {true, syn, answered, true}},
		"a SYN again once it is open": append(open[:2:2], step{true, syn, spoken | answered, false}),
	}
	translatedTCP(t, func(t *testing.T, s *service) {
		port := 9000
		for name, steps := range scenarios {
			port++
			d := s.opens(name, s.base().numbered(port))
			d.expect("SYN", 0, true)
			for i, step := range steps {
				d.says(step.client, step.flags)
				d.expect(fmt.Sprintf("step %d, %s", i+1, flagsText(step.flags)), step.states, step.halfOpen)
			}
		}
	})
}

// How long flows live: the last packet of either direction counts.
func TestLifetimes(t *testing.T) {
	translatedTCP(t, func(t *testing.T, s *service) {
		seconds := func(n time.Duration) uint64 { return s.settings.Jiffies(n * time.Second) }
		port := 9000
		for _, c := range []struct {
			name  string
			lives uint64
			steps []func(d *dialogue)
		}{
			{"half-open", s.settings.HalfOpen, nil},
			{"answered", s.settings.HalfOpen, []func(*dialogue){says(false, synAck)}},
			{"established", s.settings.TcpIdle, []func(*dialogue){says(false, synAck), says(true, ack)}},
			{"established, backend last", s.settings.TcpIdle, []func(*dialogue){says(false, synAck), says(true, ack), says(false, ack)}},
			{"client closed", s.settings.Closing, []func(*dialogue){says(false, synAck), says(true, ack), says(true, fin)}},
			{"backend closed", s.settings.Closing, []func(*dialogue){says(false, synAck), says(true, ack), says(false, fin)}},
			{"both closed", seconds(10), []func(*dialogue){says(false, synAck), says(true, ack), says(true, fin), says(false, fin)}},
			{"both closed, backend first", seconds(60), []func(*dialogue){says(false, synAck), says(true, ack), says(false, fin), says(true, fin)}},
			{"reset by the client", seconds(10), []func(*dialogue){says(false, synAck), says(true, ack), says(true, rst)}},
			{"reset by the backend", seconds(10), []func(*dialogue){says(false, synAck), says(true, ack), says(false, layers.TCP{RST: true, ACK: true})}},
		} {
			begin := func() *dialogue {
				port++
				d := s.opens(c.name, s.base().numbered(port))
				for _, step := range c.steps {
					step(d)
				}
				return d
			}
			d := begin()
			s.wait(c.lives)
			d.says(false, ack)
			d = begin()
			s.wait(c.lives + 1)
			s.passes(d.name+": a reply too late", d.reply(d.segment(ack)).bytes(t))
		}
	})
}

func says(client bool, flags layers.TCP) func(*dialogue) {
	return func(d *dialogue) { d.Helper(); d.says(client, flags) }
}

// Either direction keeps both entries alive.
func TestEitherDirectionRefreshes(t *testing.T) {
	eachTranslation(t, func(t *testing.T, s *service) {
		before := len(s.entriesNow())
		d := s.establish("refreshed", s.base())
		idle := s.settings.Idle(s.Proto)
		for range 3 {
			for range 3 {
				s.wait(idle - 2*testHz)
				d.back("the backend alone speaks", answerFlags(d.reply(d.client)))
			}
			for range 3 {
				s.wait(idle - 2*testHz)
				d.forth("the client alone speaks", d.client)
			}
		}
		if n := len(s.entriesNow()) - before; n != 2 {
			t.Errorf("%s: %d entries", d.name, n)
		}
		s.wait(idle + testHz + 1)
		s.passes(d.name+": a reply too late", d.reply(d.client).bytes(t))
	})
}

// A SYN on a tuple that is closing or closed begins a new connection.
func TestSYNOnClosedTuple(t *testing.T) {
	translatedTCP(t, func(t *testing.T, s *service) {
		port := 9000
		for name, steps := range map[string][]func(*dialogue){
			"client closed":       {says(true, fin)},
			"backend closed":      {says(false, fin)},
			"both closed":         {says(true, fin), says(false, fin), says(true, ack)},
			"both, backend first": {says(false, fin), says(true, fin), says(false, ack)},
			"reset by the client": {says(true, rst)},
			"reset by both":       {says(false, layers.TCP{RST: true, ACK: true}), says(true, rst)},
		} {
			port++
			d := s.establish(name, s.base().numbered(port))
			for _, step := range steps {
				step(d)
			}
			before := d.id()
			s.wait(testHz + 1)
			again := s.establish(name+", once more", s.base().numbered(port))
			again.expect("once more", spoken|answered, false)
			if s.fullNAT() && again.id() == before { // in NAT the entries are the same, as the tuples are
				t.Errorf("%s: the new connection is the old one", d.name)
			}
			again.forth("data", again.client)
			again.back("reply", again.reply(again.client))
		}
		d := s.establish("open", s.base().numbered(1))
		before := d.id()
		d.says(true, syn)
		if d.id() != before {
			t.Errorf("%s: a SYN in the middle of a connection began another", d.name)
		}
	})
}

// A backend in TIME_WAIT is not handed a tuple that it still holds: NAT has no other.
func TestTupleInTimeWait(t *testing.T) {
	w := translating(t)
	for _, pattern := range []string{vipNames[0], vipNames[2]} {
		s := w.translatedVIP(fmt.Sprintf(pattern, 10), bpf.XdplbModeModeFullnat)
		d := s.establish("TIME_WAIT", s.base())
		d.says(false, fin)
		d.says(true, fin)
		again := s.opens("a new connection beside TIME_WAIT", s.base())
		if again.source == d.source {
			t.Errorf("%s: a new connection got %v, which the backend still holds", again.name, d.source)
		}
	}
}

// UDP lives by its own timeout.
func TestLifetimeOfUDP(t *testing.T) {
	for _, mode := range translatingModes {
		t.Run(mode.name, func(t *testing.T) {
			w := translating(t)
			for _, pattern := range []string{vipNames[1], vipNames[3]} {
				s := w.translatedVIP(fmt.Sprintf(pattern, 10), mode.mode)
				d := s.establish("UDP", s.base())
				if s.Proto != unix.IPPROTO_UDP {
					t.Fatal("not UDP")
				}
				s.wait(s.settings.UdpIdle)
				d.back("reply in time", d.reply(d.client))
				s.wait(s.settings.UdpIdle + 1)
				s.passes("reply too late", d.reply(d.client).bytes(t))
				again := s.establish("UDP once more", s.base())
				again.back("reply", again.reply(again.client))
			}
		})
	}
}
