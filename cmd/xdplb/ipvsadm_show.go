package main

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/xdplb/xdplb/cmd/xdplb/internal/ipvsadm"
	"github.com/xdplb/xdplb/loader"
	"github.com/xdplb/xdplb/maps"
)

// show lists or saves.
func (r *ipvsadmRun) show() error {
	b, err := r.open()
	if err != nil {
		return err
	}
	var t vipTable
	if b != nil {
		defer b.Close()
		if t, err = readTable(b); err != nil {
			return err
		}
	}
	if r.Action == ipvsadm.Save {
		t.dropGivenBack()
		r.sayLost(b, &t)
		t.Save(r.stdout)
		return nil
	}
	p := ipvsadm.Printer{Writer: r.stdout}
	if !r.Listing.Numeric {
		p.Addr, p.Port = nameFunctions()
	}
	if r.Listing.Kind == ipvsadm.TimeoutValues {
		tcp, closing, udp := maps.DefaultTCPIdle, maps.DefaultClosing, maps.DefaultUDPIdle
		if b != nil {
			now := b.Timeouts()
			tcp, closing, udp = *now.TCP, *now.Closing, *now.UDP
		}
		p.Timeouts(tcp, closing, udp)
		return nil
	}
	var only *maps.VIP
	if r.Service != nil {
		if t.Find(*r.Service) == nil {
			return fmt.Errorf("%s: no such service; ipvsadm -Ln shows those there are", r.Service)
		}
		v, err := vipOf(*r.Service)
		if err != nil {
			return err
		}
		only = &v
	}
	if b != nil {
		if err := r.fill(b, &t, only); err != nil {
			return err
		}
	}
	if r.Listing.Kind == ipvsadm.Connections {
		all, err := t.connections(b, only)
		if err != nil {
			return err
		}
		p.Connections(all)
		return nil
	}
	if only != nil {
		p.Some(ipvsadm.Table{*t.Find(*r.Service)}, r.Listing)
	} else {
		p.All(t.Table, r.Listing)
	}
	return nil
}

// fill reads what the listing shows beside the rules.
func (r *ipvsadmRun) fill(b *loader.Balancer, t *vipTable, only *maps.VIP) error {
	switch r.Listing.Kind {
	case ipvsadm.Connections:
		return nil
	case ipvsadm.Stats:
		return t.fillCounters(b)
	case ipvsadm.Rates:
		return t.fillRates(b)
	case ipvsadm.PersistentConns:
		if err := t.fillSticky(b); err != nil {
			return err
		}
	}
	return t.fillConnections(b, only)
}

// rateTime is what rates are measured over: nobody keeps them.
const rateTime = time.Second

// fillRates counts what comes while it waits.
func (t *vipTable) fillRates(b *loader.Balancer) error {
	before := vipTable{Table: t.Clone(), services: t.services, records: t.records}
	began := time.Now()
	if err := before.fillCounters(b); err != nil {
		return err
	}
	time.Sleep(rateTime)
	if err := t.fillCounters(b); err != nil {
		return err
	}
	seconds := time.Since(began).Seconds()
	for i := range t.Table {
		one, then := &t.Table[i], &before.Table[i]
		one.Figures = rateOf(then.Figures, one.Figures, seconds)
		for j := range one.Servers {
			one.Servers[j].Figures = rateOf(then.Servers[j].Figures, one.Servers[j].Figures, seconds)
		}
	}
	return nil
}

func rateOf(then, now ipvsadm.Figures, seconds float64) ipvsadm.Figures {
	rate := func(then, now uint64) uint64 {
		if now < then { // zeroed meanwhile
			then = 0
		}
		return uint64(float64(now-then)/seconds + 0.5)
	}
	return ipvsadm.Figures{
		Connections: rate(then.Connections, now.Connections), InPackets: rate(then.InPackets, now.InPackets),
		OutPackets: rate(then.OutPackets, now.OutPackets), InBytes: rate(then.InBytes, now.InBytes), OutBytes: rate(then.OutBytes, now.OutBytes),
	}
}

// connections are the live ones, by service and client.
func (t *vipTable) connections(b *loader.Balancer, only *maps.VIP) (all []ipvsadm.Connection, err error) {
	if b == nil {
		return nil, nil
	}
	err = b.LiveFlows(loader.Selection{VIP: only}, func(f loader.FlowView) {
		if f.Local { // it has no server here; who has it lists it
			return
		}
		sent := f.FromClient()
		all = append(all, ipvsadm.Connection{
			Key: keyOf(maps.VIP{Addr: sent.Dst, Port: sent.DstPort, Proto: f.Proto}), Client: f.Client(), Server: f.At,
			State: ipvsState(f), Expires: f.Expires,
		})
	})
	if err != nil {
		return nil, err
	}
	err = b.KeptClients(func(c loader.KeptClient) {
		if only == nil || *only == c.VIP { // IPVS calls it a template
			all = append(all, ipvsadm.Connection{
				Key: keyOf(c.VIP), Client: netip.AddrPortFrom(c.Client, 0), Server: c.At, State: "NONE", Expires: c.Expires,
			})
		}
	})
	slices.SortFunc(all, func(a, b ipvsadm.Connection) int {
		return cmp.Or(cmp.Compare(a.Proto, b.Proto), a.At.Compare(b.At), a.Client.Compare(b.Client))
	})
	return all, err
}

// fillSticky sets how many clients keep each server.
func (t *vipTable) fillSticky(b *loader.Balancer) error {
	counts := make(map[place]uint64)
	err := b.KeptClients(func(c loader.KeptClient) { counts[place{keyOf(c.VIP), c.At}]++ })
	for i := range t.Table {
		for j := range t.Table[i].Servers {
			server := &t.Table[i].Servers[j]
			server.Sticky.N = counts[place{t.Table[i].Key, server.At}]
		}
	}
	return err
}

// ipvsState is what IPVS calls the state of a flow (tcp_states in the kernel's
// net/netfilter/ipvs/ip_vs_proto_tcp.c). Behind NAT both sides are seen: who closes
// first decides between CLOSE_WAIT, the client, and FIN_WAIT, the server. Of dr and
// tun the client alone is seen, whose FIN is FIN_WAIT; a RST of its looks the same here.
func ipvsState(f loader.FlowView) string {
	switch {
	case f.Proto == unix.IPPROTO_UDP:
		return "UDP"
	case f.Reset:
		return "CLOSE"
	case f.Closing && f.Finished:
		return "TIME_WAIT"
	case f.Closing && f.Translated():
		return "CLOSE_WAIT"
	case f.Closing, f.Finished:
		return "FIN_WAIT"
	case f.Spoken:
		return "ESTABLISHED"
	}
	return "SYN_RECV"
}

// sayLost names what a save file has no words for.
func (r *ipvsadmRun) sayLost(b *loader.Balancer, t *vipTable) {
	var lost []string
	for i := range t.Table {
		s := t.services[t.Table[i].Key]
		bits := loader.SourcePrefix(&s)
		own := s.InUse().Scheduler == maps.SchedulerSource && s.Affinity == 0 && int(bits) != s.Addr.BitLen()
		if own || s.Group() != "" || s.SnatCount > 0 || s.TableSize != maps.DefaultTableSize {
			lost = append(lost, s.VIP.String())
		}
	}
	if len(lost) > 0 {
		r.say(fmt.Sprintf("%s: has what this language has no words for (source prefix, affinity group, SNAT, table size), and it is not saved; xdplb save keeps all", lost[0]))
	}
}
