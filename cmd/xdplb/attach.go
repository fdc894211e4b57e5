package main

import (
	"fmt"
	"net"
	"net/netip"
	"strings"

	"github.com/spf13/pflag"

	"github.com/xdplb/xdplb/loader"
	"github.com/xdplb/xdplb/maps"
)

func attachCommands() []command {
	return []command{
		{name: "attach", args: "IFACE...", min: 1, max: -1, changes: true, summary: "attach to interfaces, or upgrade in place", setup: setupAttach},
		{name: "detach", args: "IFACE... | --all [--purge]", max: -1, changes: true, summary: "detach from interfaces", setup: setupDetach},
	}
}

type attachFlags struct {
	mode, hashKey, spread, ports string
	accept, snat                 []string
	options                      loader.AttachOptions
	dryRun                       bool
}

func setupAttach(flags *pflag.FlagSet) func(*env) error {
	var f attachFlags
	flags.StringVar(&f.mode, "xdp-mode", "auto", "auto, native or generic")
	flags.StringArrayVar(&f.accept, "accept-mac", nil, "a further destination `MAC` that is ours, such as VRRP's; may be repeated")
	flags.Uint32Var(&f.options.MaxVIPs, "max-vips", 0, fmt.Sprintf("how many VIPs there can be (default %d)", loader.DefaultMaxVIPs))
	flags.Uint32Var(&f.options.MaxBackends, "max-backends", 0, fmt.Sprintf("how many backends there can be (default %d)", loader.DefaultMaxBackends))
	flags.Uint32Var(&f.options.MaxFlows, "max-flows", 0, fmt.Sprintf("how many flows can be pinned (default %d)", loader.DefaultMaxFlows))
	flags.StringVar(&f.hashKey, "hash-key", "", "32 hex digits, the same on every balancer that shares VIPs (default random)")
	flags.StringVar(&f.spread, "tun-spread", "", "IPv4 `PREFIX` in which the outer source of tunnels varies with the flow")
	flags.StringArrayVar(&f.snat, "snat", nil, "an `ADDR` that FULL-NAT sends from, added to the pool; may be repeated")
	flags.StringVar(&f.ports, "snat-ports", "", "`LO-HI`, ports that FULL-NAT sends from (default: beside net.ipv4.ip_local_port_range)")
	flags.BoolVar(&f.options.AnySNAT, "any-snat", false, "SNAT addresses need not be this host's")
	flags.BoolVar(&f.dryRun, "dry-run", false, "say what would happen, and change nothing")
	return func(e *env) error {
		if err := f.parse(flags); err != nil {
			return usageError{err}
		}
		if f.dryRun {
			return dryRun(e, f.options)
		}
		return attach(e, f.options)
	}
}

func (f *attachFlags) parse(flags *pflag.FlagSet) error {
	f.options.Mode = loader.XDPMode(f.mode)
	switch f.options.Mode {
	case loader.XDPAuto, loader.XDPNative, loader.XDPGeneric:
	default:
		return fmt.Errorf("--xdp-mode %s: use auto, native or generic", f.mode)
	}
	for _, name := range []string{"max-vips", "max-backends", "max-flows"} {
		if flag := flags.Lookup(name); flag.Changed && flag.Value.String() == "0" {
			return fmt.Errorf("--%s 0: use 1 or more", name)
		}
	}
	for _, s := range f.accept {
		mac, err := net.ParseMAC(s)
		if err != nil || len(mac) != 6 || mac[0]&1 != 0 {
			return fmt.Errorf("--accept-mac %s: not the MAC address of one station; write it as 00:00:5e:00:01:0a", s)
		}
		f.options.AcceptMACs = append(f.options.AcceptMACs, mac)
	}
	if f.hashKey != "" {
		key, err := maps.ParseHashKey(f.hashKey)
		if err != nil {
			return fmt.Errorf("--hash-key: %w", err)
		}
		f.options.HashKey = &key
	}
	if f.spread != "" {
		prefix, err := netip.ParsePrefix(f.spread)
		if err != nil || !prefix.Addr().Is4() {
			return fmt.Errorf("--tun-spread %s: not an IPv4 prefix; write it as 172.31.0.0/16, or 0.0.0.0/0 for none", f.spread)
		}
		f.options.TunSpread = &prefix
	}
	var err error
	if f.options.SNAT, err = parseSNAT(f.snat); err != nil {
		return fmt.Errorf("--snat %w", err)
	}
	if flags.Changed("snat-ports") {
		ports, err := loader.ParsePorts(f.ports)
		if err != nil {
			return fmt.Errorf("--snat-ports %w", err)
		}
		f.options.SNATPorts = &ports
	}
	return nil
}

type attachedJSON struct {
	Name     string `json:"name"`
	XDPMode  string `json:"xdp_mode"`
	Upgraded bool   `json:"upgraded"`
}

func attach(e *env, o loader.AttachOptions) error {
	done, err := loader.Attach(e.pins, e.args, o)
	if err != nil {
		return err
	}
	objects := []attachedJSON{}
	for _, a := range done {
		if a.Warning != "" {
			e.notice("attach %s: %s", a.Interface, a.Warning)
		}
		objects = append(objects, attachedJSON{a.Interface, string(a.Mode), a.Upgraded})
		if !e.json {
			verb := "attached"
			if a.Upgraded {
				verb = "upgraded in place"
			}
			fmt.Fprintf(e.stdout, "%s: %s, %s mode\n", a.Interface, verb, a.Mode)
		}
	}
	if o.SNATPorts != nil || len(o.SNAT) > 0 {
		if err := warnOfSNATPorts(e); err != nil {
			return err
		}
	}
	if !loader.JITEnabled() {
		e.notice("attach: BPF is interpreted here, which is several times slower; compile it: sysctl net.core.bpf_jit_enable=1")
	}
	if e.json {
		return e.printJSON(map[string]any{"interfaces": objects, "pins": e.pins})
	}
	return nil
}

type findingJSON struct {
	Feature string `json:"feature"`
	State   string `json:"state"`
	Why     string `json:"why"`
	Mend    string `json:"mend"`
}

type dryRunJSON struct {
	Name     string        `json:"name"`
	Driver   string        `json:"driver"`
	MTU      int           `json:"mtu"`
	XDPMode  string        `json:"xdp_mode"`
	Modes    []string      `json:"modes"`
	Findings []findingJSON `json:"findings"`
}

func dryRun(e *env, o loader.AttachOptions) error {
	reports, err := loader.DryRun(e.pins, e.args, o)
	if err != nil {
		return err
	}
	objects := []dryRunJSON{}
	for _, r := range reports {
		object := dryRunJSON{r.Name, r.Driver, r.MTU, string(r.Mode), r.Modes, []findingJSON{}}
		for _, f := range r.Findings {
			object.Findings = append(object.Findings, findingJSON{f.Feature, f.State, f.Why, f.Mend})
		}
		objects = append(objects, object)
		if !e.json {
			printDryRun(e, object)
		}
	}
	if e.json {
		return e.printJSON(map[string]any{"interfaces": objects})
	}
	return nil
}

func printDryRun(e *env, r dryRunJSON) {
	fmt.Fprintf(e.stdout, "%s: driver %s, MTU %d; would attach in %s mode; modes that work: %s\n",
		r.Name, orDash(r.Driver), r.MTU, r.XDPMode, strings.Join(r.Modes, ", "))
	for _, f := range r.Findings {
		fmt.Fprintf(e.stdout, "  %s %s: %s", f.Feature, f.State, f.Why)
		if f.Mend != "" {
			fmt.Fprintf(e.stdout, "; mend: %s", f.Mend)
		}
		fmt.Fprintln(e.stdout)
	}
}

func setupDetach(flags *pflag.FlagSet) func(*env) error {
	all := flags.Bool("all", false, "every interface")
	purge := flags.Bool("purge", false, "remove VIPs, backends, flows and counters, too")
	return func(e *env) error {
		if *all == (len(e.args) > 0) {
			return usagef("name interfaces, or use --all")
		}
		ifaces := e.args
		if *all {
			ifaces = nil
		}
		names, err := loader.Detach(e.pins, ifaces, *purge)
		if err != nil {
			return err
		}
		if e.json {
			return e.printJSON(map[string]any{"detached": append([]string{}, names...), "purged": *purge})
		}
		for _, name := range names {
			fmt.Fprintf(e.stdout, "%s: detached\n", name)
		}
		return nil
	}
}
