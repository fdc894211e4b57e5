package loader

import (
	"slices"

	"github.com/xdplb/xdplb/bpf"
	"github.com/xdplb/xdplb/maps"
)

// translates reports whether a mode rewrites addresses, so that its flows have two directions.
func (m Mode) translates() bool { return m == ModeNAT || m == ModeFullNAT }

// pinsAll reports whether every flow of the VIP is to be pinned: because the user
// says so, because only a pin knows who has a flow, or because a backend rewrites
// addresses. Replaced records count while they live.
func (c *change) pinsAll() bool {
	return c.service.Has(bpf.XdplbVipFlagVipTrackAll) || c.schedules() || c.translates()
}

func (c *change) translates() bool {
	return slices.ContainsFunc(c.backends, func(b maps.Backend) bool {
		return !c.removed[b.Id] && Mode(b.Mode).translates()
	})
}

// follow makes the VIP pin all its flows, or no longer. Every slot moves: when it
// begins, because who has a flow is what the slots say; when it ends, because the
// pins then say it, until they have timed out.
func (c *change) follow() error {
	all := c.pinsAll()
	if all == c.service.Has(bpf.XdplbVipFlagVipPinAll) {
		return nil
	}
	since := uint64(0)
	if empty := !slices.ContainsFunc(c.slots, func(s maps.Slot) bool { return s.Backend != 0 || s.Old != 0 }); all && empty {
		since = 1 // all its flows are pinned, from the first
	} else {
		c.moveAll = true
		if all {
			now, err := c.b.Now()
			if err != nil {
				return err
			}
			since = now
		}
	}
	c.service.SetFlag(bpf.XdplbVipFlagVipPinAll, all)
	c.service.PinnedSince = since
	if all { // from before the slots name who needs it
		c.stored.SetFlag(bpf.XdplbVipFlagVipPinAll, true)
		c.stored.PinnedSince = since
	}
	return nil
}

// expectReplies tells the data path that replies may come, before the first
// backend that gets them can be chosen.
func (c *change) expectReplies() error {
	if !c.translates() || c.b.Settings.Has(bpf.XdplbSettingFlagSettingTranslates) {
		return nil
	}
	c.b.Settings.SetFlag(bpf.XdplbSettingFlagSettingTranslates, true)
	return c.b.Maps.PutSettings(c.b.Settings)
}

// tidyReplies takes that back when no record is left that needs it.
func (b *Balancer) tidyReplies() error {
	if !b.Settings.Has(bpf.XdplbSettingFlagSettingTranslates) {
		return nil
	}
	if b.Maps.AnyBackend(func(mode uint8) bool { return Mode(mode).translates() }) {
		return nil
	}
	b.Settings.SetFlag(bpf.XdplbSettingFlagSettingTranslates, false)
	return b.Maps.PutSettings(b.Settings)
}
