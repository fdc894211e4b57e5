package main

import (
	"fmt"
	"net/netip"
	"strconv"

	"github.com/spf13/pflag"

	"github.com/xdplb/xdplb/cmd/xdplb/internal/ipvsadm"
	"github.com/xdplb/xdplb/loader"
	"github.com/xdplb/xdplb/maps"
)

func backendCommands() []command {
	return []command{
		{name: "backend add", args: "VIP BACKEND...", min: 2, max: -1, changes: true, summary: "add backends to a VIP", setup: setupBackend(addBackends)},
		{name: "backend set", args: "VIP BACKEND...", min: 2, max: -1, changes: true, summary: "change what the flags name", setup: setupBackend(setBackends)},
		{name: "backend del", args: "VIP BACKEND...", min: 2, max: -1, changes: true, summary: "delete backends; their connections break", setup: noFlags(backendDel)},
		{name: "backend list", args: "[VIP]", max: 1, summary: "list backends", setup: noFlags(backendList)},
	}
}

type backendChange func(e *env, v maps.VIP, at []netip.AddrPort, o loader.BackendOptions) error

func setupBackend(apply backendChange) func(*pflag.FlagSet) func(*env) error {
	return func(flags *pflag.FlagSet) func(*env) error {
		mode := flags.String("mode", "", "dr, tun, nat or fullnat (default: the VIP's)")
		weight := flags.String("weight", "", "share of new flows, 0 to 65535; 0 drains (default 1)")
		return func(e *env) error {
			v, at, err := parseBackends(e.args)
			if err != nil {
				return usageError{err}
			}
			var o loader.BackendOptions
			if flags.Changed("mode") {
				m, err := loader.ParseMode(*mode)
				if err != nil {
					return usageError{err}
				}
				o.Mode = &m
			}
			if flags.Changed("weight") {
				w, err := parseWeight(e, *weight)
				if err != nil {
					return err
				}
				o.Weight = &w
			}
			return apply(e, v, at, o)
		}
	}
}

func parseWeight(e *env, text string) (uint16, error) {
	n, err := strconv.ParseUint(text, 10, 16)
	if err == nil {
		return uint16(n), nil
	}
	if near, ok := ipvsadm.NearestWeight(text); ok {
		return 0, usagef("--weight %s: use 0 to 65535, where 0 takes no new flows: %s", text, e.again("--weight", near))
	}
	return 0, usagef("--weight %s: use 0 to 65535", text)
}

func parseBackends(args []string) (v maps.VIP, at []netip.AddrPort, err error) {
	if v, err = maps.ParseVIP(args[0]); err != nil {
		return v, nil, err
	}
	for _, s := range args[1:] {
		a, err := loader.ParseBackend(s)
		if err != nil {
			return v, nil, err
		}
		at = append(at, a)
	}
	return v, at, nil
}

func addBackends(e *env, v maps.VIP, at []netip.AddrPort, o loader.BackendOptions) error {
	if err := loader.Probe(loader.Addresses(at)); err != nil {
		return err
	}
	return change(e, func(b *loader.Balancer) error {
		silent, err := b.AddBackends(v, at, o)
		if err != nil {
			return err
		}
		for _, a := range silent {
			e.notice("backend add %s: added, but nobody answers there yet; it takes no traffic until it does and you run: xdplb refresh", a)
		}
		return nil
	})
}

func setBackends(e *env, v maps.VIP, at []netip.AddrPort, o loader.BackendOptions) error {
	if o == (loader.BackendOptions{}) {
		return usagef("names nothing to change; use --weight or --mode")
	}
	if o.Mode != nil {
		if err := loader.Probe(loader.Addresses(at)); err != nil {
			return err
		}
	}
	return change(e, func(b *loader.Balancer) error { return b.SetBackends(v, at, o) })
}

func backendDel(e *env) error {
	v, at, err := parseBackends(e.args)
	if err != nil {
		return usageError{err}
	}
	return change(e, func(b *loader.Balancer) error { return b.DeleteBackends(v, at) })
}

func backendList(e *env) error {
	views, err := readViews(e)
	if err != nil {
		return err
	}
	if e.json {
		return e.printJSON(map[string]any{"vips": jsonOf(views, false)})
	}
	table := newTable(e.stdout)
	table.row("VIP", "BACKEND", "MODE", "WEIGHT", "ADMIN", "HEALTH", "NEXT HOP", "ACTIVE")
	for _, v := range views {
		for _, b := range v.Backends {
			table.row(v.VIP.String(), b.At.String(), b.Mode.String(), fmt.Sprint(b.Weight), admin(b), b.Health, nextHop(b), activeText(b.Active))
		}
	}
	table.flush()
	return nil
}

func admin(b loader.BackendView) string {
	if b.Draining {
		return "drain"
	}
	return "enabled"
}

func nextHop(b loader.BackendView) string {
	if b.Resolved {
		return "ok"
	}
	return "unresolved"
}

// activeText never shows a number that is not known.
func activeText(a loader.Active) string {
	switch {
	case !a.Known:
		return "-"
	case a.AtLeast:
		return fmt.Sprintf("≥ %d", a.Count)
	}
	return fmt.Sprint(a.Count)
}
