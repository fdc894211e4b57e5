package loader

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/xdplb/xdplb/bpf"
	"github.com/xdplb/xdplb/maps"
)

// probeWait is how long Probe waits for neighbours that do not answer: the kernel
// gives up after three probes, one a second.
const probeWait = 4 * time.Second

// Probe asks for the neighbours on the way to addresses and waits for those that
// do not answer. Changes never wait, because they hold the lock: they find what
// Probe has brought into the kernel's table.
func Probe(addrs []netip.Addr) error {
	_, err := ResolveNextHops(context.Background(), addrs, probeWait)
	return err
}

// nextHops is what the kernel knows now.
func nextHops(addrs []netip.Addr) (map[netip.Addr]Resolution, error) {
	return ResolveNextHops(context.Background(), addrs, 0)
}

// BackendOptions are the properties of a backend; nil leaves one as it is, or as
// is the default: the VIP's mode, weight 1.
type BackendOptions struct {
	Mode   *Mode
	Weight *uint16
}

// ParseBackend reads ADDR[:PORT]; IPv6 with a port stands in brackets. Port 0: not said.
func ParseBackend(s string) (netip.AddrPort, error) {
	if a, err := netip.ParseAddr(s); err == nil && a.Zone() == "" {
		return netip.AddrPortFrom(a.Unmap(), 0), nil
	}
	ap, err := netip.ParseAddrPort(s)
	if err != nil || ap.Addr().Zone() != "" || ap.Port() == 0 {
		return netip.AddrPort{}, fmt.Errorf("%s: not a backend; write ADDR[:PORT], IPv6 with a port in brackets, such as 10.0.0.11 or [2001:db8::11]:80", s)
	}
	return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port()), nil
}

// at gives a backend that names no port the VIP's.
func (c *change) at(a netip.AddrPort) netip.AddrPort {
	if a.Port() == 0 {
		return netip.AddrPortFrom(a.Addr(), c.service.Port)
	}
	return a
}

func (c *change) find(a netip.AddrPort) *maps.Backend {
	return c.listed(func(b *maps.Backend) bool { return b.AddrPort() == c.at(a) })
}

// AddBackends adds backends to a VIP, all or none. It returns those whose
// neighbour did not answer: they get no packet until Refresh finds them.
func (b *Balancer) AddBackends(v maps.VIP, at []netip.AddrPort, o BackendOptions) (silent []netip.AddrPort, err error) {
	err = b.edit(v, func(c *change) error {
		mode, inherits := Mode(c.service.Mode), uint8(bpf.XdplbBackendFlagBackendInherits)
		if o.Mode != nil {
			mode, inherits = *o.Mode, 0
		}
		for i := range at {
			at[i] = c.at(at[i])
			if c.find(at[i]) != nil {
				return fmt.Errorf("%s: exists; change it with xdplb backend set", at[i])
			}
			if err := checkUnicast(at[i].Addr()); err != nil {
				return fmt.Errorf("%s: %w", at[i].Addr(), err)
			}
			if err := c.checkBackend(at[i]); err != nil {
				return err
			}
		}
		hops, err := nextHops(Addresses(at))
		if err != nil {
			return err
		}
		for _, a := range at {
			if c.find(a) != nil {
				return fmt.Errorf("%s: named twice", a)
			}
			record, err := c.reach(a, mode, hops[a.Addr()])
			if m := (*Misuse)(nil); errors.As(err, &m) {
				return c.suits(m, at, hops)
			}
			if err != nil {
				return err
			}
			record.Address, record.Port, record.Mode, record.Flags = maps.Address(a.Addr()), a.Port(), uint8(mode), inherits
			record.Weight, record.Restore = 1, 1
			if o.Weight != nil {
				setWeight(&record, *o.Weight)
			}
			if err := c.add(record); err != nil {
				return err
			}
			if record.Link.Flags == 0 {
				silent = append(silent, a)
			}
		}
		return nil
	})
	return silent, err
}

// setWeight remembers what `enable` gives back.
func setWeight(record *bpf.XdplbBackend, weight uint16) {
	record.Weight = weight
	if weight > 0 {
		record.Restore = weight
	}
}

// Addresses are the addresses without the ports.
func Addresses(at []netip.AddrPort) []netip.Addr {
	all := make([]netip.Addr, len(at))
	for i, a := range at {
		all[i] = a.Addr()
	}
	return all
}

// SetBackends changes what o names, of all backends or of none.
func (b *Balancer) SetBackends(v maps.VIP, at []netip.AddrPort, o BackendOptions) error {
	return b.edit(v, func(c *change) error {
		for _, a := range at {
			backend := c.find(a)
			if backend == nil {
				return fmt.Errorf("%s: %w", c.at(a), ErrNoBackend)
			}
			if o.Weight != nil {
				setWeight(&backend.XdplbBackend, *o.Weight)
				c.dirty[backend.Id] = true
			}
			if o.Mode == nil {
				continue
			}
			backend.SetFlag(bpf.XdplbBackendFlagBackendInherits, false)
			c.dirty[backend.Id] = true
			if err := c.replace(backend, *o.Mode); err != nil {
				return err
			}
		}
		return nil
	})
}

// replace gives a backend another mode: as a new record, so that packets never see
// one half changed, and the flows it has keep the old.
func (c *change) replace(backend *maps.Backend, mode Mode) error {
	if Mode(backend.Mode) == mode {
		return nil
	}
	addr := backend.Addr()
	hops, err := nextHops([]netip.Addr{addr})
	if err != nil {
		return err
	}
	hop, err := c.reach(backend.AddrPort(), mode, hops[addr])
	if err != nil {
		return keeps(backend, err)
	}
	next := backend.XdplbBackend
	next.Mode, next.Mac, next.Link, next.Source = uint8(mode), hop.Mac, hop.Link, hop.Source
	backend.SetFlag(bpf.XdplbBackendFlagBackendUnlisted, true)
	c.dirty[backend.Id] = true
	return c.add(next) // last: it may move c.backends
}

// keeps advises to leave a backend the mode that it has.
func keeps(backend *maps.Backend, err error) error {
	if m := (*Misuse)(nil); errors.As(err, &m) {
		m.Use = Mode(backend.Mode)
		m.Advice = fmt.Sprintf("let it keep mode %s", m.Use)
		m.Command = fmt.Sprintf("xdplb backend set %s %s --mode %s", m.VIP, m.Backend, m.Use)
	}
	return err
}

// inheritMode gives the VIP's new mode to the backends that have none of their own.
func (c *change) inheritMode(mode Mode) error {
	for i := range c.backends {
		if b := &c.backends[i]; b.Listed() && b.Has(bpf.XdplbBackendFlagBackendInherits) {
			if err := c.replace(b, mode); err != nil {
				return err
			}
		}
	}
	return nil
}

// DeleteBackends removes backends, all or none. Their flows break.
func (b *Balancer) DeleteBackends(v maps.VIP, at []netip.AddrPort) error {
	return b.edit(v, func(c *change) error {
		for _, a := range at {
			backend := c.find(a)
			if backend == nil {
				return fmt.Errorf("%s: %w", c.at(a), ErrNoBackend)
			}
			for i := range c.backends { // with the records that it replaced
				if c.backends[i].AddrPort() == c.at(a) {
					c.removed[c.backends[i].Id] = true
				}
			}
		}
		return nil
	})
}

// Selection names backends: by address, of every port if that is 0, on every VIP
// or on one.
type Selection struct {
	At  netip.AddrPort
	VIP *maps.VIP
}

// Matches reports whether the selection names a backend at this address and port.
func (s Selection) Matches(at netip.AddrPort) bool {
	return at.Addr() == s.At.Addr() && (s.At.Port() == 0 || s.At.Port() == at.Port())
}

// services are the VIPs that a selection looks at.
func (b *Balancer) services(s Selection) ([]maps.Service, error) {
	all, err := b.Maps.Services()
	if err != nil || s.VIP == nil {
		return all, err
	}
	for _, one := range all {
		if one.VIP == *s.VIP {
			return []maps.Service{one}, nil
		}
	}
	return nil, fmt.Errorf("%s: %w", s.VIP, ErrNoVIP)
}

// editSelected changes every backend that matches, and returns the VIPs that have one. Those
// that ended count only if there is no other: see gone.
func (b *Balancer) editSelected(s Selection, edit func(*maps.Backend)) (vips []maps.VIP, err error) {
	services, err := b.services(s)
	if err != nil {
		return nil, err
	}
	var changes []*change
	err = b.each(services, func(c *change) (touched bool, err error) {
		for i := range c.backends {
			if backend := &c.backends[i]; backend.Listed() && s.Matches(backend.AddrPort()) {
				edit(backend)
				c.dirty[backend.Id], touched = true, true
			}
		}
		if touched {
			changes = append(changes, c)
		}
		return touched, nil
	})
	if err != nil {
		return nil, err
	}
	if len(changes) == 0 {
		return nil, fmt.Errorf("%s: %w", selected(s.At), ErrNoBackend)
	}
	for _, c := range changes {
		if !c.ended {
			vips = append(vips, c.service.VIP)
		}
	}
	if len(vips) == 0 {
		return nil, gone(changes[0].service.VIP)
	}
	return vips, nil
}

func selected(at netip.AddrPort) string {
	if at.Port() == 0 {
		return at.Addr().String()
	}
	return at.String()
}

// Drain lets backends take no new flows; they keep those they have.
func (b *Balancer) Drain(s Selection) ([]maps.VIP, error) {
	return b.editSelected(s, func(backend *maps.Backend) {
		backend.SetFlag(bpf.XdplbBackendFlagBackendDrain, true)
	})
}

// Enable undoes Drain, and gives a backend of weight 0 the weight it had.
func (b *Balancer) Enable(s Selection) ([]maps.VIP, error) {
	return b.editSelected(s, func(backend *maps.Backend) {
		backend.SetFlag(bpf.XdplbBackendFlagBackendDrain, false)
		if backend.Weight == 0 {
			backend.Weight = max(backend.Restore, 1)
		}
	})
}

// SetHealth says whether a backend serves: a checker's verdict. One that is down
// serves nothing, and its flows go elsewhere.
func (b *Balancer) SetHealth(s Selection, up bool) ([]maps.VIP, error) {
	return b.editSelected(s, func(backend *maps.Backend) {
		backend.SetFlag(bpf.XdplbBackendFlagBackendDown, !up)
		backend.SetFlag(bpf.XdplbBackendFlagBackendHealthy, up)
	})
}
