package main

import (
	"context"
	"net/netip"
	"slices"
	"strings"

	"github.com/google/go-cmp/cmp"
)

// typed gives a line of the README's migration to the balancer's shell.
func (n *ipvsNet) typed(line string) string {
	n.t.Helper()
	if len(n.lines) == 0 || n.lines[len(n.lines)-1] != line { // not one that waits
		n.lines = append(n.lines, line)
	}
	out, err := n.Balancer.Command(context.Background(), "sh", "-c", line).CombinedOutput()
	if err != nil {
		n.t.Fatalf("%s: %v: %s", line, err, out)
	}
	return string(out)
}

// complete ends a takeover and gives all back, as the README says, of which the first line was typed.
func (n *ipvsNet) complete(rules string, vips ...netip.AddrPort) {
	const few = 20
	open := func() (all []*member) {
		for _, vip := range vips {
			all = append(all, n.crowd(few, vip)...)
		}
		return all
	}
	left := func() string { return n.xdplb("", "vip", "list") }
	if out := n.typed(showVIPs); strings.Count(out, "taking over, ") != len(vips) {
		n.t.Errorf("not every VIP is being taken over:\n%s", out)
	}
	if out := n.typed(showStats); strings.Count(out, "  -> local ") != len(vips) {
		n.t.Errorf("nothing is said of IPVS:\n%s", out)
	}

	// The time is over, and IPVS has no connections.
	for _, vip := range vips {
		n.xdplb("", "vip", "set", vip.String(), "--handover", handoverMoment)
	}
	n.idle(handoverIdle.String())
	n.eventually("all is taken over", func() bool { n.typed(endIt); return !strings.Contains(left(), "taking over") })
	n.idle("15m")
	n.typed(endIPVS)
	if out := n.ipvsadm("-S", "-n"); out != "" {
		n.t.Errorf("IPVS still has:\n%s", out)
	}
	ours := open()

	// IPVS gets the rules that it had, and then new connections.
	n.typed(giveRules)
	if difference := cmp.Diff(sortedLines(rules), sortedLines(n.ipvsadm("-S", "-n"))); difference != "" {
		n.t.Errorf("IPVS had (-) and has (+):\n%s", difference)
	}
	n.speak("IPVS has rules again", ours)
	begun := n.began()
	n.typed(giveBack)
	n.speak("given back", ours)
	members := append(ours, open()...)
	if now := n.began(); now != begun+few*len(vips) {
		n.t.Errorf("IPVS began %d new connections of %d", now-begun, few*len(vips))
	}
	n.speak("all, given back", members)
	for _, m := range ours {
		m.leave()
	}
	for _, vip := range vips {
		n.xdplb("", "vip", "del", vip.String(), "--handover", handoverMoment)
	}
	n.idle(handoverIdle.String())
	n.eventually("all is given back", func() bool { n.typed(endIt); return !strings.Contains(left(), "giving back") })
	n.typed(endXDPLB)
	n.speak("without xdplb", members[len(ours):])
	if difference := cmp.Diff(migration, n.lines); difference != "" {
		n.t.Errorf("the README says (-), and this ran (+):\n%s", difference)
	}
}

// idle sets how long silent connections are kept.
func (n *ipvsNet) idle(d string) {
	n.xdplb("", "timeout", "--tcp", d, "--closing", handoverMoment)
}

func sortedLines(text string) []string {
	return slices.Sorted(strings.Lines(text))
}
