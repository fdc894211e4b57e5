package loader

import (
	"cmp"
	"fmt"

	"github.com/xdplb/xdplb/bpf"
	"github.com/xdplb/xdplb/maps"
)

// commitAll writes changes to several VIPs together, each in the order that keeps
// it valid: records before the slots that name them; the time of the change before
// the slots that move, lest they settle too early; slots that move before the
// function that needs them; removed records last. What comes and what goes is
// listed or not as the table says: see mend. Of a VIP that is new the table comes
// before its record.
//
// VIPs that place SNAT addresses or name a new group must come one by one: they
// look at what is stored for free numbers.
func (b *Balancer) commitAll(changes []*change) error {
	for _, c := range changes {
		if err := c.prepare(); err != nil {
			return c.failed(err)
		}
	}
	// The tables: work for all processors, which no other part of a change is.
	next := make([][]maps.Slot, len(changes))
	if err := maps.Parallel(len(changes), func(i int) (err error) {
		next[i], err = changes[i].next()
		return err
	}); err != nil {
		return err
	}
	var ids []uint32
	var tables [][]maps.Slot
	var swapped, stored []*maps.Service
	for i, c := range changes {
		if !c.added && !changed(c.slots, next[i]) {
			continue
		}
		if err := c.stamp(); err != nil {
			return err
		}
		if !c.added {
			stored = append(stored, &c.stored)
		}
		ids, tables, c.slots = append(ids, c.service.Id), append(tables, next[i]), next[i]
		swapped = append(swapped, &c.service)
	}
	if err := cmp.Or(b.Maps.PutServices(stored), b.Maps.PutTables(ids, tables)); err != nil {
		return fullVIPs(b.Maps, err)
	}
	if len(swapped) > 0 {
		// Anew: packets that came before the swap have left no pins. Of a command that
		// is killed right here settleMargin makes up for it.
		now, err := b.Now()
		if err != nil {
			return err
		}
		for _, s := range swapped {
			s.ChangedAt = now
		}
	}
	services := make([]*maps.Service, len(changes))
	for i, c := range changes {
		c.switchFunction()
		services[i] = c.toStore()
	}
	if err := b.Maps.PutServices(services); err != nil {
		return fullVIPs(b.Maps, err)
	}
	for _, c := range changes {
		if err := c.finish(); err != nil {
			return c.failed(err)
		}
	}
	return nil
}

func (c *change) failed(err error) error { return fmt.Errorf("%s: %w", c.service.VIP, err) }

// prepare writes what the next table needs.
func (c *change) prepare() error {
	if err := cmp.Or(c.placeSNAT(), c.follow(), c.expectReplies()); err != nil {
		return err
	}
	c.noteAffinity()
	c.writeBefore()
	return c.putServers()
}

// next is the table that follows.
func (c *change) next() ([]maps.Slot, error) {
	slots := c.slots
	if c.moveAll {
		slots = maps.MoveAll(slots)
	}
	wanted, err := c.wanted()
	if err != nil {
		return nil, err
	}
	return maps.Rebuild(slots, wanted, c.up()), nil
}

// switchFunction puts another slot function in use, and keeps the one before.
func (c *change) switchFunction() {
	function := bpf.XdplbSlotFunction{Scheduler: uint8(c.function.Scheduler), SourcePrefix: c.function.SourcePrefix}
	if !c.added && c.service.InUse() != c.function && !c.service.Has(bpf.XdplbVipFlagVipWas) {
		c.service.Was = c.service.Function
		c.service.SetFlag(bpf.XdplbVipFlagVipWas, true)
	}
	c.service.Function = function
}

// finish lists what is new, and gives back what nothing names any more.
func (c *change) finish() error {
	c.writeAfter()
	return cmp.Or(c.dropServers(), c.dropRemoved())
}
