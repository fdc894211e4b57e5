package main

import (
	"fmt"
	"net/netip"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/xdplb/xdplb/bpf"
	"github.com/xdplb/xdplb/cmd/xdplb/internal/ipvsadm"
	"github.com/xdplb/xdplb/loader"
	"github.com/xdplb/xdplb/maps"
)

// vipTable is the balancer as ipvsadm sees it.
type vipTable struct {
	ipvsadm.Table
	services map[ipvsadm.Key]maps.Service
	records  map[ipvsadm.Key][]maps.Backend // with those that are unlisted
}

func vipOf(k ipvsadm.Key) (maps.VIP, error) {
	v, err := maps.ParseVIP(k.String())
	if err != nil {
		return v, usageError{err}
	}
	return v, nil
}

func keyOf(v maps.VIP) ipvsadm.Key {
	k := ipvsadm.Key{Proto: ipvsadm.TCP, At: v.AddrPort()}
	if v.Proto == unix.IPPROTO_UDP {
		k.Proto = ipvsadm.UDP
	}
	return k
}

// Ways of forwarding and modes; ipvsadm.Local is dr to an address of this host.
var modeOf = map[ipvsadm.Forward]loader.Mode{
	ipvsadm.Route: loader.ModeDR, ipvsadm.Tunnel: loader.ModeTUN, ipvsadm.Masq: loader.ModeNAT,
	ipvsadm.FullNat: loader.ModeFullNAT, ipvsadm.Local: loader.ModeDR,
}

func forwardOf(record *maps.Backend) ipvsadm.Forward {
	if record.Link.Flags&uint32(bpf.XdplbHopFlagHopLocal) != 0 {
		return ipvsadm.Local
	}
	return forwardIn(loader.Mode(record.Mode))
}

// readTable reads no lookup tables: a thousand are 130 MB.
func readTable(b *loader.Balancer) (t vipTable, err error) {
	services, err := b.Maps.Services()
	if err != nil {
		return t, err
	}
	byID := make(map[uint32][]maps.Backend)
	for _, record := range b.Maps.ReadBackends(func(uint32) bool { return true }) {
		byID[record.Vip] = append(byID[record.Vip], record)
	}
	t.services, t.records = make(map[ipvsadm.Key]maps.Service), make(map[ipvsadm.Key][]maps.Backend)
	for _, s := range services {
		k := keyOf(s.VIP)
		t.services[k], t.records[k] = s, byID[s.Id]
		t.Table = append(t.Table, serviceOf(b, &s, byID[s.Id]))
	}
	t.Sort()
	return t, nil
}

// givenBack reports whether a service is IPVS's from now on.
func (t *vipTable) givenBack(k ipvsadm.Key) bool {
	return loader.GivenBack(t.services[k].VIP, t.records[k])
}

// do is Do, which knows nothing of services that exist and will not stay.
func (t *vipTable) do(c ipvsadm.Command) (notes []string, err error) {
	if c.Action == ipvsadm.AddService && t.givenBack(*c.Service) {
		return nil, fmt.Errorf("%s: exists, and is being given back; take it again with: %s", c.Service, loader.TakeAgain(t.services[*c.Service].VIP))
	}
	return t.Do(c)
}

func (t *vipTable) dropGivenBack() {
	t.Table = slices.DeleteFunc(t.Table, func(s ipvsadm.Service) bool { return t.givenBack(s.Key) })
}

func serviceOf(b *loader.Balancer, s *maps.Service, records []maps.Backend) ipvsadm.Service {
	one := ipvsadm.Service{Key: keyOf(s.VIP), Scheduling: ipvsadm.OfCode(s.Alias, s.InUse().Scheduler.String())}
	if affinity := b.Affinity(s, records); affinity > 0 {
		one.Persistent = uint32(max(affinity.Round(time.Second)/time.Second, 1))
		one.MaskBits = int(loader.SourcePrefix(s))
	}
	for i := range records {
		record := &records[i]
		// While a record is replaced both are listed for a moment.
		if !record.Listed() || one.Server(record.AddrPort()) != nil {
			continue
		}
		server := ipvsadm.Server{At: record.AddrPort(), Forward: forwardOf(record), Weight: record.Weight}
		if record.Has(bpf.XdplbBackendFlagBackendDrain) {
			server.Weight = 0 // which is what ipvsadm calls it
		}
		one.Servers = append(one.Servers, server)
	}
	return one
}

// place is a server of a service.
type place struct {
	service ipvsadm.Key
	server  netip.AddrPort
}

// connections are live ones.
type connections struct{ active, inactive uint64 }

// halfOpen is for how long a connection that only its SYN shows may become one: a
// client answers a SYN-ACK at once, and repeats what was lost.
const halfOpen = 10 * time.Second

// count walks the flow tables. Active is every connection that its server may
// still have; IPVS counts less: there UDP, and what either side has closed, never is.
func (t *vipTable) count(b *loader.Balancer, only *maps.VIP) (map[place]connections, error) {
	now, err := b.Now()
	if err != nil {
		return nil, err
	}
	counts := make(map[place]connections)
	err = b.LiveFlows(loader.Selection{VIP: only}, func(f loader.FlowView) {
		k, known := t.owner(f)
		if !known {
			return
		}
		p := place{k, f.At}
		c := counts[p]
		waiting := !f.Spoken && f.Proto == unix.IPPROTO_TCP && f.Idle > halfOpen
		if b.Settings.Left(f.Flow, now) && !waiting {
			c.active++
		} else {
			c.inactive++
		}
		counts[p] = c
	})
	return counts, err
}

// owner is the service of a flow: that of its port, or that of every port.
func (t *vipTable) owner(f loader.FlowView) (ipvsadm.Key, bool) {
	sent := f.FromClient()
	for _, port := range []uint16{sent.DstPort, 0} {
		k := keyOf(maps.VIP{Addr: sent.Dst, Port: port, Proto: f.Proto})
		if _, known := t.services[k]; known {
			return k, true
		}
	}
	return ipvsadm.Key{}, false
}

// fillConnections sets how many connections servers have. Where they are not
// followed nobody knows; where that began a while ago, silent ones may not have
// been seen, and 0 would say that there are none: then it is 1.
func (t *vipTable) fillConnections(b *loader.Balancer, only *maps.VIP) error {
	counts, err := t.count(b, only)
	if err != nil {
		return err
	}
	now, err := b.Now()
	if err != nil {
		return err
	}
	for i := range t.Table {
		one := &t.Table[i]
		s := t.services[one.Key]
		followed, all := s.ChangedAt, s.Has(bpf.XdplbVipFlagVipPinAll)
		if all {
			followed = s.PinnedSince
		}
		young := now-min(followed, now) <= b.Settings.Idle(s.Proto)
		for j := range one.Servers {
			server := &one.Servers[j]
			c := counts[place{one.Key, server.At}]
			if young && c.active == 0 {
				c.active = 1
			}
			unknown := !all && server.Weight > 0
			server.Active = ipvsadm.Count{N: c.active, Unknown: unknown}
			server.Inactive = ipvsadm.Count{N: c.inactive, Unknown: unknown}
		}
	}
	return nil
}

// fillCounters sets the counters. A service's are those of its former servers, too.
func (t *vipTable) fillCounters(b *loader.Balancer) error {
	for i := range t.Table {
		one := &t.Table[i]
		sum, err := b.Maps.RetiredCounters(t.services[one.Key].Id)
		if err != nil {
			return err
		}
		for _, record := range t.records[one.Key] {
			c, err := b.Maps.BackendCounters(record.Id)
			if err != nil {
				return err
			}
			sum.Add(c)
			if server := one.Server(record.AddrPort()); server != nil {
				server.Figures = added(server.Figures, figuresOf(c))
			}
		}
		one.Figures = figuresOf(sum)
	}
	return nil
}

func figuresOf(c maps.Counters) ipvsadm.Figures {
	return ipvsadm.Figures{
		Connections: c.Connections, InPackets: c.Packets, OutPackets: c.ReplyPackets, InBytes: c.Bytes, OutBytes: c.ReplyBytes,
	}
}

func added(a, b ipvsadm.Figures) ipvsadm.Figures {
	return ipvsadm.Figures{
		Connections: a.Connections + b.Connections, InPackets: a.InPackets + b.InPackets, OutPackets: a.OutPackets + b.OutPackets,
		InBytes: a.InBytes + b.InBytes, OutBytes: a.OutBytes + b.OutBytes,
	}
}
