package maps_test

import (
	"net/netip"
	"testing"

	"github.com/cilium/ebpf"

	"github.com/xdplb/xdplb/bpf"
	"github.com/xdplb/xdplb/maps"
)

// A recount finds the flows that are open, and corrects what was counted by the
// difference alone.
func TestRecount(t *testing.T) {
	vip, err := maps.ParseVIP("192.0.2.10:80")
	must(t, err)
	p := newProgram(t, maps.HashKey{}, 251, 64, vip)
	var backends [3]*maps.Backend
	for i := range backends {
		id, ok, err := p.NewBackendID()
		must(t, err)
		if !ok {
			t.Fatal("no place for a backend")
		}
		backends[i] = &maps.Backend{XdplbBackend: bpf.XdplbBackend{Id: id, Vip: 1}}
		p.WriteBackend(backends[i])
	}
	gone := *backends[2]
	must(t, p.FreeBackend(&gone))
	next, ok, err := p.NewBackendID()
	must(t, err)
	if !ok || maps.Index(next) != maps.Index(gone.Id) {
		t.Fatalf("the place of %d is not used again, but that of %d", gone.Id, next)
	}
	p.WriteBackend(&maps.Backend{XdplbBackend: bpf.XdplbBackend{Id: next, Vip: 1}})

	const spoken, closing, answered, finished, reset = 1, 2, 4, 8, 16
	port := uint16(0)
	put := func(in *ebpf.Map, backend uint32, states uint64, direction bpf.XdplbFlowDirection, age uint64) (key bpf.XdplbTuple) {
		port++
		key = bpf.XdplbTuple{Src: maps.Address(netip.MustParseAddr("198.51.100.1")), Dst: maps.Address(vip.Addr), Sport: port, Dport: 80, Proto: tcp}
		must(t, in.Put(key, bpf.XdplbFlow{Stamp: (epoch-age)<<8 | states, Backend: backend, Direction: uint8(direction)}))
		return key
	}
	one, two := backends[0].Id, backends[1].Id
	const there, back = bpf.XdplbFlowDirectionFlowToBackend, bpf.XdplbFlowDirectionFlowToClient
	put(p.XdplbMaps.Flows, one, spoken, there, 0)
	put(p.XdplbMaps.Flows, one, spoken|answered, there, 0)
	put(p.HalfOpen, one, spoken, there, 0)
	put(p.XdplbMaps.Flows, two, spoken, there, tcpIdle)
	for _, states := range []uint64{0, answered, spoken | closing, spoken | answered | finished, spoken | reset, spoken | closing | finished} {
		put(p.XdplbMaps.Flows, two, states, there, 0)
	}
	put(p.XdplbMaps.Flows, two, spoken, back, 0)
	put(p.XdplbMaps.Flows, two, spoken, there, tcpIdle+1)
	put(p.XdplbMaps.Flows, gone.Id, spoken, there, 0)
	twice := put(p.XdplbMaps.Flows, two, spoken, there, 0)
	must(t, p.HalfOpen.Put(twice, bpf.XdplbFlow{Stamp: epoch<<8 | spoken, Backend: two}))

	live := func(f maps.Flow) bool { return p.settings.Live(f, epoch) }
	demand := func(what string, want ...uint64) {
		t.Helper()
		for i, id := range []uint32{one, two, next} {
			var load uint64
			must(t, p.Loads.Lookup(maps.Index(id), &load))
			if load != want[i] {
				t.Errorf("%s: backend %d has load %d, want %d", what, i, load, want[i])
			}
		}
	}
	must(t, p.Loads.Put(maps.Index(one), ^uint64(6)))
	must(t, p.Loads.Put(maps.Index(next), uint64(9)))
	must(t, p.Recount(live, nil))
	demand("first", 3, 2, 0)
	must(t, p.Recount(live, nil))
	demand("again", 3, 2, 0)
	counted := false
	must(t, p.Recount(func(f maps.Flow) bool {
		if !counted { // as packets do
			must(t, p.Loads.Put(maps.Index(one), uint64(5)))
			counted = true
		}
		return live(f)
	}, nil))
	demand("while packets count", 5, 2, 0)
}
