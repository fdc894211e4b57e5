package loader

import (
	"fmt"
	"net/netip"
	"strings"

	"github.com/xdplb/xdplb/bpf"
	"github.com/xdplb/xdplb/maps"
)

// reach is the next hop of a backend that the mode can serve, as the maps hold it.
func (c *change) reach(at netip.AddrPort, mode Mode, res Resolution) (record bpf.XdplbBackend, err error) {
	if res.Local { // which leaves one mode, whatever else is wrong
		return c.local(at, mode)
	}
	if m := c.misfitOf(at, mode); m != nil {
		return record, m
	}
	return c.hop(at, mode, res)
}

// local is the next hop of a backend that is an address of this host.
func (c *change) local(at netip.AddrPort, mode Mode) (record bpf.XdplbBackend, err error) {
	v := c.service.VIP
	switch {
	case v.Addr.IsValid() && at.Addr().Is4() != v.Addr.Is4():
		return record, fmt.Errorf("%s: an address of this host, and the VIP is of the other family; give one of the VIP's family", at)
	case v.Addr.IsValid() && at.Port() != v.Port:
		m := c.misfit(at, ModeDR, "use --mode dr and the VIP's port", "%s: an address of this host, where another port than the VIP's cannot be reached", at)
		m.NoPort = true
		return record, m
	case mode != ModeDR:
		return record, c.misfit(at, ModeDR, "use --mode dr", "%s: an address of this host; mode %s cannot reach it", at.Addr(), mode)
	}
	record.Link.Flags = uint32(bpf.XdplbHopFlagHopResolved | bpf.XdplbHopFlagHopLocal)
	return record, nil
}

// misfitOf is nil if the mode can serve the backend.
func (c *change) misfitOf(at netip.AddrPort, mode Mode) *Misuse {
	family, port := at.Addr().Is4() == c.service.Addr.Is4(), at.Port() == c.service.Port
	switch {
	case !port && !family: // tun alone joins the families, and keeps the port
		m := c.misfit(at, ModeTUN, "leave the port out and use --mode tun", "%s: no mode changes both port and family", at)
		m.NoPort = true
		return m
	case !port && !mode.translates():
		return c.misfit(at, ModeFullNAT, "use --mode nat or fullnat, or leave the port out", "%s: mode %s keeps the port, and the VIP's is %d", at, mode, c.service.Port)
	case !family && mode == ModeDR:
		return c.misfit(at, ModeTUN, "use --mode tun", "%s: mode dr keeps the IP packet, and the VIP is of the other family", at.Addr())
	case !family && mode.translates():
		return c.misfit(at, ModeTUN, "use --mode tun", "%s: mode %s does not translate between IPv4 and IPv6, and the VIP is of the other family", at.Addr(), mode)
	}
	return nil
}

// Meets reports whether packets to a backend are packets to a VIP.
func Meets(at netip.AddrPort, v maps.VIP, proto uint8) bool {
	return at.Addr() == v.Addr && proto == v.Proto && (at.Port() == v.Port || at.Port() == 0 || v.Port == 0)
}

// checkBackend refuses a backend that is a VIP of this balancer.
func (c *change) checkBackend(at netip.AddrPort) error {
	if _, marked := c.b.Maps.AddressMark(at.Addr()); !marked {
		return nil
	}
	services, err := c.b.Maps.Services()
	for _, s := range services {
		if Meets(at, s.VIP, c.service.Proto) {
			return c.loop(at, s.VIP, c.b.serversOf(s.Id), func(a netip.AddrPort) bool { return c.find(a) != nil })
		}
	}
	return err
}

// checkLoop refuses a VIP that is a backend of another.
func (b *Balancer) checkLoop(v maps.VIP, services []maps.Service) error {
	var of maps.VIP
	var commands []string
	for _, record := range b.Maps.BackendsAt(v.Addr) {
		for _, s := range services {
			if s.Id == record.Vip && record.Listed() && Meets(record.AddrPort(), v, s.Proto) {
				of = s.VIP
				commands = append(commands, fmt.Sprintf("xdplb backend del %s %s", s.VIP, record.AddrPort()))
			}
		}
	}
	if len(commands) == 0 {
		return nil
	}
	return &Misuse{
		Problem: fmt.Sprintf("%s: a backend of %s, so packets would go in circles", v, of), Advice: "delete it there first",
		Command: strings.Join(commands, " && "), VIP: v, Delete: true,
	}
}

// hop is a next hop as the maps hold it, for a mode.
func (c *change) hop(at netip.AddrPort, mode Mode, res Resolution) (record bpf.XdplbBackend, err error) {
	addr := at.Addr()
	if res.Err != nil {
		return record, res.Err
	}
	if res.Local {
		return c.local(at, mode)
	}
	if mode == ModeDR && res.Gateway.IsValid() {
		return record, c.misfit(at, ModeTUN, "use --mode tun", "%s: behind the gateway %s, and mode dr needs it on the same segment", addr, res.Gateway)
	}
	if mode == ModeTUN && !res.Source.IsValid() {
		return record, fmt.Errorf("%s: this host has no address to send tunnels from toward it; add one to %s", addr, interfaceName(uint32(res.Interface)))
	}
	number, attached := c.b.interfaceNumber(uint32(res.Interface))
	if !attached {
		name := interfaceName(uint32(res.Interface))
		return record, fmt.Errorf("%s: reached by %s, which is not attached; run: xdplb attach %s", addr, name, name)
	}
	record.Source = maps.Address(res.Source)
	record.Link.Interface, record.Link.Mtu = uint16(number), uint16(min(res.MTU, 65535))
	if res.Resolved {
		record.Mac.Mac, record.Mac.Vlan = res.MAC, res.VLAN
		if res.VLAN == 0 { // clients' frames may come with a tag, which nobody knows there
			record.Mac.Vlan = uint16(bpf.XdplbHopVlanHopUntagged)
		}
		record.Link.Flags = uint32(bpf.XdplbHopFlagHopResolved)
	}
	return record, nil
}

func (b *Balancer) interfaceNumber(ifindex uint32) (number uint32, attached bool) {
	if number, soon := b.attaching[ifindex]; soon {
		return number, true
	}
	r, exists, err := b.record(ifindex)
	return r.Number, exists && err == nil
}
