package maps_test

import (
	"reflect"
	"strconv"
	"sync/atomic"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/xdplb/xdplb/bpf"
	"github.com/xdplb/xdplb/maps"
)

// The program does what the model does, packet by packet and pin by pin, through
// the same random histories.
func TestProgramFollowsTheModel(t *testing.T) {
	const seeds = 2
	for _, s := range scenarios {
		t.Run(s.name, func(t *testing.T) {
			t.Parallel() // much of the time is the kernel's, which waits when tables are swapped
			var settledAgain atomic.Int64
			t.Run("seed", func(t *testing.T) {
				for seed := range uint64(seeds) {
					t.Run(strconv.FormatUint(seed, 10), func(t *testing.T) {
						t.Parallel()
						settledAgain.Add(replay(t, seed, s))
					})
				}
			})
			// Faster changes never let a VIP settle.
			if s.rate < 0.01 && settledAgain.Load() == 0 {
				t.Error("no VIP settled after a change")
			}
		})
	}
}

// replay returns how often the VIP settled.
func replay(t *testing.T, seed uint64, s scenario) int64 {
	flows := uint32(1 << 12) // more than there are tuples: none may be pushed out
	if !s.reuse {
		flows = 1 << 16
	}
	key := maps.HashKey{byte(seed), 77}
	p := newProgram(t, key, maps.MinTableSize, flows, maps.VIP{Addr: s.vip.Addr(), Port: s.vip.Port(), Proto: s.proto})
	both := &pair{TB: t, model: newModel(key.Words(), maps.MinTableSize), program: p}
	h := play(both, seed, s)
	both.compare(int64(s.seconds))
	both.counted()
	if h.moved != 0 || h.packets < s.seconds || h.changes < 5 {
		t.Errorf("%d moved of %d packets by %d changes, the first at second %d", h.moved, h.packets, h.changes, h.firstMoved)
	}
	if both.moving == 0 || both.settled == 0 || both.pinned == 0 || both.noBackend+both.noNextHop == 0 && s.rate > 0.001 {
		t.Errorf("nothing is shown: %+v", both.shown)
	}
	return both.settledAgain
}

// pair plays a history against the model and the program at once.
type pair struct {
	testing.TB
	model   *model
	program *program
	wrong   int
	shown
}

// shown is what a history has shown.
type shown struct {
	packets, moving, settled, pinned int
	settledAgain                     int64
	noBackend, noNextHop             uint64
}

const (
	compareEvery = 500 // seconds
	wrongMost    = 5
)

func (p *pair) apply(now int64, c change) {
	p.model.apply(now, c)
	p.program.apply(now, c)
}

func (p *pair) settle(now int64) {
	before := maps.Moving(p.model.slots)
	p.model.settle(now)
	p.program.settle(now)
	if before > 0 && maps.Moving(p.model.slots) == 0 {
		p.settledAgain++
	}
	if now%compareEvery < 30 {
		p.compare(now)
	}
}

func (p *pair) packet(now int64, s segment) uint32 {
	p.packets++
	if p.model.slots[p.model.slotOf(p.model.function, s.tuple)].Moving {
		p.moving++
	} else {
		p.settled++
	}
	want, got := p.model.packet(now, s), p.program.packet(now, s)
	reached := want
	switch {
	case want == 0:
		p.noBackend++
	case p.model.pool[want].unresolved:
		p.noNextHop++
		reached = 0
	}
	if got != reached {
		p.disagree("second %d: %+v goes to %d, want %d", now, s, got, reached)
	}
	return want
}

func (p *pair) disagree(format string, args ...any) {
	p.Errorf(format, args...)
	if p.wrong++; p.wrong >= wrongMost {
		p.Fatal("and so on")
	}
}

// pinned is a pin as both have it.
type pinned struct {
	Backend                   uint32
	Seen                      int64
	Spoken, Closing, HalfOpen bool
}

// compare compares the tables of slots and of pins.
func (p *pair) compare(now int64) {
	slots, err := p.program.Table(p.program.service.Id)
	must(p, err)
	for i := range slots {
		slots[i].Backend, slots[i].Old = p.program.ids[slots[i].Backend], p.program.ids[slots[i].Old]
	}
	if diff := cmp.Diff(p.model.slots, slots); diff != "" {
		p.disagree("second %d: slots (-want +got):\n%s", now, diff)
	}
	want, got := map[maps.Tuple]pinned{}, map[maps.Tuple]pinned{}
	for tuple, pin := range p.model.halfOpen {
		want[tuple] = pinned{pin.backend, pin.seen, pin.spoken, pin.closing, true}
	}
	for tuple, pin := range p.model.flows {
		want[tuple] = pinned{pin.backend, pin.seen, pin.spoken, pin.closing, false}
	}
	must(p, p.program.Flows(func(f maps.Flow) bool {
		if _, twice := got[f.Tuple]; twice {
			p.disagree("second %d: %v is in both flow tables", now, f.Tuple)
		}
		got[f.Tuple] = pinned{p.program.ids[f.Backend], int64(f.Seen) - epoch, f.Spoken, f.Closing, f.HalfOpen}
		return true
	}))
	if !reflect.DeepEqual(want, got) { // cmp is too slow to ask each time
		p.disagree("second %d: pins (-want +got):\n%s", now, cmp.Diff(want, got))
	}
	p.shown.pinned += len(want)
}

// counted compares the reasons counted with what the model says.
func (p *pair) counted() {
	packets, err := p.program.ReadPackets()
	must(p, err)
	names, err := maps.ReasonNames()
	must(p, err)
	noBackend, noNextHop := packets.Reasons[names[bpf.XdplbReasonNoBackend]], packets.Reasons[names[bpf.XdplbReasonNoNextHop]]
	forwarded := uint64(p.packets) - p.noBackend - p.noNextHop
	if noBackend != p.noBackend || noNextHop != p.noNextHop || packets.Forwarded != forwarded || packets.Received != uint64(p.packets) {
		p.Errorf("counted %+v, want %d forwarded, %d no_backend, %d no_next_hop", packets, forwarded, p.noBackend, p.noNextHop)
	}
}
