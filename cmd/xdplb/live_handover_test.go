package main

import (
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"
)

// A VIP is taken over from what serves its address on the balancer itself, and given back, while connections of
// either side go on.

// handoverNet is a network whose balancer serves the VIP itself, too.
type handoverNet struct {
	*liveNet
	vip     netip.AddrPort
	name    string
	at      []string // how commands name the servers
	options []string // of `vip add`
}

// handoverVIP is what the test reads of `vip list`.
type handoverVIP struct {
	liveVIP
	Handover *struct {
		Direction string
		Left      float64 `json:"left_seconds"`
	}
}

const (
	handoverIdle   = 2 * time.Second // of TCP
	handoverMoment = "1s"
	handoverCrowd  = 12
)

func TestHandover(t *testing.T) {
	for _, mode := range []string{"dr", "nat"} {
		for _, scheduler := range []string{"maglev", "rr"} {
			t.Run(mode+"-"+scheduler, func(t *testing.T) {
				t.Parallel()
				n := buildHandover(t, mode, 2)
				n.options = []string{"--mode", mode, "--scheduler", scheduler}
				testHandover(t, n)
			})
		}
	}
}

// In FULL-NAT a packet without a flow is refused, and a scheduler that compares loads must not send new flows to the local
// stack while it is taken over.
func TestHandoverOthers(t *testing.T) {
	for _, options := range []string{"--mode fullnat --scheduler lc", "--mode nat --affinity 10m"} {
		t.Run(options, func(t *testing.T) {
			t.Parallel()
			n := buildHandover(t, strings.Fields(options)[1], 2)
			n.options = strings.Fields(options)
			testHandover(t, n)
		})
	}
}

func buildHandover(t *testing.T, mode string, servers int) *handoverNet {
	n := &handoverNet{}
	if mode == "dr" {
		n.liveNet = buildLive(t, servers)
		n.vip = netip.AddrPortFrom(n.VIP4, livePort)
		for i := range n.Servers {
			n.at = append(n.at, n.backend(i))
		}
	} else {
		nat := buildNAT(t, natCase{mode: mode}, servers, 1)
		n.liveNet, n.vip = nat.liveNet, nat.vip
		for i, server := range n.Servers {
			n.serveNamesAt(server, natServerPort)
			n.at = append(n.at, nat.at(i))
		}
	}
	n.name = n.vip.String()
	n.check(n.Balancer.Addr("eth0", n.VIP4.String()+"/32"))
	n.serveNames(n.Balancer)
	n.must("timeout", "--tcp", handoverIdle.String(), "--closing", "1s")
	return n
}

// group are connections of which each answer must be of one of these servers, and of the same one for ever.
type group struct {
	n       *handoverNet
	members []*member
}

func (n *handoverNet) join(count int, servers ...string) *group {
	n.t.Helper()
	g := &group{n: n}
	for range count {
		conn, err := n.dial(netip.Addr{}, n.vip)
		n.check(err)
		server, err := conn.name()
		n.check(err)
		if !slices.Contains(servers, server) {
			n.t.Fatalf("%s answered a new connection, want one of %v", server, servers)
		}
		g.members = append(g.members, &member{talk: conn, server: server})
	}
	return g
}

func (g *group) speak(when string) {
	g.n.t.Helper()
	for i, m := range g.members {
		if server, err := m.name(); err != nil || server != m.server {
			flows, _ := g.n.output(g.n.Balancer, "flows")
			g.n.t.Fatalf("%s: connection %d (%s) of %d to %s: %q answered, %v; reasons %v\n%s", when, i, m.LocalAddr(),
				len(g.members), m.server, server, err, g.n.stats().Reasons, flows)
		}
	}
}

func (g *group) leave() {
	for _, m := range g.members {
		m.leave()
	}
	g.members = nil
}

// handover reads what `vip list` says of the VIP; nil if it is not there.
func (n *handoverNet) handover() *handoverVIP {
	n.t.Helper()
	var list struct{ VIPs []handoverVIP }
	n.ask(&list, "vip", "list")
	if len(list.VIPs) == 0 {
		return nil
	}
	return &list.VIPs[0]
}

// wantHandover looks what goes on.
func (n *handoverNet) wantHandover(direction, text string) {
	n.t.Helper()
	v := n.handover()
	if v == nil || v.Handover == nil || v.Handover.Direction != direction {
		n.t.Fatalf("%+v; want it to be handed over %s", v, direction)
	}
	for _, command := range []string{"vip list", "stats"} {
		out, err := n.output(n.Balancer, strings.Fields(command)...)
		n.check(err)
		if !strings.Contains(string(out), text) {
			n.t.Errorf("%s does not say %q:\n%s", command, text, out)
		}
	}
}

func testHandover(t *testing.T, n *handoverNet) {
	servers := []string{"server1", "server2"}
	old := n.join(handoverCrowd, "balancer")
	n.must(append([]string{"vip", "add", n.name, "--handover", handoverMoment}, n.options...)...)
	old.speak("taken over, without backends")
	between := n.join(2, "balancer")
	old.members = append(old.members, between.members...)
	n.must(append([]string{"backend", "add", n.name}, n.at...)...)
	old.speak("backends were added")
	ours := n.join(handoverCrowd, servers...)
	old.speak("there are new connections")
	ours.speak("at first")
	n.wantHandover("from_local", "taking over")
	n.checkLocalFlows(len(old.members))

	// Changes on the way, after which the local stack keeps what it has.
	n.must("drain", n.Servers4[0].String())
	old.speak("one was drained")
	fresh := n.join(4, "server2")
	n.must("enable", n.Servers4[0].String())
	n.must("vip", "set", n.name, "--scheduler", "source")
	ours.members = append(ours.members, fresh.members...)
	all := func(when string) {
		t.Helper()
		old.speak(when)
		ours.speak(when)
	}
	all("the scheduler is another")

	// The time is over, but there are connections of the local stack.
	for began := time.Now(); time.Since(began) < handoverIdle*5/2; {
		all("on the way")
		n.must("refresh")
	}
	old.leave()
	n.eventually("it has been taken over", func() bool {
		ours.speak("nearly taken over")
		n.must("refresh")
		return n.handover().Handover == nil
	})
	if used := n.status().Places.Backends.Used; used != len(n.at) {
		t.Errorf("%d records of %d backends", used, len(n.at))
	}
	n.saves(true)

	// And back.
	n.must("vip", "del", n.name, "--handover", handoverMoment)
	n.wantHandover("to_local", "giving back")
	n.saves(false)
	ours.speak("given back")
	back := n.join(handoverCrowd, "balancer")
	if err := n.on(n.Balancer, append([]string{"vip", "add", n.name}, n.options...)...); err == nil || !strings.Contains(err.Error(), "--handover") {
		t.Errorf("vip add of one that is given back: %v; want the way to take it again", err)
	}
	// And forward once more, while connections of both are on.
	n.must("vip", "set", n.name, "--handover", handoverMoment)
	n.wantHandover("from_local", "taking over")
	ours.members = append(ours.members, n.join(handoverCrowd, servers...).members...)
	ours.speak("taken again")
	back.speak("taken again")
	n.must("vip", "del", n.name, "--handover", handoverMoment)
	back.members = append(back.members, n.join(2, "balancer").members...)
	for began := time.Now(); time.Since(began) < handoverIdle*5/2; {
		ours.speak("on the way back")
		back.speak("on the way back")
		n.must("refresh")
	}
	ours.leave()
	n.eventually("the VIP is gone", func() bool {
		back.speak("nearly given back")
		n.must("refresh")
		return n.handover() == nil
	})
	back.speak("given back")
	n.join(2, "balancer").leave()
	if p := n.status().Places; p.Backends.Used != 0 || p.Flows.Used != 0 || p.HalfOpen.Used != 0 {
		t.Errorf("left behind: %+v", p)
	}
}

// checkLocalFlows: connections of the local stack are listed as such.
func (n *handoverNet) checkLocalFlows(want int) {
	n.t.Helper()
	var list struct{ Flows []flowJSON }
	n.ask(&list, "flows")
	local := 0
	for _, f := range list.Flows {
		if f.Backend == "local" {
			local++
		}
	}
	if local != want {
		n.t.Errorf("%d flows of %d are listed as local, want %d", local, len(list.Flows), want)
	}
	out, err := n.output(n.Balancer, "ipvsadm", "-Lnc")
	n.check(err)
	if got, want := strings.Count(string(out), "ESTABLISHED"), len(list.Flows)-local; got != want {
		n.t.Errorf("ipvsadm -Lnc lists %d connections, want %d, without the local stack's:\n%s", got, want, out)
	}
}

// saves looks whether the VIP is among what a reboot would lose.
func (n *handoverNet) saves(want bool) {
	n.t.Helper()
	for _, args := range [][]string{{"save"}, {"ipvsadm", "-S", "-n"}} {
		out, err := n.output(n.Balancer, args...)
		n.check(err)
		if got := strings.Contains(string(out), n.name); got != want || strings.Contains(string(out), "handover") {
			n.t.Errorf("%v names the VIP: %t, want %t:\n%s", args, got, want, out)
		}
	}
}
