package main

import (
	"slices"
	"testing"
)

// What changes and floods may not do to connections in DR and TUN they may not do here. Every flow is followed, and
// in FULL-NAT nobody else knows where a connection belongs.

func TestChangesMoveNoConnectionNAT(t *testing.T) {
	t.Parallel()
	testChanges(t, liveCase{mode: "nat"})
}

func TestChangesMoveNoConnectionFULLNAT(t *testing.T) {
	t.Parallel()
	testChanges(t, liveCase{mode: "fullnat", v6: true})
}

func TestChangesMoveNoConnectionMixed(t *testing.T) {
	t.Parallel()
	testChanges(t, liveCase{mode: "nat", modes: []string{"dr", "tun", "nat", "fullnat"}})
}

// Both modes in one flood: the ACKs of nobody are adopted in NAT, and answered in FULL-NAT.
func TestChangesMoveNoConnectionInFloodNAT(t *testing.T) {
	testChanges(t, liveCase{mode: "fullnat", modes: []string{"nat", "fullnat"}, flood: true})
}

func (c liveCase) translates() bool { return !slices.Contains(encapsulating, c.mode) }

// buildTranslating makes the network of NAT and FULL-NAT. Where backends change to the other modes, these want them to
// have the VIP's port and its address.
func (r *liveRun) buildTranslating(kinds []string) {
	n := buildNAT(r.t, natCase{mode: r.mode, v6: r.v6}, liveServers, 2)
	r.liveNet, r.vip, r.name = n.liveNet, n.vip, n.name
	r.fleet = newFleet(n.liveNet, r.rng, r.name, kinds)
	r.fleet.modes = r.modes
	r.fleet.schedulers = []string{"maglev", "source", "rr", "lc"}
	for i, server := range n.Servers {
		if slices.Contains(r.modes, "dr") {
			n.serveNames(server)
			r.fleet.servers[i].addr = n.servers[i].String()
			n.check(n.on(server, "realserver", "accept", n.VIP4.String(), n.VIP6.String(), "--mode", "tun", "--dev", "eth0"))
		} else {
			n.serveNamesAt(server, natServerPort)
			r.fleet.servers[i].addr = n.at(i)
		}
	}
}
