package main

import (
	"bytes"
	"context"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/xdplb/xdplb/cmd/xdplb/internal/lab"
)

// TestHandoverIPVS takes a thousand connections over from IPVS, half of them NAT and half DR, and gives them back with
// a thousand of its own: none breaks, and new ones go where they should.
func TestHandoverIPVS(t *testing.T) {
	if !inGuest() {
		runInGuest(t, []string{"bridge", "veth", "crc32c_generic", "ip_vs", "ip_vs_rr"}, []string{ipvsadmBin, "/bin/sh"})
		return
	}
	const half, later = 500, 100
	n := buildIPVS(t)
	nat, dr := netip.AddrPortFrom(n.VIP4, livePort), netip.AddrPortFrom(n.VIP4, livePort+1)
	for _, line := range [][]string{
		{"-A", "-t", nat.String(), "-s", "rr"}, {"-A", "-t", dr.String(), "-s", "rr"},
		{"-a", "-t", nat.String(), "-r", n.natServer(0), "-m"}, {"-a", "-t", nat.String(), "-r", n.natServer(1), "-m"},
		{"-a", "-t", dr.String(), "-r", n.Servers4[0].String(), "-g"}, {"-a", "-t", dr.String(), "-r", n.Servers4[1].String(), "-g"},
	} {
		n.ipvsadm(line...)
	}
	open := func(count int) (all []*member) {
		return append(n.crowd(count, nat), n.crowd(count, dr)...)
	}
	members := open(half)
	begun := n.began()
	if begun != 2*half {
		t.Fatalf("IPVS counts %d connections of %d", begun, 2*half)
	}
	n.speak("through IPVS", members)
	rules := n.ipvsadm("-S", "-n")
	t.Logf("%d connections through IPVS; its rules:\n%s", len(members), rules)

	// Forward.
	n.typed(takeOver)
	n.speak("taken over", members)
	members = append(members, open(half)...)
	if now := n.began(); now != begun {
		t.Errorf("IPVS began %d connections after the handover", now-begun)
	}
	ours := n.counted()
	if ours != 2*half {
		t.Errorf("xdplb's backends count %d new connections of %d", ours, 2*half)
	}
	n.speak("all, after the handover", members)
	t.Logf("%d connections go on, half of them through xdplb\n%s", len(members), n.xdplb("", "stats"))

	// And back.
	n.xdplb("", "ipvsadm", "-C", "--handover", "15m")
	n.speak("given back", members)
	members = append(members, open(later)...)
	if now := n.began(); now != begun+2*later {
		t.Errorf("IPVS began %d new connections of %d", now-begun, 2*later)
	}
	if now := n.counted(); now != ours {
		t.Errorf("xdplb's backends took %d connections after they were given back", now-ours)
	}
	n.speak("all, after they were given back", members)
	t.Logf("%d connections go on\n%s", len(members), n.xdplb("", "vip", "list"))

	// Once more, while both still have connections.
	n.xdplb(rules, "ipvsadm", "-R", "--handover", "15m")
	begun = n.began()
	members = append(members, open(later)...)
	if now := n.began(); now != begun {
		t.Errorf("IPVS began %d connections after it was taken over again", now-begun)
	}
	n.speak("all, taken over again", members)
	for _, m := range members {
		m.leave()
	}
	n.complete(rules, nat, dr)
}

// ipvsNet is a balancer that has the VIP's address, with IPVS in its kernel.
type ipvsNet struct {
	*liveNet
	lines []string // of the README, that ran
}

func buildIPVS(t *testing.T) *ipvsNet {
	n := &ipvsNet{liveNet: wireLive(t, lab.Flat, 2)}
	vip := n.VIP4.String()
	n.check(n.Balancer.Addr("eth0", vip+"/32"))
	for _, key := range []string{"ip_forward=1", "conf.all.send_redirects=0", "conf.eth0.send_redirects=0"} {
		name, value, _ := strings.Cut(key, "=")
		n.check(n.Balancer.Sysctl("net.ipv4."+name, value))
	}
	for i, server := range n.Servers {
		n.serveNamesAt(server, natServerPort)
		n.serveNamesAt(server, livePort+1)
		n.check(n.on(server, "realserver", "accept", vip, "--mode", "dr", "--dev", "eth0"))
		n.check(server.Do(func() error { return repliesVia(n.Servers4[i], n.Balancer4, n.Client4.String()+"/32") }))
	}
	return n
}

func (n *ipvsNet) natServer(i int) string {
	return netip.AddrPortFrom(n.Servers4[i], natServerPort).String()
}

// ipvsadm runs the real one.
func (n *ipvsNet) ipvsadm(args ...string) string {
	n.t.Helper()
	out, err := n.Balancer.Command(context.Background(), ipvsadmBin, args...).Output()
	if err != nil {
		n.t.Fatalf("%s %s: %v", ipvsadmBin, strings.Join(args, " "), err)
	}
	return string(out)
}

// xdplb runs this program with something to read.
func (n *ipvsNet) xdplb(stdin string, args ...string) string {
	n.t.Helper()
	cmd := n.Balancer.Command(context.Background(), "/proc/self/exe", args...)
	cmd.Args[0], cmd.Stdin = "xdplb", strings.NewReader(stdin)
	out, err := cmd.CombinedOutput()
	if err != nil {
		n.t.Fatalf("%s: %v: %s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

// began is how many connections IPVS has begun: the sum of all processors. (What `ipvsadm --stats` shows is up to two
// seconds old, see net/netfilter/ipvs/ip_vs_est.c.)
func (n *ipvsNet) began() (sum int) {
	n.t.Helper()
	n.check(n.Balancer.Do(func() error {
		text, err := os.ReadFile("/proc/thread-self/net/ip_vs_stats_percpu")
		if err != nil {
			return err
		}
		for line := range strings.Lines(string(text)) {
			fields := strings.Fields(line)           // processor and connections, hexadecimal
			if len(fields) > 0 && fields[0] == "~" { // totals, and then rates
				break
			}
			if len(fields) < 2 {
				continue
			}
			if _, err := strconv.ParseUint(fields[0], 16, 32); err != nil {
				continue
			}
			count, err := strconv.ParseUint(fields[1], 16, 32)
			if err != nil {
				return err
			}
			sum += int(count)
		}
		return nil
	}))
	return sum
}

// counted is how many connections xdplb's backends have got.
func (n *ipvsNet) counted() (sum int) {
	n.t.Helper()
	for _, v := range n.stats().VIPs {
		for _, b := range v.Backends {
			sum += int(b.Connections)
		}
	}
	return sum
}

// workers speak at the same time: a round of a thousand takes a while in an emulated machine.
const workers = 8

// crowd opens connections.
func (n *ipvsNet) crowd(count int, vip netip.AddrPort) []*member {
	n.t.Helper()
	members := make([]*member, count)
	n.together("opening connections to "+vip.String(), count, func(i int) error {
		conn, err := n.dial(netip.Addr{}, vip)
		if err != nil {
			return err
		}
		members[i] = &member{talk: conn}
		members[i].server, err = conn.name()
		return err
	})
	answers := make(map[string]int)
	for _, m := range members {
		answers[m.server]++
	}
	if len(answers) != len(n.Servers) {
		n.t.Errorf("connections to %s are distributed as %v", vip, answers)
	}
	return members
}

// speak looks whether every connection still has an answer of its server.
func (n *ipvsNet) speak(when string, members []*member) {
	n.t.Helper()
	n.together(when, len(members), func(i int) error {
		server, err := members[i].name()
		if err == nil && server != members[i].server {
			n.t.Errorf("%s: connection %d was to %s, and %s answers", when, i, members[i].server, server)
		}
		return err
	})
}

func (n *ipvsNet) together(what string, count int, f func(i int) error) {
	n.t.Helper()
	var wg sync.WaitGroup
	failed := make([]error, workers)
	for w := range workers {
		wg.Go(func() {
			for i := w; i < count && failed[w] == nil; i += workers {
				failed[w] = f(i)
			}
		})
	}
	wg.Wait()
	if i := slices.IndexFunc(failed, func(err error) bool { return err != nil }); i >= 0 {
		connections := n.ipvsadm("-L", "-n", "-c")
		n.t.Fatalf("%s: %v; reasons %v\n%s\n%s", what, failed[i], n.reasons(), n.ipvsadm("-L", "-n", "--stats"), connections[:min(len(connections), 1500)])
	}
}

// reasons are empty before anything is attached.
func (n *ipvsNet) reasons() string {
	out, _ := n.output(n.Balancer, "stats")
	_, after, _ := bytes.Cut(out, []byte("received"))
	return string(after)
}
