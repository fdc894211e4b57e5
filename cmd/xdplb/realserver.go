package main

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"github.com/spf13/pflag"

	"github.com/xdplb/xdplb/loader"
)

func realserverCommands() []command {
	return []command{
		{name: "realserver accept", args: "VIPADDR... --mode dr|tun --dev IFACE [--from PREFIX]", min: 1, max: -1, changes: true,
			summary: "on a real server: receive packets for these addresses", setup: setupAccept},
		{name: "realserver release", args: "VIPADDR... | --all", max: -1, changes: true,
			summary: "on a real server: undo accept", setup: setupRelease},
		{name: "realserver list", summary: "on a real server: what is accepted, and what arrived in tunnels", setup: noFlags(realserverList)},
	}
}

func setupAccept(flags *pflag.FlagSet) func(*env) error {
	mode := flags.String("mode", "", "dr or tun, as on the balancer")
	dev := flags.String("dev", "", "`IFACE` on which the balancer's packets arrive")
	from := flags.StringArray("from", nil, "accept tunnels from this `PREFIX` only; may be repeated; replaces what was given before")
	return func(e *env) error {
		addrs, err := parseAddresses(e.args)
		if err != nil {
			return err
		}
		if *mode == "" {
			return usagef("wants --mode dr or --mode tun, as on the balancer")
		}
		if *dev == "" {
			return usagef("wants --dev IFACE, on which the balancer's packets arrive")
		}
		o := loader.AcceptOptions{Interface: *dev}
		if o.Mode, err = loader.ParseMode(*mode); err != nil {
			return usageError{err}
		}
		if len(*from) > 0 && o.Mode != loader.ModeTUN {
			return usagef("--from is about tunnels; use it with --mode tun")
		}
		if o.From, err = parseSources(*from); err != nil {
			return err
		}
		return acceptVIPs(e, addrs, o)
	}
}

func parseAddresses(args []string) (addrs []netip.Addr, err error) {
	for _, s := range args {
		addr, err := netip.ParseAddr(s)
		if err != nil {
			return nil, usagef("%s: not an IP address; write it without a port, such as 192.0.2.10 or 2001:db8::10", s)
		}
		addrs = append(addrs, addr)
	}
	return addrs, nil
}

// parseSources takes single addresses too.
func parseSources(args []string) (prefixes []netip.Prefix, err error) {
	for _, s := range args {
		prefix, err := netip.ParsePrefix(s)
		if addr, single := netip.ParseAddr(s); single == nil && addr.Zone() == "" {
			prefix, err = addr.Prefix(addr.BitLen())
		}
		if err != nil || prefix.Addr().Is4In6() {
			return nil, usagef("--from %s: not a prefix; write it as 10.0.0.0/24 or 2001:db8::/64", s)
		}
		prefixes = append(prefixes, prefix)
	}
	return prefixes, nil
}

func acceptVIPs(e *env, addrs []netip.Addr, o loader.AcceptOptions) error {
	notices, err := loader.AcceptVIPs(e.pins, addrs, o)
	if err != nil {
		return err
	}
	for _, notice := range notices {
		e.notice("realserver accept: %s", notice)
	}
	if e.json {
		return e.printJSON(map[string]any{"accepted": addrs, "mode": o.Mode.String(), "interface": o.Interface})
	}
	for _, addr := range addrs {
		fmt.Fprintf(e.stdout, "%s: accepted on %s, mode %s\n", addr.Unmap(), o.Interface, o.Mode)
	}
	return nil
}

func setupRelease(flags *pflag.FlagSet) func(*env) error {
	all := flags.Bool("all", false, "release everything that is accepted")
	return func(e *env) error {
		if *all != (len(e.args) == 0) {
			return usagef("wants either addresses or --all")
		}
		addrs, err := parseAddresses(e.args)
		if err != nil {
			return err
		}
		if addrs, err = loader.ReleaseVIPs(e.pins, addrs); err != nil {
			return err
		}
		if e.json {
			return e.printJSON(map[string]any{"released": addrs})
		}
		for _, addr := range addrs {
			fmt.Fprintf(e.stdout, "%s: released\n", addr)
		}
		return nil
	}
}

type acceptedJSON struct {
	Address   netip.Addr `json:"address"`
	Mode      string     `json:"mode"`
	Interface string     `json:"interface"`
	XDPMode   string     `json:"xdp_mode"`
	State     string     `json:"state"`
}

func realserverList(e *env) error {
	found, err := loader.ListAccepted(e.pins)
	if err != nil {
		return err
	}
	if e.json {
		objects := []acceptedJSON{}
		for _, vip := range found.Addresses {
			objects = append(objects, acceptedJSON{vip.Address, vip.Mode.String(), vip.Interface, string(vip.XDPMode), vip.State})
		}
		return e.printJSON(map[string]any{"addresses": objects, "from": found.From, "outcomes": found.Outcomes})
	}
	table := newTable(e.stdout)
	table.row("ADDRESS", "MODE", "DEV", "XDP", "STATE")
	tunnels := false
	for _, vip := range found.Addresses {
		tunnels = tunnels || vip.Mode == loader.ModeTUN
		table.row(vip.Address.String(), vip.Mode.String(), orDash(vip.Interface), orDash(string(vip.XDPMode)), vip.State)
	}
	table.flush()
	if !tunnels {
		return nil
	}
	from := []string{}
	for _, prefix := range found.From {
		from = append(from, prefix.String())
	}
	if len(from) == 0 {
		from = append(from, "everywhere")
	}
	fmt.Fprintf(e.stdout, "\ntunnels from: %s\n", strings.Join(from, ", "))
	counts := newTable(e.stdout)
	for _, name := range slices.Sorted(maps.Keys(found.Outcomes)) {
		counts.row(name, fmt.Sprint(found.Outcomes[name]))
	}
	counts.flush()
	return nil
}

func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}
