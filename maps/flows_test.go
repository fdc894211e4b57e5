package maps_test

import (
	"errors"
	"net/netip"
	"testing"
	"time"

	"github.com/cilium/ebpf"

	"github.com/xdplb/xdplb/bpf"
	"github.com/xdplb/xdplb/maps"
)

const (
	spoken       = bpf.XdplbFlowStateFlowSpoken
	closing      = bpf.XdplbFlowStateFlowClosing
	answered     = bpf.XdplbFlowStateFlowAnswered
	finished     = bpf.XdplbFlowStateFlowFinished
	reset        = bpf.XdplbFlowStateFlowReset
	backendFirst = bpf.XdplbFlowStateFlowBackendFirst
)

// flowWorld is maps with a FULL-NAT backend, to put flows into. No program is loaded.
type flowWorld struct {
	testing.TB
	*maps.Maps
	settings maps.Settings
	vip      maps.VIP
	backend  *maps.Backend
	client   netip.AddrPort
	snat     netip.AddrPort
}

func newFlowWorld(t *testing.T) *flowWorld {
	spec, err := bpf.LoadXdplb()
	must(t, err)
	for name, m := range spec.Maps {
		switch name {
		case bpf.XdplbMapFlows, bpf.XdplbMapHalfOpen:
			m.MaxEntries = 64
		case bpf.XdplbMapBackends, bpf.XdplbMapCounters:
			m.MaxEntries = 2 // place 0 is never used
		}
	}
	var objects bpf.XdplbMaps
	must(t, spec.LoadAndAssign(&objects, nil))
	m, err := maps.Adopt(objects)
	must(t, err)
	t.Cleanup(func() { m.Close() })
	vip, err := maps.ParseVIP("192.0.2.10:80")
	must(t, err)
	w := &flowWorld{
		TB: t, Maps: m, vip: vip, client: netip.MustParseAddrPort("198.51.100.1:40000"),
		snat: netip.AddrPortFrom(vip.Addr, 80), // the VIP itself: its twin looks like a flow to it
	}
	s := &w.settings
	s.Hz, s.TcpIdle, s.UdpIdle, s.HalfOpen, s.Closing = 1, tcpIdle, udpIdle, halfOpenIdle, 120
	w.backend = w.server(8080)
	return w
}

func (w *flowWorld) server(port uint16) *maps.Backend {
	id, ok, err := w.NewBackendID()
	if must(w, err); !ok {
		w.Fatal("no place for a backend")
	}
	b := &maps.Backend{XdplbBackend: bpf.XdplbBackend{
		Id: id, Vip: 1, Mode: uint8(bpf.XdplbModeModeFullnat), Address: maps.Address(netip.MustParseAddr("10.0.0.1")), Port: port,
	}}
	w.WriteBackend(b)
	return b
}

func key(from, to netip.AddrPort) bpf.XdplbTuple {
	return bpf.XdplbTuple{Src: maps.Address(from.Addr()), Dst: maps.Address(to.Addr()), Sport: from.Port(), Dport: to.Port(), Proto: tcp}
}

// twins are the two entries of a flow, last seen so long ago.
func (w *flowWorld) twins(port uint16, id uint64, states bpf.XdplbFlowState, age, twinAge uint64) (keys [2]bpf.XdplbTuple, values [2]bpf.XdplbFlow) {
	value := bpf.XdplbFlow{Stamp: (epoch-age)<<8 | uint64(states), Backend: w.backend.Id, Id: id, Interface: 3}
	value.LastHop.Mac = [6]uint8{2, 0, 0, 0, 0, 9}
	back := value
	back.Stamp = (epoch-twinAge)<<8 | uint64(states)
	value.Direction, value.Far, value.FarPort = uint8(bpf.XdplbFlowDirectionFlowToBackend), maps.Address(w.snat.Addr()), w.snat.Port()
	back.Direction, back.Far, back.FarPort = uint8(bpf.XdplbFlowDirectionFlowToClient), maps.Address(w.client.Addr()), w.client.Port()
	back.Vip, back.VipPort = maps.Address(w.vip.Addr), w.vip.Port
	server := netip.AddrPortFrom(w.backend.Addr(), port)
	return [2]bpf.XdplbTuple{key(w.client, w.vip.AddrPort()), key(server, w.snat)}, [2]bpf.XdplbFlow{value, back}
}

func (w *flowWorld) all() (flows []maps.Flow) {
	must(w, w.Flows(func(f maps.Flow) bool {
		flows = append(flows, f)
		return true
	}))
	return flows
}

func has(t *testing.T, m *ebpf.Map, key bpf.XdplbTuple) bool {
	t.Helper()
	var value bpf.XdplbFlow
	err := m.Lookup(key, &value)
	if err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
		t.Fatal(err)
	}
	return err == nil
}

// States, lifetimes and what counts as active, as packets of one or of both sides show them.
func TestFlowStates(t *testing.T) {
	s := maps.Settings{XdplbSettings: bpf.XdplbSettings{
		Hz: 100, TcpIdle: 900 * 100, Closing: 120 * 100, UdpIdle: 300 * 100, HalfOpen: 60 * 100,
	}}
	w := newFlowWorld(t)
	for _, c := range []struct {
		states bpf.XdplbFlowState
		proto  uint8
		id     uint64
		want   maps.FlowState
		lives  time.Duration
		left   time.Duration // in which it may still carry data
		keeps  time.Duration // its port from others; 0: it has none
	}{
		{0, tcp, 0, maps.FlowHalfOpen, 60 * time.Second, 60 * time.Second, 0},
		{spoken, tcp, 0, maps.FlowEstablished, 900 * time.Second, 900 * time.Second, 0},
		{spoken | closing, tcp, 0, maps.FlowClosing, 900 * time.Second, 10 * time.Second, 0},
		{spoken, udp, 0, maps.FlowUDP, 300 * time.Second, 300 * time.Second, 0},
		{0, tcp, 7, maps.FlowHalfOpen, 60 * time.Second, 60 * time.Second, 3 * time.Second},
		{answered, tcp, 7, maps.FlowHalfOpen, 60 * time.Second, 60 * time.Second, 3 * time.Second},
		{spoken | answered, tcp, 7, maps.FlowEstablished, 900 * time.Second, 900 * time.Second, 904 * time.Second},
		{spoken | answered | closing, tcp, 7, maps.FlowClosing, 120 * time.Second, 10 * time.Second, 123750 * time.Millisecond},
		{spoken | answered | finished | backendFirst, tcp, 7, maps.FlowClosing, 120 * time.Second, 10 * time.Second, 123750 * time.Millisecond},
		{spoken | answered | closing | finished, tcp, 7, maps.FlowClosed, 10 * time.Second, -1, time.Second},
		{spoken | answered | closing | finished | backendFirst, tcp, 7, maps.FlowClosed, 60 * time.Second, -1, 61870 * time.Millisecond},
		{spoken | answered | closing | finished | backendFirst | reset, tcp, 7, maps.FlowClosed, 10 * time.Second, -1, time.Second},
		{answered | reset, tcp, 7, maps.FlowClosed, 10 * time.Second, -1, time.Second},
		{spoken | closing | reset, tcp, 7, maps.FlowClosed, 10 * time.Second, -1, time.Second},
		{spoken | answered, udp, 7, maps.FlowUDP, 300 * time.Second, 300 * time.Second, 304 * time.Second},
	} {
		keys, values := w.twins(8080, c.id, c.states, 0, 0)
		keys[0].Proto = c.proto
		must(t, w.XdplbMaps.Flows.Put(keys[0], values[0]))
		f := w.all()[0]
		must(t, w.XdplbMaps.Flows.Delete(keys[0]))
		if f.State() != c.want {
			t.Errorf("states %#x, id %d: %s, want %s", c.states, c.id, f.State(), c.want)
		}
		if lives := s.Duration(s.Lifetime(f)); lives != c.lives {
			t.Errorf("states %#x, id %d: lives %s, want %s", c.states, c.id, lives, c.lives)
		}
		for _, at := range []time.Duration{0, c.left, c.left + 10*time.Millisecond, c.lives, c.lives + 10*time.Millisecond} {
			now := epoch + s.Jiffies(max(at, 0))
			if got, want := s.Left(f, now), at <= c.left; at >= 0 && got != want {
				t.Errorf("states %#x, id %d: left %v after %s", c.states, c.id, got, at)
			}
			closes := c.id == 0 && c.want == maps.FlowClosing // its server's FIN is not seen
			if got, want := s.Active(f, now), at <= c.left && !closes; at >= 0 && got != want {
				t.Errorf("states %#x, id %d: active %v after %s", c.states, c.id, got, at)
			}
			if got, want := s.HoldsPort(f, epoch+s.Jiffies(c.keeps+max(at, 0))), at <= 0; c.keeps > 0 && got != want {
				t.Errorf("states %#x: keeps its port %v after %s and %s", c.states, got, c.keeps, at)
			}
			if got, want := s.Live(f, now), at <= c.lives; got != want {
				t.Errorf("states %#x, id %d: live %v after %s", c.states, c.id, got, at)
			}
		}
	}
}

// A twin is read as such: it shows its flow, and is never a pin, though it leads to a VIP.
func TestTwins(t *testing.T) {
	w := newFlowWorld(t)
	keys, values := w.twins(8080, 7, spoken|answered, 0, 0)
	must(t, w.XdplbMaps.Flows.Put(keys[0], values[0]))
	must(t, w.HalfOpen.Put(keys[1], values[1]))
	flows := w.all()
	if len(flows) != 2 || !flows[0].ToClient || !flows[0].HalfOpen || flows[1].ToClient {
		t.Fatalf("%+v", flows)
	}
	for _, f := range flows {
		if f.FromClient() != flows[1].Tuple || f.Client() != w.client || !f.Translated() {
			t.Errorf("%+v is a flow of %s as %+v", f, f.Client(), f.FromClient())
		}
		if iface, hop := f.LastHop(); iface != 3 || hop.Mac[5] != 9 {
			t.Errorf("%+v: comes from %d, %v", f.Tuple, iface, hop)
		}
	}
	if back := flows[0]; back.Of(w.vip) || back.Open || back.Far() != w.client {
		t.Errorf("%+v is taken for a flow to %s", back, w.vip)
	}
	if !flows[1].Of(w.vip) || !flows[1].Open || flows[1].Far() != w.snat {
		t.Errorf("%+v is not taken for a flow to %s", flows[1], w.vip)
	}
	slots := []maps.Slot{{Backend: 99, Old: w.backend.Id, Moving: true}}
	up := func(uint32) bool { return true }
	for i, want := range []bool{false, true} {
		for _, dead := range []bool{false, true} {
			pins := func(yield func(maps.Pin) bool) { yield(flows[i].Pin(0, dead)) }
			next, gone := maps.Settle(slots, pins, up, false)
			if next[0].Moving != (want && !dead) || (len(gone) == 1) != (want && dead) {
				t.Errorf("to the client %v, dead %v: settles to %v and deletes %d", flows[i].ToClient, dead, next, len(gone))
			}
		}
	}
}

// Each flow once: not its twin, not the dead, and not again in `flows` if it is promoted meanwhile.
func TestLiveFlows(t *testing.T) {
	w := newFlowWorld(t)
	keys, values := w.twins(8080, 7, spoken|answered, 0, 0)
	put := func(m *ebpf.Map, i int, port uint16, age uint64) {
		key, value := keys[i], values[i]
		key.Sport, value.Stamp = port, (epoch-age)<<8|uint64(spoken)
		must(t, m.Put(key, value))
	}
	put(w.HalfOpen, 0, 1, 0)
	put(w.XdplbMaps.Flows, 0, 1, 0)
	put(w.XdplbMaps.Flows, 0, 2, tcpIdle)
	put(w.XdplbMaps.Flows, 0, 3, tcpIdle+1)
	put(w.HalfOpen, 0, 4, tcpIdle+1) // a dead one hides none that lives
	put(w.XdplbMaps.Flows, 0, 4, 0)
	put(w.XdplbMaps.Flows, 1, 5, 0)
	seen := make(map[uint16]int)
	live := func(f maps.Flow) bool { return w.settings.Live(f, epoch) }
	must(t, w.LiveFlows(live, func(f maps.Flow) bool {
		seen[f.SrcPort]++
		return true
	}))
	if len(seen) != 3 || seen[1] != 1 || seen[2] != 1 || seen[4] != 1 {
		t.Errorf("seen %v", seen)
	}
	n := 0
	must(t, w.LiveFlows(live, func(maps.Flow) bool {
		n++
		return false
	}))
	if n != 1 {
		t.Errorf("%d flows after the first", n)
	}
}

// A dead flow goes with its twin, from whichever side it is found; nothing goes that lives, or that is another's.
func TestDeleteFlow(t *testing.T) {
	const old = tcpIdle + 1
	for _, c := range []struct {
		name         string
		age, twinAge uint64
		edit         func(w *flowWorld, keys *[2]bpf.XdplbTuple, values *[2]bpf.XdplbFlow)
		from         int // 0: found by the entry to the backend
		left         [2]bool
	}{
		{name: "both dead", age: old, twinAge: old},
		{name: "both dead, by its twin", age: old, twinAge: old, from: 1},
		{name: "twin lives", age: old, twinAge: old - 1, left: [2]bool{true, true}},
		{name: "twin of a twin lives", age: old - 1, twinAge: old, from: 1, left: [2]bool{true, true}},
		{name: "another's twin", age: old, twinAge: old, left: [2]bool{false, true},
			edit: func(_ *flowWorld, _ *[2]bpf.XdplbTuple, v *[2]bpf.XdplbFlow) { v[1].Id++ }},
		{name: "pin without a twin", age: old, twinAge: old, left: [2]bool{false, true},
			edit: func(_ *flowWorld, _ *[2]bpf.XdplbTuple, v *[2]bpf.XdplbFlow) { v[0].Id = 0 }},
		{name: "backend freed", age: old, twinAge: old,
			edit: func(w *flowWorld, _ *[2]bpf.XdplbTuple, _ *[2]bpf.XdplbFlow) { must(w, w.FreeBackend(w.backend)) }},
		{name: "backend's place is another's", age: old, twinAge: old, left: [2]bool{false, true},
			edit: func(w *flowWorld, _ *[2]bpf.XdplbTuple, _ *[2]bpf.XdplbFlow) {
				must(w, w.FreeBackend(w.backend))
				w.server(8080)
			}},
		{name: "backend of every port", age: old, twinAge: old,
			edit: func(w *flowWorld, k *[2]bpf.XdplbTuple, v *[2]bpf.XdplbFlow) {
				must(w, w.FreeBackend(w.backend))
				w.backend = w.server(0)
				*k, *v = w.twins(80, 7, spoken|answered, old, old)
			}},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newFlowWorld(t)
			keys, values := w.twins(8080, 7, spoken|answered, c.age, c.twinAge)
			if c.edit != nil {
				c.edit(w, &keys, &values)
			}
			must(t, w.XdplbMaps.Flows.Put(keys[0], values[0]))
			must(t, w.HalfOpen.Put(keys[1], values[1]))
			dead := func(f maps.Flow) bool { return !w.settings.Live(f, epoch) }
			for _, f := range w.all() {
				if f.ToClient == (c.from == 1) {
					must(t, w.DeleteFlow(f, dead))
				}
			}
			if left := [2]bool{has(t, w.XdplbMaps.Flows, keys[0]), has(t, w.HalfOpen, keys[1])}; left != c.left {
				t.Errorf("left %v, want %v", left, c.left)
			}
		})
	}
}

// What a packet touched after it was read stays as the packet left it.
func TestDeleteFlowTouched(t *testing.T) {
	w := newFlowWorld(t)
	keys, values := w.twins(8080, 0, spoken, tcpIdle+1, 0)
	must(t, w.XdplbMaps.Flows.Put(keys[0], values[0]))
	f := w.all()[0]
	values[0].Stamp = epoch<<8 | uint64(spoken)
	must(t, w.XdplbMaps.Flows.Put(keys[0], values[0]))
	must(t, w.DeleteFlow(f, func(f maps.Flow) bool { return !w.settings.Live(f, epoch) }))
	var got bpf.XdplbFlow
	must(t, w.XdplbMaps.Flows.Lookup(keys[0], &got))
	if got != values[0] {
		t.Errorf("%+v, want %+v", got, values[0])
	}
}

// Timeouts come back as they were set, also those of many days.
func TestDurations(t *testing.T) {
	for _, hz := range []uint32{100, 250, 300, 1000} {
		s := maps.Settings{XdplbSettings: bpf.XdplbSettings{Hz: hz}}
		for _, d := range []time.Duration{time.Second, 15 * time.Minute, 30 * 24 * time.Hour, 400 * 24 * time.Hour} {
			if got := s.Duration(s.Jiffies(d)); got != d {
				t.Errorf("%d Hz: %s came back as %s", hz, d, got)
			}
		}
	}
}
