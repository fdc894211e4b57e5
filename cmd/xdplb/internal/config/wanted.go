package config

import (
	"fmt"
	"net"
	"net/netip"
	"time"

	"github.com/xdplb/xdplb/cmd/xdplb/internal/ipvsadm"
	"github.com/xdplb/xdplb/loader"
	"github.com/xdplb/xdplb/maps"
)

// check refuses what the file alone shows to be wrong.
func (f *File) check() error {
	interfaces := make(map[string]int)
	for i := range f.Interfaces {
		one := &f.Interfaces[i]
		if err := once(interfaces, &one.Place, "name", one.Name); err != nil {
			return err
		}
	}
	if f.SNAT != nil {
		seen := make(map[netip.Addr]int)
		for i, addr := range f.SNAT.Addresses {
			if err := once(seen, &f.SNAT.Place, fmt.Sprintf("addresses[%d]", i), addr); err != nil {
				return err
			}
		}
	}
	vips := make(map[maps.VIP]int)
	for i := range f.VIPs {
		v := &f.VIPs[i]
		if err := once(vips, &v.Place, "vip", v.VIP); err != nil {
			return err
		}
		if err := v.check(); err != nil {
			return err
		}
	}
	return nil
}

// once notes where a name is, and refuses one that was there before.
func once[T comparable](lines map[T]int, p *Place, field string, name T) error {
	if line, twice := lines[name]; twice {
		return p.errorf(field, "%v: there twice, first in line %d; %s", name, line, with("delete one of them", p.remove()))
	}
	lines[name] = p.Line(field)
	return nil
}

func (v *VIP) check() error {
	if v.SourcePrefix != nil {
		if v.Scheduler != maps.SchedulerSource && v.Affinity == nil {
			return v.errorf("source_prefix", "scheduler %s does not use it; write scheduler: source, or leave it out", v.Scheduler)
		}
		if most := v.VIP.Addr.BitLen(); int(*v.SourcePrefix) > most {
			return v.errorf("source_prefix", "%d: an address has %d bits; use 0 to %d", *v.SourcePrefix, most, most)
		}
	}
	if called := v.Ipvsadm; called.Name != "" && called.Here() != v.Scheduler.String() {
		return v.errorf("ipvsadm", "%s: the name of scheduler %s, and this one is %s; write scheduler: %[2]s, or leave it out", called, called.Here(), v.Scheduler)
	}
	if v.AffinityGroup != "" && v.Affinity == nil {
		return v.errorf("affinity_group", "without affinity it says nothing; add a line affinity: 5m, or leave it out")
	}
	seen := make(map[netip.AddrPort]int)
	for i := range v.Backends {
		b := &v.Backends[i]
		if b.Address.Port() == 0 {
			b.Address = netip.AddrPortFrom(b.Address.Addr(), v.VIP.Port)
		}
		if err := once(seen, &b.Place, "address", b.Address); err != nil {
			return err
		}
	}
	return nil
}

// Wanted is what the file asks for.
func (f *File) Wanted() loader.Wanted {
	w := loader.Wanted{Where: f.placeOf, HashKey: f.HashKey, TunSpread: f.TunSpread}
	w.MaxVIPs, w.MaxBackends, w.MaxFlows = f.MaxVIPs.value(), f.MaxBackends.value(), f.MaxFlows.value()
	for i := range f.Interfaces {
		w.Interfaces = append(w.Interfaces, f.Interfaces[i].wanted())
	}
	if f.SNAT != nil {
		w.SNAT = &loader.WantedSNAT{Where: f.SNAT.placeOf, Addresses: f.SNAT.Addresses, Any: f.SNAT.AnySNAT, Ports: f.SNAT.Ports}
	}
	if t := f.Timeouts; t != nil {
		w.Timeouts = loader.Timeouts{TCP: (*time.Duration)(t.TCP), Closing: (*time.Duration)(t.Closing), UDP: (*time.Duration)(t.UDP)}
	}
	if f.Has("vips") {
		w.VIPs = make([]loader.WantedVIP, len(f.VIPs))
		for i := range f.VIPs {
			w.VIPs[i] = f.VIPs[i].wanted()
		}
	}
	return w
}

func (s *Size) value() uint32 {
	if s == nil {
		return 0
	}
	return uint32(*s)
}

func (i *Interface) wanted() loader.WantedInterface {
	w := loader.WantedInterface{Where: i.placeOf, Name: i.Name, Mode: i.XDPMode}
	if w.Mode == "" {
		w.Mode = loader.XDPAuto
	}
	for _, mac := range i.AcceptMACs {
		w.Accept = append(w.Accept, net.HardwareAddr(mac[:]))
	}
	return w
}

func (v *VIP) wanted() loader.WantedVIP {
	w := loader.WantedVIP{
		Where: v.placeOf, VIP: v.VIP, Mode: v.Mode, Scheduler: v.Scheduler, SourcePrefix: uint8(v.VIP.Addr.BitLen()),
		AffinityGroup: v.AffinityGroup, TrackAll: v.Track == TrackAll, Assign: v.Assign, SNAT: v.SNAT,
	}
	if w.Mode == 0 {
		w.Mode = loader.ModeDR
	}
	if v.SourcePrefix != nil {
		w.SourcePrefix = *v.SourcePrefix
	}
	if v.Affinity != nil {
		w.Affinity = time.Duration(*v.Affinity)
	}
	if v.TableSize != nil {
		w.TableSize = *v.TableSize
	}
	if v.Ipvsadm.Name != "" {
		w.Alias = v.Ipvsadm.Code()
	}
	for i := range v.Backends {
		b := &v.Backends[i]
		backend := loader.WantedBackend{Where: b.placeOf, At: b.Address, Mode: b.Mode, Weight: 1, Drain: b.Drain}
		if b.Weight != nil {
			backend.Weight = *b.Weight
		}
		w.Backends = append(w.Backends, backend)
	}
	return w
}

// Of is the file that asks for w.
func Of(w loader.Wanted) *File {
	f := &File{HashKey: w.HashKey, TunSpread: w.TunSpread, VIPs: []VIP{}}
	f.MaxVIPs, f.MaxBackends, f.MaxFlows = size(w.MaxVIPs), size(w.MaxBackends), size(w.MaxFlows)
	for _, i := range w.Interfaces {
		one := Interface{Name: i.Name}
		if i.Mode != loader.XDPAuto {
			one.XDPMode = i.Mode
		}
		for _, mac := range i.Accept {
			one.AcceptMACs = append(one.AcceptMACs, MAC(mac))
		}
		f.Interfaces = append(f.Interfaces, one)
	}
	if w.SNAT != nil {
		f.SNAT = &SNAT{Addresses: append([]netip.Addr{}, w.SNAT.Addresses...), AnySNAT: w.SNAT.Any, Ports: w.SNAT.Ports}
	}
	f.Timeouts = &Timeouts{TCP: (*Duration)(w.Timeouts.TCP), Closing: (*Duration)(w.Timeouts.Closing), UDP: (*Duration)(w.Timeouts.UDP)}
	for i := range w.VIPs {
		f.VIPs = append(f.VIPs, vipOf(&w.VIPs[i]))
	}
	return f
}

func size(n uint32) *Size {
	if n == 0 {
		return nil
	}
	s := Size(n)
	return &s
}

func vipOf(w *loader.WantedVIP) VIP {
	v := VIP{VIP: w.VIP, Mode: w.Mode, Scheduler: w.Scheduler, AffinityGroup: w.AffinityGroup, Assign: w.Assign, SNAT: w.SNAT}
	if int(w.SourcePrefix) != w.Addr.BitLen() {
		v.SourcePrefix = &w.SourcePrefix
	}
	if called := ipvsadm.OfCode(w.Alias, w.Scheduler.String()); w.Alias == called.Code() {
		v.Ipvsadm = called
	}
	if w.Affinity != 0 {
		v.Affinity = (*Duration)(&w.Affinity)
	}
	if w.TrackAll {
		v.Track = TrackAll
	}
	if w.TableSize != 0 && w.TableSize != maps.DefaultTableSize {
		v.TableSize = &w.TableSize
	}
	for _, b := range w.Backends {
		one := Backend{Address: b.At, Mode: b.Mode, Drain: b.Drain}
		if b.Weight != 1 {
			one.Weight = &b.Weight
		}
		v.Backends = append(v.Backends, one)
	}
	return v
}
