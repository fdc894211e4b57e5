package main

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"testing"
	"time"
)

var seedFlag = flag.Uint64("seed", 0, "replays the random changes of a failed test (or XDPLB_SEED)")

// seed is what a test's random numbers come from; a failure prints it.
func seed(t *testing.T) uint64 {
	t.Helper()
	s := *seedFlag
	if text := os.Getenv("XDPLB_SEED"); s == 0 && text != "" {
		var err error
		if s, err = strconv.ParseUint(text, 0, 64); err != nil {
			t.Fatalf("XDPLB_SEED: %v", err)
		}
	}
	if s == 0 {
		s = rand.Uint64() | 1
	}
	t.Logf("replay: go test ./cmd/xdplb -run '^%s$' -seed %d", t.Name(), s)
	return s
}

// fleetServer is what commands have made of a server.
type fleetServer struct {
	name, addr       string
	present, drained bool
	weight           int
}

func (s *fleetServer) takes() bool { return s.present && !s.drained && s.weight > 0 }

// fleet makes random changes to a VIP. What comes next depends on the seed only.
type fleet struct {
	rng     *rand.Rand
	vip     string
	servers []*fleetServer
	kinds   []string // of the changes to come

	modes, schedulers []string // what changes choose from
}

// liveChange is one command.
type liveChange struct {
	args    []string
	deletes string // the server whose connections it breaks
	takes   map[string]bool
	pause   time.Duration // after it
}

func newFleet(n *liveNet, rng *rand.Rand, vip string, kinds []string) *fleet {
	f := &fleet{rng: rng, vip: vip, schedulers: []string{"maglev", "source"}}
	for i, node := range n.Servers {
		f.servers = append(f.servers, &fleetServer{name: node.Name, addr: n.backend(i), present: true, weight: 1})
	}
	f.kinds = kinds
	return f
}

// allKinds are kinds of changes in random order, each as often as the others.
func allKinds(rng *rand.Rand, number int, modes bool) (deck []string) {
	kinds := []string{"add", "delete", "drain", "enable", "up", "down", "zero", "scheduler", "prefix", "track"}
	if modes {
		kinds = append(kinds, "mode")
	}
	for i := range number {
		deck = append(deck, kinds[i%len(kinds)])
	}
	rng.Shuffle(len(deck), func(i, j int) { deck[i], deck[j] = deck[j], deck[i] })
	return deck
}

func (f *fleet) taking() map[string]bool {
	takes := make(map[string]bool)
	for _, s := range f.servers {
		if s.takes() {
			takes[s.name] = true
		}
	}
	return takes
}

// next is a change of the kind that is due, or of another if that is not possible now.
func (f *fleet) next() liveChange {
	kind := f.kinds[0]
	f.kinds = f.kinds[1:]
	for {
		if c, ok := f.change(kind); ok {
			c.takes = f.taking()
			c.pause = time.Duration(f.rng.IntN(250)) * time.Millisecond
			return c
		}
		kind = []string{"add", "enable", "up", "down", "track", "drain"}[f.rng.IntN(6)]
	}
}

// pick is a random server that fits.
func (f *fleet) pick(fits func(*fleetServer) bool) *fleetServer {
	var all []*fleetServer
	for _, s := range f.servers {
		if fits(s) {
			all = append(all, s)
		}
	}
	if len(all) == 0 {
		return nil
	}
	return all[f.rng.IntN(len(all))]
}

// change is a random change of a kind that leaves two servers for new connections.
func (f *fleet) change(kind string) (c liveChange, ok bool) {
	present := func(s *fleetServer) bool { return s.present }
	spare := func(s *fleetServer) bool { return s.present && (!s.takes() || len(f.taking()) > 2) }
	var s *fleetServer
	switch kind {
	case "scheduler":
		return f.set("--scheduler", f.schedulers[f.rng.IntN(len(f.schedulers))]), true
	case "prefix":
		return f.set("--scheduler", "source", "--source-prefix", strconv.Itoa(20+f.rng.IntN(13))), true
	case "track":
		return f.set("--track", []string{"all", "changes"}[f.rng.IntN(2)]), true
	case "add":
		if s = f.pick(func(s *fleetServer) bool { return !s.present }); s == nil {
			return c, false
		}
		s.present, s.drained, s.weight = true, false, 1+f.rng.IntN(4)
		return liveChange{args: []string{"backend", "add", f.vip, s.addr, "--weight", strconv.Itoa(s.weight)}}, true
	case "delete":
		if s = f.pick(spare); s == nil {
			return c, false
		}
		s.present = false
		return liveChange{args: []string{"backend", "del", f.vip, s.addr}, deletes: s.name}, true
	case "drain":
		if s = f.pick(spare); s == nil || s.drained {
			return c, false
		}
		s.drained = true
		return liveChange{args: []string{"drain", s.addr}}, true
	case "enable":
		if s = f.pick(func(s *fleetServer) bool { return s.present && !s.takes() }); s == nil {
			return c, false
		}
		s.drained, s.weight = false, max(s.weight, 1) // or more: what it had
		return liveChange{args: []string{"enable", s.addr}}, true
	case "zero":
		if s = f.pick(spare); s == nil {
			return c, false
		}
		return f.weigh(s, 0), true
	case "up", "down":
		weight := map[string]int{"up": 3 + f.rng.IntN(2), "down": 1 + f.rng.IntN(2)}[kind]
		return f.weigh(f.pick(present), weight), true
	case "mode":
		args := []string{"backend", "set", f.vip, f.pick(present).addr, "--mode", f.modes[f.rng.IntN(len(f.modes))]}
		return liveChange{args: args}, true
	}
	panic(fmt.Sprintf("kind %q", kind))
}

func (f *fleet) set(flags ...string) liveChange {
	return liveChange{args: slices.Concat([]string{"vip", "set", f.vip}, flags)}
}

func (f *fleet) weigh(s *fleetServer, weight int) liveChange {
	s.weight = weight
	return liveChange{args: []string{"backend", "set", f.vip, s.addr, "--weight", strconv.Itoa(weight)}}
}
