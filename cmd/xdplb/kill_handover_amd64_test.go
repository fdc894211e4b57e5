package main

import (
	"fmt"
	"net/netip"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// TestKilledHandovers kills the commands that begin and turn a handover: whichever write is not done, connections go on, and
// new ones are served by the local stack or by the backends.
func TestKilledHandovers(t *testing.T) {
	t.Parallel()
	n := buildKill(t)
	n.check(n.Balancer.Addr("eth0", n.VIP4.String()+"/32"))
	n.serveNamesAt(n.Balancer, 81)
	n.base()
	c := n.subject
	direction := func(want string) func(*killNet) bool {
		return func(n *killNet) bool {
			var list struct{ VIPs []handoverVIP }
			n.ask(&list, "vip", "list")
			for _, v := range list.VIPs {
				if v.VIP == c+"/tcp" {
					return v.Handover != nil && v.Handover.Direction == want
				}
			}
			return false
		}
	}
	giveBack := []string{"vip", "del", c, "--handover", "1h"}
	for _, one := range []killCase{
		{name: "vip del --handover", command: giveBack, done: direction("to_local")},
		{name: "vip set --handover", before: [][]string{giveBack}, command: []string{"vip", "set", c, "--handover", "1h"}, done: direction("from_local")},
		{name: "vip del, given back", before: [][]string{giveBack}, command: []string{"vip", "del", c}, stops: true, after: [][]string{{"vip", "add", c}},
			done: func(n *killNet) bool { return n.find(c) == nil }},
	} {
		t.Logf("%-22s killed at %2d points", one.name, n.killEverywhere(one))
	}
	points := n.killRounds(n.killTakeOver)
	t.Logf("%-22s killed at %2d points", "vip add --handover", points)
	n.must("vip", "add", n.subject, "--affinity", "10m")
	n.must("backend", "add", n.subject, n.backend(0), n.backend(1))
	saved := filepath.Join(t.TempDir(), "saved.yaml")
	n.must("save", saved)
	points = n.killRounds(func(point killPoint) killed {
		k := n.kill(point, giveBack...)
		where := fmt.Sprintf("vip del --handover, %v, before %s", point, k.last)
		n.must("apply", saved)
		server, err := n.askOnce(netip.Addr{}, netip.MustParseAddrPort(c))
		n.check(err)
		if back := direction("to_local")(n); back != (server == "balancer") {
			t.Fatalf("%s, and applied: given back: %t, and a new connection is served by %s", where, back, server)
		}
		n.must("vip", "del", c)
		n.must("apply", saved)
		return k
	})
	t.Logf("%-22s killed at %2d points", "vip del --handover", points)
}

// killTakeOver kills `vip add --handover` and what follows it.
func (n *killNet) killTakeOver(point killPoint) killed {
	n.t.Helper()
	members := n.connect() // to the local stack
	k := n.kill(point, "vip", "add", n.subject, "--handover", "1h", "--scheduler", "rr")
	where := fmt.Sprintf("vip add --handover, %v, before %s", point, k.last)
	n.goesOn(where, members)
	if n.find(n.subject) == nil {
		n.must("vip", "add", n.subject, "--handover", "1h", "--scheduler", "rr")
	}
	n.goesOn(where+", and done once more", members)
	n.must("backend", "add", n.subject, n.backend(0), n.backend(1))
	n.goesOn(where+", with backends", members)
	if v := n.find(n.subject); len(v.Backends) != 2 {
		n.t.Fatalf("%s: %+v", where, v)
	}
	n.clear(where, members)
	return k
}

// goesOn: old connections go on, and new ones are answered.
func (n *killNet) goesOn(where string, members []*member) {
	n.t.Helper()
	for _, m := range members {
		if server, err := m.name(); err != nil || server != m.server {
			n.t.Fatalf("%s: a connection to %s: %q answered, %v", where, m.server, server, err)
		}
	}
	if _, err := n.askOnce(netip.Addr{}, netip.MustParseAddrPort(n.subject)); err != nil {
		n.t.Fatalf("%s: a new connection: %v", where, err)
	}
}

// TestKilledEndOfHandover kills the command that removes a VIP that was given back. Each point has a VIP of its own.
func TestKilledEndOfHandover(t *testing.T) {
	t.Parallel()
	const most = 32
	n := buildKill(t)
	n.base()
	n.must("timeout", "--tcp", "1s")
	n.check(n.Balancer.Addr("eth0", n.VIP4.String()+"/32"))
	vips := make([]string, most)
	for i := range vips {
		vips[i] = fmt.Sprintf("%s:%d", n.VIP4, 1000+i)
		n.serveNamesAt(n.Balancer, 1000+i)
		n.must("vip", "add", vips[i])
		n.must("backend", "add", vips[i], n.backend(0), n.backend(1))
		n.must("vip", "del", vips[i], "--handover", "1s")
	}
	var members []*member
	for _, vip := range vips {
		conn, err := n.dial(netip.Addr{}, netip.MustParseAddrPort(vip))
		n.check(err)
		server, err := conn.name()
		n.check(err)
		if server != "balancer" {
			t.Fatalf("%s: %s answers", vip, server)
		}
		members = append(members, &member{talk: conn, server: server})
	}
	// Nobody is silent for longer than the idle timeout.
	var rounds atomic.Int64
	var broken atomic.Pointer[string]
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		for tick := time.NewTicker(100 * time.Millisecond); ; rounds.Add(1) {
			for i, m := range members {
				if server, err := m.name(); err != nil || server != m.server {
					text := fmt.Sprintf("%s: a connection to the local stack: %q answered, %v", vips[i], server, err)
					broken.CompareAndSwap(nil, &text)
				}
			}
			select {
			case <-tick.C:
			case <-stop:
				return
			}
		}
	}()
	all := vips
	speak := func(where string) {
		t.Helper()
		for then := rounds.Load() + 2; rounds.Load() < then; time.Sleep(10 * time.Millisecond) {
		}
		if text := broken.Load(); text != nil {
			t.Fatalf("%s: %s", where, *text)
		}
		if _, err := n.askOnce(netip.Addr{}, netip.MustParseAddrPort(n.subject)); err != nil {
			t.Fatalf("%s: a new connection: %v", where, err)
		}
	}
	// A change to it: the first that can ends the VIP instead.
	change := func(vip string) []string { return []string{"enable", n.backend(1), "--vip", vip} }
	const ended = "was given back to the local stack, and is gone"
	end := func(vip string) {
		t.Helper()
		if err := n.on(n.Balancer, change(vip)...); err != nil && !strings.Contains(err.Error(), ended) {
			t.Fatal(err)
		}
	}
	for last, tick := vips[most-1], time.NewTicker(50*time.Millisecond); n.find(last) != nil; <-tick.C {
		end(last)
	}
	points := n.killRounds(func(point killPoint) killed {
		if len(vips) == 1 {
			t.Fatalf("more than %d points; make more VIPs", most-1)
		}
		vip := vips[0]
		vips = vips[1:]
		k, err := killAt(n.Balancer, point, change(vip)...)
		n.check(err)
		if !k.died && (k.status != exitFailed || !strings.Contains(k.stderr, ended)) {
			t.Fatalf("%v: status %d: %s", change(vip), k.status, k.stderr)
		}
		where := fmt.Sprintf("ending %s, %v, before %s", vip, point, k.last)
		n.subject = vip
		speak(where)
		if n.find(vip) != nil {
			end(vip)
		}
		if n.find(vip) != nil {
			t.Errorf("%s: it is still there", where)
		}
		speak(where + ", and done once more")
		return k
	})
	t.Logf("the end of a handover killed at %d points", points)
	n.must("refresh")
	n.subject = all[0]
	speak("all are given back")
	close(stop)
	<-stopped
	for _, m := range members {
		m.leave()
	}
	// What a killed deletion left of backends goes when its number is taken again.
	for _, vip := range all {
		n.must("vip", "add", vip)
	}
	for _, vip := range all {
		n.must("vip", "del", vip)
	}
	if used := n.status().Places.Backends; used != n.places {
		t.Errorf("%d places of backends are taken after all; %d were", used.Used, n.places.Used)
	}
}
