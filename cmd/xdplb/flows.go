package main

import (
	"fmt"
	"net/netip"

	"github.com/spf13/pflag"

	"github.com/xdplb/xdplb/loader"
	"github.com/xdplb/xdplb/maps"
)

func flowsCommands() []command {
	return []command{
		{name: "flows", args: "[VIP]", max: 1, summary: "list pinned flows: those that spoke while their slot moved", setup: setupFlows},
	}
}

type flowJSON struct {
	Client  string  `json:"client"`
	VIP     string  `json:"vip"`
	Backend string  `json:"backend"`
	State   string  `json:"state"`
	Idle    float64 `json:"idle_seconds"`
	Expires float64 `json:"expires_seconds"`
}

func setupFlows(flags *pflag.FlagSet) func(*env) error {
	backend := flags.String("backend", "", "only those of this `BACKEND`")
	count := flags.Bool("count", false, "only say how many there are")
	return func(e *env) error {
		only, err := optionalVIP(e.args)
		if err != nil {
			return err
		}
		s := loader.Selection{VIP: only}
		if *backend != "" {
			if s.At, err = loader.ParseBackend(*backend); err != nil {
				return usageError{err}
			}
		}
		b, err := loader.Open(e.pins)
		if err != nil {
			return err
		}
		defer b.Close()
		if *count {
			return countFlows(e, b, s)
		}
		return listFlows(e, b, s)
	}
}

func countFlows(e *env, b *loader.Balancer, s loader.Selection) error {
	n := 0
	if err := b.LiveFlows(s, func(loader.FlowView) { n++ }); err != nil {
		return err
	}
	if e.json {
		return e.printJSON(map[string]any{"count": n})
	}
	fmt.Fprintln(e.stdout, n)
	return nil
}

func listFlows(e *env, b *loader.Balancer, s loader.Selection) error {
	all := []flowJSON{}
	err := b.LiveFlows(s, func(f loader.FlowView) {
		all = append(all, flowJSON{
			Client: f.Client().String(), VIP: maps.VIP{Addr: f.Dst, Port: f.DstPort, Proto: f.Proto}.String(),
			Backend: orUnknown(f.At), State: flowState(f.Flow),
			Idle: f.Idle.Seconds(), Expires: f.Expires.Seconds(),
		})
	})
	if err != nil {
		return err
	}
	if e.json {
		return e.printJSON(map[string]any{"flows": all})
	}
	table := newTable(e.stdout)
	table.row("CLIENT", "VIP", "BACKEND", "STATE", "IDLE", "EXPIRES")
	for _, f := range all {
		table.row(f.Client, f.VIP, f.Backend, f.State, fmt.Sprintf("%.0f s", f.Idle), fmt.Sprintf("%.0f s", f.Expires))
	}
	table.flush()
	return nil
}

func orUnknown(at netip.AddrPort) string {
	if !at.IsValid() {
		return "-" // deleted
	}
	return at.String()
}

func flowState(f maps.Flow) string {
	switch {
	case f.Closing:
		return "closing"
	case f.Spoken:
		return "established"
	}
	return "half_open"
}
