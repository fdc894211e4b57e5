package main

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
)

// child runs a command on the balancer as a process of its own.
func (n *liveNet) child(args ...string) error {
	cmd := n.Balancer.Command(context.Background(), "/proc/self/exe", args...)
	cmd.Args[0] = "xdplb"
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w: %s", strings.Join(args, " "), err, out)
	}
	return nil
}

// TestPairsOfCommands: of two commands that change one VIP at the same time both take effect.
func TestPairsOfCommands(t *testing.T) {
	t.Parallel()
	const pairs = 20
	n := buildLive(t, 4)
	vip := n.VIP4.String() + ":80"
	n.must("vip", "add", vip)
	n.must("backend", "add", vip, n.backend(0), n.backend(1))
	for i := range pairs {
		weight := fmt.Sprint(10 + i)
		changes := [][]string{
			{"backend", "set", vip, n.backend(0), "--weight", weight},
			{"backend", "add", vip, n.backend(2), "--weight", weight},
			{"drain", n.backend(1)},
			{"backend", "del", vip, n.backend(2)},
			{"vip", "set", vip, "--track", "all"},
			{"enable", n.backend(1)},
			{"vip", "set", vip, "--track", "changes"},
			{"backend", "set", vip, n.backend(1), "--weight", weight},
		}
		pair := [][]string{changes[2*i%8], changes[2*i%8+1]}
		errs := make(chan error, 2)
		for _, args := range pair {
			go func() { errs <- n.child(args...) }()
		}
		for range pair {
			n.check(<-errs)
		}
		n.checkPair(i, vip, weight)
	}
}

// checkPair looks for what both commands of pair i should have done.
func (n *liveNet) checkPair(i int, vip, weight string) {
	n.t.Helper()
	v := n.vip(vip)
	find := func(server int) liveBackend {
		at := slices.IndexFunc(v.Backends, func(b liveBackend) bool { return b.Backend == n.backend(server)+":80" })
		if at < 0 {
			return liveBackend{}
		}
		return v.Backends[at]
	}
	var done [2]bool
	switch i % 4 {
	case 0:
		done = [2]bool{fmt.Sprint(find(0).Weight) == weight, fmt.Sprint(find(2).Weight) == weight}
	case 1:
		done = [2]bool{find(1).Admin == "drain", find(2).Backend == ""}
	case 2:
		done = [2]bool{v.Track == "all", find(1).Admin == "enabled"}
	case 3:
		done = [2]bool{v.Track == "changes", fmt.Sprint(find(1).Weight) == weight}
	}
	if done != [2]bool{true, true} {
		n.t.Fatalf("pair %d: done %v: %+v", i, done, v)
	}
}
