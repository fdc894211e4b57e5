package maps_test

import (
	"encoding/binary"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"

	"github.com/xdplb/xdplb/maps"
)

// The centre of the project: no sequence of changes moves an established connection
// while its backend is up. Each rule of just-enough tracking is there because
// leaving it out fails here or in tracking_test.go.
func TestNoConnectionMoves(t *testing.T) {
	const seeds = 8
	for _, s := range scenarios {
		t.Run(s.name, func(t *testing.T) {
			for seed := range uint64(seeds) {
				h := play(newModel(maps.HashKey{byte(seed)}.Words(), maps.MinTableSize), seed, s)
				if h.moved != 0 || h.packets < s.seconds {
					t.Errorf("seed %d: %d moved of %d packets, the first at second %d", seed, h.moved, h.packets, h.firstMoved)
				}
				if h.changes < 5 || h.movingSeen == 0 || h.settledSeen == 0 {
					t.Errorf("seed %d shows nothing: %d changes, %d packets in moving slots, %d in settled ones",
						seed, h.changes, h.movingSeen, h.settledSeen)
				}
			}
		})
	}
}

// scenario is how clients and operators behave.
type scenario struct {
	name    string
	vip     netip.AddrPort
	clients netip.Addr // whose last 16 bits vary
	proto   uint8
	reuse   bool    // of ports: a tuple comes back soon
	rate    float64 // changes a second
	seconds int
}

var (
	vip4     = netip.MustParseAddrPort("192.0.2.10:80")
	vip6     = netip.MustParseAddrPort("[2001:db8::10]:80")
	clients4 = netip.MustParseAddr("198.18.0.0")
	clients6 = netip.MustParseAddr("2001:db8:1::")

	scenarios = []scenario{
		{"ports reused", vip4, clients4, tcp, true, 0.002, 20000},
		{"fresh ports, fast changes", vip6, clients6, tcp, false, 0.02, 20000},
		{"ports reused, slow changes", vip4, clients4, tcp, true, 0.0006, 20000},
		{"UDP", vip4, clients4, udp, true, 0.002, 20000},
	}
)

// history plays changes and connections against a director. What it does next
// depends on its seed and on where packets went, so two directors that agree on
// every packet see the same history.
type history struct {
	scenario
	rand     *rand.Rand
	director director
	pool     pool
	function maps.SlotFunction
	fresh    uint32
	tuples   uint32
	open     map[maps.Tuple]*connection
	due      [][]*connection // by second

	changes, packets, moved int
	firstMoved              int64
	movingSeen, settledSeen int // packets, if the director is a model
}

type connection struct {
	tuple        maps.Tuple
	backend      uint32
	began, spoke int64
	spoken       bool // more than SYNs
}

// slotFunctions are those that a history switches between.
var slotFunctions = []maps.SlotFunction{maglev, source(128), source(126)}

func play(d director, seed uint64, s scenario) *history {
	h := &history{
		scenario: s, rand: rand.New(rand.NewPCG(seed, 1)), director: d, pool: pool{}, function: maglev,
		open: map[maps.Tuple]*connection{}, due: make([][]*connection, s.seconds+2*tcpIdle),
	}
	for range 4 {
		h.add(0, 1)
	}
	for now := range int64(s.seconds) {
		h.second(now)
	}
	return h
}

func (h *history) second(now int64) {
	if h.rand.Float64() < h.rate {
		h.change(now)
		for t, c := range h.open {
			if !h.pool.up(c.backend) {
				delete(h.open, t) // it died with its backend
			}
		}
	}
	if now%30 == 0 {
		h.director.settle(now)
	}
	for range 2 {
		h.connect(now)
	}
	for i := 0; i < len(h.due[now]); i++ {
		if c := h.due[now][i]; h.open[c.tuple] == c {
			h.speak(now, c)
		}
	}
}

func (h *history) change(now int64) {
	ids := make([]uint32, 0, len(h.pool))
	for id := range h.pool {
		ids = append(ids, id)
	}
	slices.Sort(ids)
	id := ids[h.rand.IntN(len(ids))]
	s := h.pool[id]
	switch what := h.rand.IntN(12); what {
	case 0:
		if len(h.pool) < 8 {
			h.add(now, uint16(1+h.rand.IntN(3)))
		}
		return
	case 1:
		if len(h.pool) > 3 {
			h.apply(now, change{id: id, deleted: true})
		}
		return
	case 2:
		s.weight = 0
	case 3:
		s.weight = uint16(1 + h.rand.IntN(5))
	case 4, 5:
		s.down = true
	case 6, 7:
		s.down = false
	case 8:
		s.unresolved = true
	case 9, 10:
		for _, id := range ids {
			if s := h.pool[id]; s.unresolved {
				s.unresolved = false
				h.apply(now, change{id: id, server: s})
			}
		}
		return
	case 11:
		others := slices.DeleteFunc(slices.Clone(slotFunctions), func(f maps.SlotFunction) bool { return f == h.function })
		f := others[h.rand.IntN(len(others))]
		h.function = f
		h.apply(now, change{function: &f})
		return
	}
	h.apply(now, change{id: id, server: s})
}

// add brings a new server, or one that was deleted back under a new id.
func (h *history) add(now int64, weight uint16) {
	used := map[netip.AddrPort]bool{}
	for _, s := range h.pool {
		used[s.address] = true
	}
	free := uint32(0)
	for used[address(free)] {
		free++
	}
	h.fresh++
	h.apply(now, change{id: h.fresh, server: server{address: address(free), weight: weight}})
}

func address(n uint32) netip.AddrPort {
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, 0, byte(n + 1)}), 80)
}

func (h *history) apply(now int64, c change) {
	h.changes++
	h.pool.apply(c)
	h.director.apply(now, c)
}

func (h *history) connect(now int64) {
	h.tuples++
	n := h.tuples
	if h.reuse {
		n = h.rand.Uint32N(400)
	}
	t := h.tuple(n)
	if h.open[t] != nil {
		return
	}
	if b := h.packet(now, segment{tuple: t, syn: h.proto == tcp}); b != 0 && !h.pool[b].unresolved {
		c := &connection{tuple: t, backend: b, began: now, spoke: now}
		h.open[t] = c
		h.later(now+1, c)
	}
}

// tuple n is one of sixteen ports of client n/16.
func (h *history) tuple(n uint32) maps.Tuple {
	src := h.clients.As16()
	binary.BigEndian.PutUint16(src[14:], uint16(n/16))
	return maps.Tuple{
		Src: netip.AddrFrom16(src).Unmap(), Dst: h.vip.Addr(), Proto: h.proto,
		SrcPort: uint16(40000 + n%16), DstPort: h.vip.Port(),
	}
}

func (h *history) speak(now int64, c *connection) {
	promised := now-c.spoke < tcpIdle
	age := now - c.began
	if h.proto == tcp && !c.spoken && h.rand.Float64() < 0.1 { // the answer was lost: the SYN comes again
		c.backend, c.spoke = h.packet(now, segment{tuple: c.tuple, syn: true}), now
		if c.backend == 0 {
			delete(h.open, c.tuple)
		} else {
			h.later(now+1, c)
		}
		return
	}
	ends := age > 2 && h.rand.Float64() < 0.15
	silently := h.proto == udp || h.rand.Float64() < 0.1 // the client vanishes, or never sent a FIN
	b := h.packet(now, segment{tuple: c.tuple, closing: ends && !silently})
	h.packets++
	if b != c.backend && !promised {
		ends = true
	} else if b != c.backend {
		if h.moved == 0 {
			h.firstMoved = now
		}
		h.moved++
		ends = true
	}
	if ends {
		delete(h.open, c.tuple)
		return
	}
	c.spoken, c.spoke = true, now
	if h.pool[b].unresolved { // dropped; it sends again
		h.later(now+2, c)
		return
	}
	h.later(now+h.gap(age), c)
}

// gap is how long a connection of that age is silent, in seconds.
func (h *history) gap(age int64) int64 {
	between := func(a, b int64) int64 { return a + h.rand.Int64N(b-a+1) }
	x := h.rand.Float64()
	switch {
	case age < 2:
		return 1
	case h.proto == udp: // shorter than the grace, or no promise
		return between(1, udpGrace-1)
	case x < 0.6:
		return between(1, 5)
	case x < 0.8:
		return between(5, 100)
	default:
		return between(100, tcpIdle+tcpIdle/10) // at times longer than anything is promised
	}
}

func (h *history) later(at int64, c *connection) { h.due[at] = append(h.due[at], c) }

func (h *history) packet(now int64, s segment) uint32 {
	if m, ok := h.director.(*model); ok {
		if m.slots[m.slotOf(m.function, s.tuple)].Moving {
			h.movingSeen++
		} else {
			h.settledSeen++
		}
	}
	return h.director.packet(now, s)
}
