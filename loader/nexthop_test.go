package loader

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

var compareHops = cmp.Options{cmpopts.EquateComparable(netip.Addr{}), cmpopts.EquateErrors()}

// resolve asks for all addresses and takes what each came to.
func resolve(t *testing.T, addrs ...string) map[netip.Addr]Resolution {
	t.Helper()
	list := make([]netip.Addr, len(addrs))
	for i, addr := range addrs {
		list[i] = ip(addr)
	}
	results, err := ResolveNextHops(t.Context(), list, patience)
	must(t, err)
	return results
}

func TestResolveOnLink(t *testing.T) {
	isolate(t)
	n := join(t, "near")
	n.give(t, []string{"10.0.0.1/24", "2001:db8::1/64"}, []string{"10.0.0.2/24", "2001:db8::2/64"})
	must(t, netlink.LinkSetMTU(n.near, 1480))

	hop4 := NextHop{Interface: n.near.Attrs().Index, MAC: n.farMAC(), MTU: 1480, Source: ip("10.0.0.1"), Resolved: true}
	hop6 := hop4
	hop6.Source = ip("2001:db8::1")
	want := map[netip.Addr]Resolution{
		ip("10.0.0.2"):        {NextHop: hop4},
		ip("::ffff:10.0.0.2"): {NextHop: hop4},
		ip("2001:db8::2"):     {NextHop: hop6},
	}
	got := resolve(t, "10.0.0.2", "::ffff:10.0.0.2", "2001:db8::2", "10.0.0.2")
	if diff := cmp.Diff(want, got, compareHops); diff != "" {
		t.Error(diff)
	}
}

func TestResolveThroughGateway(t *testing.T) {
	isolate(t)
	n := join(t, "near")
	n.give(t, []string{"10.0.0.1/24", "2001:db8::1/64"}, []string{"10.0.0.2/24", "2001:db8::2/64"})
	index := n.near.Attrs().Index
	addRoute(t, "192.0.2.0/24", netlink.Route{Gw: net.ParseIP("10.0.0.2"), MTU: 1400})
	addRoute(t, "2001:db8:1::/64", netlink.Route{Gw: net.ParseIP("2001:db8::2"), MTU: 1300})
	addRoute(t, "198.51.100.0/24", netlink.Route{
		LinkIndex: index,
		Via:       &netlink.Via{AddrFamily: unix.AF_INET6, Addr: net.ParseIP("2001:db8::2")},
	})
	addRoute(t, "203.0.113.0/24", netlink.Route{Gw: net.ParseIP("10.0.0.2"), MTU: 9000})

	hop := NextHop{Interface: index, MAC: n.farMAC(), MTU: 1500, Source: ip("10.0.0.1"), Resolved: true}
	mtu1400, mtu1300, viaIPv6, largeMTU := hop, hop, hop, hop
	mtu1400.Gateway, mtu1400.MTU = ip("10.0.0.2"), 1400
	mtu1300.Gateway, mtu1300.MTU, mtu1300.Source = ip("2001:db8::2"), 1300, ip("2001:db8::1")
	viaIPv6.Gateway = ip("2001:db8::2")
	largeMTU.Gateway = ip("10.0.0.2") // and the device's MTU
	want := map[netip.Addr]Resolution{
		ip("192.0.2.5"):      {NextHop: mtu1400},
		ip("2001:db8:1::5"):  {NextHop: mtu1300},
		ip("198.51.100.5"):   {NextHop: viaIPv6},
		ip("198.51.100.222"): {NextHop: viaIPv6},
		ip("203.0.113.5"):    {NextHop: largeMTU},
	}
	got := resolve(t, "192.0.2.5", "2001:db8:1::5", "198.51.100.5", "198.51.100.222", "203.0.113.5")
	if diff := cmp.Diff(want, got, compareHops); diff != "" {
		t.Error(diff)
	}
}

func TestResolveLocal(t *testing.T) {
	isolate(t)
	n := join(t, "near")
	n.give(t, []string{"10.0.0.1/24", "2001:db8::1/64"}, nil)
	for addr, res := range resolve(t, "10.0.0.1", "2001:db8::1", "127.0.0.1", "127.9.9.9", "::1") {
		if res.Err != nil || !res.Local || !res.Resolved || res.Interface != 0 || res.MAC != [6]byte{} {
			t.Errorf("%s: %+v", addr, res)
		}
	}
}

func TestResolveErrors(t *testing.T) {
	isolate(t)
	n := join(t, "near")
	n.give(t, []string{"10.0.0.1/24", "2001:db8::1/64"}, nil)
	addRoute(t, "10.1.0.0/24", netlink.Route{Type: unix.RTN_UNREACHABLE})
	addRoute(t, "10.2.0.0/24", netlink.Route{Type: unix.RTN_PROHIBIT})
	addRoute(t, "10.3.0.0/24", netlink.Route{Type: unix.RTN_BLACKHOLE})
	addRoute(t, "2001:db8:1::/64", netlink.Route{Type: unix.RTN_UNREACHABLE})
	addRoute(t, "2001:db8:2::/64", netlink.Route{Type: unix.RTN_PROHIBIT})
	addRoute(t, "2001:db8:3::/64", netlink.Route{Type: unix.RTN_BLACKHOLE})
	lo, err := netlink.LinkByName("lo")
	must(t, err)
	addRoute(t, "203.0.113.0/24", netlink.Route{LinkIndex: lo.Attrs().Index})

	cases := []struct {
		addr string
		is   error
		says string
	}{
		{"192.0.2.1", ErrNoRoute, "192.0.2.1: no route to it; add one or use --mode tun via a gateway"},
		{"::ffff:192.0.2.9", ErrNoRoute, "192.0.2.9: no route to it; add one"},
		{"2001:db8:9::1", ErrNoRoute, "2001:db8:9::1: no route to it; add one"},
		{"10.1.0.1", ErrNoRoute, "type unreachable"},
		{"10.2.0.1", ErrNoRoute, "type prohibit"},
		{"10.3.0.1", ErrNoRoute, "type blackhole"},
		{"2001:db8:1::1", ErrNoRoute, "type unreachable"},
		{"2001:db8:2::1", ErrNoRoute, "type prohibit"},
		{"2001:db8:3::1", ErrNoRoute, "type blackhole"},
		{"203.0.113.1", ErrUnusableDevice, "lo"},
		{"fe80::1", ErrNotUnicast, "link-local"},
		{"fe80::1%near", ErrNotUnicast, "link-local"},
		{"0.0.0.0", ErrNotUnicast, "0.0.0.0"},
		{"::", ErrNotUnicast, "::"},
		{"224.0.0.9", ErrNotUnicast, "224.0.0.9"},
		{"ff02::9", ErrNotUnicast, "ff02::9"},
		{"10.0.0.255", ErrNotUnicast, "10.0.0.255"},
		{"255.255.255.255", ErrNotUnicast, "255.255.255.255"},
	}
	var addrs []string
	for _, c := range cases {
		addrs = append(addrs, c.addr)
	}
	got := resolve(t, addrs...)
	for _, c := range cases {
		res := got[ip(c.addr)]
		if !errors.Is(res.Err, c.is) || !strings.Contains(res.Err.Error(), c.says) || res.NextHop != (NextHop{}) {
			t.Errorf("%s: got %+v, want %q saying %q", c.addr, res, c.is, c.says)
		}
		if res.Err != nil && strings.Contains(res.Err.Error(), "\n") {
			t.Errorf("%s: more than one line: %q", c.addr, res.Err)
		}
	}
}

// A server that answers nothing is unresolved: the kernel's verdict ends the
// wait, which otherwise would last as long as the test may.
func TestResolveDeadNeighbour(t *testing.T) {
	isolate(t)
	n := join(t, "near")
	n.give(t, []string{"10.0.0.1/24", "2001:db8::1/64"}, []string{"10.0.0.2/24", "2001:db8::2/64"})
	// The living ones first, with the kernel's own patience: a new device's first frames may be lost.
	resolve(t, "10.0.0.2", "2001:db8::2")
	for _, family := range []string{"ipv4", "ipv6"} {
		sysctl(t, family+"/neigh/near/mcast_solicit", "2")
		sysctl(t, family+"/neigh/near/retrans_time_ms", "200")
	}
	addrs := []netip.Addr{ip("10.0.0.99"), ip("2001:db8::99"), ip("10.0.0.2"), ip("2001:db8::2")}
	for range 2 { // the second time the table has the failed entries
		got, err := ResolveNextHops(t.Context(), addrs, 1<<62)
		must(t, err)
		for i, addr := range addrs {
			res := got[addr]
			if res.Err != nil || res.Resolved != (i >= 2) || res.Interface != n.near.Attrs().Index || (res.MAC == [6]byte{}) == res.Resolved {
				t.Errorf("%s: %+v", addr, res)
			}
		}
	}
}

// Without patience nothing is awaited, but the question was asked: the answer
// reaches the kernel's table, which its event proves, and the next call finds it there.
func TestResolveWithoutWaiting(t *testing.T) {
	isolate(t)
	n := join(t, "near")
	n.give(t, []string{"10.0.0.1/24"}, []string{"10.0.0.2/24"})
	must(t, n.handle.LinkSetDown(n.far))
	addr := ip("10.0.0.2")
	got, err := ResolveNextHops(t.Context(), []netip.Addr{addr}, 0)
	must(t, err)
	if res := got[addr]; res.Resolved || res.Err != nil {
		t.Fatalf("nobody can have answered: %+v", res)
	}

	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	got, err = ResolveNextHops(ctx, []netip.Addr{addr, ip("10.0.0.1")}, patience)
	if !errors.Is(err, context.Canceled) || got[addr].Resolved || !got[ip("10.0.0.1")].Local {
		t.Fatalf("cancelled: %v, %+v", err, got)
	}

	must(t, n.handle.LinkSetUp(n.far))
	if res := resolve(t, "10.0.0.2")[addr]; !res.Resolved || res.MAC != n.farMAC() {
		t.Fatalf("the peer is up: %+v", res)
	}
	got, err = ResolveNextHops(t.Context(), []netip.Addr{addr}, 0)
	must(t, err)
	if res := got[addr]; !res.Resolved || res.MAC != n.farMAC() {
		t.Fatalf("known now: %+v", res)
	}
}

// Every state in which the kernel would send to the MAC counts; nobody answers here.
func TestResolveNeighbourStates(t *testing.T) {
	isolate(t)
	n := join(t, "near")
	n.give(t, []string{"10.0.0.1/24", "2001:db8::1/64"}, nil)
	mac := net.HardwareAddr{2, 0, 0, 0, 0, 7}
	states := map[string]int{
		"10.0.0.21":    netlink.NUD_PERMANENT,
		"10.0.0.22":    netlink.NUD_STALE,
		"10.0.0.23":    netlink.NUD_REACHABLE,
		"10.0.0.24":    netlink.NUD_NOARP,
		"10.0.0.25":    netlink.NUD_DELAY,
		"10.0.0.26":    netlink.NUD_PROBE,
		"2001:db8::21": netlink.NUD_PERMANENT,
		"2001:db8::22": netlink.NUD_STALE,
		"2001:db8::24": netlink.NUD_NOARP,
	}
	var addrs []netip.Addr
	for addr, state := range states {
		addrs = append(addrs, ip(addr))
		must(t, netlink.NeighSet(&netlink.Neigh{
			LinkIndex: n.near.Attrs().Index, IP: net.ParseIP(addr), HardwareAddr: mac, State: state,
		}))
	}
	got, err := ResolveNextHops(t.Context(), addrs, 0)
	must(t, err)
	for _, addr := range addrs {
		if res := got[addr]; !res.Resolved || res.MAC != [6]byte(mac) || res.Err != nil {
			t.Errorf("%s, state %#x: %+v", addr, states[addr.String()], res)
		}
	}

	// A stale MAC is used, and checked by the kernel meanwhile.
	entries, err := netlink.NeighList(n.near.Attrs().Index, unix.AF_INET)
	must(t, err)
	for _, entry := range entries {
		if entry.IP.String() == "10.0.0.22" && entry.State == netlink.NUD_STALE {
			t.Error("10.0.0.22: the kernel was not asked to check the stale MAC")
		}
	}
}

// A device that needs no ARP makes its entries without any event to wait for.
func TestResolveOnDeviceWithoutARP(t *testing.T) {
	isolate(t)
	n := join(t, "near")
	n.give(t, []string{"10.0.0.1/24"}, nil)
	must(t, netlink.LinkSetARPOff(n.near))
	got, err := ResolveNextHops(t.Context(), []netip.Addr{ip("10.0.0.2")}, 1<<62)
	must(t, err)
	if res := got[ip("10.0.0.2")]; !res.Resolved || res.Err != nil {
		t.Errorf("%+v", res)
	}
}

func TestResolveMany(t *testing.T) {
	isolate(t)
	n := join(t, "near")
	n.give(t, []string{"10.0.0.1/16"}, nil)
	// The peer answers for a whole prefix.
	lo, err := n.handle.LinkByName("lo")
	must(t, err)
	must(t, n.handle.LinkSetUp(lo))
	must(t, n.handle.AddrAdd(lo, address(t, "10.0.16.1/20")))
	must(t, n.handle.AddrAdd(n.far, address(t, "10.0.0.2/16")))

	// Fewer than gc_thresh3, 1024, which all namespaces share.
	var addrs []netip.Addr
	for i := range 400 {
		addrs = append(addrs, netip.AddrFrom4([4]byte{10, 0, 16 + byte(i>>8), byte(i)}).Next())
	}
	got, err := ResolveNextHops(t.Context(), addrs, patience)
	must(t, err)
	for _, addr := range addrs {
		if res := got[addr]; !res.Resolved || res.MAC != n.farMAC() || res.Err != nil {
			t.Errorf("%s: %+v", addr, res)
		}
	}
}
