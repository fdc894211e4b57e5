package loader

import (
	"fmt"
	"net/netip"

	"github.com/xdplb/xdplb/bpf"
	"github.com/xdplb/xdplb/maps"
)

// newChange is a change to a VIP that is not stored as yet.
func (b *Balancer) newChange(s maps.Service) *change {
	return &change{
		b: b, service: s, stored: s, slots: make([]maps.Slot, s.TableSize), function: s.InUse(), added: true,
		fresh: make(map[uint32]bool), removed: make(map[uint32]bool), dirty: make(map[uint32]bool),
	}
}

// newWanted is that of one that is wanted.
func (b *Balancer) newWanted(w *WantedVIP, id uint32) *change {
	s := maps.Service{VIP: w.VIP}
	s.Id, s.TableSize, s.Mode = id, w.TableSize, uint8(w.Mode)
	if s.TableSize == 0 {
		s.TableSize = maps.DefaultTableSize
	}
	s.Function.SourcePrefix = 128
	return b.newChange(s)
}

// become edits the VIP to what is planned. groups are the numbers of the groups in
// use; a new one is added.
func (c *change) become(v *vipPlan, hops map[netip.Addr]Resolution, groups map[string]uint32) error {
	w, s := v.want, &c.service
	o := VIPOptions{Scheduler: &w.Scheduler, Affinity: &w.Affinity, TrackAll: &w.TrackAll}
	if w.usesPrefix() {
		o.SourcePrefix = &w.SourcePrefix
	}
	if w.Alias != 0 {
		o.Alias = &w.Alias
	}
	if err := o.apply(c); err != nil {
		return fmt.Errorf("%s: %w", w.VIP, err)
	}
	if w.AffinityGroup != "" && groups[w.AffinityGroup] == 0 {
		groups[w.AffinityGroup] = freeNumber(groups)
	}
	if s.Group() != w.AffinityGroup {
		s.SetGroup(w.AffinityGroup, groups[w.AffinityGroup])
	}
	if v.reSNAT {
		c.snat = &w.SNAT
	}
	if c.added {
		c.moveAll = false // there is nothing that could move
	}
	s.Mode = uint8(w.Mode)
	if err := c.becomeHandover(w); err != nil {
		return fmt.Errorf("%s: %w", w.VIP, err)
	}
	return c.becomeBackends(w, hops)
}

func (c *change) becomeHandover(w *WantedVIP) error {
	switch {
	case w.Handover == 0:
		return nil
	case c.added:
		return c.takeOver(w.Handover)
	case c.givesBack():
		return c.takeAgain(w.Handover)
	}
	return nil
}

func freeNumber(groups map[string]uint32) uint32 {
	used := make(map[uint32]bool)
	for _, number := range groups {
		used[number] = true
	}
	number := uint32(1)
	for used[number] {
		number++
	}
	return number
}

func (c *change) becomeBackends(w *WantedVIP, hops map[netip.Addr]Resolution) error {
	wanted := make(map[netip.AddrPort]bool, len(w.Backends))
	for i := range w.Backends {
		wanted[w.Backends[i].At] = true
	}
	for i := range c.backends { // with the records that were replaced
		if b := &c.backends[i]; !wanted[b.AddrPort()] && !IsLocalStack(c.service.VIP, b) {
			c.removed[b.Id] = true
		}
	}
	for i := range w.Backends {
		b := &w.Backends[i]
		if err := c.becomeBackend(w, b, hops[b.At.Addr()]); err != nil {
			return placed(b.Where, "address", err)
		}
	}
	return nil
}

func (c *change) becomeBackend(w *WantedVIP, b *WantedBackend, res Resolution) error {
	mode := w.modeOf(b)
	record := c.find(b.At)
	if record != nil && Mode(record.Mode) == mode {
		before := *record
		b.describeTo(&record.XdplbBackend)
		if !record.Resolved() {
			if hop, err := c.hop(b.At, mode, res); err == nil {
				record.Mac, record.Link, record.Source = hop.Mac, hop.Link, hop.Source
			}
		}
		if *record != before {
			c.dirty[record.Id] = true
		}
		return nil
	}
	next, err := c.hop(b.At, mode, res)
	if err != nil {
		return err
	}
	next.Address, next.Port, next.Mode = maps.Address(b.At.Addr()), b.At.Port(), uint8(mode)
	next.Weight, next.Restore = 1, 1
	if record != nil { // with another mode: what it has keeps the old one
		next.Weight, next.Restore, next.Flags = record.Weight, record.Restore, record.Flags
		record.SetFlag(bpf.XdplbBackendFlagBackendUnlisted, true)
		c.dirty[record.Id] = true
	}
	b.describeTo(&next)
	return c.add(next) // last: it may move c.backends
}

// describeTo writes what is wanted into a record.
func (b *WantedBackend) describeTo(record *bpf.XdplbBackend) {
	if record.Weight != b.Weight {
		setWeight(record, b.Weight)
	}
	one := maps.Backend{XdplbBackend: *record}
	one.SetFlag(bpf.XdplbBackendFlagBackendDrain, b.Drain)
	one.SetFlag(bpf.XdplbBackendFlagBackendInherits, b.Mode == 0)
	*record = one.XdplbBackend
}
