package bpf_test

import (
	"math/rand/v2"
	"net/netip"
	"runtime"
	"testing"

	"github.com/gopacket/gopacket/layers"
	"golang.org/x/sys/unix"

	"github.com/xdplb/xdplb/bpf"
	"github.com/xdplb/xdplb/maps"
)

// scheduled is a VIP with backends of these weights, all of whose flows are pinned.
func (w *world) scheduled(name string, scheduler maps.Scheduler, weights ...uint16) *service {
	w.Helper()
	s := w.vip(name)
	s.Function = bpf.XdplbSlotFunction{Scheduler: uint8(scheduler), SourcePrefix: 128}
	s.SetFlag(bpf.XdplbVipFlagVipPinAll, true)
	s.PinnedSince = 1
	s.put()
	for i, weight := range weights {
		s.backend(serverAddr(s.Addr, i), func(b *maps.Backend) { b.Weight = weight })
	}
	s.schedule()
	w.wait(w.settings.UdpGrace)
	return s
}

func serverAddr(vip netip.Addr, i int) string {
	a := netip.MustParseAddr(map[bool]string{false: "10.0.0.20", true: "2001:db8:a::20"}[vip.Is6()])
	for range i {
		a = a.Next()
	}
	return a.String()
}

// schedule writes the table that the scheduler asks for.
func (s *service) schedule() {
	s.Helper()
	want := s.wanted()
	if maps.Scheduler(s.Function.Scheduler) == maps.SchedulerRR {
		var entries []maps.Entry
		for _, b := range s.backends {
			if b.TakesNew() {
				entries = append(entries, b.Entry())
			}
		}
		want = maps.Sequence(s.TableSize, entries)
	}
	s.slots = make([]maps.Slot, s.TableSize)
	for i, id := range want {
		s.slots[i].Backend = id
	}
	must(s, s.PutTable(s.Id, s.slots))
}

// to sends a packet and returns the number of the backend that it goes to.
func (s *service) to(p packet) int {
	s.Helper()
	got := s.send(p.bytes(s))
	if got.verdict == xdpTX {
		for i, b := range s.backends {
			if [6]byte(got.frame) == b.Mac.Mac {
				return i
			}
		}
	}
	s.Fatalf("%s: %v: verdict %d under %q", s.VIP, p.tuple(), got.verdict, names[got.reason])
	return -1
}

// opening is the first packet of a flow.
func (s *service) opening() packet {
	p := s.base()
	p.tcp, p.payload = syn, nil
	return p
}

// onCPU runs f on one of the CPUs that there are.
func onCPU(number int, f func()) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	var before, one unix.CPUSet
	if err := unix.SchedGetaffinity(0, &before); err != nil {
		return err
	}
	one.Set(number % runtime.NumCPU())
	if err := unix.SchedSetaffinity(0, &one); err != nil {
		return err
	}
	f()
	return unix.SchedSetaffinity(0, &before)
}

var scheduledVIPs = []string{"192.0.2.10:80", "[2001:db8::10]:80", "192.0.2.10:53/udp", "[2001:db8::10]:53/udp"}

// Round robin alternates, whichever CPU has a flow and whatever its tuple hashes to.
func TestTurnsAlternate(t *testing.T) {
	w := newWorld(t)
	r := rand.New(rand.NewPCG(11, 12))
	for _, name := range scheduledVIPs {
		s := w.scheduled(name, maps.SchedulerRR, 1, 1)
		for n := range 100 {
			p := s.opening().randomClient(r)
			var got int
			must(t, onCPU(n/3, func() { got = s.to(p) }))
			if got != n%2 {
				t.Fatalf("%s: flow %d went to backend %d", s.VIP, n, got)
			}
			for _, flags := range []layers.TCP{syn, ack, ack} { // neither a SYN once more nor what follows takes a turn
				if p.tcp = flags; s.to(p) != got {
					t.Fatalf("%s: flow %d did not stay on backend %d", s.VIP, n, got)
				}
			}
		}
	}
}

// In a round everyone has as many turns as its weight says.
func TestTurnsByWeight(t *testing.T) {
	w := newWorld(t)
	r := rand.New(rand.NewPCG(13, 14))
	for _, name := range scheduledVIPs {
		s := w.scheduled(name, maps.SchedulerRR, 3, 0, 1)
		for round := range 20 {
			var turns [3]int
			for range 4 {
				turns[s.to(s.opening().randomClient(r))]++
			}
			if turns != [3]int{3, 0, 1} {
				t.Fatalf("%s: turns %v in round %d", s.VIP, turns, round)
			}
		}
	}
}

// Who went down a moment ago loses its turns; if all are, there is no backend.
func TestTurnsOfThoseThatAreDown(t *testing.T) {
	w := newWorld(t)
	r := rand.New(rand.NewPCG(15, 16))
	s := w.scheduled("192.0.2.10:80", maps.SchedulerRR, 1, 1, 1)
	down := func(b *maps.Backend) {
		b.SetFlag(bpf.XdplbBackendFlagBackendDown, true)
		w.WriteBackend(b)
	}
	down(s.backends[1])
	var turns [3]int
	for range 20 {
		turns[s.to(s.opening().randomClient(r))]++
	}
	if turns != [3]int{10, 0, 10} {
		t.Errorf("turns %v", turns)
	}
	down(s.backends[0])
	down(s.backends[2])
	w.drops("no backend is up", s.opening().randomClient(r).bytes(t), bpf.XdplbReasonNoBackend)
}

// Each VIP has a cursor of its own.
func TestTurnsOfTwoVIPs(t *testing.T) {
	w := newWorld(t)
	r := rand.New(rand.NewPCG(17, 18))
	a, b := w.scheduled("192.0.2.10:80", maps.SchedulerRR, 1, 1), w.scheduled("192.0.2.11:80", maps.SchedulerRR, 1, 1)
	for n := range 10 {
		for _, s := range []*service{a, b} {
			if got := s.to(s.opening().randomClient(r)); got != n%2 {
				t.Fatalf("%s: flow %d went to backend %d", s.VIP, n, got)
			}
		}
	}
}

func (w *world) setLoad(b *maps.Backend, load int64) {
	w.Helper()
	must(w, w.Loads.Put(maps.Index(b.Id), uint64(load)))
}

func (w *world) load(b *maps.Backend) (load uint64) {
	w.Helper()
	must(w, w.Loads.Lookup(maps.Index(b.Id), &load))
	return load
}

// share is how many of 1000 new flows go to the first backend.
func (s *service) share(r *rand.Rand) (first int) {
	s.Helper()
	for range 1000 {
		if s.to(s.opening().randomClient(r)) == 0 {
			first++
		}
	}
	return first
}

// Of two backends the one with fewer flows for its weight wins, unless only the
// other one was asked: both slots and all neighbours that are looked at name it.
func TestLessLoaded(t *testing.T) {
	const most, least = 970, 30
	w := newWorld(t, worldOptions{flows: 16384})
	r := rand.New(rand.NewPCG(19, 20))
	for _, name := range []string{"192.0.2.10:80", "[2001:db8::10]:80"} {
		s := w.scheduled(name, maps.SchedulerLC, 1, 1)
		one, two := s.backends[0], s.backends[1]
		for _, c := range []struct {
			what            string
			weights         [2]uint16
			loads           [2]int64
			atLeast, atMost int
		}{
			{"equal", [2]uint16{1, 1}, [2]int64{5, 5}, 400, 600},
			{"fewer flows", [2]uint16{1, 1}, [2]int64{4, 5}, most, 1000},
			{"more flows", [2]uint16{1, 1}, [2]int64{5, 4}, 0, least},
			{"more flows, and less for the weight", [2]uint16{3, 2}, [2]int64{29, 20}, most, 1000},
			{"fewer flows, and more for the weight", [2]uint16{2, 3}, [2]int64{20, 29}, 0, least},
			{"less than none is none", [2]uint16{1, 1}, [2]int64{0, -7}, 400, 600},
		} {
			one.Weight, two.Weight = c.weights[0], c.weights[1]
			w.WriteBackend(one)
			w.WriteBackend(two)
			first := 0
			for range 1000 {
				w.setLoad(one, c.loads[0])
				w.setLoad(two, c.loads[1])
				if s.to(s.opening().randomClient(r)) == 0 {
					first++
				}
			}
			if first < c.atLeast || first > c.atMost {
				t.Errorf("%s: %s: %d of 1000 went to the first, want %d to %d", s.VIP, c.what, first, c.atLeast, c.atMost)
			}
		}
		one.Weight, two.Weight = 1, 1
		two.SetFlag(bpf.XdplbBackendFlagBackendDown, true)
		w.WriteBackend(one)
		w.WriteBackend(two)
		w.setLoad(one, 1000)
		if n := s.share(r); n < most {
			t.Errorf("%s: the second is down: %d of 1000 went to the first", s.VIP, n)
		}
	}
}

// Connections are counted from their handshake to the first FIN, and so spread
// by weight.
func TestLoadsBalance(t *testing.T) {
	w := newWorld(t, worldOptions{flows: 16384})
	r := rand.New(rand.NewPCG(21, 22))
	s := w.scheduled("192.0.2.10:80", maps.SchedulerLC, 1, 2, 3, 4)
	var open []packet
	for range 2000 {
		p := s.opening().randomClient(r)
		to := s.to(p)
		for range 3 {
			if p.tcp = ack; s.to(p) != to {
				t.Fatal("a connection moved")
			}
		}
		open = append(open, p)
	}
	sum := uint64(0)
	for i, b := range s.backends {
		load := w.load(b)
		if share := float64(load) / float64(b.Weight); share < 190 || share > 210 {
			t.Errorf("backend %d of weight %d has %d of 2000 connections", i, b.Weight, load)
		}
		sum += load
	}
	if sum != 2000 {
		t.Errorf("%d connections are counted, not 2000", sum)
	}
	for i, p := range open {
		p.tcp = []layers.TCP{fin, rst}[i%2]
		s.to(p)
		s.to(p) // counts once
	}
	for i, b := range s.backends {
		if load := w.load(b); load != 0 {
			t.Errorf("backend %d has %d connections after all were closed", i, load)
		}
	}
}
