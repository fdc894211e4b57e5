package main

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"strings"
	"testing"
	"time"
)

// A change breaks or reroutes no connection but those whose backend it deletes: the promise that this
// project is about. Random commands, one after the other, on a VIP that real connections go through.

const (
	liveServers     = 6
	liveChanges     = 40
	liveConnections = 500 // each asks ten times a second
	liveIdle        = 50  // each asks right before the idle timeout
	liveTimeout     = 5 * time.Second
)

func TestChangesMoveNoConnectionDR(t *testing.T) {
	t.Parallel()
	testChanges(t, liveCase{mode: "dr", modes: encapsulating})
}

func TestChangesMoveNoConnectionTUN(t *testing.T) {
	t.Parallel()
	testChanges(t, liveCase{mode: "tun", v6: true})
}

func TestChangesMoveNoConnectionInFloodDR(t *testing.T) {
	testChanges(t, liveCase{mode: "dr", modes: encapsulating, flood: true, moving: true})
}

func TestChangesMoveNoConnectionInFloodTUN(t *testing.T) {
	testChanges(t, liveCase{mode: "tun", v6: true, flood: true})
}

// encapsulating modes leave the packet as it is.
var encapsulating = []string{"dr", "tun"}

// liveCase is one run of testChanges.
type liveCase struct {
	mode   string
	modes  []string // between which backends change; nil: they do not
	v6     bool     // the VIP is IPv6; the servers' addresses are always IPv4 but with nat and fullnat
	flood  bool     // a million spoofed SYNs and as many ACKs arrive meanwhile
	moving bool     // and every slot moves all the time
}

// liveRun is one run of a case.
type liveRun struct {
	liveCase
	*liveNet
	t     *testing.T
	vip   netip.AddrPort
	name  string // of the VIP in commands
	seed  uint64
	rng   *rand.Rand
	fleet *fleet
	rules *rules
	crowd *crowd
	flood *flood
	log   []string
}

func testChanges(t *testing.T, c liveCase) {
	r := &liveRun{liveCase: c, t: t, seed: seed(t)}
	r.rng = rand.New(rand.NewPCG(r.seed, 0))
	r.build()
	before := r.arrived()
	r.crowd.join(liveConnections, 100*time.Millisecond)
	r.crowd.join(liveIdle, liveTimeout*7/8)
	r.crowd.newcomers(25 * time.Millisecond)
	for i := 0; i < liveChanges && !r.crowd.failed(); i++ {
		r.step(i)
		if i == 0 && r.liveCase.flood { // of these only pins know where they are
			r.crowd.join(liveIdle, liveTimeout*7/8)
		}
	}
	if r.liveCase.flood {
		r.completeFlood(before)
	} else if !r.crowd.failed() { // a spoofed SYN keeps its pin, and so its slot moving, for a minute
		r.settleUnderway()
	}
	failures := r.crowd.dismiss()
	t.Log(r.crowd.String())
	if len(failures) > 0 {
		t.Fatalf("seed %d, %d failures:\n%s\nafter the changes\n%s", r.seed, len(failures),
			strings.Join(failures[:min(len(failures), 10)], "\n"), strings.Join(r.log, "\n"))
	}
	r.judgeCrowd()
	if !r.liveCase.flood {
		r.settleAll()
	}
}

func (r *liveRun) build() {
	kinds := allKinds(r.rng, liveChanges, r.modes != nil)
	if r.translates() {
		r.buildTranslating(kinds)
	} else {
		r.buildEncapsulating(kinds)
	}
	r.giveSources(24, r.v6)
	r.must("timeout", "--tcp", liveTimeout.String())
	r.must("vip", "add", r.name, "--mode", r.mode)
	add := []string{"backend", "add", r.name}
	for _, s := range r.fleet.servers {
		add = append(add, s.addr)
	}
	r.must(add...)
	r.rules = &rules{takes: r.fleet.taking(), deleted: make(map[string]int)}
	r.crowd = newCrowd(r.liveNet, r.vip, r.rules, liveTimeout)
	if r.liveCase.flood {
		r.flood = newFlood(r.liveNet, r.vip)
	}
}

func (r *liveRun) buildEncapsulating(kinds []string) {
	// As it comes: the flood turns `half_open` over while a connection is idle, and not while one begins.
	r.liveNet = buildLive(r.t, liveServers)
	r.vip = netip.AddrPortFrom(r.VIP4, livePort)
	if r.v6 {
		r.vip = netip.AddrPortFrom(r.VIP6, livePort)
	}
	r.name = r.vip.String()
	if r.mode == "dr" { // at first another slot function, when no connection has a pin
		kinds = append([]string{"prefix"}, kinds...)
	}
	r.fleet = newFleet(r.liveNet, r.rng, r.name, kinds)
	r.fleet.modes = r.modes
}

// step makes one change. In a flood the frames arrive before, while and after the maps are written.
func (r *liveRun) step(i int) {
	c := r.fleet.next()
	flooded := make(chan error, 1)
	flooded <- nil
	if r.flood != nil {
		<-flooded
		go func() { flooded <- r.flood.send(2 * liveFlood / liveChanges) }()
	}
	r.rules.begin(c.deletes)
	err := r.on(r.Balancer, c.args...)
	r.rules.end(c.deletes, c.takes)
	r.log = append(r.log, fmt.Sprintf("%s %2d %s", time.Now().Format("05.000"), i, strings.Join(c.args, " ")))
	if err != nil {
		r.t.Fatalf("%s: %v", r.log[len(r.log)-1], err)
	}
	if err := <-flooded; err != nil {
		r.t.Fatal(err)
	}
	switch vip := r.liveNet.vip(r.name); {
	case r.moving && vip.MovingSlots != vip.TableSize:
		r.t.Fatalf("only %d slots move", vip.MovingSlots)
	case r.flood != nil:
	case i%(liveChanges/2) == liveChanges/4:
		r.crowd.pause(liveTimeout + 500*time.Millisecond) // what moves may settle with the next command
	default:
		r.crowd.pause(c.pause)
	}
}

// settleUnderway settles what can be while all connections go on, and lets every idle one speak after it.
func (r *liveRun) settleUnderway() {
	r.rules.begin("")
	r.must("vip", "set", r.name, "--scheduler", "maglev", "--track", "changes")
	r.rules.end("", nil)
	r.crowd.pause(liveTimeout + 500*time.Millisecond)
	r.must("refresh")
	r.t.Logf("%d slots still move", r.liveNet.vip(r.name).MovingSlots)
	r.crowd.pause(liveTimeout)
}

// judgeCrowd makes sure that the run could have failed.
func (r *liveRun) judgeCrowd() {
	c := r.crowd
	if c.on < (liveConnections+liveIdle)*8/10 || c.answers < liveConnections*20 || c.opened < liveConnections+liveIdle+100 {
		r.t.Errorf("too little happened: %v", c)
	}
	if c.idleRounds < liveIdle || c.late > c.idleRounds/10 {
		r.t.Errorf("too few connections were idle until just before the timeout: %v", c)
	}
}

// completeFlood goes on until the VIP has had a million spoofed SYNs and as many ACKs. The crowd sends few SYNs,
// and at most three other packets with each answer.
func (r *liveRun) completeFlood(before uint64) {
	for {
		vip, reasons := r.vipStats(r.vip), r.stats().Reasons
		syns, others, arrived := int(vip.Connections), int(vip.Packets-vip.Connections), int(r.arrived()-before)
		syns += int(reasons["snat_exhausted"])
		others += int(reasons["flow_unknown"] + reasons["rate_limited"])
		r.crowd.mu.Lock()
		syns, others = syns-2*r.crowd.opened-r.crowd.excused, others-3*r.crowd.answers-8*r.crowd.opened
		r.crowd.mu.Unlock()
		if syns >= liveFlood && others >= liveFlood {
			r.t.Logf("%d frames arrived, %d of the spoofed SYNs and %d of the ACKs went on; lost %v", arrived, syns, others, r.stats().Reasons)
			return
		}
		if r.crowd.failed() {
			return
		}
		r.check(r.flood.send(max(liveFlood/5, 2*(liveFlood-min(syns, others)))))
	}
}

// settleAll: when nobody is left every slot settles, and new connections go where they should.
func (r *liveRun) settleAll() {
	if !r.translates() { // else every slot moves as long as the VIP lives
		r.eventually("every slot has settled", func() bool {
			r.must("refresh")
			return r.liveNet.vip(r.name).MovingSlots == 0
		})
	}
	takes, answers := r.fleet.taking(), make(map[string]int)
	for i := range 300 {
		server, err := r.askOnce(r.sources[i%len(r.sources)], r.vip)
		r.check(err)
		answers[server]++
	}
	for server := range answers {
		if !takes[server] {
			r.t.Errorf("%s answered, which takes no new connections: %v", server, answers)
		}
	}
	for server := range takes {
		if answers[server] == 0 {
			r.t.Errorf("%s answered none of 300 new connections: %v", server, answers)
		}
	}
}
