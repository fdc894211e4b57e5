package loader

import (
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/cilium/ebpf"

	"github.com/xdplb/xdplb/bpf"
	"github.com/xdplb/xdplb/maps"
)

// Active is how many connections a backend has; where it drains, with those that
// its client closed a moment ago and that may still carry data. Unknown where flows
// are not followed; AtLeast while silent ones may not have been seen yet.
type Active struct {
	Known, AtLeast bool
	Count          int
}

// BackendView is a backend as users see it.
type BackendView struct {
	At       netip.AddrPort
	Mode     Mode
	Weight   uint16
	Draining bool
	Health   string // unknown, up or down
	Resolved bool
	Active   Active
	maps.Counters
}

// VIPView is a VIP as users see it. Its counters never go down.
type VIPView struct {
	maps.Service
	Backends     []BackendView
	SNAT         []netip.Addr // its own; none: the pool's
	MovingSlots  int
	Fingerprint  string        // of the table: equal on balancers that choose alike
	AffinityTime time.Duration // 0: none
	Handover     *HandoverView // nil: none
	Active       Active
	maps.Counters
}

// Views reads all VIPs, or one. Live also reads counters and connections, which
// takes a walk through the flow tables.
func (b *Balancer) Views(only *maps.VIP, live bool) ([]VIPView, error) {
	services, err := b.services(Selection{VIP: only})
	if err != nil {
		return nil, err
	}
	byVIP := make(map[uint32][]maps.Backend)
	for _, backend := range b.Maps.ReadBackends(func(uint32) bool { return true }) {
		byVIP[backend.Vip] = append(byVIP[backend.Vip], backend)
	}
	now, err := b.Now()
	if err != nil {
		return nil, err
	}
	var active map[uint32]connections
	if live {
		if active, err = b.activeFlows(now); err != nil {
			return nil, err
		}
	}
	var views []VIPView
	for _, s := range services {
		view, err := b.view(s, byVIP[s.Id], active, now)
		if errors.Is(err, ebpf.ErrKeyNotExist) {
			continue // deleted while we read
		}
		if err != nil {
			return nil, fmt.Errorf("%s: %w", s.VIP, err)
		}
		views = append(views, view)
	}
	return views, nil
}

// connections are those that count, and those that a drain waits for.
type connections struct{ active, left int }

func (c connections) count(drains bool) int {
	if drains {
		return c.left
	}
	return c.active
}

func (b *Balancer) activeFlows(now uint64) (map[uint32]connections, error) {
	active := make(map[uint32]connections)
	return active, b.walkLive(now, func(f maps.Flow) {
		c := active[f.Backend]
		if b.Settings.Active(f, now) {
			c.active++
		}
		if b.Settings.Left(f, now) {
			c.left++
		}
		active[f.Backend] = c
	})
}

// view makes the view of one VIP; without active flows it is not live.
func (b *Balancer) view(s maps.Service, records []maps.Backend, active map[uint32]connections, now uint64) (VIPView, error) {
	v := VIPView{Service: s, AffinityTime: b.Affinity(&s, records)}
	slots, err := b.Maps.Table(s.Id)
	if err != nil {
		return v, err
	}
	v.MovingSlots = maps.Moving(slots)
	if v.SNAT, err = b.Maps.SNATOf(&s); err != nil {
		return v, err
	}
	places := make(map[uint32]netip.AddrPort)
	live, pinned, followed := active != nil, s.Has(bpf.XdplbVipFlagVipPinAll), s.ChangedAt
	if pinned {
		followed = s.PinnedSince
	}
	young := now-followed <= b.Settings.Idle(s.Proto)
	atServer := make(map[netip.AddrPort]connections) // with those that a replaced record keeps
	drains := make(map[netip.AddrPort]bool)
	for i := range records {
		record, at := &records[i], records[i].AddrPort()
		places[record.Id] = at
		c, more := atServer[at], active[record.Id]
		atServer[at] = connections{c.active + more.active, c.left + more.left}
		drains[at] = drains[at] || record.Listed() && drained(record)
	}
	for at, c := range atServer {
		v.Active.Count += c.count(drains[at])
	}
	for i := range records {
		record := &records[i]
		view := viewOf(record)
		view.Active = Active{Known: live && (pinned || drained(record)), AtLeast: young, Count: atServer[view.At].count(drains[view.At])}
		if live {
			if view.Counters, err = b.Maps.BackendCounters(record.Id); err != nil {
				return v, err
			}
			v.Counters.Add(view.Counters)
		}
		if record.Up() && IsLocalStack(s.VIP, record) {
			v.Handover = b.handoverView(record, now)
			v.Handover.Local = view
			continue
		}
		// While a record is replaced both are listed, for a moment or until the next
		// command if this one is killed. They stand side by side.
		if n := len(v.Backends); record.Listed() && (n == 0 || v.Backends[n-1].At != view.At) {
			v.Backends = append(v.Backends, view)
		}
	}
	v.Active.Known, v.Active.AtLeast = live && pinned, young
	v.Fingerprint = maps.Digest(slots, func(id uint32) netip.AddrPort { return places[id] })
	if live {
		retired, err := b.Maps.RetiredCounters(s.Id)
		if err != nil {
			return v, err
		}
		v.Counters.Add(retired)
	}
	return v, nil
}

// drained reports whether a backend shall take no new flows.
func drained(b *maps.Backend) bool {
	return b.Weight == 0 || b.Has(bpf.XdplbBackendFlagBackendDrain)
}

func viewOf(b *maps.Backend) BackendView {
	view := BackendView{
		At: b.AddrPort(), Mode: Mode(b.Mode), Weight: b.Weight, Resolved: b.Resolved(),
		Draining: b.Has(bpf.XdplbBackendFlagBackendDrain), Health: "unknown",
	}
	switch {
	case b.Has(bpf.XdplbBackendFlagBackendDown):
		view.Health = "down"
	case b.Has(bpf.XdplbBackendFlagBackendHealthy):
		view.Health = "up"
	}
	return view
}
