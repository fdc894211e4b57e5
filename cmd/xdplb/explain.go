package main

import (
	"fmt"
	"net/netip"

	"github.com/spf13/pflag"
	"golang.org/x/sys/unix"

	"github.com/xdplb/xdplb/loader"
	"github.com/xdplb/xdplb/maps"
)

func explainCommands() []command {
	return []command{
		{name: "explain", args: "CLIENT VIP | --reason REASON", max: 2, setup: setupExplain, more: explainHelp,
			summary: "say what would become of a packet now, and why; or what a counter means"},
	}
}

const explainHelp = `
CLIENT is ADDR:PORT. The packet is one of a connection that is open; what a SYN
would do is said where it differs. Nothing is changed and nothing counted.
`

// explaining is what explain was asked.
type explaining struct {
	syn, reply bool
	dev        string
}

func setupExplain(flags *pflag.FlagSet) func(*env) error {
	var x explaining
	flags.BoolVar(&x.syn, "syn", false, "the packet opens a connection (TCP)")
	flags.BoolVar(&x.reply, "reply", false, "the packet is the backend's answer in this flow")
	flags.StringVar(&x.dev, "dev", "", "it comes in by this `IFACE` (default: where the route to its sender leads)")
	reason := flags.String("reason", "", "say what the counter `REASON` of stats means, or all")
	return func(e *env) error {
		if flags.Changed("reason") {
			if len(e.args) > 0 {
				return usagef("--reason explains a counter, CLIENT VIP a packet; use one of the two")
			}
			return explainReason(e, *reason)
		}
		flow, err := parseFlow(e.args)
		if err != nil {
			return usageError{err}
		}
		switch {
		case x.syn && flow.Proto != unix.IPPROTO_TCP:
			return usagef("--syn: UDP has none; leave it out, or name the VIP with /tcp")
		case x.syn && x.reply:
			return usagef("--syn: a reply opens nothing; leave out --syn or --reply")
		}
		b, err := loader.Open(e.pins)
		if err != nil {
			return err
		}
		defer b.Close()
		return explainPacket(e, b, flow, x)
	}
}

// parseFlow reads CLIENT VIP.
func parseFlow(args []string) (flow maps.Tuple, err error) {
	if len(args) != 2 {
		return flow, fmt.Errorf("wants CLIENT VIP, or --reason REASON; such as: xdplb explain 203.0.113.7:40000 192.0.2.10:80")
	}
	client, err := netip.ParseAddrPort(args[0])
	if err != nil || client.Port() == 0 || client.Addr().Zone() != "" {
		return flow, fmt.Errorf("%s: not a client; write ADDR:PORT with the port that it sends from (1 to 65535), IPv6 in brackets; xdplb flows shows those of open connections", args[0])
	}
	v, err := maps.ParseVIP(args[1])
	if err != nil {
		return flow, err
	}
	flow = maps.Tuple{Src: client.Addr().Unmap(), SrcPort: client.Port(), Dst: v.Addr, DstPort: v.Port, Proto: v.Proto}
	switch {
	case v.Port == 0:
		return flow, fmt.Errorf("%s: packets have a port; name one that the VIP serves, such as %s", args[1], netip.AddrPortFrom(v.Addr, 80))
	case flow.Src.Is4() != flow.Dst.Is4():
		return flow, fmt.Errorf("%s: %s is of the other family; name a client of the VIP's", args[0], args[1])
	}
	return flow, nil
}

func explainPacket(e *env, b *loader.Balancer, flow maps.Tuple, ask explaining) error {
	p := loader.Packet{Tuple: flow, SYN: ask.syn}
	from := flow.Src
	if ask.reply {
		var why string
		var err error
		if p, why, err = b.Reply(flow); err != nil {
			return err
		}
		if why != "" {
			return explainNoReply(e, why)
		}
		from = p.Src
	}
	number, name, err := b.Arrival(from, ask.dev)
	if err != nil {
		return err
	}
	p.Number = number
	x, err := b.Explain(p)
	if err != nil {
		return err
	}
	x.Mend = e.said(x.Mend)
	var opens *loader.Explanation
	if flow.Proto == unix.IPPROTO_TCP && !p.SYN && !x.Reply && !ask.reply {
		p.SYN = true
		if opens, err = b.Explain(p); err != nil {
			return err
		}
		opens.Mend = e.said(opens.Mend)
		if sameEnd(x, opens) {
			opens = nil
		}
	}
	reasons, err := maps.ReasonNames()
	if err != nil {
		return err
	}
	told := told{x, name, reasons}
	if e.json {
		return e.printJSON(told.json(opens))
	}
	told.print(e, opens)
	return nil
}

// sameEnd reports whether two packets of one flow end alike.
func sameEnd(a, b *loader.Explanation) bool {
	if a.Reason != b.Reason || a.Detail != b.Detail || (a.Backend == nil) != (b.Backend == nil) || (a.After == nil) != (b.After == nil) {
		return false
	}
	if a.Pin != nil && a.Pin.Twins && a.Pin.Followed != b.Pin.Followed { // the flow begins anew
		return false
	}
	return (a.Backend == nil || a.Backend.Id == b.Backend.Id) && (a.After == nil || *a.After == *b.After)
}

func explainNoReply(e *env, why string) error {
	if e.json {
		return e.printJSON(map[string]any{"verdict": nil, "detail": why})
	}
	fmt.Fprintf(e.stdout, "reply  none: %s\n", why)
	return nil
}

type reasonJSON struct {
	Reason string `json:"reason"`
	Means  string `json:"means"`
	Causes string `json:"causes"`
	Mends  string `json:"mends"`
}

func explainReason(e *env, name string) error {
	all, err := loader.ExplainReasons()
	if err != nil {
		return err
	}
	if name != "all" {
		one, err := loader.ExplainReason(name)
		if err != nil {
			return usageError{err}
		}
		all = []loader.ExplainedReason{one}
	}
	if e.json {
		objects := make([]reasonJSON, len(all))
		for i, r := range all {
			objects[i] = reasonJSON{r.Name, r.Means, r.Causes, r.Mends}
		}
		return e.printJSON(map[string]any{"reasons": objects})
	}
	table := newTable(e.stdout)
	for _, r := range all {
		table.row(r.Name, r.Means)
		table.row("  causes", r.Causes)
		table.row("  mends", r.Mends)
	}
	table.flush()
	return nil
}
