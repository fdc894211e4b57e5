package bpf_test

import (
	"fmt"
	"math"
	"math/rand/v2"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/cilium/ebpf"

	"github.com/xdplb/xdplb/bpf"
	"github.com/xdplb/xdplb/maps"
)

const testAffinity = 600 * testHz // jiffies

// affine is a scheduled VIP whose clients keep their backend.
func (w *world) affine(name string, scheduler maps.Scheduler, weights ...uint16) *service {
	w.Helper()
	s := w.scheduled(name, scheduler, weights...)
	s.Affinity = testAffinity
	s.put()
	s.serve()
	return s
}

// serve writes where the VIP's servers are found.
func (s *service) serve() {
	s.Helper()
	for _, b := range s.backends {
		if b.Listed() {
			must(s, s.PutServer(s.Id, b.Addr(), b.Id))
		}
	}
}

// from is the first packet of a new flow of a client, whose ports count up.
func (s *service) from(client string, port uint16) packet {
	p := s.opening()
	p.client = netip.AddrPortFrom(netip.MustParseAddr(client), port)
	return p
}

// keeps demands that the next flows of a client all go to one backend, which it returns.
func (s *service) keeps(what, client string, port uint16) int {
	s.Helper()
	to := s.to(s.from(client, port))
	for i := range uint16(20) {
		if got := s.to(s.from(client, port+1+i)); got != to {
			s.Fatalf("%s: %s: flow %d of %s went to backend %d, not %d", s.VIP, what, i, client, got, to)
		}
	}
	return to
}

func (w *world) affinities() (n int) {
	w.Helper()
	var key bpf.XdplbAffinityKey
	var value bpf.XdplbAffinity
	it := w.Affinities.Iterate()
	for it.Next(&key, &value) {
		n++
	}
	must(w, it.Err())
	return n
}

// All flows of a client go to one backend, until it is silent for too long. Each
// scheduler chooses it, and spreads clients.
func TestAffinity(t *testing.T) {
	w := newWorld(t)
	for i, scheduler := range []maps.Scheduler{maps.SchedulerMaglev, maps.SchedulerSource, maps.SchedulerRR, maps.SchedulerLC} {
		for _, name := range vipNames {
			s := w.affine(fmt.Sprintf(name, 10+i), scheduler, 1, 1, 1)
			pattern := map[bool]string{false: "198.51.100.%d", true: "2001:db8:c:%d::1"}[s.Addr.Is6()]
			var clients []string
			for n := range 8 {
				clients = append(clients, fmt.Sprintf(pattern, n))
			}
			before := w.affinities()
			to := map[string]int{}
			for _, client := range clients {
				to[client] = s.keeps("a new client", client, 1000)
			}
			if n := w.affinities() - before; n != len(clients) {
				t.Errorf("%s, %s: %d clients are remembered, not %d", s.VIP, scheduler, n, len(clients))
			}
			used := map[int]bool{}
			for round := range uint16(3) {
				w.wait(testAffinity - 1)
				for _, client := range clients {
					if got := s.keeps("in time", client, 2000+100*round); got != to[client] {
						t.Errorf("%s, %s: %s went to backend %d, not %d", s.VIP, scheduler, client, got, to[client])
					}
					used[to[client]] = true
				}
			}
			if len(used) < 2 {
				t.Errorf("%s, %s: all clients went to one backend", s.VIP, scheduler)
			}
		}
	}
}

// A client that was silent for the whole time has a new turn; a flow that lives on does not extend it.
func TestAffinityExpires(t *testing.T) {
	w := newWorld(t)
	s := w.affine("192.0.2.10:80", maps.SchedulerRR, 1, 1)
	const client, other = "198.51.100.1", "198.51.100.2"
	if got := s.keeps("first", client, 1000); got != 0 {
		t.Fatalf("the first turn went to backend %d", got)
	}
	w.wait(testAffinity - 1)
	p := s.from(client, 1000)
	p.tcp = ack
	s.to(p)
	w.wait(1)
	if got := s.to(s.from(client, 3000)); got != 1 {
		t.Errorf("an expired client went to backend %d, and it was the turn of the other", got)
	}
	if got := s.keeps("anew", client, 3001); got != 1 {
		t.Errorf("and then to backend %d", got)
	}
	if got := s.to(s.from(other, 1)); got != 0 {
		t.Errorf("another client went to backend %d", got)
	}
	if got := s.to(p); got != 0 {
		t.Errorf("the first flow went to backend %d", got)
	}
}

// Clients whose addresses begin alike share a backend.
func TestAffinityOfNetworks(t *testing.T) {
	w := newWorld(t)
	for _, c := range []struct {
		vip              string
		prefix           uint8 // of 128
		one, same, other string
	}{
		{"192.0.2.10:80", 120, "198.51.100.1", "198.51.100.254", "198.51.101.1"},
		{"192.0.2.11:80", 128, "198.51.100.1", "198.51.100.1", "198.51.100.2"},
		{"[2001:db8::10]:80", 64, "2001:db8:c::1", "2001:db8:c::ffff:1", "2001:db8:c:1::1"},
		{"[2001:db8::11]:80", 56, "2001:db8:c::1", "2001:db8:c:ff::1", "2001:db8:c:100::1"},
		{"[2001:db8::12]:80", 65, "2001:db8:c::1", "2001:db8:c::7fff:0:0:1", "2001:db8:c::8000:0:0:1"},
	} {
		s := w.affine(c.vip, maps.SchedulerRR, 1, 1, 1)
		s.Function.SourcePrefix = c.prefix
		s.put()
		one, other, same := s.to(s.from(c.one, 1)), s.to(s.from(c.other, 1)), s.to(s.from(c.same, 2))
		if one != 0 || other != 1 || same != 0 {
			t.Errorf("%s: %s went to backend %d, %s to %d, %s to %d", c.vip, c.one, one, c.other, other, c.same, same)
		}
	}
}

// A backend that takes no new flows loses its clients at once, for good, and keeps
// the flows that it has.
func TestAffinityOfThoseWhoTakeNone(t *testing.T) {
	w := newWorld(t)
	const client = "198.51.100.1"
	vips := 0
	for what, edit := range map[string]func(*maps.Backend, bool){
		"drain":      func(b *maps.Backend, on bool) { b.SetFlag(bpf.XdplbBackendFlagBackendDrain, on) },
		"down":       func(b *maps.Backend, on bool) { b.SetFlag(bpf.XdplbBackendFlagBackendDown, on) },
		"weight 0":   func(b *maps.Backend, on bool) { b.Weight = map[bool]uint16{true: 0, false: 1}[on] },
		"unresolved": func(b *maps.Backend, on bool) { b.Link.Flags ^= uint32(bpf.XdplbHopFlagHopResolved) },
	} {
		vips++
		s := w.affine(fmt.Sprintf("192.0.2.%d:80", vips), maps.SchedulerRR, 1, 1)
		to := s.keeps(what, client, 1000)
		first := s.backends[to]
		edit(first, true)
		w.WriteBackend(first)
		s.schedule()
		if got := s.keeps(what, client, 2000); got == to {
			t.Errorf("%s: the client stays", what)
		}
		if old := s.from(client, 1000); what == "drain" || what == "weight 0" {
			if old.tcp = ack; s.to(old) != to {
				t.Errorf("%s: a flow that it had went elsewhere", what)
			}
		}
		edit(first, false)
		w.WriteBackend(first)
		s.schedule()
		if got := s.keeps(what, client, 3000); got == to {
			t.Errorf("after %s: the client went back", what)
		}
	}
}

// A server that has another record, for its new mode, keeps its clients.
func TestAffinityOfReplacedRecords(t *testing.T) {
	w := newWorld(t)
	const client = "198.51.100.1"
	s := w.affine("192.0.2.10:80", maps.SchedulerRR, 1, 1, 1, 1, 1)
	to := s.keeps("before", client, 1000)
	old := s.backends[to]
	next := s.backend(old.Addr().String())
	at := len(s.backends) - 1
	old.SetFlag(bpf.XdplbBackendFlagBackendUnlisted, true)
	w.WriteBackend(old)
	s.schedule()
	s.serve()
	if got := s.keeps("replaced", client, 2000); got != at {
		t.Errorf("the client went to backend %d, not to the new record %d of %d", got, at, next.Id)
	}
	must(t, w.FreeBackend(old))
	if got := s.keeps("and the old record is gone", client, 3000); got != at {
		t.Errorf("the client went to backend %d, not to the new record %d of %d", got, at, next.Id)
	}
}

// VIPs of a group send a client to one server, by its address: their ports and
// ids differ. VIPs outside do not.
func TestAffinityGroup(t *testing.T) {
	w := newWorld(t)
	var group [2]*service
	for i, name := range []string{"192.0.2.10:80", "192.0.2.10:443"} {
		group[i] = w.affine(name, maps.SchedulerRR, 1, 1, 1)
		group[i].AffinityGroup = 7
		group[i].put()
	}
	alone := w.affine("192.0.2.10:8080", maps.SchedulerRR, 1, 1, 1)
	r := rand.New(rand.NewPCG(23, 24))
	apart := false
	for range 50 {
		client := netip.AddrFrom4([4]byte{198, 51, 100, byte(1 + r.IntN(200))}).String()
		a, b := group[0], group[1]
		if r.IntN(2) == 0 {
			a, b = b, a
		}
		to := a.keeps("group", client, 1000)
		if got := b.keeps("group", client, 1000); got != to {
			t.Fatalf("%s went to server %d on %s and to %d on %s", client, to, a.VIP, got, b.VIP)
		}
		if got := a.keeps("group", client, 2000); got != to {
			t.Fatalf("%s left server %d on %s", client, to, a.VIP)
		}
		apart = alone.keeps("alone", client, 1000) != to || apart
	}
	if !apart {
		t.Error("a VIP outside the group chose the same servers")
	}

	// Servers that one of the VIPs loses, the second one after it has taken the first one's clients.
	const client = "203.0.113.9"
	to := group[0].keeps("before", client, 1000)
	for port := uint16(1000); port <= 2000; port += 1000 {
		gone := group[0].backends[to]
		gone.SetFlag(bpf.XdplbBackendFlagBackendGone, true)
		w.WriteBackend(gone)
		must(t, w.FreeBackend(gone))
		must(t, w.DeleteServer(group[0].Id, gone.Addr()))
		group[0].schedule()
		if got := group[1].keeps("the other VIP has the server still", client, port); got != to {
			t.Errorf("%s left server %d", client, to)
		}
		next := group[0].keeps("without the server", client, port+500)
		if next == to {
			t.Errorf("%s stays with a server that is gone", client)
		}
		if got := group[1].keeps("follows", client, port+500); got != next {
			t.Errorf("%s went to server %d, and on the other VIP to %d", client, next, got)
		}
		to = next
	}
}

// Flows of one client that begin on two CPUs at once go to one backend: a new
// client's as well as one's whose time has passed.
func TestAffinityOnTwoCPUs(t *testing.T) {
	const rounds = 4000 // each client comes in two of them, the second time too late
	w := newWorld(t, worldOptions{flows: 16384})
	s := w.affine("192.0.2.10:80", maps.SchedulerRR, 1, 1, 1, 1, 1, 1, 1)
	var went [2][rounds][6]byte
	var arrived [2]atomic.Int64 // spinning: what wakes up is late
	var done sync.WaitGroup
	for cpu := range went {
		p := s.opening()
		frame := p.bytes(t)
		done.Go(func() {
			defer arrived[cpu].Store(math.MaxInt64) // after a failure the other one need not wait
			err := onCPU(cpu, func() {
				for round := range rounds {
					if cpu == 0 {
						w.settings.Clock += testAffinity
						if err := w.PutSettings(w.settings); err != nil {
							t.Error(err)
						}
					}
					p.client = netip.AddrPortFrom(netip.AddrFrom4([4]byte{198, 51, byte(round / 2 >> 8), byte(round / 2)}), uint16(1+2*round+cpu))
					p.writeClient(frame)
					o := ebpf.RunOptions{Data: frame, DataOut: make([]byte, 1<<11)}
					arrived[cpu].Add(1)
					for arrived[1-cpu].Load() < int64(2*round+1) {
					}
					if _, err := w.program.Run(&o); err != nil {
						t.Error(err)
					}
					went[cpu][round] = [6]byte(o.DataOut)
					arrived[cpu].Add(1) // only then the clock moves on
					for arrived[1-cpu].Load() < int64(2*round+2) {
					}
				}
			})
			if err != nil {
				t.Error(err)
			}
		})
	}
	done.Wait()
	apart := 0
	for round := range rounds {
		if went[0][round] != went[1][round] {
			apart++
		}
	}
	if apart > 0 {
		t.Errorf("in %d of %d rounds a client's two flows went to two backends", apart, rounds)
	}
}
