package main

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"
)

// TestKilledRestoreOver kills a restore, of either format, over a balancer that serves: the next one finishes it, and
// VIPs that are the same before and after serve all the time.
func TestKilledRestoreOver(t *testing.T) {
	t.Parallel()
	for _, format := range []string{"yaml", "ipvsadm"} {
		t.Run(format, func(t *testing.T) {
			t.Parallel()
			n := &killApply{buildKill(t), t.TempDir()}
			before, after := n.file("before", n.rules(false)), n.file("after", n.rules(true))
			restore := func(path string) []string { return []string{"restore", path, "--format", "ipvsadm"} }
			n.must("snat", "add", killSNAT)
			if format == "yaml" { // what is saved of the same
				for _, path := range []string{before, after} {
					n.must(restore(path)...)
					n.must("save", path)
				}
				restore = func(path string) []string { return []string{"restore", path} }
			}
			n.must(restore(after)...)
			want := n.now()
			n.must(restore(before)...)
			r := &rules{takes: map[string]bool{"server1": true, "server2": true}, deleted: make(map[string]int)}
			crowd := newCrowd(n.liveNet, netip.MustParseAddrPort(n.crowded), r, time.Minute)
			crowd.join(killMembers, 100*time.Millisecond)
			points := n.killRounds(func(point killPoint) killed {
				n.must(restore(before)...)
				k := n.kill(point, restore(after)...)
				where := fmt.Sprintf("%v, before %s", point, k.last)
				for _, one := range []string{n.crowded, n.other, n.subject} {
					n.served(where, one)
				}
				n.must(restore(after)...)
				if now := n.now(); now != want {
					n.t.Fatalf("%s, and finished:\n%s\nwant:\n%s", where, now, want)
				}
				n.served(where+", and finished", n.VIP4.String()+":83")
				return k
			})
			t.Logf("killed at %d points", points)
			if points < 20 {
				t.Errorf("only %d points", points)
			}
			allStayed(t, crowd)
		})
	}
}

// rules are services as ipvsadm saves them; the first three serve before and after.
func (n *killApply) rules(after bool) string {
	vip := n.VIP4.String()
	var text strings.Builder
	service := func(port int, scheduler string, servers ...string) {
		fmt.Fprintf(&text, "-A -t %s:%d -s %s\n", vip, port, scheduler)
		for _, s := range servers {
			fmt.Fprintf(&text, "-a -t %s:%d -r %s\n", vip, port, s)
		}
	}
	at := func(server, port int, how string) string {
		return fmt.Sprintf("%s:%d %s", n.backend(server), port, how)
	}
	service(80, "mh", at(0, 80, "-g"), at(1, 80, "-g"))
	service(8080, "wlc", at(0, 8080, "-g"), at(1, 8080, "-g"))
	if !after {
		service(81, "rr", at(0, 81, "-m"), at(1, 81, "-g"))
		service(82, "sh", at(2, 82, "-i"))
		return text.String()
	}
	service(81, "rr", at(0, 81, "-m -w 3"), at(1, 81, "-i"), at(2, 81, "--fullnat"))
	service(83, "wrr", at(2, 81, "--fullnat"), at(3, 81, "-m -w 2"))
	return text.String()
}
