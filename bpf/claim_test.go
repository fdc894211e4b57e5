package bpf_test

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"runtime"
	"sync"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/gopacket/gopacket/layers"
	"golang.org/x/sys/unix"

	"github.com/xdplb/xdplb/bpf"
	"github.com/xdplb/xdplb/maps"
)

// Claims of reply tuples from two CPUs at once.

const (
	claimRounds  = 2000
	claimFrames  = 60 // of a CPU in a round
	claimClients = 48 // ports of one client
	claimPorts   = 8  // of the SNAT address
	claimLow     = 20000
)

// TestNoTupleHasTwoFlows: two CPUs claim, promote, close and expire flows in a range of ports so small that they
// collide all the time. Whenever they pause no two flows have one reply tuple.
func TestNoTupleHasTwoFlows(t *testing.T) {
	for _, c := range []struct {
		name string
		mode bpf.XdplbMode
		vips int
	}{
		{"NAT", bpf.XdplbModeModeNat, 6}, // that share a backend: clients' own ports collide
		{"FULL-NAT", bpf.XdplbModeModeFullnat, 1},
	} {
		for _, family := range []string{"192.0.2.10:%d", "[2001:db8::10]:%d"} {
			t.Run(c.name+" "+fmt.Sprintf(family, 80), func(t *testing.T) {
				r := newRace(newWorld(t, worldOptions{flows: 4096}), c.mode, c.vips, family)
				r.run()
				r.judge()
			})
		}
	}
}

// race is traffic of two CPUs.
type race struct {
	*world
	rng     *rand.Rand
	mode    bpf.XdplbMode
	vips    []*service
	forward [][]byte // frames of clients: for each VIP and kind of segment
	back    [][]byte // frames of the backend, by kind
	port    int      // where the port of the backend's peer is in its frames

	held, taken int // what checks saw
	ids         map[uint64]bool
}

// claimKinds are the kinds of segments, each as often as it stands here.
var claimKinds = []layers.TCP{{SYN: true}, {SYN: true}, {SYN: true}, {ACK: true}, {ACK: true}, {ACK: true}, {ACK: true, FIN: true}, {ACK: true, RST: true}}

func newRace(w *world, mode bpf.XdplbMode, vips int, family string) *race {
	w.Helper()
	r := &race{world: w, mode: mode, rng: rand.New(rand.NewPCG(7, uint64(mode))), ids: map[uint64]bool{}}
	w.settings.SetFlag(bpf.XdplbSettingFlagSettingTranslates, true)
	w.settings.SnatLow, w.settings.SnatHigh = claimLow, claimLow+claimPorts-1
	var server netip.AddrPort
	for i := range vips {
		s := w.vip(fmt.Sprintf(family, 80+i))
		address, pool := "10.0.0.31", "10.0.0.3"
		if s.Addr.Is6() {
			address, pool = "2001:db8:a::31", "2001:db8:a::3"
		}
		if i == 0 && mode == bpf.XdplbModeModeFullnat {
			must(w, w.PutSNATPool(&w.settings, []netip.Addr{netip.MustParseAddr(pool)}))
			server = netip.AddrPortFrom(netip.MustParseAddr(pool), claimLow)
		}
		b := s.backend(address, func(b *maps.Backend) { b.Mode, b.Port = uint8(mode), 8080 })
		s.SetFlag(bpf.XdplbVipFlagVipPinAll, true)
		s.PinnedSince = w.settings.Clock
		s.put()
		s.settle()
		for i := range s.slots {
			s.slots[i].Moving = true
		}
		must(w, w.PutTable(s.Id, s.slots))
		r.vips = append(r.vips, s)
		p := s.base()
		p.payload = nil
		for _, kind := range claimKinds {
			p.tcp = kind
			r.forward = append(r.forward, p.bytes(w))
		}
		if i > 0 {
			continue
		}
		reply := p
		reply.client, reply.vip = netip.AddrPortFrom(b.Addr(), b.Port), p.client
		if mode == bpf.XdplbModeModeFullnat {
			reply.vip = server
		}
		for _, kind := range claimKinds {
			reply.tcp = kind
			reply.tcp.ACK = true
			r.back = append(r.back, reply.bytes(w))
		}
		r.port = p.l3() + 20 + 2
		if p.ipv6() {
			r.port = p.l3() + 40 + 2
		}
	}
	w.putSettings()
	return r
}

func (r *race) run() {
	start := time.Now()
	for round := range claimRounds {
		var wait sync.WaitGroup
		for cpu := range 2 {
			seed := r.rng.Uint64()
			wait.Go(func() { r.drive(cpu, seed) })
		}
		wait.Wait()
		r.check(round)
		if r.Failed() {
			return
		}
		r.world.wait(r.pause())
	}
	r.Logf("%d frames in %s", 2*claimRounds*claimFrames, time.Since(start).Round(time.Millisecond))
}

// pause is from one jiffy to longer than any flow lives; rarely, lest most flows only begin.
func (r *race) pause() uint64 {
	limits := []uint64{5, 50, 200, 500, 1500, 7000, 15000}
	return 1 + r.rng.Uint64N(limits[r.rng.IntN(len(limits))])
}

// drive sends frames on one CPU. Its thread ends with it.
func (r *race) drive(cpu int, seed uint64) {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		var set unix.CPUSet
		set.Set(cpu % runtime.NumCPU())
		if err := unix.SchedSetaffinity(0, &set); err != nil {
			done <- err
			return
		}
		rng := rand.New(rand.NewPCG(seed, 0))
		copies := [2][][]byte{clone(r.forward), clone(r.back)}
		out := make([]byte, 2048)
		for range claimFrames {
			_, err := r.program.Run(&ebpf.RunOptions{Data: r.pick(rng, copies), DataOut: out})
			if err != nil {
				done <- err
				return
			}
		}
		done <- nil
	}()
	if err := <-done; err != nil {
		r.Errorf("CPU %d: %v", cpu, err)
	}
}

func clone(frames [][]byte) (copies [][]byte) {
	for _, f := range frames {
		copies = append(copies, append([]byte(nil), f...))
	}
	return copies
}

// pick is a frame of a client's port to a VIP, or of the backend to a port that somebody may have.
func (r *race) pick(rng *rand.Rand, frames [2][][]byte) []byte {
	client := uint16(40000 + rng.IntN(claimClients))
	if rng.IntN(3) > 0 {
		frame := frames[0][rng.IntN(len(frames[0]))]
		binary.BigEndian.PutUint16(frame[r.port-2:], client)
		return frame
	}
	frame := frames[1][rng.IntN(len(frames[1]))]
	if r.mode == bpf.XdplbModeModeFullnat {
		client = uint16(claimLow + rng.IntN(claimPorts))
	}
	binary.BigEndian.PutUint16(frame[r.port:], client)
	return frame
}

// twin is an entry of either direction.
type twin struct {
	key      bpf.XdplbTuple
	flow     bpf.XdplbFlow
	halfOpen bool
}

func (r *race) twins() (all []twin) {
	r.Helper()
	for _, m := range []*ebpf.Map{r.HalfOpen, r.XdplbMaps.Flows} {
		each := m.Iterate()
		for e := (twin{halfOpen: m == r.HalfOpen}); each.Next(&e.key, &e.flow); {
			all = append(all, e)
		}
		must(r, each.Err())
	}
	return all
}

// reply is the tuple of what the backend sends.
func (e twin) reply(b *maps.Backend) bpf.XdplbTuple {
	return bpf.XdplbTuple{Src: b.Address, Dst: e.flow.Far, Sport: b.Port, Dport: e.flow.FarPort, Proto: e.key.Proto}
}

// holds reports whether nobody else may have the flow's reply tuple: by the times after which a port is free, less what
// the twin may be older.
func (r *race) holds(e twin) bool {
	second, lag := uint64(testHz), uint64(twinLag)
	age := r.settings.Clock - e.flow.Stamp>>uint64(bpf.XdplbFlowStampFlowStampShift)
	has := func(state bpf.XdplbFlowState) bool { return e.flow.Stamp&uint64(state) != 0 }
	client, server := has(bpf.XdplbFlowStateFlowClosing), has(bpf.XdplbFlowStateFlowFinished)
	switch {
	case has(bpf.XdplbFlowStateFlowReset):
		return false
	case client && server && has(bpf.XdplbFlowStateFlowBackendFirst):
		return age < 60*second-lag
	case client && server:
		return false
	case e.halfOpen:
		return age < 2*second
	case !has(bpf.XdplbFlowStateFlowSpoken):
		return age < r.settings.HalfOpen-lag
	case client || server:
		return age < r.settings.Closing-lag
	}
	return age < r.settings.TcpIdle-lag
}

// check reads both maps.
func (r *race) check(round int) {
	r.Helper()
	b := r.vips[0].backends[0]
	owners := map[bpf.XdplbTuple]uint64{} // by the entries toward the client
	all := r.twins()
	for _, e := range all {
		if e.flow.Direction == uint8(bpf.XdplbFlowDirectionFlowToClient) {
			if id, twice := owners[e.key]; twice && id != e.flow.Id {
				r.Errorf("round %d: %s is in both tables, of two flows", round, tupleText(e.key))
			}
			owners[e.key] = e.flow.Id
		}
	}
	holders := map[bpf.XdplbTuple]twin{}
	for _, e := range all {
		r.ids[e.flow.Id] = true
		if e.flow.Direction != uint8(bpf.XdplbFlowDirectionFlowToBackend) || !r.holds(e) {
			continue
		}
		tuple := e.reply(b)
		if other, taken := holders[tuple]; taken && other.flow.Id != e.flow.Id {
			r.Errorf("round %d: %s is the reply of two flows, %s and %s", round, tupleText(tuple), r.describe(e), r.describe(other))
		}
		holders[tuple] = e
		if owners[tuple] != e.flow.Id {
			r.Errorf("round %d: %s belongs to %x, and not to its flow %s", round, tupleText(tuple), owners[tuple], r.describe(e))
		}
		r.held++
	}
	if len(holders) == claimPorts {
		r.taken++
	}
}

func tupleText(t bpf.XdplbTuple) string {
	return fmt.Sprintf("%s:%d → %s:%d", maps.Addr(t.Src), t.Sport, maps.Addr(t.Dst), t.Dport)
}

func (r *race) describe(e twin) string {
	shift := uint64(bpf.XdplbFlowStampFlowStampShift)
	return fmt.Sprintf("%x (%s, states %#x, idle %d jiffies, half-open %v)", e.flow.Id, tupleText(e.key),
		e.flow.Stamp&(1<<shift-1), r.settings.Clock-e.flow.Stamp>>shift, e.halfOpen)
}

// judge makes sure that the run could have failed.
func (r *race) judge() {
	r.Helper()
	reasons := r.reasons()
	contested := reasons[bpf.XdplbReasonSnatExhausted] + reasons[bpf.XdplbReasonNatClash]
	r.Logf("%d flows, %d times one held its tuple at a check, %d times every port was taken, %d SYNs found none or clashed, twin_lost %d",
		len(r.ids), r.held, r.taken, contested, reasons[bpf.XdplbReasonTwinLost])
	if len(r.ids) < 1000 || r.held < claimRounds || contested < 1000 {
		r.Error("too little happened")
	}
}
