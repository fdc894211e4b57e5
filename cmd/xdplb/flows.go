package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"net/netip"

	"github.com/spf13/pflag"

	"github.com/xdplb/xdplb/loader"
	"github.com/xdplb/xdplb/maps"
)

func flowsCommands() []command {
	return []command{
		{name: "flows", args: "[VIP]", max: 1, summary: "list the flows that are followed", setup: setupFlows},
	}
}

type flowJSON struct {
	Client  string  `json:"client"`
	VIP     string  `json:"vip"`
	Backend string  `json:"backend"`
	Mode    string  `json:"mode"`
	SNAT    *string `json:"snat"` // what the backend sees with fullnat
	State   string  `json:"state"`
	Idle    float64 `json:"idle_seconds"`
	Expires float64 `json:"expires_seconds"`
}

// flowSelection says which flows to list. A client without a port is all its ports.
type flowSelection struct {
	loader.Selection
	client netip.AddrPort
}

func (s flowSelection) has(f loader.FlowView) bool {
	client := f.Client()
	return !s.client.IsValid() || client.Addr() == s.client.Addr() && (s.client.Port() == 0 || client.Port() == s.client.Port())
}

func setupFlows(flags *pflag.FlagSet) func(*env) error {
	backend := flags.String("backend", "", "only those of this `BACKEND`")
	client := flags.String("client", "", "only those of this client, `ADDR[:PORT]`")
	count := flags.Bool("count", false, "only say how many there are")
	return func(e *env) error {
		only, err := optionalVIP(e.args)
		if err != nil {
			return err
		}
		s := flowSelection{Selection: loader.Selection{VIP: only}}
		if flags.Changed("backend") {
			if s.At, err = loader.ParseBackend(*backend); err != nil {
				return usageError{err}
			}
		}
		if flags.Changed("client") {
			if s.client, err = parseClient(*client); err != nil {
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
		if e.json {
			return listFlowsJSON(e, b, s)
		}
		return listFlows(e, b, s)
	}
}

func parseClient(s string) (netip.AddrPort, error) {
	a, err := loader.ParseBackend(s) // written alike
	if err != nil {
		return a, fmt.Errorf("--client %s: not a client; write ADDR[:PORT], IPv6 with a port in brackets", s)
	}
	return a, nil
}

func countFlows(e *env, b *loader.Balancer, s flowSelection) error {
	n := 0
	err := b.LiveFlows(s.Selection, func(f loader.FlowView) {
		if s.has(f) {
			n++
		}
	})
	if err != nil {
		return err
	}
	if e.json {
		return e.printJSON(map[string]any{"count": n})
	}
	fmt.Fprintln(e.stdout, n)
	return nil
}

// eachFlow calls f for the flows to list, until it fails.
func eachFlow(b *loader.Balancer, s flowSelection, f func(flowJSON) error) error {
	var failed error
	err := b.LiveFlows(s.Selection, func(v loader.FlowView) {
		if failed == nil && s.has(v) {
			failed = f(flowOf(v))
		}
	})
	if err != nil {
		return err
	}
	return failed
}

func flowOf(f loader.FlowView) flowJSON {
	j := flowJSON{
		Client: f.Client().String(), VIP: maps.VIP{Addr: f.Dst, Port: f.DstPort, Proto: f.Proto}.String(),
		Backend: orUnknown(f.At), Mode: f.Mode.String(), State: string(f.State()),
		Idle: f.Idle.Seconds(), Expires: f.Expires.Seconds(),
	}
	if f.Local {
		j.Backend = localStack
	}
	if f.Local || f.Mode == 0 { // of no backend
		j.Mode = "-"
	}
	if f.SNAT.IsValid() {
		snat := f.SNAT.String()
		j.SNAT = &snat
	}
	return j
}

// listFlowsJSON prints one object, flow by flow: there may be a million.
func listFlowsJSON(e *env, b *loader.Balancer, s flowSelection) error {
	w := bufio.NewWriter(e.stdout)
	separator := `{"flows":[`
	err := eachFlow(b, s, func(f flowJSON) error {
		text, err := json.Marshal(f)
		if err != nil {
			return err
		}
		fmt.Fprintf(w, "%s%s", separator, text)
		separator = ","
		return nil
	})
	if err != nil {
		return err
	}
	if separator != "," { // no flow
		fmt.Fprint(w, separator)
	}
	fmt.Fprintln(w, "]}")
	return w.Flush()
}

// flowRows is how many rows are aligned at a time: columns would else wait for the last flow.
const flowRows = 1000

func listFlows(e *env, b *loader.Balancer, s flowSelection) error {
	w := bufio.NewWriter(e.stdout)
	table := newTable(w)
	table.row("CLIENT", "VIP", "BACKEND", "MODE", "SNAT", "STATE", "IDLE", "EXPIRES")
	rows := 0
	err := eachFlow(b, s, func(f flowJSON) error {
		snat := "-"
		if f.SNAT != nil {
			snat = *f.SNAT
		}
		table.row(f.Client, f.VIP, f.Backend, f.Mode, snat, f.State, seconds(f.Idle), seconds(f.Expires))
		if rows++; rows%flowRows == 0 {
			table.flush()
			return w.Flush() // fails if nobody reads on
		}
		return nil
	})
	table.flush()
	if err != nil {
		return err
	}
	return w.Flush()
}

func seconds(s float64) string { return fmt.Sprintf("%.0f s", s) }

func orUnknown(at netip.AddrPort) string {
	if !at.IsValid() {
		return "-" // deleted
	}
	return at.String()
}
