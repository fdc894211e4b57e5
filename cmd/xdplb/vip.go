package main

import (
	"fmt"
	"net/netip"
	"time"

	"github.com/spf13/pflag"

	"github.com/xdplb/xdplb/loader"
	"github.com/xdplb/xdplb/maps"
)

func vipCommands() []command {
	return []command{
		{name: "vip add", args: "VIP", min: 1, max: 1, changes: true, summary: "add a VIP", setup: setupVIP((*loader.Balancer).AddVIP)},
		{name: "vip set", args: "VIP", min: 1, max: 1, changes: true, summary: "change what the flags name", setup: setupVIP((*loader.Balancer).SetVIP)},
		{name: "vip del", args: "VIP", min: 1, max: 1, changes: true, summary: "delete a VIP and its backends", setup: setupVIPDel},
		{name: "vip list", args: "[VIP]", max: 1, summary: "list VIPs", setup: noFlags(vipList)},
	}
}

// setupVIP serves add and set: what they take is the same.
func setupVIP(apply func(*loader.Balancer, maps.VIP, loader.VIPOptions) error) func(*pflag.FlagSet) func(*env) error {
	return func(flags *pflag.FlagSet) func(*env) error {
		mode := flags.String("mode", "", "how packets reach the backends: dr (default), tun, nat or fullnat")
		scheduler := flags.String("scheduler", "", "maglev (default), source, rr or lc")
		prefix := flags.Uint8("source-prefix", 0, "with source or affinity: `BITS` of the client's address that count (default all)")
		affinity := flags.Duration("affinity", 0, "a client keeps its backend so long after its last new flow; 0 ends it")
		group := flags.String("affinity-group", "", "VIPs that give the same `NAME` share it; empty leaves the group")
		track := flags.String("track", "", "follow flows while something `changes` (default), or all")
		size := flags.Uint32("table-size", 0, fmt.Sprintf("slots of the lookup table, a prime from %d to %d (default %d)", maps.MinTableSize, maps.MaxTableSize, maps.DefaultTableSize))
		snat := flags.StringArray("snat", nil, "an `ADDR` of its own that FULL-NAT sends from, or pool; may be repeated")
		anySNAT := flags.Bool("any-snat", false, "SNAT addresses need not be this host's")
		assign := flags.String("assign", "", "put the address on this `IFACE` and announce it")
		handover := flags.Duration("handover", 0, "take over from the local stack, such as IPVS: connections that it has stay there, of those silent for `DURATION` or less all. A UDP flow that is silent for 10s or more from then on counts as new, and moves")
		return func(e *env) error {
			v, err := maps.ParseVIP(e.args[0])
			if err != nil {
				return usageError{err}
			}
			var o loader.VIPOptions
			if o.Handover, err = parseHandover(flags, handover); err != nil {
				return err
			}
			if err := parseVIPOptions(&o, flags, *mode, *scheduler, *track); err != nil {
				return usageError{err}
			}
			if flags.Changed("source-prefix") {
				o.SourcePrefix = prefix
			}
			if flags.Changed("affinity") {
				o.Affinity = affinity
			}
			if flags.Changed("affinity-group") {
				o.AffinityGroup = group
			}
			if flags.Changed("table-size") {
				o.TableSize = size
			}
			if o.AnySNAT = *anySNAT; flags.Changed("snat") {
				if o.SNAT, err = parseVIPSNAT(*snat); err != nil {
					return usageError{err}
				}
			}
			if flags.Changed("assign") {
				o.Assign = assign
			}
			if err := change(e, func(b *loader.Balancer) error { return apply(b, v, o) }); err != nil {
				return err
			}
			if o.Handover != nil {
				e.noteForeign(v)
			}
			return nil
		}
	}
}

// parseHandover returns nil if the flag is not given.
func parseHandover(flags *pflag.FlagSet, d *time.Duration) (*time.Duration, error) {
	if !flags.Changed("handover") {
		return nil, nil
	}
	if err := loader.CheckHandover(*d); err != nil {
		return nil, usageError{err}
	}
	return d, nil
}

// noteForeign says that the kernel takes no packets to a VIP.
func (e *env) noteForeign(v maps.VIP) {
	if note := foreignNote(v.Addr); note != "" {
		e.notice("%s", note)
	}
}

func foreignNote(addr netip.Addr) string {
	if owner, err := loader.OwnerOf(addr); err == nil && owner.Has {
		return ""
	}
	return fmt.Sprintf("%s: not an address of this host, and IPVS takes only packets to such; put it on an interface: ip addr add %s dev IFACE", addr, netip.PrefixFrom(addr, addr.BitLen()))
}

func parseVIPOptions(o *loader.VIPOptions, flags *pflag.FlagSet, mode, scheduler, track string) error {
	if flags.Changed("mode") {
		m, err := loader.ParseMode(mode)
		if err != nil {
			return err
		}
		o.Mode = &m
	}
	if flags.Changed("scheduler") {
		s, err := loader.ParseScheduler(scheduler)
		if err != nil {
			return err
		}
		o.Scheduler = &s
	}
	if flags.Changed("track") {
		all := track == "all"
		if !all && track != "changes" {
			return fmt.Errorf("--track %s: use changes or all", track)
		}
		o.TrackAll = &all
	}
	return nil
}

// change runs a change under the lock.
func change(e *env, f func(*loader.Balancer) error) (err error) {
	b, err := loader.OpenLocked(e.pins)
	if err != nil {
		return err
	}
	defer b.Close()
	return f(b)
}

func setupVIPDel(flags *pflag.FlagSet) func(*env) error {
	handover := flags.Duration("handover", 0, "give it back to the local stack, such as IPVS: connections that backends have stay there. The VIP goes when none is left, after `DURATION`, with the next refresh. A UDP flow that is silent for 10s or more from then on counts as new, and moves")
	return func(e *env) error {
		v, err := maps.ParseVIP(e.args[0])
		if err != nil {
			return usageError{err}
		}
		d, err := parseHandover(flags, handover)
		if err != nil {
			return err
		}
		if d == nil {
			return change(e, func(b *loader.Balancer) error { return b.DeleteVIP(v) })
		}
		if err := change(e, func(b *loader.Balancer) error { return b.GiveBack(&v, *d) }); err != nil {
			return err
		}
		e.noteForeign(v)
		return nil
	}
}

// optionalVIP is the VIP that a listing is limited to.
func optionalVIP(args []string) (*maps.VIP, error) {
	if len(args) == 0 {
		return nil, nil
	}
	v, err := maps.ParseVIP(args[0])
	if err != nil {
		return nil, usageError{err}
	}
	return &v, nil
}

func vipList(e *env) error {
	views, err := readViews(e)
	if err != nil {
		return err
	}
	if e.json {
		return e.printJSON(map[string]any{"vips": jsonOf(views, false)})
	}
	table := newTable(e.stdout)
	table.row("VIP", "SCHEDULER", "AFFINITY", "MODE", "TRACK", "SLOTS", "STATE", "BACKENDS", "ACTIVE")
	for _, v := range views {
		table.row(v.VIP.String(), schedulerText(&v), affinityText(&v), loader.Mode(v.Mode).String(), trackText(&v),
			fmt.Sprint(v.TableSize), vipState(&v), fmt.Sprint(len(v.Backends)), activeText(v.Active))
	}
	table.flush()
	return nil
}

func schedulerText(v *loader.VIPView) string {
	f := v.InUse()
	if f.Scheduler == maps.SchedulerSource {
		return fmt.Sprintf("%s/%d", f.Scheduler, loader.SourcePrefix(&v.Service))
	}
	return f.Scheduler.String()
}

func affinityText(v *loader.VIPView) string {
	text := "-"
	if v.AffinityTime != 0 {
		text = v.AffinityTime.String()
		if bits := loader.SourcePrefix(&v.Service); int(bits) != v.Addr.BitLen() {
			text += fmt.Sprintf("/%d", bits)
		}
		if group := v.Group(); group != "" {
			text += " " + group
		}
	}
	return text
}

// vipState says how much of the table follows flows of late changes.
func vipState(v *loader.VIPView) string {
	if v.Handover != nil {
		return handoverText(v.Handover)
	}
	if v.MovingSlots == 0 {
		return "settled"
	}
	percent := float64(v.MovingSlots) / float64(v.TableSize) * 100
	if percent < 1 {
		return "rebalancing <1 %"
	}
	return fmt.Sprintf("rebalancing %.0f %%", percent)
}

func handoverText(h *loader.HandoverView) string {
	if h.Left == 0 {
		return handoverDirection(h) + ", ends"
	}
	return fmt.Sprintf("%s, %s left", handoverDirection(h), h.Left.Round(time.Second))
}

func handoverDirection(h *loader.HandoverView) string {
	if h.Back {
		return "giving back"
	}
	return "taking over"
}

func readViews(e *env) ([]loader.VIPView, error) {
	only, err := optionalVIP(e.args)
	if err != nil {
		return nil, err
	}
	b, err := loader.Open(e.pins)
	if err != nil {
		return nil, err
	}
	defer b.Close()
	return b.Views(only, true)
}
