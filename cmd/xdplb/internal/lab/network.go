package lab

import (
	"fmt"
	"net/netip"
)

// Shape is how a Network is wired.
type Shape int

const (
	// Flat: client, balancer and servers share one switch, the balancer with one interface.
	Flat Shape = iota
	// Routed: as Flat, with the client behind a router.
	Routed
	// TwoArmed: the balancer has eth0 on the client's switch and eth1 on the servers'; replies of DR and TUN
	// servers go through a router that joins both switches.
	TwoArmed
)

// Plan says what BuildNetwork builds.
type Plan struct {
	Shape   Shape
	Servers int // 3 if zero, 64 at most
	// RouteVIPs sends the VIPs to the balancer by host routes. Without it the balancer must have the addresses
	// (`vip add --assign eth0`) or answer for them.
	RouteVIPs bool
}

// Network is a client, a balancer and servers. Every node's first device is eth0.
//
//	front  192.0.2.0/24     2001:db8:1::/64   the balancer's eth0, the VIPs
//	back   198.51.100.0/24  2001:db8:2::/64   the servers in TwoArmed; else they are in front
//	far    203.0.113.0/24   2001:db8:3::/64   the client in Routed; else it is in front
type Network struct {
	*Lab
	Client, Balancer *Node
	Router           *Node // nil in Flat
	Servers          []*Node
	Switches         []*Switch // front, then back in TwoArmed

	VIP4, VIP6           netip.Addr
	Client4, Client6     netip.Addr
	Balancer4, Balancer6 netip.Addr
	// The address of each server, in the order of Servers.
	Servers4, Servers6 []netip.Addr
}

// Host numbers, the last part of an address of either family.
const (
	hostRouter   = 1
	hostBalancer = 2
	hostVIP      = 10
	hostServer   = 11
	hostClient   = 100
)

// subnet is an IPv4 and an IPv6 network of the same purpose.
type subnet struct{ v4, v6 netip.Prefix }

var (
	front = subnet{netip.MustParsePrefix("192.0.2.0/24"), netip.MustParsePrefix("2001:db8:1::/64")}
	back  = subnet{netip.MustParsePrefix("198.51.100.0/24"), netip.MustParsePrefix("2001:db8:2::/64")}
	far   = subnet{netip.MustParsePrefix("203.0.113.0/24"), netip.MustParsePrefix("2001:db8:3::/64")}
)

// host returns the addresses of a host number, written alike in both families: .11 and ::11.
func (s subnet) host(number int) (v4, v6 netip.Addr) {
	a4 := s.v4.Addr().As4()
	a4[3] = byte(number)
	a6 := s.v6.Addr().As16()
	a6[14] = byte(number / 100)
	a6[15] = byte(number/10%10<<4 | number%10)
	return netip.AddrFrom4(a4), netip.AddrFrom16(a6)
}

// BuildNetwork makes a lab and wires a network in it. The lab is closed again on failure.
func BuildNetwork(plan Plan) (*Network, error) {
	if plan.Servers == 0 {
		plan.Servers = 3
	}
	if plan.Servers < 0 || plan.Servers > 64 {
		return nil, fmt.Errorf("lab: %d servers; from 1 to 64 are possible", plan.Servers)
	}
	l, err := New()
	if err != nil {
		return nil, err
	}
	n := &Network{Lab: l}
	if err := n.build(plan); err != nil {
		_ = l.Close()
		return nil, err
	}
	return n, nil
}

func (n *Network) build(plan Plan) error {
	b := &builder{lab: n.Lab}
	clients, servers := front, front
	frontSwitch := b.newSwitch("front")
	backSwitch := frontSwitch
	n.Switches = []*Switch{frontSwitch}
	n.Balancer = b.node("balancer")
	b.plug(frontSwitch, n.Balancer, "eth0", front, hostBalancer)
	n.Client = b.node("client")

	switch plan.Shape {
	case Flat:
		b.plug(frontSwitch, n.Client, "eth0", clients, hostClient)
	case Routed:
		clients = far
		n.Router = b.router(frontSwitch)
		b.do(func() error {
			return b.lab.Cable(End{Node: n.Router, Dev: "eth1"}, End{Node: n.Client, Dev: "eth0"})
		})
		b.address(n.Router, "eth1", far, hostRouter)
		b.address(n.Client, "eth0", far, hostClient)
		b.via(n.Client, far)
		b.via(n.Balancer, front)
	case TwoArmed:
		servers = back
		backSwitch = b.newSwitch("back")
		n.Switches = append(n.Switches, backSwitch)
		n.Router = b.router(frontSwitch)
		b.plug(backSwitch, n.Router, "eth1", back, hostRouter)
		b.plug(backSwitch, n.Balancer, "eth1", back, hostBalancer)
		b.plug(frontSwitch, n.Client, "eth0", clients, hostClient)
		b.via(n.Client, front)
	default:
		return fmt.Errorf("lab: unknown shape %d", plan.Shape)
	}
	for i := range plan.Servers {
		server := b.node(fmt.Sprintf("server%d", i+1))
		b.plug(backSwitch, server, "eth0", servers, hostServer+i)
		if plan.Shape != Flat {
			b.via(server, servers)
		}
		v4, v6 := servers.host(hostServer + i)
		n.Servers = append(n.Servers, server)
		n.Servers4 = append(n.Servers4, v4)
		n.Servers6 = append(n.Servers6, v6)
	}
	n.VIP4, n.VIP6 = front.host(hostVIP)
	n.Client4, n.Client6 = clients.host(hostClient)
	n.Balancer4, n.Balancer6 = front.host(hostBalancer)
	if plan.RouteVIPs {
		asker := n.Client
		if plan.Shape == Routed {
			asker = n.Router
		}
		b.route(asker, n.VIP4.String()+"/32", n.Balancer4)
		b.route(asker, n.VIP6.String()+"/128", n.Balancer6)
	}
	return b.err
}

// builder keeps the first error; after one, its methods do nothing.
type builder struct {
	lab *Lab
	err error
}

func (b *builder) do(f func() error) {
	if b.err == nil {
		b.err = f()
	}
}

func (b *builder) node(name string) (n *Node) {
	b.do(func() (err error) { n, err = b.lab.Node(name); return err })
	return n
}

func (b *builder) newSwitch(name string) (s *Switch) {
	b.do(func() (err error) { s, err = b.lab.Switch(name); return err })
	return s
}

// router makes a node that forwards, with eth0 on the front switch.
func (b *builder) router(s *Switch) *Node {
	n := b.node("router")
	for _, key := range []string{"net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding"} {
		b.do(func() error { return n.Sysctl(key, "1") })
	}
	b.plug(s, n, "eth0", front, hostRouter)
	return n
}

func (b *builder) plug(s *Switch, n *Node, dev string, net subnet, host int) {
	b.do(func() error { return s.Plug(n, dev) })
	b.address(n, dev, net, host)
}

func (b *builder) address(n *Node, dev string, net subnet, host int) {
	v4, v6 := net.host(host)
	b.do(func() error {
		return n.Addr(dev, netip.PrefixFrom(v4, net.v4.Bits()).String(), netip.PrefixFrom(v6, net.v6.Bits()).String())
	})
}

// via sends what a node knows no route for to the router of its subnet.
func (b *builder) via(n *Node, net subnet) {
	v4, v6 := net.host(hostRouter)
	b.route(n, "default4", v4)
	b.route(n, "default6", v6)
}

func (b *builder) route(n *Node, prefix string, gateway netip.Addr) {
	b.do(func() error { return n.Route(prefix, gateway.String()) })
}
