package loader

import (
	"fmt"
	"net/netip"
	"time"

	"github.com/xdplb/xdplb/bpf"
	"github.com/xdplb/xdplb/maps"
)

// KeptClient is a client that keeps its backend under --affinity. In a group it is
// one of the VIP that it was last sent to.
type KeptClient struct {
	maps.VIP
	Client  netip.Addr // masked
	At      netip.AddrPort
	Expires time.Duration
}

// KeptClients calls f for each client that keeps a backend.
func (b *Balancer) KeptClients(f func(KeptClient)) error {
	services, err := b.Maps.Services()
	if err != nil {
		return err
	}
	byID := make(map[uint32]*maps.Service, len(services))
	for i := range services {
		byID[services[i].Id] = &services[i]
	}
	records := make(map[uint32]maps.Backend)
	for _, record := range b.Maps.ReadBackends(func(uint32) bool { return true }) {
		records[record.Id] = record
	}
	now, err := b.Now()
	if err != nil {
		return err
	}
	var key bpf.XdplbAffinityKey
	var value bpf.XdplbAffinity
	it := b.Maps.Affinities.Iterate()
	for it.Next(&key, &value) {
		record, there := records[uint32(value.Turn)]
		s := byID[record.Vip]
		if !there || s == nil || s.Affinity == 0 {
			continue
		}
		// The clock's lower half, as the data path compares it.
		left := int64(s.Affinity) - int64(int32(uint32(now)-uint32(value.Turn>>32)))
		if left > 0 {
			f(KeptClient{s.VIP, maps.Addr(key.Client), record.AddrPort(), b.Settings.Duration(uint64(left))})
		}
	}
	if err := it.Err(); err != nil {
		return fmt.Errorf("reading kept clients: %w", err)
	}
	return nil
}
