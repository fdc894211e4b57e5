package loader

import (
	"github.com/cilium/ebpf"

	"github.com/xdplb/xdplb/bpf"
	"github.com/xdplb/xdplb/maps"
)

// ZeroCounters makes the counters of one VIP or of all begin at zero, and with them
// its totals. What became of packets (Packets) goes on counting.
func (b *Balancer) ZeroCounters(only *maps.VIP) error {
	services, err := b.services(Selection{VIP: only})
	if err != nil {
		return err
	}
	for _, s := range services {
		for _, record := range b.Maps.ReadBackends(func(vip uint32) bool { return vip == s.Id }) {
			if err := b.zeroBackend(maps.Index(record.Id)); err != nil {
				return err
			}
		}
		if err := b.Maps.ResetRetired(s.Id); err != nil {
			return err
		}
	}
	return nil
}

// zeroBackend writes again what a packet undid that was counted meanwhile: it adds
// to what it has read, so the old number comes back, and a little more.
func (b *Balancer) zeroBackend(index uint32) error {
	cpus, err := ebpf.PossibleCPU()
	if err != nil {
		return err
	}
	var before, after []bpf.XdplbCounters
	if err := b.Maps.Counters.Lookup(index, &before); err != nil {
		return err
	}
	const tries = 8
	for range tries {
		if err := b.Maps.Counters.Put(index, make([]bpf.XdplbCounters, cpus)); err != nil {
			return err
		}
		if err := b.Maps.Counters.Lookup(index, &after); err != nil {
			return err
		}
		undone := false
		for i := range after {
			undone = undone || undoes(before[i].Packets, after[i].Packets) || undoes(before[i].Bytes, after[i].Bytes) ||
				undoes(before[i].ReplyPackets, after[i].ReplyPackets) || undoes(before[i].ReplyBytes, after[i].ReplyBytes) ||
				undoes(before[i].Connections, after[i].Connections)
		}
		if !undone {
			return nil
		}
	}
	return nil
}

func undoes(before, after uint64) bool { return before > 0 && after >= before }
