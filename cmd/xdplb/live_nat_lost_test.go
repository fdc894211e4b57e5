package main

import (
	"fmt"
	"testing"

	"github.com/xdplb/xdplb/bpf"
	"github.com/xdplb/xdplb/maps"
)

// TestEitherEntryIsLost: an LRU map may evict one of the two entries of a flow. The other one mends it, and the
// connection goes on.
func TestEitherEntryIsLost(t *testing.T) {
	eachCase(t, func(t *testing.T, c natCase) {
		t.Parallel()
		n := buildNAT(t, c, 1, 1)
		n.giveSources(1, c.v6)
		n.serveNamesAt(n.Servers[0], natServerPort)
		n.addVIP()
		conn, err := n.dial(n.sources[0], n.vip)
		n.check(err)
		defer conn.Close()
		open := []*talk{conn}
		for _, lost := range []struct {
			name      string
			direction bpf.XdplbFlowDirection
			silent    uint64 // seconds; the client's next packet mends the other entry if it has been touched so long ago
		}{
			{"the client's", bpf.XdplbFlowDirectionFlowToBackend, 0},
			{"the replies'", bpf.XdplbFlowDirectionFlowToClient, 5},
			{"the client's once more", bpf.XdplbFlowDirectionFlowToBackend, 0},
			{"the replies' once more", bpf.XdplbFlowDirectionFlowToClient, 5},
		} {
			n.askAll(open, "server1")
			n.eventually(fmt.Sprintf("both entries are promoted, and silent for %d s", lost.silent), func() bool {
				all := n.readClaims()
				for _, owner := range all.owners {
					if len(all.owners) == 1 && len(all.toBackend) == 1 && all.promoted == 2 {
						return all.age(owner) >= lost.silent*all.hz
					}
				}
				return false
			})
			n.loseEntry(lost.direction)
			if name, err := conn.name(); name != "server1" || err != nil {
				t.Fatalf("without %s entry: %q answered, %v; %v", lost.name, name, err, n.stats().Reasons)
			}
			n.eventually("there are two entries again", func() bool {
				all := n.readClaims()
				return len(all.owners) == 1 && len(all.toBackend) == 1
			})
		}
		n.demandNone("twin_lost", "flow_unknown", "nat_clash", "snat_exhausted")
	})
}

// loseEntry deletes the only promoted entry of a direction.
func (n *natNet) loseEntry(direction bpf.XdplbFlowDirection) {
	n.t.Helper()
	n.check(n.Balancer.Do(func() error {
		m, err := maps.Open("/sys/fs/bpf/xdplb")
		if err != nil {
			return err
		}
		defer m.Close()
		var key bpf.XdplbTuple
		var value bpf.XdplbFlow
		for each := m.XdplbMaps.Flows.Iterate(); each.Next(&key, &value); {
			if value.Direction == uint8(direction) {
				return m.XdplbMaps.Flows.Delete(key)
			}
		}
		return fmt.Errorf("no promoted entry of direction %d", direction)
	}))
}
