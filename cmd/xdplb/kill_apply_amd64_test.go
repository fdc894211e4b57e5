package main

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// killApply is a balancer whose `apply` and `restore` are killed.
type killApply struct {
	*killNet
	dir string
}

func (n *killApply) file(name, text string) string {
	n.t.Helper()
	path := filepath.Join(n.dir, name)
	n.check(os.WriteFile(path, []byte(text), 0o600))
	return path
}

// stay are VIPs that are the same in every file.
func (n *killApply) stay() string {
	var text strings.Builder
	for _, vip := range []string{n.crowded, n.other} {
		fmt.Fprintf(&text, "- {vip: %s, backends: [%s, %s]}\n", vip, n.backend(0), n.backend(1))
	}
	return text.String()
}

// now is all that a file says of, and the tables, which tell whether what they were made of is in them.
func (n *killApply) now() string {
	n.t.Helper()
	saved, err := n.output(n.Balancer, "save")
	n.check(err)
	var list struct {
		VIPs []struct {
			VIP, Fingerprint string
		}
	}
	n.ask(&list, "vip", "list")
	prints, err := json.Marshal(list)
	n.check(err)
	return fmt.Sprintf("%s%s\n", saved, prints)
}

// applied applies a file that says nothing new, and looks whether that is so.
func (n *killApply) applied(where, path string) {
	n.t.Helper()
	out, err := n.output(n.Balancer, "apply", path)
	if n.check(err); strings.TrimSpace(string(out)) != "nothing to do" {
		n.t.Fatalf("%s: applied once more, there is something to do:\n%s", where, out)
	}
}

// TestKilledApply kills an apply that changes much: the next one finishes it, and VIPs that are the same in both
// files serve all the time.
func TestKilledApply(t *testing.T) {
	t.Parallel()
	n := &killApply{buildKill(t), t.TempDir()}
	vip := n.VIP4.String()
	before := n.file("before.yaml", "timeouts: {udp: 5m}\nsnat: {addresses: [], ports: 10000-32767}\nvips:\n"+n.stay()+
		fmt.Sprintf("- {vip: %s:85, mode: nat, backends: [%s, %s]}\n", vip, n.backend(0), n.backend(1))+
		fmt.Sprintf("- {vip: %s:81, backends: [%s, {address: %s, weight: 2}]}\n", vip, n.backend(0), n.backend(1))+
		fmt.Sprintf("- {vip: %s:82, backends: [%s]}\n", vip, n.backend(2))+
		fmt.Sprintf("- {vip: %s:84, backends: [%s, %s]}\n", vip, n.backend(0), n.backend(1))+
		fmt.Sprintf("- {vip: 192.0.2.98:80, assign: eth0, backends: [%s]}\n", n.backend(3)))
	after := n.file("after.yaml", "timeouts: {udp: 1m}\nsnat: {addresses: ["+killSNAT+"], ports: 20000-30000}\nvips:\n"+n.stay()+
		fmt.Sprintf("- {vip: %s:85, mode: nat, backends: [%s, {address: %s, mode: fullnat}, {address: %s, weight: 2}]}\n", vip, n.backend(0), n.backend(1), n.backend(2))+
		fmt.Sprintf("- {vip: %s:86, scheduler: rr, mode: fullnat, backends: [\"%s:81\"]}\n", vip, n.backend(2))+
		fmt.Sprintf("- {vip: %s:81, backends: [{address: %s, weight: 5}, {address: %s, mode: tun, weight: 2}, %s]}\n", vip, n.backend(0), n.backend(1), n.backend(2))+
		fmt.Sprintf("- {vip: %s:83, scheduler: source, backends: [%s, %s]}\n", vip, n.backend(0), n.backend(3))+
		// Nothing but a weight: until the table is swapped, the record alone says so.
		fmt.Sprintf("- {vip: %s:84, backends: [%s, {address: %s, weight: 4}]}\n", vip, n.backend(0), n.backend(1))+
		fmt.Sprintf("- {vip: 192.0.2.99:0, assign: eth0, mode: tun, track: all, backends: [%s]}\n", n.backend(3)))
	n.must("apply", after)
	want := n.now()
	n.must("apply", before)
	r := &rules{takes: map[string]bool{"server1": true, "server2": true}, deleted: make(map[string]int)}
	crowd := newCrowd(n.liveNet, netip.MustParseAddrPort(n.crowded), r, time.Minute)
	crowd.join(killMembers, 100*time.Millisecond)
	points := n.killRounds(func(point killPoint) killed {
		n.must("apply", before)
		k := n.kill(point, "apply", after)
		where := fmt.Sprintf("%v, before %s", point, k.last)
		for _, one := range []string{n.crowded, n.other, vip + ":81"} {
			n.served(where, one)
		}
		n.must("apply", after)
		if now := n.now(); now != want {
			n.t.Fatalf("%s, and finished:\n%s\nwant:\n%s", where, now, want)
		}
		n.applied(where, after)
		if n.hasAddress("192.0.2.98") || !n.hasAddress("192.0.2.99") {
			n.t.Fatalf("%s: addresses are not as they should be", where)
		}
		return k
	})
	t.Logf("apply killed at %d points", points)
	n.must("apply", n.file("stay.yaml", "vips:\n"+n.stay()))
	if used := n.status().Places.Backends.Used; used != 4 {
		t.Errorf("%d places of backends are taken after all; want 4", used)
	}
	if points < 30 {
		t.Errorf("only %d points", points)
	}
	allStayed(t, crowd)
}

// served: a VIP that was there before, and is to be there, serves.
func (n *killApply) served(where, vip string) {
	n.t.Helper()
	if vip == n.other {
		c := killCase{stops: true}
		n.forwards(where, c, nil)
		return
	}
	if _, err := n.askOnce(netip.Addr{}, netip.MustParseAddrPort(vip)); err != nil {
		n.t.Fatalf("%s: %s: %v", where, vip, err)
	}
}

// TestKilledRestore kills a restore on a host where nothing is attached, as it is after a reboot.
func TestKilledRestore(t *testing.T) {
	t.Parallel()
	n := &killApply{buildKill(t), t.TempDir()}
	vip := n.VIP4.String()
	n.must("apply", n.file("all.yaml", "vips:\n"+n.stay()+
		fmt.Sprintf("- {vip: %s:81, mode: tun, backends: [%s, {address: %s, weight: 2, drain: true}]}\n", vip, n.backend(0), n.backend(1))))
	path := filepath.Join(n.dir, "saved.yaml")
	n.must("save", path)
	want := n.now()
	purge := []string{"detach", "--all", "--purge"}
	points := n.killRounds(func(point killPoint) killed {
		n.must(purge...)
		k := n.kill(point, "restore", path)
		where := fmt.Sprintf("restore %v, before %s", point, k.last)
		n.must("restore", path)
		if now := n.now(); now != want {
			n.t.Fatalf("%s, and finished:\n%s\nwant:\n%s", where, now, want)
		}
		for _, one := range []string{n.crowded, n.other, n.subject} {
			n.served(where, one)
		}
		n.check(n.Balancer.Do(func() error {
			pins, err := filepath.Glob("/sys/fs/bpf/xdplb*")
			if err == nil && !slices.Equal(pins, []string{"/sys/fs/bpf/xdplb"}) {
				err = fmt.Errorf("%s: left: %v", where, pins)
			}
			return err
		}))
		return k
	})
	t.Logf("restore killed at %d points", points)
}

// allStayed ends a crowd, none of whose connections may have been lost.
func allStayed(t *testing.T, c *crowd) {
	t.Helper()
	if failures := c.dismiss(); len(failures) > 0 {
		t.Fatal(strings.Join(failures, "\n"))
	}
	if c.on != killMembers {
		t.Errorf("%d of %d connections are left: %v", c.on, killMembers, c)
	}
}
