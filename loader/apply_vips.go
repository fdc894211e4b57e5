package loader

import (
	"errors"
	"fmt"
	"slices"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/xdplb/xdplb/bpf"
	"github.com/xdplb/xdplb/maps"
)

// together is how many VIPs are written in one batch: their tables, old and new,
// are in memory at the same time.
const together = 64

// putVIPs adds and changes VIPs.
func (b *Balancer) putVIPs(p *Plan, progress func(int)) error {
	used, groups, err := b.numbers()
	if err != nil {
		return err
	}
	room := int(b.Maps.Backends.MaxEntries()) - 1
	for rest := p.vips; len(rest) > 0; {
		taken := len(b.Maps.ReadBackends(func(uint32) bool { return true }))
		n := 0
		for n < len(rest) && n < together {
			if taken += rest[n].adds; n > 0 && (taken > room || rest[n].reSNAT || rest[n-1].reSNAT) {
				break // these look for what is free beside what is stored; see commitAll
			}
			n++
		}
		if err := b.putBatch(p, rest[:n], used, groups); err != nil {
			return err
		}
		progress(n)
		rest = rest[n:]
	}
	return nil
}

// numbers are those in use: of VIPs, and of affinity groups by their names.
func (b *Balancer) numbers() (vips map[uint32]bool, groups map[string]uint32, err error) {
	services, err := b.Maps.Services()
	vips, groups = make(map[uint32]bool), make(map[string]uint32)
	for i := range services {
		s := &services[i]
		vips[s.Id] = true
		if name := s.Group(); name != "" {
			groups[name] = s.AffinityGroup
		}
	}
	return vips, groups, err
}

// putBatch adds and changes some VIPs together.
func (b *Balancer) putBatch(p *Plan, plans []*vipPlan, used map[uint32]bool, groups map[string]uint32) error {
	changes := make([]*change, len(plans))
	next := uint32(0)
	for i, v := range plans {
		if v.is != nil {
			continue
		}
		for used[next] {
			next++
		}
		used[next] = true
		changes[i] = b.newWanted(v.want, next)
	}
	if err := maps.Parallel(len(plans), func(i int) (err error) { // reads the tables
		if plans[i].is != nil {
			changes[i], err = b.beginService(plans[i].is.Service)
		}
		return err
	}); err != nil {
		return err
	}
	if err := b.editBatch(p, plans, changes, groups); err != nil {
		for _, c := range changes {
			c.discard()
		}
		return err
	}
	if err := b.commitAll(changes); err != nil {
		return err
	}
	for i, c := range changes {
		if _, marked := b.Maps.AddressMark(c.service.Addr); c.added && !marked {
			if err := b.Maps.MarkAddress(c.service.Addr, 0); err != nil {
				return placed(plans[i].want.Where, "vip", fullVIPs(b.Maps, err))
			}
		}
	}
	return nil
}

// editBatch does all of a batch that can fail before it is committed.
func (b *Balancer) editBatch(p *Plan, plans []*vipPlan, changes []*change, groups map[string]uint32) error {
	for i, c := range changes {
		if err := c.become(plans[i], p.hops, groups); err != nil {
			return placed(plans[i].want.Where, "vip", err)
		}
		if !c.added {
			continue
		}
		if err := b.Maps.ResetRetired(c.service.Id); err != nil {
			return err
		}
		if c.service.Port == 0 && !b.Settings.Has(bpf.XdplbSettingFlagSettingAnyPort) {
			if err := b.setAnyPort(true); err != nil {
				return err
			}
		}
	}
	return b.assignBatch(plans)
}

// assignBatch puts addresses on interfaces. The mark first, as in change.assign: it
// says who did it.
func (b *Balancer) assignBatch(plans []*vipPlan) error {
	if !slices.ContainsFunc(plans, func(v *vipPlan) bool { return v.assign != nil }) {
		return nil
	}
	socket, err := announcer()
	if err != nil {
		return err
	}
	defer unix.Close(socket)
	for _, v := range plans {
		if v.assign == nil {
			continue
		}
		addr := v.want.Addr
		if err := b.Maps.MarkAddress(addr, uint32(v.assign.Attrs().Index)); err != nil {
			return placed(v.want.Where, "vip", fullVIPs(b.Maps, err))
		}
		if err := assignTo(v.assign, addr, socket); err != nil {
			return placed(v.want.Where, "vip", errors.Join(err, b.tidyAddresses()))
		}
	}
	return nil
}

// removeVIPs deletes VIPs with all they have. Their packets pass from then on.
func (b *Balancer) removeVIPs(p *Plan, progress func(int)) error {
	var ids []uint32
	for _, v := range p.removed {
		if v.givenBack {
			if err := b.leaveAddress(v.Addr); err != nil {
				return err
			}
		}
		if err := b.Maps.DeleteService(v.VIP); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return fmt.Errorf("%s: %w", v.VIP, err)
		}
		ids = append(ids, v.Id)
	}
	if err := b.Maps.DeleteTables(ids); err != nil {
		return err
	}
	for _, v := range p.removed {
		for i := range v.records {
			if v.Affinity != 0 || v.is.Affinity != 0 {
				if err := b.Maps.DeleteServer(v.Id, v.records[i].Addr()); err != nil {
					return err
				}
			}
			if err := b.Maps.FreeBackend(&v.records[i]); err != nil {
				return err
			}
		}
	}
	progress(len(p.removed))
	return nil
}

// tidyAnyPort takes the setting back when no VIP has port 0.
func (b *Balancer) tidyAnyPort() error {
	services, err := b.Maps.Services()
	if err != nil || !b.Settings.Has(bpf.XdplbSettingFlagSettingAnyPort) || slices.ContainsFunc(services, func(s maps.Service) bool { return s.Port == 0 }) {
		return err
	}
	return b.setAnyPort(false)
}
