package loader

import (
	"fmt"
	"net/netip"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"

	"github.com/xdplb/xdplb/bpf"
)

// What a vanished interface or namespace left behind does not get in the way.
func TestRealserverReplacesStalePins(t *testing.T) {
	pins, lan := realserverHost(t)
	accept(t, pins, ModeTUN, "eth0", nil, "192.0.2.10", "192.0.2.11")
	must(t, netlink.LinkDel(lan.near))
	if got := accepted(t, pins).Addresses[0]; got.State != StateInterfaceGone || got.Interface != "" {
		t.Errorf("%+v", got)
	}
	join(t, "eth0")
	accept(t, pins, ModeTUN, "eth0", nil, "192.0.2.10")
	if got := accepted(t, pins).Addresses[0]; got.State != StateOK || got.XDPMode != XDPNative {
		t.Errorf("%+v", got)
	}
	release(t, pins, "192.0.2.11")
	before := settings(t, "eth0")

	server, err := openRealserver(pins, false)
	must(t, err)
	must(t, server.maps.Identities.Put(uint32(0), bpf.RealserverIdentity{NetnsCookie: 1}))
	server.close()
	if found := accepted(t, pins); len(found.Addresses) != 0 {
		t.Errorf("another namespace's pins are shown: %v", found.Addresses)
	}
	accept(t, pins, ModeDR, "eth0", nil, "192.0.2.20")
	checkDifference(t, before, settings(t, "eth0"), map[string]string{"-eth0 xdp": "attached", "lo 192.0.2.20/32": "address"})
	release(t, pins)
}

// A command that was killed half-way is finished by the next one.
func TestRealserverAfterKill(t *testing.T) {
	pins, lan := realserverHost(t)
	before := settings(t, "eth0")
	server, err := openRealserver(pins, true)
	must(t, err)
	record := bpf.RealserverAccepted{Ifindex: uint32(lan.near.Attrs().Index), Mode: bpf.RealserverModeModeTun}
	must(t, server.silence(lan.near))
	must(t, server.maps.Accepted.Put(mapKey(ip("192.0.2.10")), record))
	server.close()
	if got := accepted(t, pins).Addresses[0].State; got != StateAddressGone {
		t.Errorf("state %q", got)
	}
	lo, err := netlink.LinkByName("lo")
	must(t, err)
	must(t, netlink.AddrAdd(lo, hostAddress(ip("192.0.2.10"))))
	if got := accepted(t, pins).Addresses[0].State; got != StateDetached {
		t.Errorf("state %q", got)
	}
	accept(t, pins, ModeTUN, "eth0", nil, "192.0.2.10")
	if got := accepted(t, pins).Addresses[0].State; got != StateOK {
		t.Errorf("state %q", got)
	}
	release(t, pins)
	checkDifference(t, before, settings(t, "eth0"), map[string]string{})
}

// stranger attaches a program that is not ours.
func stranger(t *testing.T, dev netlink.Link) {
	t.Helper()
	program, err := ebpf.NewProgram(&ebpf.ProgramSpec{Name: "stranger", Type: ebpf.XDP, License: "MIT",
		Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, 2), asm.Return()}})
	must(t, err)
	defer program.Close()
	attached, err := link.AttachXDP(link.XDPOptions{Program: program, Interface: dev.Attrs().Index})
	must(t, err)
	t.Cleanup(func() { attached.Close() })
}

func TestRealserverErrors(t *testing.T) {
	pins, _ := realserverHost(t)
	other := join(t, "eth1")
	stranger(t, other.near)
	must(t, netlink.LinkAdd(&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "br0"}}))
	accept(t, pins, ModeDR, "eth0", nil, "192.0.2.10")
	sysctl(t, "ipv6/conf/lo/disable_ipv6", "1")
	unmounted := filepath.Join(t.TempDir(), "xdplb")

	type attempt struct {
		pins  string
		addrs []netip.Addr
		AcceptOptions
	}
	good := attempt{pins, ips("192.0.2.20"), AcceptOptions{Mode: ModeTUN, Interface: "eth0"}}
	cases := []struct {
		says   string
		change func(*attempt)
	}{
		{"eth7: no such interface", func(a *attempt) { a.Interface = "eth7" }},
		{"br0: is down; `ip link set br0 up`", func(a *attempt) { a.Interface = "br0" }},
		{"lo: no balancer's packets arrive there", func(a *attempt) { a.Interface = "lo" }},
		{`eth1: another XDP program ("stranger", id `, func(a *attempt) { a.Interface = "eth1" }},
		{"192.0.2.10: already accepted on eth0; release it first", func(a *attempt) { a.addrs = ips("192.0.2.20", "192.0.2.10") }},
		{"10.0.0.2: is on eth0, which answers ARP", func(a *attempt) { a.addrs = ips("192.0.2.20", "10.0.0.2") }},
		{"192.0.2.20: named twice", func(a *attempt) { a.addrs = ips("192.0.2.20", "::ffff:192.0.2.20") }},
		{"224.0.0.1: cannot be a VIP", func(a *attempt) { a.addrs = ips("224.0.0.1") }},
		{"no address to accept", func(a *attempt) { a.addrs = nil }},
		{"--mode 0: a real server needs this command only for dr and tun", func(a *attempt) { a.Mode = 0 }},
		{"no prefix that tunnels could come from", func(a *attempt) {
			a.From = []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24"), {}}
		}},
		// Found only when most is done.
		{"2001:db8:f::20: lo has IPv6 disabled", func(a *attempt) {
			a.addrs = ips("192.0.2.20", "2001:db8:f::20")
			a.From = []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")}
		}},
		{"not in a BPF file system; let --pins name a directory in one, such as /sys/fs/bpf/xdplb", func(a *attempt) { a.pins = unmounted }},
	}
	before, listed := settings(t, "eth0", "eth1"), fmt.Sprint(accepted(t, pins))
	for _, c := range cases {
		options := good
		c.change(&options)
		notices, err := AcceptVIPs(options.pins, options.addrs, options.AcceptOptions)
		if err == nil || !strings.Contains(err.Error(), c.says) || strings.Contains(err.Error(), "\n") || notices != nil {
			t.Errorf("notices %q, error %v, want %q", notices, err, c.says)
		}
		checkDifference(t, before, settings(t, "eth0", "eth1"), map[string]string{})
		if now := fmt.Sprint(accepted(t, pins)); now != listed {
			t.Errorf("%s: the list became %s, was %s", c.says, now, listed)
		}
	}
	_, err := ReleaseVIPs(pins, ips("192.0.2.10", "192.0.2.11"))
	if err == nil || !strings.HasPrefix(err.Error(), "192.0.2.11: not accepted here") {
		t.Errorf("error %v", err)
	}
	checkDifference(t, before, settings(t, "eth0", "eth1"), map[string]string{})
	release(t, pins)

	// The first accept of all leaves nothing either.
	good.addrs = ips("192.0.2.20", "2001:db8:f::20")
	before = settings(t, "eth0", "eth1")
	if _, err := AcceptVIPs(good.pins, good.addrs, good.AcceptOptions); err == nil {
		t.Error("no error")
	}
	checkDifference(t, before, settings(t, "eth0", "eth1"), map[string]string{})
	if _, err := ReleaseVIPs(pins, ips("192.0.2.20")); err == nil {
		t.Error("no error")
	}
}
