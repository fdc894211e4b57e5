package loader

import (
	"net/netip"

	"github.com/vishvananda/netlink"

	"github.com/xdplb/xdplb/bpf"
	"github.com/xdplb/xdplb/maps"
)

// Refreshed is what Refresh found.
type Refreshed struct {
	Backends, Found, Lost int // looked at; resolved now, and not before; the reverse
	Settled               int // VIPs that settled
}

// Servers are the addresses of all backends. The local stack's is none: a VIP need not be an
// address of this host, and then nobody answers for it.
func (b *Balancer) Servers() (addrs []netip.Addr, err error) {
	services, err := b.Maps.Services()
	byID := make(map[uint32]maps.VIP, len(services))
	for _, s := range services {
		byID[s.Id] = s.VIP
	}
	for _, backend := range b.Maps.ReadBackends(func(uint32) bool { return true }) {
		if v, known := byID[backend.Vip]; !known || !IsLocalStack(v, &backend) {
			addrs = append(addrs, backend.Addr())
		}
	}
	return addrs, err
}

// Refresh resolves all next hops anew, follows changed MACs of the interfaces,
// and settles the VIPs that can be.
func (b *Balancer) Refresh() (r Refreshed, err error) {
	if err := b.refreshInterfaces(); err != nil {
		return r, err
	}
	services, err := b.Maps.Services()
	if err != nil {
		return r, err
	}
	servers, err := b.Servers()
	if err != nil {
		return r, err
	}
	hops, err := nextHops(servers)
	if err != nil {
		return r, err
	}
	var changes []*change
	movingBefore := 0
	err = b.each(services, func(c *change) (bool, error) {
		if maps.Moving(c.slots) > 0 {
			movingBefore++
		}
		for i := range c.backends {
			if IsLocalStack(c.service.VIP, &c.backends[i]) {
				continue
			}
			c.refreshHop(&c.backends[i], hops, &r)
		}
		changes = append(changes, c)
		return true, nil
	})
	for _, c := range changes {
		if maps.Moving(c.slots) > 0 {
			movingBefore--
		}
	}
	r.Settled = max(movingBefore, 0)
	return r, err
}

// refreshHop leaves a backend unresolved whose next hop cannot be used any more.
func (c *change) refreshHop(backend *maps.Backend, hops map[netip.Addr]Resolution, r *Refreshed) {
	was := backend.Resolved()
	hop, err := c.hop(backend.AddrPort(), Mode(backend.Mode), hops[backend.Addr()])
	if err != nil {
		hop = bpf.XdplbBackend{Source: backend.Source}
	}
	backend.Mac, backend.Link, backend.Source = hop.Mac, hop.Link, hop.Source
	c.dirty[backend.Id] = true
	r.Backends++
	switch now := backend.Resolved(); {
	case now && !was:
		r.Found++
	case was && !now:
		r.Lost++
	}
}

func (b *Balancer) refreshInterfaces() error {
	b.dropVanished()
	for _, r := range b.Maps.ReadInterfaces() {
		l, err := netlink.LinkByIndex(int(r.Ifindex))
		if err != nil {
			return err
		}
		before, attrs := r, l.Attrs()
		if r.Mtu = mtuOf(attrs); len(attrs.HardwareAddr) == 6 {
			r.Mac = maps.MACWord(attrs.HardwareAddr)
		}
		if r != before {
			if err := b.Maps.PutInterface(r); err != nil {
				return err
			}
		}
	}
	return nil
}

// mtuOf is what replies that leave by the interface are compared with.
func mtuOf(attrs *netlink.LinkAttrs) uint16 { return uint16(min(attrs.MTU, 65535)) }
