package loader

import (
	"net/netip"
	"slices"

	"github.com/xdplb/xdplb/maps"
)

// loops refuses backends that are VIPs, in what will be: either may be there already.
func (p *planner) loops() error {
	byAddr := make(map[netip.Addr][]*WantedVIP)
	for i := range p.w.VIPs {
		w := &p.w.VIPs[i]
		byAddr[w.Addr] = append(byAddr[w.Addr], w)
	}
	for i := range p.w.VIPs {
		w := &p.w.VIPs[i]
		for j := range w.Backends {
			b := &w.Backends[j]
			b.At = w.at(b.At)
			for _, other := range byAddr[b.At.Addr()] {
				if !Meets(b.At, other.VIP, w.Proto) {
					continue
				}
				if err := p.loop(w, b, other); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// loop is a backend that is a VIP. Where VIPs are kept, a backend that is there need
// not be one of the file's: then it is the new VIP that is wrong.
func (p *planner) loop(w *WantedVIP, b *WantedBackend, other *WantedVIP) error {
	if is := p.state.vips[w.VIP]; p.w.Keep && is != nil && is.find(b.At) != nil {
		if p.state.vips[other.VIP] != nil {
			return nil
		}
		services := make([]maps.Service, len(p.state.order))
		for i, v := range p.state.order {
			services[i] = v.Service
		}
		return placed(other.Where, "vip", p.b.checkLoop(other.VIP, services))
	}
	c := &change{b: p.b}
	c.service.VIP = w.VIP
	servers := slices.Clone(other.Backends)
	for i := range servers {
		servers[i].At, servers[i].Mode = other.at(servers[i].At), other.modeOf(&servers[i])
	}
	return placed(b.Where, "address", c.loop(b.At, other.VIP, servers, func(a netip.AddrPort) bool {
		return slices.ContainsFunc(w.Backends, func(own WantedBackend) bool { return w.at(own.At) == a })
	}))
}
