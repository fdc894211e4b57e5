package main

import (
	"net/netip"
	"slices"
	"time"

	"github.com/xdplb/xdplb/bpf"
	"github.com/xdplb/xdplb/cmd/xdplb/internal/ipvsadm"
	"github.com/xdplb/xdplb/loader"
	"github.com/xdplb/xdplb/maps"
)

// change does one of -A -E -D -a -e -d -C. What can be refused is refused before
// anything is attached.
func (r *ipvsadmRun) change() error {
	table, err := r.table()
	if err != nil {
		return err
	}
	if _, err := table.do(r.Command); err != nil {
		return err
	}
	var v maps.VIP
	if r.Service != nil {
		if v, err = vipOf(*r.Service); err != nil {
			return err
		}
	}
	switch r.Action {
	case ipvsadm.Clear:
		return r.clear()
	case ipvsadm.AddService:
		if err := r.withInterface(vipWay(v.Addr), func() error { return r.commit(v) }); err != nil {
			return err
		}
		r.sayForeign(v.Addr)
		return nil
	case ipvsadm.AddServer, ipvsadm.EditServer:
		if err := loader.Probe([]netip.Addr{r.Host}); err != nil {
			return err
		}
		return r.withInterface(serverWay(r.Host), func() error { return r.commit(v) })
	}
	return r.commit(v)
}

// commit changes the balancer as the table changes. Under the lock it is read anew.
func (r *ipvsadmRun) commit(v maps.VIP) error {
	return change(r.env, func(b *loader.Balancer) error {
		t, err := readTable(b)
		if err != nil {
			return err
		}
		before := t.Clone()
		notes, err := t.do(r.Command)
		if err != nil {
			return err
		}
		if err := r.apply(b, v, before, t); err != nil {
			return err
		}
		r.say(notes...)
		return nil
	})
}

func (r *ipvsadmRun) apply(b *loader.Balancer, v maps.VIP, before ipvsadm.Table, t vipTable) error {
	after := t.Find(*r.Service)
	switch r.Action {
	case ipvsadm.AddService:
		o, err := optionsOf(after)
		if err != nil {
			return err
		}
		all := true
		o.TrackAll = &all // so that ActiveConn is a number
		if r.Handover > 0 {
			o.Handover = &r.Handover
		}
		return b.AddVIP(v, o)
	case ipvsadm.EditService:
		o, err := optionsOf(after)
		if err != nil {
			return err
		}
		was := before.Find(*r.Service)
		if kept := was.Here() == "source" && was.Persistent == 0; after.Here() == "source" && after.Persistent == 0 && !kept {
			whole := uint8(v.Addr.BitLen()) // and not the mask that clients were kept by
			o.SourcePrefix = &whole
		}
		return b.SetVIP(v, o)
	case ipvsadm.DeleteService:
		return b.DeleteVIP(v)
	case ipvsadm.DeleteServer:
		return b.DeleteBackends(v, []netip.AddrPort{r.Server(after.At)})
	case ipvsadm.EditServer:
		return r.editServer(b, v, before.Find(*r.Service), after, t.records[after.Key])
	}
	server := addedServer(before.Find(*r.Service), after)
	mode := modeOf[server.Forward]
	silent, err := b.AddBackends(v, []netip.AddrPort{server.At}, loader.BackendOptions{Mode: &mode, Weight: &server.Weight})
	for _, a := range silent {
		r.say(silentNote(a))
	}
	return err
}

func addedServer(before, after *ipvsadm.Service) *ipvsadm.Server {
	for i := range after.Servers {
		if before.Server(after.Servers[i].At) == nil {
			return &after.Servers[i]
		}
	}
	return nil
}

// editServer sets what changed. A weight that is given ends a drain.
func (r *ipvsadmRun) editServer(b *loader.Balancer, v maps.VIP, before, after *ipvsadm.Service, records []maps.Backend) error {
	place := r.Server(after.At)
	was, is := before.Server(place), after.Server(place)
	var o loader.BackendOptions
	if was.Forward != is.Forward {
		mode := modeOf[is.Forward]
		o.Mode = &mode
	}
	if r.Weight != nil {
		o.Weight = &is.Weight
	}
	if o != (loader.BackendOptions{}) {
		if err := b.SetBackends(v, []netip.AddrPort{place}, o); err != nil {
			return err
		}
	}
	for i := range records {
		if record := &records[i]; is.Weight > 0 && record.AddrPort() == place && record.Listed() && record.Has(bpf.XdplbBackendFlagBackendDrain) {
			_, err := b.Enable(loader.Selection{At: place, VIP: &v})
			return err
		}
	}
	return nil
}

// optionsOf are those of a VIP for a service.
func optionsOf(s *ipvsadm.Service) (o loader.VIPOptions, err error) {
	scheduler, err := loader.ParseScheduler(s.Here())
	if err != nil {
		return o, err
	}
	code, affinity := s.Code(), time.Duration(s.Persistent)*time.Second
	o.Scheduler, o.Alias, o.Affinity = &scheduler, &code, &affinity
	if s.Persistent > 0 {
		bits := uint8(s.MaskBits)
		if bits == 0 {
			bits = uint8(s.At.Addr().BitLen())
		}
		o.SourcePrefix = &bits
	}
	return o, nil
}

// clear deletes all VIPs, also those that were made otherwise. Interfaces stay attached.
func (r *ipvsadmRun) clear() error {
	b, err := r.open()
	if b == nil {
		return err
	}
	b.Close()
	if r.Handover > 0 {
		return r.giveBack()
	}
	_, err = loader.Apply(r.pins, loader.Wanted{VIPs: []loader.WantedVIP{}, EndHandover: true}, loader.ApplyOptions{})
	return err
}

// giveBack gives all VIPs back to IPVS. They go when their last connections have.
func (r *ipvsadmRun) giveBack() error {
	if err := change(r.env, func(b *loader.Balancer) error { return b.GiveBack(nil, r.Handover) }); err != nil {
		return err
	}
	given, err := r.wanted()
	var addrs []netip.Addr
	for _, v := range given {
		addrs = append(addrs, v.Addr)
	}
	r.sayForeign(addrs...)
	return err
}

// sayForeign names, of a handover, the addresses that IPVS takes no packets to.
func (r *ipvsadmRun) sayForeign(addrs ...netip.Addr) {
	if r.Handover == 0 {
		return
	}
	slices.SortFunc(addrs, netip.Addr.Compare)
	for _, addr := range slices.Compact(addrs) {
		if note := foreignNote(addr); note != "" {
			r.say(note)
		}
	}
}
