package loader

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/xdplb/xdplb/bpf"
	"github.com/xdplb/xdplb/maps"
)

// ErrNoSNAT says that an address is not one of the pool's.
var ErrNoSNAT = errors.New("no such SNAT address; xdplb snat list shows the pool")

// snatUse is who sends from which addresses, as it will be after a change.
type snatUse struct {
	ports    PortRange
	pool     []netip.Addr
	services []maps.Service
	own      map[uint32][]netip.Addr // by VIP id: addresses of its own
	fullnat  map[uint32]bool         // by VIP id: it has FULL-NAT backends
}

func (b *Balancer) readSNATUse() (u snatUse, err error) {
	u.ports = b.SNATPorts()
	if u.pool, err = b.Maps.SNATPool(&b.Settings); err != nil {
		return u, err
	}
	if u.services, err = b.Maps.Services(); err != nil {
		return u, err
	}
	u.own, u.fullnat = make(map[uint32][]netip.Addr), make(map[uint32]bool)
	for i := range u.services {
		s := &u.services[i]
		if s.SnatCount == 0 {
			continue
		}
		if u.own[s.Id], err = b.Maps.SNATOf(s); err != nil {
			return u, err
		}
	}
	for _, record := range b.Maps.ReadBackends(func(uint32) bool { return true }) {
		if Mode(record.Mode) == ModeFullNAT && !record.Has(bpf.XdplbBackendFlagBackendGone) {
			u.fullnat[record.Vip] = true
		}
	}
	return u, nil
}

// fromVIP reports whether FULL-NAT sends from the VIP's own address: it has
// neither addresses of its own nor a pool of its family.
func (u *snatUse) fromVIP(s *maps.Service) bool {
	return u.fullnat[s.Id] && len(u.own[s.Id]) == 0 &&
		!slices.ContainsFunc(u.pool, func(a netip.Addr) bool { return a.Is4() == s.Addr.Is4() })
}

// takes reports whether a VIP would take replies for packets of its own: its port
// is one that flows are sent from, at its address. A VIP that alone sends from its
// address is none: the data path never claims the port of a VIP.
func (u *snatUse) takes(v maps.VIP) bool {
	if !u.ports.Contains(v.Port) {
		return false
	}
	if slices.Contains(u.pool, v.Addr) {
		return true
	}
	for i := range u.services {
		s := &u.services[i]
		if slices.Contains(u.own[s.Id], v.Addr) || s.VIP != v && s.Addr == v.Addr && u.fromVIP(s) {
			return true
		}
	}
	return false
}

// free is the largest part of a range of ports that no VIP takes. If the VIPs take
// all of it, it is that of the whole range that there can be.
func (u *snatUse) free(r PortRange) PortRange {
	all := *u
	all.ports = PortRange{firstSNATPort, 65535}
	if r.Low < firstSNATPort {
		all.ports.Low = r.Low
	}
	var taken []uint16
	for _, s := range u.services {
		if all.takes(s.VIP) {
			taken = append(taken, s.Port)
		}
	}
	if part := r.without(taken); part.Size() > 0 {
		return part
	}
	return all.ports.without(taken)
}

// taken is the error for a VIP that takes replies; command makes those ports the
// range to send from that it is given.
func (u *snatUse) taken(v maps.VIP, command string, problem string, a ...any) error {
	ports := u.free(u.ports)
	return &Misuse{Problem: fmt.Sprintf(problem, a...), Advice: "leave its port out", Command: command + ports.String(), VIP: v, Ports: &ports}
}

// widestSNATPorts are those that neither VIPs nor the host's own connections take; of
// size 0 if they cannot be found.
func (b *Balancer) widestSNATPorts() PortRange {
	u, err := b.readSNATUse()
	if err != nil {
		return PortRange{1, 0}
	}
	return u.free(defaultSNATPorts(localPorts()))
}

const setPorts = "xdplb snat ports "

// check refuses addresses at which VIPs would take replies.
func (u *snatUse) check(addrs []netip.Addr) error {
	for _, s := range u.services {
		if slices.Contains(addrs, s.Addr) && u.takes(s.VIP) {
			return u.taken(s.VIP, setPorts, "%s: the VIP %s listens on it inside the SNAT ports %s", s.Addr, s.VIP, u.ports)
		}
	}
	return nil
}

// checkNewVIP refuses a VIP that would take replies of flows that there may be.
func (b *Balancer) checkNewVIP(v maps.VIP) error {
	if !b.SNATPorts().Contains(v.Port) {
		return nil
	}
	u, err := b.readSNATUse()
	if err == nil && u.takes(v) {
		u.services = append(u.services, maps.Service{VIP: v})
		return u.taken(v, setPorts, "%s: replies come to this address on the SNAT ports %s", v, u.ports)
	}
	return err
}

// checkFrom refuses that FULL-NAT sends from a VIP's own address, where other VIPs
// would take replies.
func (u *snatUse) checkFrom(from *maps.Service) error {
	if !u.fromVIP(from) {
		return nil
	}
	for _, s := range u.services {
		if s.Addr == from.Addr && u.takes(s.VIP) {
			return u.taken(s.VIP, setPorts, "%s: FULL-NAT would send from its address on the SNAT ports %s, where %s would take the replies", from.VIP, u.ports, s.VIP)
		}
	}
	return nil
}

// checkSource refuses a change after which FULL-NAT sends from the VIP's own address,
// and did not before, if another VIP would take replies.
func (c *change) checkSource() error {
	begins := c.snat != nil && len(*c.snat) == 0
	for i := range c.backends {
		begins = begins || c.fresh[c.backends[i].Id] && Mode(c.backends[i].Mode) == ModeFullNAT
	}
	if !begins {
		return nil
	}
	u, err := c.b.readSNATUse()
	if err != nil || u.fromVIP(&c.stored) {
		return err
	}
	s := &c.service
	for i := range c.backends {
		u.fullnat[s.Id] = u.fullnat[s.Id] || Mode(c.backends[i].Mode) == ModeFullNAT && !c.removed[c.backends[i].Id]
	}
	if c.snat != nil {
		u.own[s.Id] = *c.snat
	}
	return u.checkFrom(s)
}

// checkSNATAddress says why FULL-NAT cannot send from an address. anyHost allows
// those that are not this host's, which is asked for as mend says; others could be put
// on iface.
func checkSNATAddress(addr netip.Addr, anyHost bool, mend, iface string) error {
	if err := checkUnicast(addr); err != nil {
		return fmt.Errorf("%s: %w", addr, err)
	}
	if addr.IsLoopback() {
		return fmt.Errorf("%s: no server can answer to it; give an address that they reach", addr)
	}
	if anyHost {
		return nil
	}
	ours, err := isAssigned(addr)
	if err != nil || ours {
		return err
	}
	return fmt.Errorf("%s: not an address of this host, so no reply comes back to it; %s if replies come here otherwise, or put it on: ip addr add %s dev %s",
		addr, mend, netip.PrefixFrom(addr, addr.BitLen()), iface)
}

// someInterface is one that is attached, for a hint.
func (b *Balancer) someInterface() string {
	if attached := b.Maps.ReadInterfaces(); len(attached) > 0 {
		return interfaceName(attached[0].Ifindex)
	}
	for ifindex, number := range b.attaching {
		if number == 0 {
			return interfaceName(ifindex)
		}
	}
	return "IFACE"
}

// How foreign addresses are asked for, on the command line and in a file.
const (
	askAnySNAT  = "add --any-snat"
	fileAnySNAT = "write any_snat: true under snat:"
)

// checkSNATAddresses checks a list that shall be used.
func (b *Balancer) checkSNATAddresses(addrs []netip.Addr, anyHost bool, mend string) error {
	return checkSNATList(addrs, anyHost, mend, b.someInterface())
}

func checkSNATList(addrs []netip.Addr, anyHost bool, mend, iface string) error {
	for i, addr := range addrs {
		if slices.Contains(addrs[:i], addr) {
			return fmt.Errorf("%s: named twice", addr)
		}
		if err := checkSNATAddress(addr, anyHost, mend, iface); err != nil {
			return err
		}
	}
	return nil
}

// AddSNAT adds addresses to the pool, all or none. anyHost: they need not be this host's.
func (b *Balancer) AddSNAT(addrs []netip.Addr, anyHost bool) error {
	u, err := b.readSNATUse()
	if err != nil {
		return err
	}
	for _, addr := range addrs {
		if slices.Contains(u.pool, addr) {
			return fmt.Errorf("%s: exists; xdplb snat list shows the pool", addr)
		}
	}
	if err := b.checkSNATAddresses(addrs, anyHost, askAnySNAT); err != nil {
		return err
	}
	u.pool = append(u.pool, addrs...)
	if err := u.check(addrs); err != nil {
		return err
	}
	return b.Maps.PutSNATPool(&b.Settings, u.pool)
}

// DeleteSNAT takes addresses out of the pool, all or none. Flows that use them go
// on; there are no new ones.
func (b *Balancer) DeleteSNAT(addrs []netip.Addr) error {
	u, err := b.readSNATUse()
	if err != nil {
		return err
	}
	before := u
	u.pool = slices.Clone(u.pool)
	for _, addr := range addrs {
		i := slices.Index(u.pool, addr)
		if i < 0 {
			return fmt.Errorf("%s: %w", addr, ErrNoSNAT)
		}
		u.pool = slices.Delete(u.pool, i, i+1)
	}
	for i := range u.services {
		s := &u.services[i]
		if before.fromVIP(s) {
			continue
		}
		if err := u.checkFrom(s); err != nil {
			of := slices.IndexFunc(addrs, func(a netip.Addr) bool { return a.Is4() == s.Addr.Is4() })
			return fmt.Errorf("%s: without it %w", addrs[of], err)
		}
	}
	return b.Maps.PutSNATPool(&b.Settings, u.pool)
}

// SNATPorts are the ports that FULL-NAT sends from.
func (b *Balancer) SNATPorts() PortRange { return PortRange{b.Settings.SnatLow, b.Settings.SnatHigh} }

// SetSNATPorts changes them. Flows that have another port keep it.
func (b *Balancer) SetSNATPorts(r PortRange) error {
	if r.Low == 0 || r.Size() == 0 {
		return fmt.Errorf("%s: an empty range of ports; write the lower one first, 1 or above", r)
	}
	u, err := b.readSNATUse()
	if err != nil {
		return err
	}
	u.ports = r
	for _, s := range u.services {
		if u.takes(s.VIP) {
			return u.taken(s.VIP, setPorts, "%s: the VIP %s has one of these ports, on an SNAT address", r, s.VIP)
		}
	}
	b.Settings.SnatLow, b.Settings.SnatHigh = r.Low, r.High
	return b.Maps.PutSettings(b.Settings)
}

// checkSNAT refuses what Attach cannot set.
func (b *Balancer) checkSNAT(o AttachOptions, iface string) error {
	if o.SNATPorts != nil && (o.SNATPorts.Low == 0 || o.SNATPorts.Size() == 0) {
		return fmt.Errorf("--snat-ports %s: an empty range; write the lower port first, 1 or above", o.SNATPorts)
	}
	if err := checkSNATList(o.SNAT, o.AnySNAT, askAnySNAT, iface); err != nil {
		return fmt.Errorf("--snat %w", err)
	}
	u, err := b.readSNATUse()
	if err != nil {
		return err
	}
	u.pool = append(u.pool, o.SNAT...)
	if o.SNATPorts == nil {
		return u.check(o.SNAT)
	}
	u.ports = *o.SNATPorts
	for _, s := range u.services {
		if u.takes(s.VIP) {
			return u.taken(s.VIP, "xdplb attach --snat-ports ", "--snat-ports %s: the VIP %s has one of these ports, on an SNAT address", u.ports, s.VIP)
		}
	}
	return nil
}

// applySNAT adds to what there is: `attach` is said again at an upgrade.
func (b *Balancer) applySNAT(o AttachOptions) error {
	if o.SNATPorts != nil {
		b.Settings.SnatLow, b.Settings.SnatHigh = o.SNATPorts.Low, o.SNATPorts.High
		if err := b.Maps.PutSettings(b.Settings); err != nil {
			return err
		}
	}
	pool, err := b.Maps.SNATPool(&b.Settings)
	if err != nil {
		return err
	}
	before := len(pool)
	for _, addr := range o.SNAT {
		if !slices.Contains(pool, addr) {
			pool = append(pool, addr)
		}
	}
	if len(pool) == before {
		return nil
	}
	return b.Maps.PutSNATPool(&b.Settings, pool)
}

// useSNAT gives the VIP addresses of its own, or none.
func (c *change) useSNAT(addrs []netip.Addr, anyHost bool) error {
	for _, addr := range addrs {
		if addr.Is4() != c.service.Addr.Is4() {
			return fmt.Errorf("--snat %s: FULL-NAT does not translate between IPv4 and IPv6; use an address of the VIP's family", addr)
		}
	}
	if err := c.b.checkSNATAddresses(addrs, anyHost, askAnySNAT); err != nil {
		return fmt.Errorf("--snat %w", err)
	}
	u, err := c.b.readSNATUse()
	if err != nil {
		return err
	}
	if !slices.ContainsFunc(u.services, func(s maps.Service) bool { return s.VIP == c.service.VIP }) {
		u.services = append(u.services, c.service)
	}
	u.own[c.service.Id] = addrs
	if err := u.check(addrs); err != nil {
		return fmt.Errorf("--snat %w", err)
	}
	c.snat = &addrs
	return nil
}

// placeSNAT writes what useSNAT asked for, where no packet reads it yet.
func (c *change) placeSNAT() error {
	if c.snat == nil {
		return nil
	}
	return c.b.Maps.PlaceSNAT(&c.b.Settings, &c.service, *c.snat)
}
