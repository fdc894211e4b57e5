package loader

import (
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink"

	"github.com/xdplb/xdplb/maps"
)

// Arrival is the attached interface that packets from an address come in by: the
// one named dev, or if that is empty the one that the route to the address leaves
// by, or if that is not attached the first.
func (b *Balancer) Arrival(from netip.Addr, dev string) (number uint32, name string, err error) {
	if err := b.checkNamespace(); err != nil {
		return 0, "", err
	}
	attached := b.Maps.ReadInterfaces()
	if len(attached) == 0 {
		return 0, "", fmt.Errorf("%s: no interface is attached; begin with: xdplb attach IFACE", b.dir)
	}
	if dev != "" {
		for _, r := range attached {
			if interfaceName(r.Ifindex) == dev {
				return r.Number, dev, nil
			}
		}
		return 0, "", fmt.Errorf("--dev %s: not attached, so none of its packets is seen; xdplb attach %s", dev, dev)
	}
	best := attached[0]
	routes, err := netlink.RouteGet(from.AsSlice())
	for i := 0; err == nil && i < len(routes); i++ {
		for _, r := range attached {
			if int(r.Ifindex) == routes[i].LinkIndex {
				best = r
			}
		}
	}
	return best.Number, interfaceName(best.Ifindex), nil
}

// Reply is the packet that a backend would send in the flow of a client. An empty
// why says that there is one; else it says why none comes here.
func (b *Balancer) Reply(flow maps.Tuple) (p Packet, why string, err error) {
	now, err := b.Now()
	if err != nil {
		return p, "", err
	}
	r := &reader{Maps: b.Maps, settings: &b.Settings, now: now}
	var server *maps.Backend
	if e := r.pin(flow); e != nil && !e.toClient() {
		server = r.backend(e.Backend)
		if e.Id != 0 && server != nil {
			p.Number = uint32(server.Link.Interface)
			p.Tuple = maps.Tuple{
				Src: server.Addr(), SrcPort: portOf(server, flow.DstPort),
				Dst: maps.Addr(e.Far), DstPort: e.FarPort, Proto: flow.Proto,
			}
			return p, "", r.err
		}
	}
	if r.err != nil {
		return p, "", r.err
	}
	found := false // by the other entry, which may be all that is left
	if err := b.Maps.Replies(func(f maps.Flow) {
		if f.FromClient() != flow || found && !b.Settings.Live(f, now) {
			return
		}
		found, p.Tuple = true, f.Tuple
		if one := r.backend(f.Backend); one != nil {
			p.Number = uint32(one.Link.Interface)
		}
	}); err != nil || found {
		return p, "", err
	}
	if server == nil {
		x, err := explainAt(b.Maps, &b.Settings, now, Packet{Tuple: flow})
		if err != nil {
			return p, "", err
		}
		server = x.Backend
	}
	switch {
	case server == nil:
		return p, "no flow, and no backend that could have one: what any server sends passes to the kernel", nil
	case translates(server):
		return p, fmt.Sprintf("no flow is known: what %s sends to this client passes to the kernel", server.AddrPort()), nil
	}
	return p, fmt.Sprintf("with %s the backend %s answers the client itself: no reply comes here", Mode(server.Mode), server.AddrPort()), nil
}
