package main

import (
	"fmt"
	"net"
	"net/netip"

	"github.com/cilium/ebpf"
	"github.com/vishvananda/netlink"

	"github.com/xdplb/xdplb/cmd/xdplb/internal/lab"
	"github.com/xdplb/xdplb/loader"
	"github.com/xdplb/xdplb/maps"
)

// Addresses of the bench: RFC 2544's network for the wire, documentation prefixes for IPv6.
var (
	server4 = netip.MustParsePrefix("198.18.0.0/16")
	server6 = netip.MustParsePrefix("2001:db8:2::/64")
	vip4    = netip.MustParseAddr("198.19.0.0")
	vip6    = netip.MustParseAddr("2001:db8:1::")
	client4 = netip.MustParseAddr("10.0.0.0")
	client6 = netip.MustParseAddr("2001:db8:3::")
)

// world is a balancer as users make it: attached to a device, with VIPs and backends whose neighbours are known.
type world struct {
	*lab.Lab
	node    *lab.Node
	program *ebpf.Program
	mac     net.HardwareAddr
}

const defaultFlows = 2 << 20

// newWorld makes a balancer with as many backends reachable as it is to have, and room for so many flows.
func newWorld(backends int, flows uint32) (w *world, err error) {
	l, err := lab.New()
	if err != nil {
		return nil, err
	}
	w = &world{Lab: l}
	defer func() {
		if err != nil {
			l.Close()
		}
	}()
	if w.node, err = l.Node("balancer"); err != nil {
		return nil, err
	}
	far, err := l.Node("far")
	if err != nil {
		return nil, err
	}
	if err := l.Cable(lab.End{Node: w.node, Dev: "eth0"}, lab.End{Node: far, Dev: "eth0", Pass: true}); err != nil {
		return nil, err
	}
	if err := w.node.Addr("eth0", "198.18.255.254/16", "2001:db8:2::ffff/64"); err != nil {
		return nil, err
	}
	if w.mac, err = w.node.MAC("eth0"); err != nil {
		return nil, err
	}
	return w, w.node.Do(func() error { return w.attach(backends, flows) })
}

func (w *world) attach(backends int, flows uint32) error {
	eth0, err := netlink.LinkByName("eth0")
	if err != nil {
		return err
	}
	mac := net.HardwareAddr{2, 0, 0, 0, 0, 1}
	for i := range backends {
		for _, p := range []netip.Prefix{server4, server6} {
			err := netlink.NeighSet(&netlink.Neigh{
				LinkIndex: eth0.Attrs().Index, State: netlink.NUD_PERMANENT,
				IP: server(p, i).AsSlice(), HardwareAddr: mac,
			})
			if err != nil {
				return fmt.Errorf("neighbour %d: %w", i, err)
			}
		}
	}
	if _, err := loader.Attach(loader.DefaultPins, []string{"eth0"}, loader.AttachOptions{MaxFlows: flows, MaxBackends: 65536}); err != nil {
		return err
	}
	if eth0, err = netlink.LinkByName("eth0"); err != nil {
		return err
	}
	w.program, err = ebpf.NewProgramFromID(ebpf.ProgramID(eth0.Attrs().Xdp.ProgId))
	return err
}

// server is the address of the i-th backend.
func server(p netip.Prefix, i int) netip.Addr { return plus(p.Addr(), i+1) }

func plus(a netip.Addr, n int) netip.Addr {
	b := a.AsSlice()
	for i := len(b) - 1; n > 0; i-- {
		n += int(b[i])
		b[i], n = byte(n), n>>8
	}
	sum, _ := netip.AddrFromSlice(b)
	return sum
}

// change runs a change on the balancer.
func (w *world) change(f func(*loader.Balancer) error) error {
	return w.node.Do(func() error {
		b, err := loader.OpenLocked(loader.DefaultPins)
		if err != nil {
			return err
		}
		defer b.Close()
		return f(b)
	})
}

// addVIPs adds VIPs with backends each, the addresses of all following each other.
func (w *world) addVIPs(first netip.Addr, n, backends int, proto uint8, mode loader.Mode, o loader.VIPOptions) error {
	servers := server4
	if first.Is6() {
		servers = server6
	}
	return w.change(func(b *loader.Balancer) error {
		o.Mode = &mode
		for i := range n {
			v := maps.VIP{Addr: plus(first, i), Port: vipPort, Proto: proto}
			if err := b.AddVIP(v, o); err != nil {
				return err
			}
			at := make([]netip.AddrPort, backends)
			for j := range at {
				at[j] = netip.AddrPortFrom(server(servers, j), vipPort)
			}
			if _, err := b.AddBackends(v, at, loader.BackendOptions{}); err != nil {
				return err
			}
		}
		return nil
	})
}

// packets reads what became of the packets so far.
func (w *world) packets() (p maps.Packets, err error) {
	err = w.node.Do(func() error {
		m, err := maps.Open(loader.DefaultPins)
		if err != nil {
			return err
		}
		defer m.Close()
		p, err = m.ReadPackets()
		return err
	})
	return p, err
}
