package loader

import (
	"net/netip"

	"github.com/cilium/ebpf"

	"github.com/xdplb/xdplb/bpf"
	"github.com/xdplb/xdplb/maps"
)

// Limits of bpf/schedule.h.
const (
	rrTries = 8
	lcTries = 16
)

// choose is choose_backend: who gets a new flow.
func (w *walk) choose() uint32 {
	if w.VIP.Affinity != 0 {
		if id := w.kept(); id != 0 {
			return id
		}
	}
	switch w.VIP.InUse().Scheduler {
	case maps.SchedulerRR:
		return w.nextInTurn()
	case maps.SchedulerLC:
		return w.lessLoaded()
	}
	w.Choice = &ExplainedChoice{By: BySlot}
	return w.Slot.Backend
}

// nextInTurn is next_in_turn, as the cursor stands now.
func (w *walk) nextInTurn() uint32 {
	var cursor uint32
	var table *ebpf.Map
	if !w.look(w.Cursors, w.VIP.Id, &cursor) || !w.look(w.Tables, w.VIP.Id, &table) {
		return 0
	}
	defer table.Close()
	for range rrTries {
		index := cursor % w.VIP.TableSize
		if slot, there := w.slotAt(table, index); there && w.up(slot.Backend) {
			w.Choice = &ExplainedChoice{By: ByTurn, Turn: index}
			return slot.Backend
		}
		cursor++
	}
	return 0
}

// takesNew is takes_new of bpf/schedule.h, which does not ask who is listed.
func takesNew(b *maps.Backend) bool {
	return b != nil && b.Weight > 0 && b.Resolved() && b.Up() && !b.Has(bpf.XdplbBackendFlagBackendDrain)
}

// load is load_of.
func (w *walk) load(b *maps.Backend) uint64 {
	var load uint64
	if !w.look(w.Loads, maps.Index(b.Id), &load) || int64(load) < 0 {
		return 0
	}
	return load
}

// lessLoaded is less_loaded.
func (w *walk) lessLoaded() uint32 {
	first, second := w.backend(w.Slot.Backend), w.secondChoice()
	w.Choice = &ExplainedChoice{By: BySlot}
	switch {
	case !takesNew(second):
		return w.Slot.Backend
	case !takesNew(first):
		w.Choice.By = ByLoad
		w.Choice.Loads = []ExplainedLoad{{*second, w.load(second)}}
		return second.Id
	}
	a, b := w.load(first), w.load(second)
	w.Choice = &ExplainedChoice{By: ByLoad, Loads: []ExplainedLoad{{*first, a}, {*second, b}}}
	if a*uint64(second.Weight) <= b*uint64(first.Weight) {
		return first.Id
	}
	return second.Id
}

// secondChoice is second_choice.
func (w *walk) secondChoice() *maps.Backend {
	var table *ebpf.Map
	if !w.look(w.Tables, w.VIP.Id, &table) {
		return nil
	}
	defer table.Close()
	index := uint32(uint64(uint32(w.hash)) * uint64(w.VIP.TableSize) >> 32)
	for i := range uint32(lcTries) {
		if slot, there := w.slotAt(table, index+i); there && slot.Backend != w.Slot.Backend {
			return w.backend(slot.Backend)
		}
	}
	return nil
}

// kept is kept_backend: who the client had last, or 0.
func (w *walk) kept() uint32 {
	client := w.Src.As16()
	prefix := int(w.VIP.InUse().SourcePrefix)
	masked, err := netip.AddrFrom16(client).Prefix(prefix)
	if err != nil {
		return 0
	}
	key := bpf.XdplbAffinityKey{Client: bpf.XdplbAddress{Bytes: masked.Addr().As16()}, Group: w.VIP.AffinityGroup}
	if key.Group == 0 {
		group := bpf.XdplbAffinityGroupAffinityOfVip // negative as a Go constant
		key.Group = uint32(group) | w.VIP.Id
	}
	var kept bpf.XdplbAffinity
	if !w.look(w.Affinities, key, &kept) {
		return 0
	}
	idle := int32(uint32(w.now) - uint32(kept.Turn>>32))
	if idle >= int32(w.VIP.Affinity) {
		return 0
	}
	choice := &ExplainedChoice{By: ByAffinity, Client: maps.Addr(key.Client).String(), Idle: w.settings.Duration(uint64(max(idle, 0)))}
	b := w.backend(uint32(kept.Turn))
	if b != nil && b.Vip == w.VIP.Id && !b.Has(bpf.XdplbBackendFlagBackendUnlisted) && takesNew(b) {
		w.Choice = choice
		return b.Id
	}
	server := kept.Server
	if b != nil {
		server = b.Address
	}
	var id uint32
	if !w.look(w.Servers, bpf.XdplbServerKey{Address: server, Vip: w.VIP.Id}, &id) || !takesNew(w.backend(id)) {
		return 0
	}
	w.Choice = choice
	return id
}
