package main

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/xdplb/xdplb/bpf"
	"github.com/xdplb/xdplb/cmd/xdplb/internal/lab"
	"github.com/xdplb/xdplb/maps"
)

// Frames arrive in rounds, whose sum is longer than half-open flows keep their ports from others (3 s).
const (
	claimRounds = 10
	claimRound  = 500 * time.Millisecond
)

// claimPorts is how many ports there are for 1,024 ports of clients: as many as one byte tells apart.
const (
	claimLow   = 0x5000
	claimPorts = 256
)

// TestLiveClaims: clients' and servers' frames arrive on two interfaces, taken by two CPUs, in a range of ports so
// small that flows contend for them all the time. No reply tuple gets two flows.
func TestLiveClaims(t *testing.T) {
	n := wireLive(t, lab.TwoArmed, 1)
	snat := netip.MustParseAddr("198.51.100.40")
	n.check(n.Balancer.Addr("eth1", netip.PrefixFrom(snat, 24).String()))
	n.must("attach", "eth0", "eth1", "--snat", snat.String(), "--snat-ports", fmt.Sprintf("%d-%d", claimLow, claimLow+claimPorts-1))
	n.must("timeout", "--tcp", "2s", "--closing", "1s")
	vip := netip.AddrPortFrom(n.VIP4, livePort)
	n.must("vip", "add", vip.String(), "--mode", "fullnat")
	server := netip.AddrPortFrom(n.Servers4[0], natServerPort)
	n.must("backend", "add", vip.String(), server.String())

	forward, back := claimShots(n, vip, server, snat)
	held := 0
	for range claimRounds {
		errs, until := make(chan error, 2), time.Now().Add(claimRound)
		go func() { errs <- fireAll(n.Switches[0].Node, 0, "balancer-eth0", forward, until) }()
		go func() { errs <- fireAll(n.Switches[1].Node, 1, "balancer-eth1", append(back, forward...), until) }()
		n.check(<-errs)
		n.check(<-errs)
		n.eventually("the last frame is taken", func() bool {
			before := n.stats().Received
			return n.stats().Received == before
		})
		held += n.checkClaims(server)
	}
	s := n.stats()
	t.Logf("%d frames, %d SYNs forwarded, %d times a flow held its tuple at a check, %v", s.Received, n.vipStats(vip).Connections, held, s.Reasons)
	if n.vipStats(vip).Connections < claimPorts || s.Reasons["snat_exhausted"] == 0 || held < claimPorts/2 {
		t.Error("too little happened")
	}
}

// checkClaims reads both maps while nothing arrives. Flows that are neither closing nor near their end have their
// tuples for themselves. It returns how many there are.
func (n *liveNet) checkClaims(server netip.AddrPort) (held int) {
	n.t.Helper()
	const over = uint64(bpf.XdplbFlowStateFlowClosing | bpf.XdplbFlowStateFlowFinished | bpf.XdplbFlowStateFlowReset)
	all, owners, now, hz := n.readClaims()
	holders := make(map[bpf.XdplbTuple]claim)
	for _, c := range all {
		age := now - c.value.Stamp>>uint64(bpf.XdplbFlowStampFlowStampShift)
		if c.value.Stamp&over != 0 || age > hz { // a second later its twin may be as old as the idle timeout
			continue
		}
		reply := bpf.XdplbTuple{
			Src: maps.Address(server.Addr()), Dst: c.value.Far, Sport: server.Port(), Dport: c.value.FarPort, Proto: c.key.Proto,
		}
		if other, taken := holders[reply]; taken && other.value.Id != c.value.Id {
			n.t.Errorf("port %d has two flows: %+v and %+v", c.value.FarPort, other, c)
		}
		if owners[reply] != c.value.Id {
			n.t.Errorf("port %d belongs to %x, and not to its flow %+v", c.value.FarPort, owners[reply], c)
		}
		holders[reply] = c
		held++
	}
	return held
}

// claimShots are frames of clients, and of the server to ports that somebody may have.
func claimShots(n *liveNet, vip, server netip.AddrPort, snat netip.Addr) (forward, back []shot) {
	const flagFIN, flagRST = 0x01, 0x04
	for _, high := range []byte{0x10, 0x20, 0x30, 0x40} { // of the clients' ports
		for _, flags := range []byte{flagSYN, flagSYN, flagACK, flagACK, flagACK | flagFIN, flagACK | flagRST} {
			frame, _, port := tcpFrame(n, vip, flags)
			frame[port.offset] = high
			forward = append(forward, newShot(n, frame, random{port.offset + 1, 1}))
		}
	}
	theirs, err := n.Balancer.MAC("eth1")
	n.check(err)
	ours, err := n.Servers[0].MAC("eth0")
	n.check(err)
	for _, flags := range []byte{flagSYN | flagACK, flagACK, flagACK, flagACK | flagFIN, flagACK | flagRST} {
		frame, source, port := tcpFrame(n, netip.AddrPortFrom(snat, claimLow), flags)
		copy(frame, append(theirs, ours...))
		copy(frame[source.offset:], server.Addr().AsSlice())
		frame[port.offset], frame[port.offset+1] = byte(server.Port()>>8), byte(server.Port())
		back = append(back, newShot(n, frame, random{port.offset + 3, 1}))
	}
	return forward, back
}

// fireAll fires one burst after the other on a CPU, as large as a ring.
func fireAll(node *lab.Node, cpu int, dev string, shots []shot, until time.Time) error {
	return node.Do(func() error {
		var set unix.CPUSet
		set.Set(cpu)
		if err := unix.SchedSetaffinity(0, &set); err != nil {
			return err
		}
		for i := 0; time.Now().Before(until); i++ {
			if err := shots[i%len(shots)].fire(dev, 64); err != nil {
				return err
			}
		}
		return nil
	})
}

// claim is what both maps say of a flow.
type claim struct {
	key   bpf.XdplbTuple
	value bpf.XdplbFlow
}

// readClaims reads the entries of both directions.
func (n *liveNet) readClaims() (toBackend []claim, owners map[bpf.XdplbTuple]uint64, now uint64, hz uint64) {
	n.t.Helper()
	owners = make(map[bpf.XdplbTuple]uint64)
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
				if c.value.Direction == uint8(bpf.XdplbFlowDirectionFlowToClient) {
					owners[c.key] = c.value.Id
				} else {
					toBackend = append(toBackend, c)
				}
			}
			if err := each.Err(); err != nil {
				return err
			}
		}
		hz = uint64(settings.Hz)
		now, err = clock.Jiffies()
		return err
	}))
	return toBackend, owners, now, hz
}
