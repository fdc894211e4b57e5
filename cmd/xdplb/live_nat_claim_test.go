package main

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/xdplb/xdplb/bpf"
	"github.com/xdplb/xdplb/cmd/xdplb/internal/lab"
)

// Frames arrive in rounds. Who is silent is so for a stage, which is longer than an idle flow lives.
const (
	claimRound  = 400 * time.Millisecond
	claimStage  = 3 // rounds
	claimIdle   = time.Second
	claimRounds = 12  // at least: together longer than half-open flows keep their ports from others (3 s)
	claimMost   = 120 // rounds after which what should have happened never will
)

// claimPorts is how many ports there are for six times as many of clients. They lie in two halves of different high
// bytes, so that servers can be silent on one of them.
const (
	claimLow   = 0x5080
	claimPorts = 256
)

// claimHalves are the high bytes of clients' ports, each with 256 low ones; one half is silent in each stage. The first
// two are of clients whose frames come to both interfaces, the third of clients whose frames come to one: eth0, eth1.
var claimHalves = [2][3]byte{{0x10, 0x20, 0x30}, {0x40, 0x50, 0x60}}

// TestLiveClaims: clients' frames arrive on two interfaces and the servers' on one, taken by two CPUs. Flows begin,
// are promoted, close and expire at once, and contend for ports all the time. No reply tuple gets two flows.
func TestLiveClaims(t *testing.T) {
	for _, c := range []natCase{{"FULLNAT", "fullnat", false}, {"FULLNAT6", "fullnat", true}, {"NAT", "nat", false}} {
		t.Run(c.name, func(t *testing.T) { testClaims(t, c) })
	}
}

func testClaims(t *testing.T, c natCase) {
	w := newClaimWorld(t, c)
	rounds := 0
	for ; rounds < claimRounds || !w.enough(); rounds++ {
		if rounds == claimMost {
			t.Errorf("too little happened")
			break
		}
		if rounds%claimStage == 0 {
			w.nextStage(rounds / claimStage)
		}
		w.fire()
		w.judge()
	}
	s := w.stats()
	t.Logf("%d rounds, %d frames, %d of %d tuples had several flows, %d flows gave way when they had expired, %d were promoted at a check, %v held their tuples: %v",
		rounds, s.Received, w.several(), len(w.ids), w.expired, w.promoted, w.held, s.Reasons)
	sum := s.Forwarded + s.Passed
	for _, count := range s.Reasons {
		sum += count
	}
	if sum != s.Received {
		t.Errorf("received %d, but forwarded, passed and all reasons are %d: %+v", s.Received, sum, s)
	}
}

// claimWorld is a balancer whose clients contend, and what was seen of their flows.
type claimWorld struct {
	*liveNet
	natCase
	vips   []netip.AddrPort
	server netip.AddrPort
	snat   netip.Addr

	loud  [3]byte     // of clients' ports
	quiet byte        // of the ports that FULL-NAT sends from: servers send nothing there
	shots [2][]volley // of the present stage, by interface

	last     claims // as the last check read them
	ids      map[bpf.XdplbTuple]map[uint64]bool
	expired  int          // flows that gave way because they had expired
	promoted int          // in `flows` at a check
	held     map[byte]int // flows that held their tuples at a check, by the high byte of the client's port
}

func newClaimWorld(t *testing.T, c natCase) *claimWorld {
	w := &claimWorld{
		liveNet: wireLive(t, lab.TwoArmed, 1), natCase: c, ids: make(map[bpf.XdplbTuple]map[uint64]bool), held: make(map[byte]int),
	}
	vip, server, snat := w.VIP4, w.Servers4[0], netip.MustParsePrefix("198.51.100.40/24")
	if c.v6 {
		vip, server, snat = w.VIP6, w.Servers6[0], netip.MustParsePrefix("2001:db8:2::40/64")
	}
	w.server, w.snat = netip.AddrPortFrom(server, natServerPort), snat.Addr()
	w.vips = []netip.AddrPort{netip.AddrPortFrom(vip, livePort)}
	attach := []string{"attach", "eth0", "eth1"}
	if c.mode == "fullnat" {
		w.check(w.Balancer.Addr("eth1", snat.String()))
		attach = append(attach, "--snat", w.snat.String(), "--snat-ports", fmt.Sprintf("%d-%d", claimLow, claimLow+claimPorts-1))
	} else { // one port of a client may talk to the server through one VIP only
		w.vips = append(w.vips, netip.AddrPortFrom(vip, livePort+1))
	}
	w.must(attach...)
	w.must("timeout", "--tcp", claimIdle.String(), "--closing", claimIdle.String())
	for _, vip := range w.vips {
		w.must("vip", "add", vip.String(), "--mode", c.mode)
		w.must("backend", "add", vip.String(), w.server.String())
	}
	return w
}

// volley is a kind of frame, and how many are fired at once.
type volley struct {
	shot
	size int
}

// Frames that close are few, for most flows shall live until they expire or are promoted.
const (
	openVolley  = 8192
	closeVolley = 64
)

// nextStage silences other clients, and the servers on other ports.
func (w *claimWorld) nextStage(stage int) {
	w.t.Helper()
	const flagFIN, flagRST = 0x01, 0x04
	w.loud = claimHalves[stage%2]
	to := w.loud[:]
	if half := byte(stage / 2 % 2); w.mode == "fullnat" {
		to, w.quiet = []byte{claimLow>>8 + half}, claimLow>>8+1-half
	}
	for i := range w.shots {
		highs := w.loud[:]
		if i != stage%2 {
			highs = highs[:2]
		}
		w.shots[i] = []volley{
			{w.fromClients(i, eightOf(highs...), eightOf(flagSYN, flagACK, flagACK, flagACK)), openVolley},
			{w.fromClients(i, eightOf(highs...), eightOf(flagACK|flagFIN, flagACK|flagRST)), closeVolley},
		}
	}
	// Where the server's FIN comes first the port is taken for a minute, so there are few.
	closing := eightOf(flagACK | flagRST)
	closing[0] = flagACK | flagFIN
	w.shots[1] = append(w.shots[1],
		volley{w.fromServer(eightOf(to...), eightOf(flagSYN|flagACK, flagACK, flagACK, flagACK)), openVolley},
		volley{w.fromServer(eightOf(to...), closing), closeVolley})
}

// eightOf repeats up to eight bytes.
func eightOf(of ...byte) (eight [8]byte) {
	for i := range eight {
		eight[i] = of[i%len(of)]
	}
	return eight
}

// Offsets from a TCP header's beginning.
const (
	atDestination = 2
	atFlags       = 13
)

// fromClients are frames of clients to either VIP, as they arrive at an interface.
func (w *claimWorld) fromClients(iface int, highs, flags [8]byte) shot {
	frame, _, port := tcpFrame(w.liveNet, w.vips[0], 0)
	w.addressed(frame, iface, w.Client)
	vips := make([]byte, len(w.vips))
	for i, vip := range w.vips {
		vips[i] = byte(vip.Port())
	}
	tcp := port.offset
	return newShot(w.liveNet, frame, choice{tcp, highs}, random{tcp + 1, 1}, choice{tcp + atDestination + 1, eightOf(vips...)}, choice{tcp + atFlags, flags})
}

// fromServer are frames of the server to ports that somebody may have.
func (w *claimWorld) fromServer(highs, flags [8]byte) shot {
	frame, source, port := tcpFrame(w.liveNet, netip.AddrPortFrom(w.snat, 0), 0)
	w.addressed(frame, 1, w.Servers[0])
	from := w.server.Addr().AsSlice()
	at := source.offset + source.size - len(from) // the source, of either family
	if w.mode == "nat" {
		copy(frame[at+len(from):], frame[at:at+len(from)])
	}
	copy(frame[at:], from)
	tcp := port.offset
	frame[tcp], frame[tcp+1] = byte(w.server.Port()>>8), byte(w.server.Port())
	return newShot(w.liveNet, frame, choice{tcp + atDestination, highs}, random{tcp + atDestination + 1, 1}, choice{tcp + atFlags, flags})
}

// addressed makes the frame one from a node to one of the balancer's interfaces.
func (w *claimWorld) addressed(frame []byte, iface int, from *lab.Node) {
	w.t.Helper()
	theirs, err := w.Balancer.MAC(fmt.Sprintf("eth%d", iface))
	w.check(err)
	ours, err := from.MAC("eth0")
	w.check(err)
	copy(frame, append(theirs, ours...))
}

// fire is one round. It returns when the last frame is taken.
func (w *claimWorld) fire() {
	w.t.Helper()
	errs, until := make(chan error, len(w.shots)), time.Now().Add(claimRound)
	for i, volleys := range w.shots {
		go func() { errs <- fireAll(w.Switches[i].Node, i, fmt.Sprintf("balancer-eth%d", i), volleys, until) }()
	}
	for range w.shots {
		w.check(<-errs)
	}
	w.eventually("the last frame is taken", func() bool {
		before := w.stats().Received
		return w.stats().Received == before
	})
}

// fireAll fires one volley after the other on a CPU.
func fireAll(node *lab.Node, cpu int, dev string, volleys []volley, until time.Time) error {
	return node.Do(func() error {
		var set unix.CPUSet
		set.Set(cpu)
		if err := unix.SchedSetaffinity(0, &set); err != nil {
			return err
		}
		for i := 0; time.Now().Before(until); i++ {
			v := volleys[i%len(volleys)]
			if err := v.fire(dev, v.size); err != nil {
				return err
			}
		}
		return nil
	})
}
