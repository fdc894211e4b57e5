package bpf_test

import (
	"math/rand/v2"
	"testing"

	"github.com/gopacket/gopacket/layers"
	"golang.org/x/sys/unix"

	"github.com/xdplb/xdplb/bpf"
	"github.com/xdplb/xdplb/maps"
)

// pins reads both flow tables; a tuple in both is an error.
func (w *world) pins(v maps.VIP) map[maps.Tuple]maps.Flow {
	w.Helper()
	all := map[maps.Tuple]maps.Flow{}
	must(w, w.Flows(func(f maps.Flow) bool {
		if f.Of(v) {
			if _, twice := all[f.Tuple]; twice {
				w.Errorf("%v is in both flow tables", f.Tuple)
			}
			all[f.Tuple] = f
		}
		return true
	}))
	return all
}

var (
	syn = layers.TCP{SYN: true}
	ack = layers.TCP{ACK: true}
	fin = layers.TCP{ACK: true, FIN: true}
	rst = layers.TCP{RST: true}
)

// A settled VIP writes nothing for any flow.
func TestSettledWritesNothing(t *testing.T) {
	w := newWorld(t)
	r := rand.New(rand.NewPCG(5, 6))
	for _, s := range w.fourVIPs() {
		for _, flags := range []layers.TCP{syn, ack, fin, rst} {
			p := s.base()
			p.tcp, p.payload = flags, nil
			frame := p.bytes(t)
			for range 2500 {
				p = p.randomClient(r)
				p.writeClient(frame)
				if verdict, _ := w.run(frame); verdict != xdpTX {
					t.Fatalf("%v: verdict %d", p.tuple(), verdict)
				}
			}
		}
		if n := len(w.pins(s.VIP)); n != 0 {
			t.Errorf("%s: %d pins in a settled VIP", s.VIP, n)
		}
		c, err := w.BackendCounters(s.backends[0].Id)
		must(t, err)
		want := uint64(0)
		if s.Proto == unix.IPPROTO_TCP {
			want = 2500
		}
		if c.Packets != 10000 || c.Connections != want {
			t.Errorf("%s: %d packets and %d connections counted, want 10000 and %d", s.VIP, c.Packets, c.Connections, want)
		}
	}
}

// moving is a VIP of two backends that moved from the first to the second.
func (w *world) moving(name string) (s *service, first, second *maps.Backend) {
	w.Helper()
	s = w.vip(name)
	first = s.backend(map[bool]string{false: "10.0.0.21", true: "2001:db8:a::21"}[s.Addr.Is6()])
	s.settle()
	second = s.backend(map[bool]string{false: "10.0.0.22", true: "2001:db8:a::22"}[s.Addr.Is6()])
	s.drain(first)
	return s, first, second
}

// What packets of a moving slot leave in the flow tables.
func TestPinsOfTCP(t *testing.T) {
	w := newWorld(t)
	for _, name := range []string{"192.0.2.10:80", "[2001:db8::10]:80"} {
		s, first, second := w.moving(name)
		p := s.base()
		step := func(what string, flags layers.TCP, to *maps.Backend, want maps.Flow) {
			t.Helper()
			w.wait(7)
			p.tcp = flags
			w.goes(what, p, to)
			want.Tuple, want.Seen = p.tuple(), w.settings.Clock
			all := w.pins(s.VIP)
			got, seen := all[p.tuple()], maps.Flow{Tuple: p.tuple()}
			seen.Backend, seen.Seen, seen.Spoken, seen.Closing, seen.HalfOpen = got.Backend, got.Seen, got.Spoken, got.Closing, got.HalfOpen
			if len(all) != 1 || seen != want {
				t.Errorf("%s: %s: pin %+v of %d, want %+v", s.VIP, what, seen, len(all), want)
			}
		}
		one, two := first.Id, second.Id
		step("established before", ack, first, maps.Flow{Backend: one, Spoken: true, HalfOpen: true})
		step("again", ack, first, maps.Flow{Backend: one, Spoken: true})
		step("FIN", fin, first, maps.Flow{Backend: one, Spoken: true, Closing: true})
		step("last ACK", ack, first, maps.Flow{Backend: one, Spoken: true, Closing: true})
		step("SYN after it", syn, second, maps.Flow{Backend: two, HalfOpen: true})
		step("the same SYN", syn, second, maps.Flow{Backend: two, HalfOpen: true})
		step("ACK", ack, second, maps.Flow{Backend: two, Spoken: true})
		step("SYN of a live connection", syn, second, maps.Flow{Backend: two, Spoken: true})
		s.enable(first)
		s.drain(second)
		step("after the change", ack, second, maps.Flow{Backend: two, Spoken: true})
		w.wait(w.settings.TcpIdle + 1)
		step("after long silence", ack, second, maps.Flow{Backend: two, Spoken: true})
		w.wait(w.settings.TcpIdle - 7)
		step("SYN within the idle timeout", syn, second, maps.Flow{Backend: two, Spoken: true})
		w.wait(w.settings.TcpIdle - 6)
		step("SYN beyond it", syn, first, maps.Flow{Backend: one, HalfOpen: true})
		s.enable(second)
		s.drain(first)
		w.wait(w.settings.HalfOpen - 7)
		step("SYN again in time", syn, first, maps.Flow{Backend: one, HalfOpen: true})
		w.wait(w.settings.HalfOpen - 6)
		step("SYN again too late", syn, second, maps.Flow{Backend: two, HalfOpen: true})
		step("RST", rst, second, maps.Flow{Backend: two, Spoken: true, Closing: true})
		second.SetFlag(bpf.XdplbBackendFlagBackendDown, true)
		w.WriteBackend(second)
		p.tcp = ack
		step("its backend is down, the slot's old one is up", ack, first, maps.Flow{Backend: one, Spoken: true})
		first.SetFlag(bpf.XdplbBackendFlagBackendDown, true)
		second.SetFlag(bpf.XdplbBackendFlagBackendDown, false)
		w.WriteBackend(first)
		w.WriteBackend(second)
		step("its backend is down, and it is the slot's old one", ack, second, maps.Flow{Backend: two, Spoken: true})
	}
}

// UDP shows no beginning: for a while after a change what has no pin is old.
func TestPinsOfUDP(t *testing.T) {
	w := newWorld(t)
	for _, name := range []string{"192.0.2.10:53/udp", "[2001:db8::10]:53/udp"} {
		s, first, second := w.moving(name)
		early, late := s.base(), s.base()
		late.client = withPort(late.client, 1)
		w.wait(w.settings.UdpGrace - 1)
		w.goes("within the grace", early, first)
		w.wait(1)
		w.goes("after the grace", late, second)
		w.goes("the first flow", early, first)
		w.wait(w.settings.UdpIdle * 3)
		w.goes("the first flow after long silence", early, first)
		all := w.pins(s.VIP)
		if len(all) != 2 || all[early.tuple()].HalfOpen || !all[late.tuple()].HalfOpen {
			t.Errorf("%s: pins %+v", s.VIP, all)
		}
		for b, want := range map[*maps.Backend]uint64{first: 3, second: 1} { // a flow counts where it is followed
			if c, err := w.BackendCounters(b.Id); err != nil || c.Packets != want || c.Connections != 1 {
				t.Errorf("%s: %+v counted, want %d packets of 1 flow (%v)", s.VIP, c, want, err)
			}
		}
	}
}

// A VIP that pins every flow does so in settled slots too.
func TestTrackAll(t *testing.T) {
	w := newWorld(t)
	for _, s := range w.fourVIPs() {
		w.goes("without", s.base(), s.backends[0])
		if n := len(w.pins(s.VIP)); n != 0 {
			t.Errorf("%s: %d pins", s.VIP, n)
		}
		s.SetFlag(bpf.XdplbVipFlagVipPinAll, true)
		s.put()
		w.goes("with", s.base(), s.backends[0])
		if n := len(w.pins(s.VIP)); n != 1 {
			t.Errorf("%s: %d pins, want 1", s.VIP, n)
		}
	}
}

// Tuples that speak once push out only each other.
func TestFloodLeavesFlowsAlone(t *testing.T) {
	const places, established, flood = 4096, 500, 20000
	w := newWorld(t, worldOptions{flows: places})
	s, first, second := w.moving("192.0.2.10:80")
	p := s.base()
	p.payload = nil
	client := func(n int) packet {
		q := p
		q.tcp = ack
		q.client = withPort(q.client, uint16(10000+n))
		return q
	}
	for n := range established {
		for range 2 {
			w.goes("established", client(n), first)
		}
	}
	// Now only the pins know the first backend.
	for i := range s.slots {
		s.slots[i] = maps.Slot{Backend: second.Id, Old: second.Id, Moving: true}
	}
	must(t, w.PutTable(s.Id, s.slots))
	r := rand.New(rand.NewPCG(7, 8))
	for _, flags := range []layers.TCP{syn, ack} {
		q := p
		q.tcp = flags
		frame := q.bytes(t)
		for range flood {
			q = q.randomClient(r)
			q.writeClient(frame)
			if verdict, out := w.run(frame); verdict != xdpTX || [6]byte(out) != second.Mac.Mac {
				t.Fatalf("%v: verdict %d to %x", q.tuple(), verdict, out[:6])
			}
		}
	}
	halfOpen := 0
	for _, f := range w.pins(s.VIP) {
		if f.HalfOpen {
			halfOpen++
		}
	}
	if halfOpen < places/2 || halfOpen > places {
		t.Errorf("the flood left %d half-open entries of %d", halfOpen, places)
	}
	for n := range established {
		w.goes("established, after the flood", client(n), first)
	}
}

// On the kernel's clock pins are stamped with its jiffies.
func TestKernelClock(t *testing.T) {
	w := newWorld(t, worldOptions{flows: 1024, realClock: true})
	clock, err := maps.NewClock()
	must(t, err)
	defer clock.Close()
	s, first, _ := w.moving("192.0.2.10:80")
	before, err := clock.Jiffies()
	must(t, err)
	w.goes("established", s.base(), first)
	after, err := clock.Jiffies()
	must(t, err)
	if seen := w.pins(s.VIP)[s.base().tuple()].Seen; seen < before || seen > after {
		t.Errorf("seen at %d, not from %d to %d", seen, before, after)
	}
}
