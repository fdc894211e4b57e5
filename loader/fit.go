package loader

import (
	"fmt"
	"net/netip"

	"github.com/xdplb/xdplb/bpf"
	"github.com/xdplb/xdplb/maps"
)

// checkMode says what a mode cannot serve.
func (c *change) checkMode(at netip.AddrPort, mode Mode) error {
	family, port := at.Addr().Is4() == c.service.Addr.Is4(), at.Port() == c.service.Port
	switch {
	case !port && !family: // tun alone joins the families, and keeps the port
		return fmt.Errorf("%s: no mode changes both port and family; leave the port out and use --mode tun", at)
	case !port && !mode.translates():
		return fmt.Errorf("%s: mode %s keeps the port, and the VIP's is %d; use --mode nat, or leave the port out", at, mode, c.service.Port)
	case !family && mode == ModeDR:
		return fmt.Errorf("%s: mode dr keeps the IP packet, and the VIP is of the other family; use --mode tun", at.Addr())
	case !family && mode.translates():
		return fmt.Errorf("%s: mode %s does not translate between IPv4 and IPv6, and the VIP is of the other family; use --mode tun", at.Addr(), mode)
	}
	return nil
}

// meets reports whether packets to a backend are packets to a VIP.
func meets(at netip.AddrPort, v maps.VIP, proto uint8) bool {
	return at.Addr() == v.Addr && proto == v.Proto && (at.Port() == v.Port || at.Port() == 0 || v.Port == 0)
}

// checkBackend refuses a backend that is a VIP of this balancer.
func (c *change) checkBackend(at netip.AddrPort) error {
	if _, marked := c.b.Maps.AddressMark(at.Addr()); !marked {
		return nil
	}
	services, err := c.b.Maps.Services()
	for _, s := range services {
		if meets(at, s.VIP, c.service.Proto) {
			return fmt.Errorf("%s: a VIP of this balancer, so packets would go in circles; name its servers instead: xdplb backend list %s", at, s.VIP)
		}
	}
	return err
}

// checkLoop refuses a VIP that is a backend of another.
func (b *Balancer) checkLoop(v maps.VIP, services []maps.Service) error {
	for _, record := range b.Maps.BackendsAt(v.Addr) {
		for _, s := range services {
			if s.Id == record.Vip && record.Listed() && meets(record.AddrPort(), v, s.Proto) {
				return fmt.Errorf("%s: a backend of %s, so packets would go in circles; delete it there first: xdplb backend del %s %s", v, s.VIP, s.VIP, record.AddrPort())
			}
		}
	}
	return nil
}

// hop is a next hop as the maps hold it, for a mode.
func (c *change) hop(addr netip.Addr, mode Mode, res Resolution) (record bpf.XdplbBackend, err error) {
	if res.Err != nil {
		return record, res.Err
	}
	if res.Local {
		if mode.translates() {
			return record, fmt.Errorf("%s: an address of this host; mode %s cannot reach it, use --mode dr and the VIP's port", addr, mode)
		}
		if mode != ModeDR {
			return record, fmt.Errorf("%s: an address of this host; mode %s cannot reach it, use --mode dr", addr, mode)
		}
		record.Link.Flags = uint32(bpf.XdplbHopFlagHopResolved | bpf.XdplbHopFlagHopLocal)
		return record, nil
	}
	if mode == ModeDR && res.Gateway.IsValid() {
		return record, fmt.Errorf("%s: behind the gateway %s, and mode dr needs it on the same segment; use --mode tun", addr, res.Gateway)
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
