package loader

import (
	"fmt"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

func accept(t *testing.T, pins string, mode Mode, iface string, from []netip.Prefix, addrs ...string) []string {
	t.Helper()
	notices, err := AcceptVIPs(pins, ips(addrs...), AcceptOptions{Mode: mode, Interface: iface, From: from})
	must(t, err)
	return notices
}

func release(t *testing.T, pins string, addrs ...string) {
	t.Helper()
	_, err := ReleaseVIPs(pins, ips(addrs...))
	must(t, err)
}

func accepted(t *testing.T, pins string) *Realserver {
	t.Helper()
	found, err := ListAccepted(pins)
	must(t, err)
	return found
}

func ips(addrs ...string) (list []netip.Addr) {
	for _, addr := range addrs {
		list = append(list, ip(addr))
	}
	return list
}

// settings are what accepting may change of a host.
func settings(t *testing.T, ifaces ...string) map[string]string {
	t.Helper()
	state := map[string]string{}
	for _, iface := range append(ifaces, "all") {
		for _, name := range []string{"arp_ignore", "arp_announce"} {
			value, err := os.ReadFile("/proc/sys/net/ipv4/conf/" + iface + "/" + name)
			must(t, err)
			state[iface+" "+name] = strings.TrimSpace(string(value))
		}
	}
	for _, iface := range append(ifaces, "lo") {
		dev, err := netlink.LinkByName(iface)
		must(t, err)
		addrs, err := netlink.AddrList(dev, netlink.FAMILY_ALL)
		must(t, err)
		for _, addr := range addrs {
			if !addr.IP.IsLinkLocalUnicast() { // the kernel adds those in its own time
				state[iface+" "+addr.IPNet.String()] = "address"
			}
		}
		if xdp := dev.Attrs().Xdp; xdp != nil && xdp.Attached {
			state[iface+" xdp"] = "attached"
		}
	}
	return state
}

// difference returns what is in after and not in before, and the reverse with a minus.
func difference(before, after map[string]string) map[string]string {
	diff := map[string]string{}
	for key, value := range after {
		if before[key] != value {
			diff[key] = value
		}
	}
	for key := range before {
		if _, ok := after[key]; !ok {
			diff["-"+key] = before[key]
		}
	}
	return diff
}

func checkDifference(t *testing.T, before, after, want map[string]string) {
	t.Helper()
	if diff := cmp.Diff(want, difference(before, after)); diff != "" {
		t.Error(diff)
	}
}

func TestRealserverReceivesTunnels(t *testing.T) {
	for _, xdpMode := range []XDPMode{XDPNative, XDPGeneric} {
		t.Run(string(xdpMode), func(t *testing.T) {
			pins, lan := realserverHost(t)
			iface := "eth0"
			if xdpMode == XDPGeneric { // a bridge has no native XDP
				iface = "br0"
				bridge(t, lan)
			}
			notices := accept(t, pins, ModeTUN, iface,
				[]netip.Prefix{netip.MustParsePrefix("10.0.0.1/32"), netip.MustParsePrefix("2001:db8::1/128")},
				"192.0.2.10", "2001:db8:f::10")
			if generic := strings.Contains(strings.Join(notices, "\n"), "generic mode"); generic != (xdpMode == XDPGeneric) {
				t.Errorf("notices %q", notices)
			}
			w := openWire(t, lan)
			outer := map[netip.Addr][2]netip.Addr{ // host: balancer, stranger
				ip("10.0.0.2"):    {ip("10.0.0.1"), ip("10.0.0.3")},
				ip("2001:db8::2"): {ip("2001:db8::1"), ip("2001:db8::3")},
			}
			inner := map[netip.Addr]netip.Addr{ip("192.0.2.10"): ip("198.51.100.7"), ip("2001:db8:f::10"): ip("2001:db8:c::7")}
			for vip, client := range inner {
				server, at := listen(t, vip)
				for host, from := range outer {
					w.tunnel(t, from[1], host, client, at, "of a stranger")
					w.tunnel(t, from[0], host, client, at, fmt.Sprintf("from %s to %s", from[0], at))
					payload, source := receive(t, server)
					if payload != fmt.Sprintf("from %s to %s", from[0], at) || source != client {
						t.Errorf("by %s to %s: got %q from %s", host, at, payload, source)
					}
				}
			}
			found := accepted(t, pins)
			want := []AcceptedVIP{
				{ip("192.0.2.10"), ModeTUN, iface, xdpMode, StateOK},
				{ip("2001:db8:f::10"), ModeTUN, iface, xdpMode, StateOK},
			}
			if diff := cmp.Diff(want, found.Addresses, cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); diff != "" {
				t.Error(diff)
			}
			if found.Outcomes["decapsulated"] != 4 || found.Outcomes["bad_source"] != 4 || found.Outcomes["malformed"] != 0 || len(found.Outcomes) != 5 {
				t.Errorf("outcomes %v", found.Outcomes)
			}
			release(t, pins)
		})
	}
}

// bridge puts eth0 under br0, which takes its addresses over.
func bridge(t *testing.T, lan *network) {
	t.Helper()
	mac := lan.near.Attrs().HardwareAddr
	br0 := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "br0", HardwareAddr: mac}}
	must(t, netlink.LinkAdd(br0))
	must(t, netlink.LinkSetUp(br0))
	must(t, netlink.LinkSetMaster(lan.near, br0))
	for _, prefix := range []string{"10.0.0.2/24", "2001:db8::2/64"} {
		must(t, netlink.AddrDel(lan.near, address(t, prefix)))
		must(t, netlink.AddrAdd(br0, address(t, prefix)))
	}
	for _, any := range []string{"0.0.0.0/0", "::/0"} {
		_ = netlink.RouteDel(&netlink.Route{LinkIndex: lan.near.Attrs().Index, Dst: address(t, any).IPNet})
		addRoute(t, any, netlink.Route{LinkIndex: br0.Attrs().Index})
	}
	// It has a carrier once a port of its forwards.
	for deadline := time.Now().Add(patience); ; time.Sleep(time.Millisecond) {
		now, err := netlink.LinkByName("br0")
		must(t, err)
		if now.Attrs().RawFlags&unix.IFF_LOWER_UP != 0 {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal("br0 has no carrier")
		}
	}
}

func TestRealserverIsSilent(t *testing.T) {
	pins, lan := realserverHost(t)
	w := openWire(t, lan)
	lo, err := netlink.LinkByName("lo")
	must(t, err)
	must(t, netlink.AddrAdd(lo, hostAddress(ip("192.0.2.10"))))
	must(t, netlink.AddrAdd(lan.near, hostAddress(ip("2001:db8:f::10"))))
	for _, unicast := range []bool{false, true} {
		// The kernel joins the group of a new address some time later.
		for deadline := time.Now().Add(patience); !w.answersND(t, "2001:db8:f::10", "2001:db8::2", unicast); {
			if time.Now().After(deadline) {
				t.Fatal("an address of the interface is not answered by ND")
			}
		}
	}
	must(t, netlink.AddrDel(lan.near, hostAddress(ip("2001:db8:f::10"))))
	if !w.answersARP(t, "192.0.2.10", "10.0.0.2") {
		t.Error("an address of lo is not answered by ARP even before it is accepted")
	}

	accept(t, pins, ModeDR, "eth0", nil, "192.0.2.10", "2001:db8:f::10")
	if w.answersARP(t, "192.0.2.10", "10.0.0.2") {
		t.Error("ARP answered")
	}
	for _, unicast := range []bool{false, true} {
		if w.answersND(t, "2001:db8:f::10", "2001:db8::2", unicast) {
			t.Error("ND answered")
		}
	}
	for _, vip := range ips("192.0.2.10", "2001:db8:f::10") {
		listen(t, vip) // fails if the address is not there, or tentative
	}

	release(t, pins)
	if !w.answersARP(t, "192.0.2.10", "10.0.0.2") {
		t.Error("an address that was there before was taken off, or ARP is still silent")
	}
}

func TestRealserverChangesAndRestores(t *testing.T) {
	pins, _ := realserverHost(t)
	join(t, "eth1")
	sysctl(t, "ipv4/conf/eth0/arp_announce", "1")
	sysctl(t, "ipv4/conf/eth1/arp_ignore", "2") // stricter than ours
	before := settings(t, "eth0", "eth1")

	accept(t, pins, ModeTUN, "eth0", nil, "192.0.2.10")
	eth0 := map[string]string{
		"all arp_ignore": "1", "all arp_announce": "2", "eth0 arp_ignore": "1", "eth0 arp_announce": "2",
		"lo 192.0.2.10/32": "address", "eth0 xdp": "attached",
	}
	checkDifference(t, before, settings(t, "eth0", "eth1"), eth0)

	accept(t, pins, ModeDR, "eth1", nil, "192.0.2.11", "2001:db8:f::11")
	accept(t, pins, ModeDR, "eth0", nil, "2001:db8:f::12")
	both := map[string]string{
		"eth1 arp_announce": "2", "lo 192.0.2.11/32": "address", "lo 2001:db8:f::11/128": "address", "lo 2001:db8:f::12/128": "address",
	}
	for key, value := range eth0 {
		both[key] = value
	}
	checkDifference(t, before, settings(t, "eth0", "eth1"), both)

	release(t, pins, "192.0.2.10") // the only one that needs ARP rules or XDP on eth0
	for key := range eth0 {
		if !strings.HasPrefix(key, "all") {
			delete(both, key)
		}
	}
	checkDifference(t, before, settings(t, "eth0", "eth1"), both)

	sysctl(t, "ipv4/conf/all/arp_ignore", "8") // an administrator's: not ours to restore
	release(t, pins, "192.0.2.11")
	checkDifference(t, before, settings(t, "eth0", "eth1"), map[string]string{
		"all arp_ignore": "8", "lo 2001:db8:f::11/128": "address", "lo 2001:db8:f::12/128": "address",
	})
	release(t, pins)
	checkDifference(t, before, settings(t, "eth0", "eth1"), map[string]string{"all arp_ignore": "8"})
	release(t, pins) // all of none
}

func TestRealserverFrom(t *testing.T) {
	pins, _ := realserverHost(t)
	prefixes := func(list ...string) (from []netip.Prefix) {
		for _, one := range list {
			from = append(from, netip.MustParsePrefix(one))
		}
		return from
	}
	check := func(want ...string) {
		t.Helper()
		if got := fmt.Sprint(accepted(t, pins).From); got != fmt.Sprint(prefixes(want...)) {
			t.Errorf("from %s, want %s", got, want)
		}
	}
	accept(t, pins, ModeTUN, "eth0", nil, "192.0.2.10")
	check()
	accept(t, pins, ModeTUN, "eth0", prefixes("10.0.0.77/24", "2001:db8::/64"), "192.0.2.11")
	check("10.0.0.0/24", "2001:db8::/64")
	accept(t, pins, ModeTUN, "eth0", nil, "192.0.2.12")
	check("10.0.0.0/24", "2001:db8::/64")
	accept(t, pins, ModeTUN, "eth0", prefixes("::/0", "10.0.0.0/24"), "192.0.2.13")
	check("10.0.0.0/24", "::/0")
	_, err := AcceptVIPs(pins, ips("192.0.2.13"), AcceptOptions{Mode: ModeTUN, Interface: "eth0", From: prefixes("0.0.0.0/0")})
	if err == nil {
		t.Error("accepted twice")
	}
	check("10.0.0.0/24", "::/0")
	release(t, pins)
}

func TestRealserverNotices(t *testing.T) {
	pins, lan := realserverHost(t)
	lo, err := netlink.LinkByName("lo")
	must(t, err)
	must(t, netlink.LinkSetDown(lo))
	sysctl(t, "ipv4/conf/eth0/rp_filter", "1")
	notices := accept(t, pins, ModeDR, "eth0", nil, "192.0.2.10")
	if diff := cmp.Diff([]string{"lo was down; it is up now"}, notices); diff != "" {
		t.Error(diff)
	}
	must(t, netlink.RouteDel(&netlink.Route{LinkIndex: lan.near.Attrs().Index, Dst: address(t, "0.0.0.0/0").IPNet}))
	notices = accept(t, pins, ModeDR, "eth0", nil, "192.0.2.11")
	if len(notices) != 1 || !strings.HasPrefix(notices[0], "eth0: rp_filter is strict and no default route leaves by eth0") {
		t.Errorf("notices %q", notices)
	}
	release(t, pins)
}

func TestRealserverRefresh(t *testing.T) {
	pins, lan := realserverHost(t)
	must(t, RefreshRealserver(pins))
	accept(t, pins, ModeTUN, "eth0", nil, "192.0.2.10")
	lan.give(t, []string{"10.0.0.22/24"}, nil)
	must(t, netlink.AddrDel(lan.near, address(t, "2001:db8::2/64")))
	must(t, RefreshRealserver(pins))
	server, err := openRealserver(pins, false)
	must(t, err)
	defer server.close()
	for addr, want := range map[string]error{"10.0.0.2": nil, "10.0.0.22": nil, "2001:db8::2": ebpf.ErrKeyNotExist, "192.0.2.10": ebpf.ErrKeyNotExist, "127.0.0.1": ebpf.ErrKeyNotExist} {
		var value uint32
		if err := server.maps.Hosts.Lookup(mapKey(ip(addr)), &value); (err == nil) != (want == nil) {
			t.Errorf("%s: %v, want %v", addr, err, want)
		}
	}
	release(t, pins)
}
