package main

import (
	"slices"

	"github.com/cilium/ebpf"

	"github.com/xdplb/xdplb/bpf"
	"github.com/xdplb/xdplb/maps"
)

// claim is what a map says of a flow.
type claim struct {
	key   bpf.XdplbTuple
	value bpf.XdplbFlow
}

// claims are the entries of both maps, and the time in jiffies when they had been read.
type claims struct {
	toBackend []claim
	owners    map[bpf.XdplbTuple]bpf.XdplbFlow // by the reply's tuple
	twice     []claim                          // of tuples that both maps give to different flows
	promoted  int
	at, hz    uint64
}

// readClaims reads the entries of both directions while nothing arrives.
func (n *liveNet) readClaims() (all claims) {
	n.t.Helper()
	all.owners = make(map[bpf.XdplbTuple]bpf.XdplbFlow)
	n.check(n.Balancer.Do(func() error {
		m, err := maps.Open("/sys/fs/bpf/xdplb")
		if err != nil {
			return err
		}
		defer m.Close()
		settings, err := m.ReadSettings()
		if err != nil {
			return err
		}
		clock, err := maps.NewClock()
		if err != nil {
			return err
		}
		defer clock.Close()
		for _, from := range []*ebpf.Map{m.HalfOpen, m.XdplbMaps.Flows} {
			var c claim
			each := from.Iterate()
			for each.Next(&c.key, &c.value) {
				all.add(c)
				if from == m.XdplbMaps.Flows {
					all.promoted++
				}
			}
			if err := each.Err(); err != nil {
				return err
			}
		}
		all.hz = uint64(settings.Hz)
		all.at, err = clock.Jiffies()
		return err
	}))
	return all
}

func (all *claims) add(c claim) {
	if c.value.Direction != uint8(bpf.XdplbFlowDirectionFlowToClient) {
		all.toBackend = append(all.toBackend, c)
		return
	}
	if other, is := all.owners[c.key]; is && other.Id != c.value.Id {
		all.twice = append(all.twice, claim{c.key, other}, c)
	}
	all.owners[c.key] = c.value
}

// claimOver are the states of flows that begin to end.
const claimOver = uint64(bpf.XdplbFlowStateFlowClosing | bpf.XdplbFlowStateFlowFinished | bpf.XdplbFlowStateFlowReset)

// age is how long a flow has been silent, in jiffies.
func (all *claims) age(f bpf.XdplbFlow) uint64 {
	return all.at - f.Stamp>>uint64(bpf.XdplbFlowStampFlowStampShift)
}

// judge reads both maps while nothing arrives. Flows that are neither closing nor near their end have their tuples for
// themselves.
func (w *claimWorld) judge() {
	w.t.Helper()
	now := w.readClaims()
	for _, c := range now.twice {
		w.t.Errorf("port %d has a flow in each map: %+v", c.key.Dport, c)
	}
	w.promoted += now.promoted
	holders := make(map[bpf.XdplbTuple]claim)
	for _, c := range now.toBackend {
		if c.value.Stamp&claimOver != 0 || now.age(c.value) > now.hz*uint64(claimIdle/2)/1e9 {
			continue
		}
		reply := bpf.XdplbTuple{
			Src: maps.Address(w.server.Addr()), Dst: c.value.Far, Sport: w.server.Port(), Dport: c.value.FarPort, Proto: c.key.Proto,
		}
		if other, taken := holders[reply]; taken && other.value.Id != c.value.Id {
			w.t.Errorf("port %d has two flows: %+v and %+v", c.value.FarPort, other, c)
		}
		if owner := now.owners[reply]; owner.Id != c.value.Id {
			w.t.Errorf("port %d belongs to %+v, and not to its flow %+v", c.value.FarPort, owner, c)
		}
		holders[reply] = c
		w.held[byte(c.key.Sport>>8)]++
	}
	for tuple, owner := range now.owners {
		if w.ids[tuple] == nil {
			w.ids[tuple] = make(map[uint64]bool)
		}
		w.ids[tuple][owner.Id] = true
		if before, had := w.last.owners[tuple]; had && before.Id != owner.Id && w.wasIdle(tuple, before) {
			w.expired++
		}
	}
	w.last = now
}

// wasIdle: an owner as the last check saw it, that was open then, had nothing to close it since but its age.
func (w *claimWorld) wasIdle(tuple bpf.XdplbTuple, owner bpf.XdplbFlow) bool {
	if owner.Stamp&claimOver != 0 || owner.Stamp&uint64(bpf.XdplbFlowStateFlowSpoken) == 0 {
		return false
	}
	if w.last.age(owner) > w.last.hz*uint64(claimIdle*9/8)/1e9 { // dead by then, and its twin
		return true
	}
	return !slices.Contains(w.loud[:], byte(owner.FarPort>>8)) && (w.mode == "nat" || byte(tuple.Dport>>8) == w.quiet)
}

// several is how many reply tuples were more than one flow's.
func (w *claimWorld) several() (count int) {
	for _, ids := range w.ids {
		if len(ids) > 2 || len(ids) > 1 && w.mode == "nat" { // a client that begins anew by the same VIP keeps its id
			count++
		}
	}
	return count
}

// enough reports whether all happened that there is to see.
func (w *claimWorld) enough() bool {
	const some = 32
	refused := map[string]string{"nat": "nat_clash", "fullnat": "snat_exhausted"}[w.mode]
	return w.several() > len(w.ids)*3/4 && len(w.ids) >= claimPorts && w.expired >= some && w.promoted >= some &&
		w.held[claimHalves[0][2]] >= some && w.held[claimHalves[1][2]] >= some && w.stats().Reasons[refused] > 0
}
