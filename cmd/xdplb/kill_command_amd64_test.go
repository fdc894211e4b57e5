package main

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/xdplb/xdplb/cmd/xdplb/internal/lab"
)

// A command may be killed at any moment: what is left forwards, loses no connection, and takes the next command.

const (
	killCrowd   = ":80"   // a VIP that a crowd is connected to all the time
	killOther   = ":8080" // one that serves HTTP
	killSubject = ":81"   // the one that killed commands are about; each finds it new
	killSource  = "192.0.2.98"
	killSNAT    = "192.0.2.40" // which the balancer has
	killMembers = 20
)

// killNet is a balancer whose commands are killed.
type killNet struct {
	*liveNet
	crowded, other, subject string
	places                  usageJSON // of backends in the base state
}

// killCase is a command that is killed right before each of its writes, one after the other.
type killCase struct {
	name    string
	absent  bool       // the subject is not there at first
	before  [][]string // what else brings about the state that the command is for
	command []string
	done    func(*killNet) bool // it has taken effect
	after   [][]string          // back to the base state
	stops   bool                // the subject serves nobody after it
	detach  bool                // and nothing does until `after`
}

func buildKill(t *testing.T) *killNet {
	n := &killNet{liveNet: buildLive(t, 4)}
	vip := n.VIP4.String()
	n.crowded, n.other, n.subject = vip+killCrowd, vip+killOther, vip+killSubject
	for _, server := range n.Servers {
		n.serveNamesAt(server, 81)
		n.check(server.ServeHTTP(8080))
	}
	n.repliesReturn()
	// The kernel is asked to look for neighbours once only: not in the first round.
	n.must("vip", "add", n.subject)
	n.must("backend", "add", n.subject, n.backend(0), n.backend(1), n.backend(2), n.backend(3))
	n.must("vip", "del", n.subject)
	return n
}

// repliesReturn has what NAT and FULL-NAT need: servers answer from their own address
// by way of the balancer, which does not forward.
func (n *killNet) repliesReturn() {
	n.t.Helper()
	n.check(n.Balancer.Sysctl("net.ipv4.ip_forward", "0"))
	n.check(n.Balancer.Addr("eth0", killSNAT+"/24"))
	for i, server := range n.Servers {
		n.check(server.Do(func() error { return repliesVia(n.Servers4[i], n.Balancer4, "192.0.2.100/32") }))
	}
}

// base makes the VIPs that every case begins with.
func (n *killNet) base() {
	n.t.Helper()
	for _, vip := range []string{n.crowded, n.other} {
		n.must("vip", "add", vip)
		n.must("backend", "add", vip, n.backend(0), n.backend(1))
	}
	n.places = n.status().Places.Backends
}

func TestKilledCommands(t *testing.T) {
	t.Parallel()
	n := buildKill(t)
	n.base()
	r := &rules{takes: map[string]bool{"server1": true, "server2": true}, deleted: make(map[string]int)}
	crowd := newCrowd(n.liveNet, netip.MustParseAddrPort(n.crowded), r, time.Minute)
	crowd.join(killMembers, 100*time.Millisecond)
	for _, c := range killCases(n) {
		began := time.Now()
		points := n.killEverywhere(c)
		t.Logf("%-28s killed at %2d points, %.1f s", c.name, points, time.Since(began).Seconds())
		if crowd.failed() {
			break
		}
	}
	if failures := crowd.dismiss(); len(failures) > 0 {
		t.Fatal(strings.Join(failures, "\n"))
	}
	if crowd.on != killMembers {
		t.Errorf("%d of %d connections are left: %v", crowd.on, killMembers, crowd)
	}
}

func killCases(n *killNet) []killCase {
	c, s := n.subject, n.backend
	const assigned = "192.0.2.99:80"
	pool := [][]string{{"snat", "add", killSNAT}}
	noPool := func(undo ...string) [][]string { return [][]string{undo, {"snat", "del", killSNAT}} }
	gone := func(n *killNet) bool { return n.find(c) == nil }
	admin := func(want string) func(*killNet) bool {
		return func(n *killNet) bool {
			return n.find(c).Backends[0].Admin == want && n.find(n.other).Backends[0].Admin == want
		}
	}
	return []killCase{
		{name: "vip add", absent: true, command: []string{"vip", "add", c}, stops: true,
			done: func(n *killNet) bool { return n.find(c) != nil }},
		{name: "vip add --assign", command: []string{"vip", "add", assigned, "--assign", "eth0"}, after: [][]string{{"vip", "del", assigned}},
			done: func(n *killNet) bool { return n.find(assigned) != nil && n.hasAddress("192.0.2.99") }},
		// The place of a deleted VIP is swept when it is taken again.
		{name: "vip del", command: []string{"vip", "del", c}, stops: true, after: [][]string{{"vip", "add", c}}, done: gone},
		{name: "vip del, assigned", before: [][]string{{"vip", "add", assigned, "--assign", "eth0"}}, command: []string{"vip", "del", assigned},
			done: func(n *killNet) bool { return n.find(assigned) == nil && !n.hasAddress("192.0.2.99") }},
		{name: "vip set --scheduler", command: []string{"vip", "set", c, "--scheduler", "source"},
			done: func(n *killNet) bool { return n.find(c).Scheduler == "source" }},
		{name: "vip set --track", command: []string{"vip", "set", c, "--track", "all"},
			done: func(n *killNet) bool { return n.find(c).Track == "all" }},
		{name: "vip set --mode", command: []string{"vip", "set", c, "--mode", "tun"},
			done: func(n *killNet) bool { v := n.find(c); return v.Mode == "tun" && n.modes(v) == "tun tun" }},
		{name: "backend add", command: []string{"backend", "add", c, s(2), s(3)},
			done: func(n *killNet) bool { return len(n.find(c).Backends) == 4 }},
		{name: "backend set --weight", command: []string{"backend", "set", c, s(0), "--weight", "3"},
			done: func(n *killNet) bool { return n.find(c).Backends[0].Weight == 3 }},
		{name: "backend set --mode", command: []string{"backend", "set", c, s(0), "--mode", "tun"},
			done: func(n *killNet) bool { return n.modes(n.find(c)) == "tun dr" }},
		{name: "backend del", before: [][]string{{"backend", "add", c, s(2)}}, command: []string{"backend", "del", c, s(2)},
			done: func(n *killNet) bool { return len(n.find(c).Backends) == 2 }},
		{name: "drain", command: []string{"drain", s(0)}, after: [][]string{{"enable", s(0)}}, done: admin("drain")},
		{name: "enable", before: [][]string{{"drain", s(0)}}, command: []string{"enable", s(0)}, done: admin("enabled")},
		{name: "refresh", command: []string{"refresh"}, done: func(*killNet) bool { return true }},
		{name: "vip set --snat", command: []string{"vip", "set", c, "--snat", killSource, "--any-snat"},
			done: func(n *killNet) bool { return n.sendsFrom(killSource, "own") }},
		{name: "snat add", command: []string{"snat", "add", killSource, "--any-snat"}, after: [][]string{{"snat", "del", killSource}},
			done: func(n *killNet) bool { return n.sendsFrom(killSource, "pool") }},
		{name: "snat del", before: [][]string{{"snat", "add", killSource, "--any-snat"}}, command: []string{"snat", "del", killSource},
			done: func(n *killNet) bool { return !n.sendsFrom(killSource, "pool") }},
		{name: "snat ports", command: []string{"snat", "ports", "20000-21000"}, after: [][]string{{"snat", "ports", "10000-32767"}},
			done: func(n *killNet) bool { return n.ports() == snatPortsJSON{20000, 21000} }},
		{name: "vip add --mode fullnat", absent: true, command: []string{"vip", "add", c, "--mode", "fullnat"}, stops: true,
			done: func(n *killNet) bool { return n.find(c) != nil && n.find(c).Mode == "fullnat" }},
		{name: "vip set --mode nat", command: []string{"vip", "set", c, "--mode", "nat"},
			done: func(n *killNet) bool { v := n.find(c); return v.Mode == "nat" && n.modes(v) == "nat nat" }},
		{name: "vip set --mode fullnat", before: pool, command: []string{"vip", "set", c, "--mode", "fullnat"}, after: noPool("vip", "set", c, "--mode", "dr"),
			done: func(n *killNet) bool { v := n.find(c); return v.Mode == "fullnat" && n.modes(v) == "fullnat fullnat" }},
		{name: "vip set --mode dr, of nat", before: [][]string{{"vip", "set", c, "--mode", "nat"}}, command: []string{"vip", "set", c, "--mode", "dr"},
			done: func(n *killNet) bool { v := n.find(c); return v.Mode == "dr" && n.modes(v) == "dr dr" }},
		{name: "vip del, of nat", before: [][]string{{"vip", "set", c, "--mode", "nat"}}, command: []string{"vip", "del", c}, stops: true,
			after: [][]string{{"vip", "add", c}}, done: gone},
		{name: "backend add --mode nat", command: []string{"backend", "add", c, s(2), s(3), "--mode", "nat"},
			done: func(n *killNet) bool { return n.modes(n.find(c)) == "dr dr nat nat" }},
		{name: "backend set --mode fullnat", before: pool, command: []string{"backend", "set", c, s(0), "--mode", "fullnat"}, after: noPool("backend", "set", c, s(0), "--mode", "dr"),
			done: func(n *killNet) bool { return n.modes(n.find(c)) == "fullnat dr" }},
		{name: "backend set --mode dr, of nat", before: [][]string{{"backend", "set", c, s(0), "--mode", "nat"}}, command: []string{"backend", "set", c, s(0), "--mode", "dr"},
			done: func(n *killNet) bool { return n.modes(n.find(c)) == "dr dr" }},
		{name: "backend del, of nat", before: [][]string{{"backend", "add", c, s(2), "--mode", "nat"}}, command: []string{"backend", "del", c, s(2)},
			done: func(n *killNet) bool { return len(n.find(c).Backends) == 2 }},
		{name: "attach, an upgrade", command: []string{"attach", "eth0"}, done: (*killNet).attached},
		{name: "detach", command: []string{"detach", "eth0"}, detach: true, after: [][]string{{"attach", "eth0"}},
			done: func(n *killNet) bool { return len(n.status().Interfaces) == 0 }},
	}
}

// killEverywhere returns at how many points the command was killed.
func (n *killNet) killEverywhere(c killCase) (points int) {
	n.t.Helper()
	return n.killRounds(func(point killPoint) killed {
		var members []*member
		if !c.absent {
			n.must("vip", "add", n.subject)
			n.must("backend", "add", n.subject, n.backend(0), n.backend(1))
			members = n.connect()
		}
		n.all(c, point, c.before)
		k := n.kill(point, c.command...)
		where := fmt.Sprintf("%s, %v, before %s", c.name, point, k.last)
		n.forwards(where, c, members)
		n.repeat(where, c, k)
		n.all(c, point, c.after)
		again := c
		again.detach = false
		n.forwards(where+", and done once more", again, members)
		n.clear(where, members)
		return k
	})
}

// clear takes the VIP away, and demands that all is free that it had.
func (n *killNet) clear(where string, members []*member) {
	n.t.Helper()
	for _, m := range members {
		m.leave()
	}
	n.must("vip", "del", n.subject)
	if used := n.status().Places.Backends; used != n.places {
		n.t.Fatalf("%s: %d places of backends are taken after all; %d were", where, used.Used, n.places.Used)
	}
}

// killRounds goes through all points, and returns how many there were.
func (n *killNet) killRounds(round func(killPoint) killed) (points int) {
	n.t.Helper()
	for k := (killed{died: true}); ; points++ {
		if k = round(k.next); !k.died {
			return points
		}
	}
}

func (n *killNet) kill(point killPoint, command ...string) killed {
	n.t.Helper()
	k, err := killAt(n.Balancer, point, command...)
	n.check(err)
	if !k.died && k.status != exitDone {
		n.t.Fatalf("%v: status %d: %s", command, k.status, k.stderr)
	}
	if !k.died && point == (killPoint{}) {
		n.t.Fatalf("%v writes nothing", command)
	}
	return k
}

// connect opens connections to the subject.
func (n *killNet) connect() (members []*member) {
	n.t.Helper()
	for range 4 {
		conn, err := n.dial(netip.Addr{}, netip.MustParseAddrPort(n.subject))
		n.check(err)
		server, err := conn.name()
		n.check(err)
		members = append(members, &member{talk: conn, server: server})
	}
	return members
}

func (n *killNet) all(c killCase, point killPoint, commands [][]string) {
	n.t.Helper()
	for _, args := range commands {
		if err := n.on(n.Balancer, args...); err != nil {
			n.t.Fatalf("%s, %v: %s: %v", c.name, point, strings.Join(args, " "), err)
		}
	}
}

// repeat runs the command once more. It may only fail because it had taken effect.
func (n *killNet) repeat(where string, c killCase, k killed) {
	n.t.Helper()
	if k.died {
		if err := n.on(n.Balancer, c.command...); err != nil {
			if text := err.Error(); !strings.Contains(text, "exists") && !strings.Contains(text, "no such") && !strings.Contains(text, "not attached") {
				n.t.Fatalf("%s: once more: %v", where, err)
			}
			if !c.done(n) {
				n.t.Fatalf("%s: it has not taken effect, but once more: %v", where, err)
			}
			return
		}
	}
	if !c.done(n) {
		n.t.Fatalf("%s: it has not taken effect even once more", where)
	}
}

// forwards makes requests, and looks whether the listings are sane.
func (n *killNet) forwards(where string, c killCase, members []*member) {
	n.t.Helper()
	if c.detach {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), liveGap)
	defer cancel()
	if _, err := lab.WhoAnswers(ctx, n.Client.HTTPClient(), "http://"+n.other+"/"); err != nil {
		n.t.Fatalf("%s: the other VIP: %v", where, err)
	}
	if !c.stops {
		if _, err := n.askOnce(netip.Addr{}, netip.MustParseAddrPort(n.subject)); err != nil {
			n.t.Fatalf("%s: a new connection: %v", where, err)
		}
		for _, m := range members {
			if server, err := m.name(); err != nil || server != m.server {
				n.t.Fatalf("%s: a connection to %s: %q answered, %v", where, m.server, server, err)
			}
		}
	}
	var list struct{ VIPs []liveVIP }
	n.ask(&list, "vip", "list")
	for _, v := range list.VIPs {
		seen := make(map[string]bool)
		for _, b := range v.Backends {
			if seen[b.Backend] || b.NextHop != "ok" {
				n.t.Fatalf("%s: %s is listed twice, or cannot be reached: %+v", where, b.Backend, v)
			}
			seen[b.Backend] = true
		}
		if len(v.Backends) < 2 && strings.HasPrefix(v.VIP, n.VIP4.String()) && !c.stops {
			n.t.Fatalf("%s: backends of %s are gone: %+v", where, v.VIP, v.Backends)
		}
	}
}

// find is a VIP, or nil.
func (n *killNet) find(vip string) *liveVIP {
	n.t.Helper()
	var list struct{ VIPs []liveVIP }
	n.ask(&list, "vip", "list")
	i := slices.IndexFunc(list.VIPs, func(v liveVIP) bool { return v.VIP == vip+"/tcp" })
	if i < 0 {
		return nil
	}
	return &list.VIPs[i]
}

func (n *killNet) modes(v *liveVIP) string {
	var modes []string
	for _, b := range v.Backends {
		modes = append(modes, b.Mode)
	}
	return strings.Join(modes, " ")
}

// ports are those that FULL-NAT sends from.
func (n *killNet) ports() snatPortsJSON {
	n.t.Helper()
	var list snatJSON
	n.ask(&list, "snat", "list")
	return list.Ports
}

// sendsFrom looks whether FULL-NAT does so.
func (n *killNet) sendsFrom(addr, source string) bool {
	n.t.Helper()
	var list struct {
		Addresses []snatAddressJSON
	}
	n.ask(&list, "snat", "list")
	return slices.ContainsFunc(list.Addresses, func(a snatAddressJSON) bool { return a.Address == addr && a.Source == source })
}

func (n *killNet) attached() bool {
	n.t.Helper()
	status := n.status()
	return len(status.Interfaces) == 1 && len(status.Interfaces[0].Program) == 16
}

func (n *killNet) hasAddress(addr string) (has bool) {
	n.t.Helper()
	n.check(n.Balancer.Do(func() error {
		link, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		addrs, err := netlink.AddrList(link, netlink.FAMILY_V4)
		has = slices.ContainsFunc(addrs, func(a netlink.Addr) bool { return a.IP.String() == addr })
		return err
	}))
	return has
}
