package loader

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/xdplb/xdplb/maps"
)

// interfaces finds those to attach, and gives them numbers, which backends need.
func (p *planner) interfaces() error {
	if p.w.Interfaces == nil {
		return nil
	}
	attached := make(map[uint32]maps.Interface)
	used := make(map[uint32]bool)
	for _, r := range p.b.Maps.ReadInterfaces() {
		if _, err := netlink.LinkByIndex(int(r.Ifindex)); errors.As(err, new(netlink.LinkNotFoundError)) {
			continue // Apply forgets it
		}
		attached[r.Ifindex], used[r.Number] = r, true
	}
	p.b.attaching = make(map[uint32]uint32)
	for i := range p.w.Interfaces {
		w := &p.w.Interfaces[i]
		link, err := linkByName(w.Name)
		if err != nil {
			return placed(w.Where, "name", err)
		}
		one := &interfacePlan{link: link, want: w}
		r, is := attached[uint32(link.Attrs().Index)]
		if len(w.Accept) > len(r.Accept) {
			return placed(w.Where, "accept_macs", fmt.Errorf("%s: %d MACs to accept; at most %d", w.Name, len(w.Accept), len(r.Accept)))
		}
		if is {
			delete(attached, r.Ifindex)
			one.is = &r
			if err := p.interfaceChange(one); err != nil {
				return placed(w.Where, "name", err)
			}
			continue
		}
		if _, err := attachable([]string{w.Name}); err != nil {
			return placed(w.Where, "name", err)
		}
		if err := checkForeign(p.b.dir, link.Attrs()); err != nil {
			return placed(w.Where, "name", fmt.Errorf("%s: %w", w.Name, err))
		}
		number := uint32(0)
		for used[number] {
			number++
		}
		if number >= p.b.Maps.MaxInterfaces() {
			return placed(w.Where, "name", fmt.Errorf("%s: %d interfaces are attached, which is the most", w.Name, number))
		}
		used[number], p.b.attaching[uint32(link.Attrs().Index)] = true, number
		p.attach = append(p.attach, one)
		p.note(PlanAdd, "interface "+w.Name, string(w.Mode)+macList(", accepts ", w.Accept))
	}
	for ifindex := range attached {
		name := interfaceName(ifindex)
		p.Warnings = append(p.Warnings, fmt.Sprintf("%s: attached, and not in the file; it stays. To take it off: xdplb detach %s", name, name))
	}
	slices.Sort(p.Warnings)
	return nil
}

func macList[T fmt.Stringer](before string, macs []T) string {
	if len(macs) == 0 {
		return ""
	}
	return before + listing(macs)
}

// interfaceChange compares one that is attached.
func (p *planner) interfaceChange(one *interfacePlan) error {
	is := p.b.wantedInterface(*one.is)
	if one.want.Mode != XDPAuto && one.want.Mode != is.Mode {
		return wrong("xdp_mode", "%s: attached in %s mode; to change it: xdplb detach %s, and apply again", is.Name, is.Mode, is.Name)
	}
	if slices.EqualFunc(is.Accept, one.want.Accept, func(a, b net.HardwareAddr) bool { return a.String() == b.String() }) {
		return nil
	}
	p.attach = append(p.attach, one)
	p.note(PlanChange, "interface "+is.Name, "accept_macs "+listing(is.Accept)+" -> "+listing(one.want.Accept))
	return nil
}

// general compares what is not of one VIP.
func (p *planner) general(fresh bool) error {
	b, w := p.b, p.w
	if !fresh {
		if err := p.fixed(); err != nil {
			return placed(w.Where, "", err)
		}
	}
	if s := w.TunSpread; s != nil && b.spread() != p.canonical(*s) {
		p.note(PlanChange, "tun_spread", b.spread().String()+" -> "+p.canonical(*s).String())
		p.settings = append(p.settings, func() error {
			b.Settings.SpreadPrefix, b.Settings.SpreadMask = spreadWords(*s)
			return b.Maps.PutSettings(b.Settings)
		})
	}
	is, changes := b.Timeouts(), []string{}
	for _, t := range []struct {
		name      string
		is, wants *time.Duration
	}{{"tcp", is.TCP, w.Timeouts.TCP}, {"closing", is.Closing, w.Timeouts.Closing}, {"udp", is.UDP, w.Timeouts.UDP}} {
		if t.wants != nil && b.Settings.Jiffies(*t.wants) != b.Settings.Jiffies(*t.is) {
			changes = append(changes, fmt.Sprintf("%s %s -> %s", t.name, *t.is, *t.wants))
		}
	}
	if len(changes) > 0 {
		p.note(PlanChange, "timeouts", strings.Join(changes, ", "))
		p.settings = append(p.settings, func() error { return b.SetTimeouts(w.Timeouts) })
	}
	return p.pool()
}

func (p *planner) canonical(s netip.Prefix) netip.Prefix {
	if s.Bits() == 0 {
		return netip.PrefixFrom(netip.IPv4Unspecified(), 0)
	}
	return s.Masked()
}

// fixed refuses what cannot change while pins exist.
func (p *planner) fixed() error {
	vips, backends, flows := p.b.sizes()
	for _, size := range []struct {
		field, of string
		want, is  uint32
	}{{"max_vips", "VIPs", p.w.MaxVIPs, vips}, {"max_backends", "backends", p.w.MaxBackends, backends}, {"max_flows", "flows", p.w.MaxFlows, flows}} {
		if size.want != 0 && size.want != size.is {
			return wrong(size.field, "%d %s: there is room for %d, which is fixed while pins exist; to change it: xdplb detach --all --purge", size.want, size.of, size.is)
		}
	}
	key := p.w.HashKey
	if key == nil || key.Fingerprint() == p.b.Settings.KeyFingerprint {
		return nil
	}
	if len(p.state.order) > 0 {
		return wrong("hash_key", "another hash key is in use, and fixed while VIPs exist; to change it: xdplb detach --all --purge")
	}
	p.note(PlanChange, "hash_key", "")
	p.settings = append(p.settings, func() error { return p.b.setKey(*key) })
	return nil
}

func (b *Balancer) setKey(key maps.HashKey) error {
	b.Settings.SetKey(key)
	return b.Maps.PutSettings(b.Settings)
}

// pool compares the SNAT pool and its ports.
func (p *planner) pool() error {
	w := p.w.SNAT
	if w == nil {
		return nil
	}
	is, err := p.b.Maps.SNATPool(&p.b.Settings)
	if err != nil {
		return err
	}
	wanted := slices.Clone(w.Addresses)
	slices.SortStableFunc(wanted, func(a, b netip.Addr) int { return a.BitLen() - b.BitLen() })
	if !slices.Equal(is, wanted) {
		if err := p.b.checkSNATAddresses(wanted, w.Any, fileAnySNAT); err != nil {
			return placed(w.Where, "addresses", err)
		}
		if len(wanted)+len(is) > maps.MaxSNAT {
			return placed(w.Where, "addresses", fmt.Errorf("%d addresses beside %d in use; at most %d", len(wanted), len(is), maps.MaxSNAT))
		}
		p.note(PlanChange, "snat addresses", listing(is)+" -> "+listing(wanted))
		p.settings = append(p.settings, func() error { return p.b.Maps.PutSNATPool(&p.b.Settings, wanted) })
	}
	if w.Ports != nil && *w.Ports != p.b.SNATPorts() {
		p.note(PlanChange, "snat ports", p.b.SNATPorts().String()+" -> "+w.Ports.String())
		ports := *w.Ports
		p.settings = append(p.settings, func() error {
			p.b.Settings.SnatLow, p.b.Settings.SnatHigh = ports.Low, ports.High
			return p.b.Maps.PutSettings(p.b.Settings)
		})
		if text := OverlapWarning(ports); text != "" {
			p.Warnings = append(p.Warnings, text)
		}
	}
	return nil
}

// sends refuses a VIP whose port FULL-NAT would send from, at its address, in what
// will be.
func (p *planner) sends() error {
	u := snatUse{ports: p.b.SNATPorts(), own: make(map[uint32][]netip.Addr), fullnat: make(map[uint32]bool)}
	var err error
	if u.pool, err = p.b.Maps.SNATPool(&p.b.Settings); err != nil {
		return err
	}
	if s := p.w.SNAT; s != nil {
		u.pool = s.Addresses
		if s.Ports != nil {
			u.ports = *s.Ports
		}
	}
	vips := p.w.VIPs
	if vips == nil {
		for _, v := range p.state.order {
			vips = append(vips, v.is)
		}
	}
	for i := range vips {
		w := &vips[i]
		s := maps.Service{VIP: w.VIP}
		s.Id = uint32(i)
		u.services, u.own[s.Id] = append(u.services, s), w.SNAT
		u.fullnat[s.Id] = slices.ContainsFunc(w.Backends, func(b WantedBackend) bool { return w.modeOf(&b) == ModeFullNAT })
	}
	for i := range vips {
		if w := &vips[i]; u.takes(w.VIP) {
			return placed(w.Where, "vip", u.taken(w.VIP, setPorts, "%s: replies come to this address on the SNAT ports %s", w.VIP, u.ports))
		}
	}
	return nil
}
