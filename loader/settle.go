package loader

import (
	"iter"
	"time"

	"github.com/xdplb/xdplb/bpf"
	"github.com/xdplb/xdplb/maps"
)

// settleMargin is more than the time between the first stamp of a change and its
// last slot.
const settleMargin = time.Second

// settle ends the moving of slots once the VIP's last change is older than the
// idle timeout: every flow that was silent since has timed out, and every other
// has a pin. Records that were replaced and that nothing names any more go, too.
func (c *change) settle() error {
	s := &c.service
	now, err := c.b.Now()
	if err != nil || !c.unsettled() || c.handsOver(now) || now-s.ChangedAt <= c.b.Settings.Idle(s.Proto)+c.b.Settings.Jiffies(settleMargin) {
		return err
	}
	expired := func(f maps.Flow) bool { return !c.b.Settings.Live(f, now) }
	named := make(map[uint32]bool) // backends of live pins
	var failed error
	pins := c.pins(now, named, &failed)
	next, dead := maps.Settle(c.slots, pins, c.settleable(), s.Has(bpf.XdplbVipFlagVipWas))
	if failed != nil {
		return failed
	}
	if c.translates() { // an entry may be gone whose twin brings it back
		if err := c.b.Maps.Replies(func(f maps.Flow) {
			if c.b.Settings.Live(f, now) {
				named[f.Backend] = true
			}
		}); err != nil {
			return err
		}
	}
	next = c.release(next, named)
	for _, pin := range dead {
		if err := c.b.Maps.DeleteFlow(pin.Flow(), expired); err != nil {
			return err
		}
	}
	if s.Has(bpf.XdplbVipFlagVipWas) && maps.Moving(next) == 0 {
		// Before the table: `old` is then read at the function in use.
		s.SetFlag(bpf.XdplbVipFlagVipWas, false)
		c.stored.SetFlag(bpf.XdplbVipFlagVipWas, false)
		if err := c.b.Maps.PutService(&c.stored); err != nil {
			return err
		}
	}
	if changed(c.slots, next) {
		if err := c.b.Maps.PutTable(s.Id, next); err != nil {
			return err
		}
		c.slots = next
	}
	c.ended = c.gaveBack(named)
	if c.givesBack() { // also where the table does not say so yet: a command was killed
		named[c.localStack().Id] = true
	}
	for _, slot := range c.slots {
		named[slot.Backend], named[slot.Old] = true, true
	}
	for i := range c.backends {
		if b := &c.backends[i]; b.Has(bpf.XdplbBackendFlagBackendUnlisted) && !named[b.Id] {
			c.removed[b.Id] = true
		}
	}
	return nil
}

// unsettled reports whether there is anything to settle.
func (c *change) unsettled() bool {
	if c.service.Has(bpf.XdplbVipFlagVipWas) || maps.Moving(c.slots) > 0 {
		return true
	}
	for i := range c.backends {
		if c.backends[i].Has(bpf.XdplbBackendFlagBackendUnlisted) {
			return true
		}
	}
	return false
}

// pins iterates over the pins of the VIP, and notes the backends of live ones.
func (c *change) pins(now uint64, named map[uint32]bool, failed *error) iter.Seq[maps.Pin] {
	return func(yield func(maps.Pin) bool) {
		function, key := c.service.InUse(), &c.b.Settings.HashKey
		*failed = c.b.Maps.Flows(func(f maps.Flow) bool {
			if !c.owns(f) {
				return true
			}
			dead := !c.b.Settings.Live(f, now)
			if !dead {
				named[f.Backend] = true
			}
			return yield(f.Pin(maps.SlotIndex(function.Hash(key, f.Tuple), c.service.TableSize), dead))
		})
	}
}

// owns reports whether a flow is of this VIP: one of a port-0 VIP is not if
// another VIP has its port.
func (c *change) owns(f maps.Flow) bool {
	if !f.Of(c.service.VIP) {
		return false
	}
	return c.service.Port != 0 || !c.b.hasVIP(maps.VIP{Addr: f.Dst, Port: f.DstPort, Proto: f.Proto})
}
