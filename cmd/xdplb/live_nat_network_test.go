package main

import (
	"errors"
	"net"
	"net/netip"
	"syscall"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/xdplb/xdplb/cmd/xdplb/internal/lab"
)

// natServerPort is where servers listen behind a VIP's livePort.
const natServerPort = 8080

// natCase is a mode and a family: VIP, servers and SNAT addresses are of one.
type natCase struct {
	name, mode string
	v6         bool
}

var (
	natCase4     = natCase{"NAT", "nat", false}
	fullnatCase6 = natCase{"FULLNAT", "fullnat", true}
	bothCases    = []natCase{natCase4, fullnatCase6}
)

// natNet is a liveNet whose servers answer the client by way of the balancer.
type natNet struct {
	*liveNet
	natCase
	vip     netip.AddrPort
	name    string // of the VIP in commands
	servers []netip.Addr
	port    uint16 // where they listen
	snat    []netip.Addr
}

// buildNAT makes the network, with as many SNAT addresses; its balancer is attached. What servers send from their own
// address to a client goes to the balancer, which does not forward; what they send from a VIP goes the direct way.
func buildNAT(t testing.TB, c natCase, servers, snat int, attachFlags ...string) *natNet {
	t.Helper()
	n := &natNet{natCase: c, port: natServerPort}
	n.liveNet = wireLive(t, lab.Flat, servers)
	n.snat, n.servers, n.vip = natAddresses(c.v6, snat), n.Servers4, netip.AddrPortFrom(n.VIP4, livePort)
	if c.v6 {
		n.servers, n.vip = n.Servers6, netip.AddrPortFrom(n.VIP6, livePort)
	}
	n.name = n.vip.String()
	for _, key := range []string{"net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding"} {
		n.check(n.Balancer.Sysctl(key, "0"))
	}
	for i, server := range n.Servers {
		n.check(server.Do(func() error {
			return repliesVia(n.Servers4[i], n.Balancer4, "192.0.2.100/32", "192.0.2.128/25")
		}))
		n.check(server.Do(func() error {
			return repliesVia(n.Servers6[i], n.Balancer6, "2001:db8:1::100/128", "2001:db8:1::8000/113")
		}))
	}
	flags := append([]string{"attach", "eth0"}, attachFlags...)
	for _, addr := range n.snat {
		n.check(n.Balancer.Addr("eth0", netip.PrefixFrom(addr, map[bool]int{false: 24, true: 64}[c.v6]).String()))
		flags = append(flags, "--snat", addr.String())
	}
	n.must(flags...)
	return n
}

// natAddresses are free addresses on the balancer's segment.
func natAddresses(v6 bool, count int) (all []netip.Addr) {
	for i := range count {
		addr := netip.AddrFrom4([4]byte{192, 0, 2, byte(40 + i)})
		if v6 {
			addr = netip.AddrFrom16([16]byte{0: 0x20, 1: 0x01, 2: 0x0d, 3: 0xb8, 5: 1, 15: byte(0x40 + i)})
		}
		all = append(all, addr)
	}
	return all
}

// repliesVia has a server send what it answers from an address to clients via a gateway.
func repliesVia(from, gateway netip.Addr, clients ...string) error {
	const table = 100
	rule := netlink.NewRule()
	rule.Src = &net.IPNet{IP: from.AsSlice(), Mask: net.CIDRMask(from.BitLen(), from.BitLen())}
	rule.Table, rule.Family = table, netlink.FAMILY_V4
	if from.Is6() {
		rule.Family = netlink.FAMILY_V6
	}
	if err := netlink.RuleAdd(rule); err != nil {
		return err
	}
	for _, prefix := range clients {
		_, dst, err := net.ParseCIDR(prefix)
		if err != nil {
			return err
		}
		link, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		if err := netlink.RouteAdd(&netlink.Route{LinkIndex: link.Attrs().Index, Dst: dst, Gw: gateway.AsSlice(), Table: table}); err != nil {
			return err
		}
	}
	return nil
}

// at is how commands name a server's port.
func (n *natNet) at(server int) string {
	return netip.AddrPortFrom(n.servers[server], n.port).String()
}

// addVIP adds the VIP with all servers.
func (n *natNet) addVIP(flags ...string) {
	n.t.Helper()
	n.must(append([]string{"vip", "add", n.name, "--mode", n.mode}, flags...)...)
	add := []string{"backend", "add", n.name}
	for i := range n.Servers {
		add = append(add, n.at(i))
	}
	n.must(add...)
}

// demandNone: nothing was counted under these reasons.
func (n *natNet) demandNone(reasons ...string) {
	n.t.Helper()
	counted := n.stats().Reasons
	for _, name := range reasons {
		if count, known := counted[name]; count != 0 || !known {
			n.t.Errorf("%s: %d packets, want none; all reasons: %v", name, count, counted)
		}
	}
}

// eachCase runs a test in both modes, each in its own family.
func eachCase(t *testing.T, test func(*testing.T, natCase)) {
	for _, c := range bothCases {
		t.Run(c.name, func(t *testing.T) { test(t, c) })
	}
}

// reuseAddr lets a socket take a port that another one has, too.
func reuseAddr(_, _ string, c syscall.RawConn) (err error) {
	return errors.Join(c.Control(func(fd uintptr) {
		err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)
	}), err)
}
