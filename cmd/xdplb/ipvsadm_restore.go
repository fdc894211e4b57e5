package main

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"

	"github.com/xdplb/xdplb/cmd/xdplb/internal/ipvsadm"
	"github.com/xdplb/xdplb/loader"
)

// restore does what the lines of a file say, all or nothing. All of it is checked
// before anything is attached or written.
func (r *ipvsadmRun) restore(lines []ipvsadm.Line) (*loader.Plan, error) {
	is, err := r.wanted()
	if err != nil {
		return nil, err
	}
	before, err := r.table()
	if err != nil {
		return nil, err
	}
	after := before.Clone()
	notes, err := after.Restore(lines)
	if err != nil {
		return nil, fmt.Errorf("-R: %w", err)
	}
	w := loader.Wanted{Where: inFile("-R"), Keep: true, VIPs: []loader.WantedVIP{}}
	var set ipvsadm.Command
	for _, l := range lines {
		switch l.Action {
		case ipvsadm.Clear:
			w.Keep = false
		case ipvsadm.SetTimeouts:
			for i, d := range l.Timeouts { // 0 keeps what a line before has set
				set.Timeouts[i] = cmp.Or(d, set.Timeouts[i])
			}
		}
	}
	w.Timeouts = timeoutsOf(set)
	if w.Keep {
		for k, v := range is {
			if after.Find(k) == nil {
				w.Remove = append(w.Remove, v.VIP)
			}
		}
	}
	where := whereOf(lines)
	var addrs []netip.Addr
	for i := range after {
		s := &after[i]
		was := before.Find(s.Key)
		// To be taken again, or to be warned about.
		given := before.givenBack(s.Key) && slices.ContainsFunc(lines, func(l ipvsadm.Line) bool {
			return l.Service != nil && *l.Service == s.Key
		})
		if w.Keep && was != nil && s.Equal(was) && !given {
			continue
		}
		v, err := wantedVIP(is[s.Key], s, was, where)
		if err != nil {
			return nil, err
		}
		v.TrackAll = v.TrackAll || !w.Keep // made anew
		if v.Handover = r.Handover; given || was == nil {
			addrs = append(addrs, v.Addr)
		}
		w.VIPs = append(w.VIPs, v)
	}
	plan, err := r.applyFile(w)
	if err != nil {
		return nil, err
	}
	r.say(notes...)
	r.sayForeign(addrs...)
	return plan, nil
}

// wanted is what there is, by service: what the file does not say stays so.
func (r *ipvsadmRun) wanted() (map[ipvsadm.Key]loader.WantedVIP, error) {
	all := make(map[ipvsadm.Key]loader.WantedVIP)
	b, err := r.open()
	if b == nil {
		return all, err
	}
	defer b.Close()
	w, err := b.Wanted()
	for _, v := range w.VIPs {
		all[keyOf(v.VIP)] = v
	}
	return all, err
}

// inFile is the same for every field.
func inFile(where string) loader.Where { return func(string) string { return where } }

// whereOf tells for errors which line a service or a server is from.
func whereOf(lines []ipvsadm.Line) func(k ipvsadm.Key, server *netip.AddrPort) string {
	return func(k ipvsadm.Key, server *netip.AddrPort) string {
		for _, l := range slices.Backward(lines) {
			if l.Command.Service == nil || *l.Command.Service != k {
				continue
			}
			if server == nil && !l.Host.IsValid() || server != nil && l.Host == server.Addr() {
				return fmt.Sprintf("-R: line %d", l.Number)
			}
		}
		return "-R"
	}
}

// wantedVIP is the VIP for a service. was is the service before, if it was there.
func wantedVIP(v loader.WantedVIP, s, was *ipvsadm.Service, where func(ipvsadm.Key, *netip.AddrPort) string) (w loader.WantedVIP, err error) {
	if was == nil {
		v = loader.WantedVIP{Mode: loader.ModeDR, TrackAll: true}
		if v.VIP, err = vipOf(s.Key); err != nil {
			return v, fmt.Errorf("%s: %s", where(s.Key, nil), err)
		}
	}
	v.Where = inFile(where(s.Key, nil))
	if was == nil || !s.Same(was) {
		o, err := optionsOf(s)
		if err != nil {
			return v, err
		}
		v.Scheduler, v.Alias, v.Affinity = *o.Scheduler, *o.Alias, *o.Affinity
		v.SourcePrefix = uint8(v.Addr.BitLen())
		if o.SourcePrefix != nil {
			v.SourcePrefix = *o.SourcePrefix
		}
	}
	old := v.Backends
	v.Backends = nil
	for _, server := range s.Servers {
		one := loader.WantedBackend{At: server.At, Mode: modeOf[server.Forward], Weight: server.Weight}
		if was != nil {
			if before := was.Server(server.At); before != nil && *before == server {
				i := slices.IndexFunc(old, func(b loader.WantedBackend) bool { return b.At == server.At })
				one = old[i]
			}
		}
		one.Where = inFile(where(s.Key, &server.At))
		v.Backends = append(v.Backends, one)
	}
	return v, nil
}

// applyFile attaches what the VIPs need and applies them.
func (r *ipvsadmRun) applyFile(w loader.Wanted) (plan *loader.Plan, err error) {
	var finds []func(bool) (way, error)
	var servers []netip.Addr
	seen := make(map[netip.Addr]bool)
	for _, v := range w.VIPs {
		if !seen[v.Addr] {
			seen[v.Addr] = true
			finds = append(finds, vipWay(v.Addr))
		}
		for _, b := range v.Backends {
			if a := b.At.Addr(); !seen[a] {
				seen[a] = true
				servers = append(servers, a)
				finds = append(finds, serverWay(a))
			}
		}
	}
	if err := loader.Probe(servers); err != nil {
		return nil, err
	}
	apply := func() (err error) {
		if plan, err = loader.Apply(r.pins, w, loader.ApplyOptions{}); err != nil {
			return err
		}
		for _, warning := range plan.Warnings {
			r.say(warning)
		}
		for _, a := range plan.Silent {
			r.say(silentNote(a))
		}
		return nil
	}
	if len(w.VIPs) == 0 && w.Timeouts != (loader.Timeouts{}) { // which are kept in the pins
		err = r.withPins(apply)
	} else {
		err = r.withInterfaces(finds, apply)
	}
	return plan, err
}

func silentNote(a netip.AddrPort) string {
	return fmt.Sprintf("%s: added, but nobody answers there yet; it takes no traffic until it does and you run: xdplb refresh", a)
}
