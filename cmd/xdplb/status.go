package main

import (
	"fmt"
	"runtime/debug"
	"time"

	"github.com/spf13/pflag"

	"github.com/xdplb/xdplb/loader"
)

func statusCommands() []command {
	return []command{
		{name: "timeout", args: "", summary: "show or set the timeouts of flows", changes: true, setup: setupTimeout},
		{name: "status", args: "", summary: "show interfaces, fingerprints and how full the maps are", setup: noFlags(status)},
		{name: "refresh", args: "", summary: "resolve next hops anew, and settle what can be", changes: true, setup: noFlags(refresh)},
		{name: "version", args: "", summary: "show the version", setup: noFlags(version)},
	}
}

type interfaceJSON struct {
	Name    string   `json:"name"`
	XDPMode string   `json:"xdp_mode"`
	Program string   `json:"program"` // its tag
	MAC     string   `json:"mac"`
	Accepts []string `json:"accept_macs"`
}

type usageJSON struct {
	Used int `json:"used"`
	Max  int `json:"max"`
}

type statusVIPJSON struct {
	VIP         string `json:"vip"`
	Fingerprint string `json:"fingerprint"`
	MovingSlots int    `json:"moving_slots"`
}

type statusJSON struct {
	Interfaces []interfaceJSON `json:"interfaces"`
	Pins       string          `json:"pins"`
	HashKey    string          `json:"hash_key_fingerprint"`
	VIPs       []statusVIPJSON `json:"vips"`
	SNAT       snatJSON        `json:"snat"`
	Places     struct {
		VIPs     usageJSON `json:"vips"`
		Backends usageJSON `json:"backends"`
		Flows    usageJSON `json:"flows"`
		HalfOpen usageJSON `json:"half_open"`
	} `json:"places"`
}

func status(e *env) error {
	b, err := loader.Open(e.pins)
	if err != nil {
		return err
	}
	defer b.Close()
	s, err := b.Status()
	if err != nil {
		return err
	}
	j := statusJSON{Interfaces: []interfaceJSON{}, Pins: e.pins, HashKey: s.HashKey, VIPs: []statusVIPJSON{}}
	for _, i := range s.Interfaces {
		j.Interfaces = append(j.Interfaces, interfaceJSON{i.Name, string(i.Mode), i.Program, i.MAC, append([]string{}, i.Accepts...)})
	}
	for _, v := range s.VIPs {
		j.VIPs = append(j.VIPs, statusVIPJSON{v.VIP.String(), v.Fingerprint, v.MovingSlots})
	}
	j.SNAT = snatOf(s.SNAT)
	j.Places.VIPs, j.Places.Backends = usageJSON(s.VIPPlaces), usageJSON(s.BackendPlaces)
	j.Places.Flows, j.Places.HalfOpen = usageJSON(s.FlowPlaces), usageJSON(s.HalfOpenPlaces)
	if e.json {
		return e.printJSON(j)
	}
	table := newTable(e.stdout)
	table.row("INTERFACE", "XDP MODE", "PROGRAM", "MAC")
	for _, i := range j.Interfaces {
		table.row(i.Name, i.XDPMode, i.Program, i.MAC)
	}
	table.flush()
	fmt.Fprintf(e.stdout, "\npins %s, hash key %s\n\n", j.Pins, j.HashKey)
	table = newTable(e.stdout)
	table.row("VIP", "TABLE", "STATE")
	for i := range s.VIPs {
		table.row(s.VIPs[i].VIP.String(), s.VIPs[i].Fingerprint, vipState(&s.VIPs[i]))
	}
	table.flush()
	fmt.Fprintf(e.stdout, "\n%s\n\n", snatSummary(&s.SNAT))
	table = newTable(e.stdout)
	table.row("PLACES", "USED", "OF")
	for _, row := range []struct {
		name string
		usageJSON
	}{{"vips", j.Places.VIPs}, {"backends", j.Places.Backends}, {"flows", j.Places.Flows}, {"half_open", j.Places.HalfOpen}} {
		table.row(row.name, fmt.Sprint(row.Used), fmt.Sprint(row.Max))
	}
	table.flush()
	return nil
}

func refresh(e *env) error {
	if err := probeServers(e); err != nil {
		return err
	}
	if err := loader.RefreshRealserver(e.pins); err != nil {
		return err
	}
	return change(e, func(b *loader.Balancer) error {
		r, err := b.Refresh()
		if err != nil {
			return err
		}
		if e.json {
			return e.printJSON(map[string]int{"backends": r.Backends, "found": r.Found, "lost": r.Lost, "settled": r.Settled})
		}
		fmt.Fprintf(e.stdout, "%d backends: %d next hops found, %d lost; %d VIPs settled\n", r.Backends, r.Found, r.Lost, r.Settled)
		return nil
	})
}

// probeServers waits for the neighbours of all backends, without the lock.
func probeServers(e *env) error {
	b, err := loader.Open(e.pins)
	if err != nil {
		return err
	}
	defer b.Close()
	servers, err := b.Servers()
	if err != nil {
		return err
	}
	return loader.Probe(servers)
}

// maxTimeout is longer than anybody waits, and far from where clocks of 32 bits end.
const maxTimeout = 30 * 24 * time.Hour

func setupTimeout(flags *pflag.FlagSet) func(*env) error {
	tcp := flags.Duration("tcp", 0, "established TCP connections (15m)")
	closing := flags.Duration("closing", 0, "TCP connections that one side has closed, with nat and fullnat (2m)")
	udp := flags.Duration("udp", 0, "UDP flows (5m)")
	return func(e *env) error {
		var set loader.Timeouts
		for _, f := range []struct {
			name  string
			value *time.Duration
			to    **time.Duration
		}{{"tcp", tcp, &set.TCP}, {"closing", closing, &set.Closing}, {"udp", udp, &set.UDP}} {
			if !flags.Changed(f.name) {
				continue
			}
			if *f.value < time.Second {
				return usagef("--%s %s: use 1s or more", f.name, *f.value)
			}
			if *f.value > maxTimeout {
				return usagef("--%s %s: use %s or less", f.name, *f.value, maxTimeout)
			}
			*f.to = f.value
		}
		if set != (loader.Timeouts{}) {
			return change(e, func(b *loader.Balancer) error { return b.SetTimeouts(set) })
		}
		b, err := loader.Open(e.pins)
		if err != nil {
			return err
		}
		defer b.Close()
		return printTimeouts(e, b.Timeouts())
	}
}

func printTimeouts(e *env, t loader.Timeouts) error {
	if e.json {
		return e.printJSON(map[string]float64{"tcp": t.TCP.Seconds(), "closing": t.Closing.Seconds(), "udp": t.UDP.Seconds()})
	}
	fmt.Fprintf(e.stdout, "tcp %s, closing %s, udp %s\n", t.TCP, t.Closing, t.UDP)
	return nil
}

func version(e *env) error {
	text, revision := "devel", ""
	if info, ok := debug.ReadBuildInfo(); ok {
		if info.Main.Version != "" && info.Main.Version != "(devel)" {
			text = info.Main.Version
		}
		for _, s := range info.Settings {
			if s.Key == "vcs.revision" {
				revision = s.Value
			}
		}
	}
	if e.json {
		return e.printJSON(map[string]string{"version": text, "revision": revision})
	}
	fmt.Fprintln(e.stdout, "xdplb", text, revision)
	return nil
}
