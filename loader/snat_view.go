package loader

import (
	"net/netip"

	"github.com/xdplb/xdplb/bpf"
	"github.com/xdplb/xdplb/maps"
)

// What an address is that FULL-NAT sends from.
const (
	SNATOfPool = "pool"
	SNATOwn    = "own" // a VIP's own, by --snat
	SNATOfVIP  = "vip" // the VIP's address itself: there is no other of its family
)

// SNATAddress is an address that FULL-NAT sends from.
type SNATAddress struct {
	Addr   netip.Addr
	Source string
	VIP    *maps.VIP // that alone sends from it; nil: those without addresses of their own
}

// SNATLoad is how many flows toward a backend keep ports of one address from new
// ones, of those that these may have.
type SNATLoad struct {
	Backend netip.AddrPort
	Flows   int
}

// SNATView is what FULL-NAT sends from. Flows counts those that keep their ports from
// new ones, also those of addresses that were taken away. Each backend has the whole range of ports, so an address is as
// full as its fullest backend.
type SNATView struct {
	Ports     PortRange
	Addresses []SNATAddress
	Flows     map[netip.Addr]int
	Fullest   map[netip.Addr]SNATLoad
}

// Percent is the share of the ports that a load takes.
func (s *SNATView) Percent(l SNATLoad) float64 {
	return float64(l.Flows) * 100 / float64(max(s.Ports.Size(), 1))
}

// SNAT reads the addresses and how full they are.
func (b *Balancer) SNAT() (s SNATView, err error) {
	u, err := b.readSNATUse()
	if err != nil {
		return s, err
	}
	s.Ports = u.ports
	for _, a := range u.pool {
		s.Addresses = append(s.Addresses, SNATAddress{a, SNATOfPool, nil})
	}
	for i := range u.services {
		service := &u.services[i]
		for _, a := range u.own[service.Id] {
			s.Addresses = append(s.Addresses, SNATAddress{a, SNATOwn, &service.VIP})
		}
		if u.fromVIP(service) {
			s.Addresses = append(s.Addresses, SNATAddress{service.Addr, SNATOfVIP, &service.VIP})
		}
	}
	return s, b.countSNAT(&s)
}

// countSNAT counts the claims, which are the replies' tuples.
func (b *Balancer) countSNAT(s *SNATView) error {
	s.Flows, s.Fullest = make(map[netip.Addr]int), make(map[netip.Addr]SNATLoad)
	fullnat := make(map[uint32]bool)
	for _, record := range b.Maps.ReadBackends(func(uint32) bool { return true }) {
		fullnat[record.Id] = Mode(record.Mode) == ModeFullNAT && !record.Has(bpf.XdplbBackendFlagBackendGone)
	}
	now, err := b.Now()
	if err != nil || len(fullnat) == 0 {
		return err
	}
	type load struct {
		addr    netip.Addr
		backend netip.AddrPort
		proto   uint8
	}
	loads, last := make(map[load]int), make(map[maps.Tuple]bool)
	err = b.Maps.Replies(func(f maps.Flow) {
		if !fullnat[f.Backend] || !b.Settings.HoldsPort(f, now) {
			return
		}
		if f.HalfOpen {
			last[f.Tuple] = true
		} else if last[f.Tuple] { // promoted meanwhile
			return
		}
		s.Flows[f.Dst]++
		if s.Ports.Contains(f.DstPort) {
			loads[load{f.Dst, netip.AddrPortFrom(f.Src, f.SrcPort), f.Proto}]++
		}
	})
	for l, n := range loads {
		full, known := s.Fullest[l.addr]
		if !known || n > full.Flows || n == full.Flows && l.backend.Compare(full.Backend) < 0 {
			s.Fullest[l.addr] = SNATLoad{l.backend, n}
		}
	}
	return err
}
