package main

import (
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/spf13/pflag"
	"golang.org/x/sys/unix"

	"github.com/xdplb/xdplb/bpf"
	"github.com/xdplb/xdplb/loader"
	"github.com/xdplb/xdplb/maps"
)

func statsCommands() []command {
	return []command{
		{name: "stats", args: "[VIP]", max: 1, summary: "show counters", setup: setupStats},
	}
}

// countersJSON is left out of listings that have no counters. Connections are
// null where none can be told apart, active where flows are not followed.
type countersJSON struct {
	Packets      uint64  `json:"packets"`
	Bytes        uint64  `json:"bytes"`
	Connections  *uint64 `json:"connections"`
	ReplyPackets uint64  `json:"reply_packets"`
	ReplyBytes   uint64  `json:"reply_bytes"`
}

type backendJSON struct {
	Backend string `json:"backend"`
	Mode    string `json:"mode"`
	Weight  uint16 `json:"weight"`
	Admin   string `json:"admin"`
	Health  string `json:"health"`
	NextHop string `json:"next_hop"`
	*countersJSON
	Active        *int `json:"active"`
	ActiveAtLeast bool `json:"active_at_least"` // silent connections may be missing
}

type vipJSON struct {
	VIP          string        `json:"vip"`
	Scheduler    string        `json:"scheduler"`
	SourcePrefix *uint8        `json:"source_prefix,omitempty"`
	Affinity     float64       `json:"affinity,omitempty"` // seconds
	Group        string        `json:"affinity_group,omitempty"`
	Mode         string        `json:"mode"`
	Track        string        `json:"track"`
	TableSize    uint32        `json:"table_size"`
	MovingSlots  int           `json:"moving_slots"`
	Fingerprint  string        `json:"fingerprint"`
	SNAT         []string      `json:"snat,omitempty"` // addresses of its own
	Handover     *handoverJSON `json:"handover,omitempty"`
	*countersJSON
	Active        *int          `json:"active"`
	ActiveAtLeast bool          `json:"active_at_least"`
	Backends      []backendJSON `json:"backends"`
}

// handoverJSON is what goes between xdplb and the local stack, and what the latter still has.
type handoverJSON struct {
	Direction string  `json:"direction"`    // from_local or to_local
	Left      float64 `json:"left_seconds"` // 0: it ends when no connection needs it
	*countersJSON
	Active        *int `json:"active"`
	ActiveAtLeast bool `json:"active_at_least"`
}

func handoverOf(v *loader.VIPView, counters bool) *handoverJSON {
	if v.Handover == nil {
		return nil
	}
	j := &handoverJSON{Direction: "from_local", Left: v.Handover.Left.Seconds()}
	if v.Handover.Back {
		j.Direction = "to_local"
	}
	if counters {
		j.countersJSON = countersOf(v.Handover.Local.Counters, v)
	}
	j.Active, j.ActiveAtLeast = activeJSON(v.Handover.Local.Active)
	return j
}

type statsJSON struct {
	VIPs      []vipJSON         `json:"vips"`
	Received  uint64            `json:"received"`
	Forwarded uint64            `json:"forwarded"`
	Passed    uint64            `json:"passed"`
	Reasons   map[string]uint64 `json:"reasons"`
}

// localStack stands for the kernel in listings: during a handover it has connections, too.
const localStack = "local"

func countersOf(c maps.Counters, v *loader.VIPView) *countersJSON {
	j := &countersJSON{Packets: c.Packets, Bytes: c.Bytes, ReplyPackets: c.ReplyPackets, ReplyBytes: c.ReplyBytes}
	if countsConnections(v) {
		j.Connections = &c.Connections
	}
	return j
}

// countsConnections: a TCP connection shows in its SYN, a UDP flow only where flows are followed.
func countsConnections(v *loader.VIPView) bool {
	return v.Proto == unix.IPPROTO_TCP || v.Has(bpf.XdplbVipFlagVipPinAll)
}

func activeJSON(a loader.Active) (*int, bool) {
	if !a.Known {
		return nil, false
	}
	return &a.Count, a.AtLeast
}

func trackText(v *loader.VIPView) string {
	if v.Has(bpf.XdplbVipFlagVipPinAll) {
		return "all"
	}
	return "changes"
}

func jsonOf(views []loader.VIPView, counters bool) []vipJSON {
	all := []vipJSON{}
	for i := range views {
		v := &views[i]
		j := vipJSON{
			VIP: v.VIP.String(), Scheduler: v.InUse().Scheduler.String(), Mode: loader.Mode(v.Mode).String(),
			Track: trackText(v), TableSize: v.TableSize, MovingSlots: v.MovingSlots, Fingerprint: v.Fingerprint,
			Backends: []backendJSON{},
		}
		j.Affinity, j.Group = v.AffinityTime.Seconds(), v.Group()
		if v.InUse().Scheduler == maps.SchedulerSource || v.AffinityTime != 0 {
			prefix := loader.SourcePrefix(&v.Service)
			j.SourcePrefix = &prefix
		}
		for _, addr := range v.SNAT {
			j.SNAT = append(j.SNAT, addr.String())
		}
		if counters {
			j.countersJSON = countersOf(v.Counters, v)
		}
		j.Handover = handoverOf(v, counters)
		j.Active, j.ActiveAtLeast = activeJSON(v.Active)
		for _, b := range v.Backends {
			bj := backendJSON{
				Backend: b.At.String(), Mode: b.Mode.String(), Weight: b.Weight,
				Admin: admin(b), Health: b.Health, NextHop: nextHop(b),
			}
			if counters {
				bj.countersJSON = countersOf(b.Counters, v)
			}
			bj.Active, bj.ActiveAtLeast = activeJSON(b.Active)
			j.Backends = append(j.Backends, bj)
		}
		all = append(all, j)
	}
	return all
}

func setupStats(flags *pflag.FlagSet) func(*env) error {
	every := flags.Duration("watch", 0, "show rates, anew after each such time, until interrupted")
	return func(e *env) error {
		if flags.Changed("watch") {
			if *every < 100*time.Millisecond {
				return usagef("--watch %s: use 100ms or more", *every)
			}
			return watchStats(e, *every)
		}
		views, packets, err := readStats(e)
		if err != nil {
			return err
		}
		if e.json {
			return printStatsJSON(e, views, packets)
		}
		printStats(e.stdout, views, packets)
		return nil
	}
}

func readStats(e *env) (views []loader.VIPView, p maps.Packets, err error) {
	if views, err = readViews(e); err != nil {
		return nil, p, err
	}
	m, err := maps.Open(e.pins)
	if err != nil {
		return nil, p, err
	}
	defer m.Close()
	p, err = m.ReadPackets()
	return views, p, err
}

func printStatsJSON(e *env, views []loader.VIPView, p maps.Packets) error {
	return e.printJSON(statsJSON{jsonOf(views, true), p.Received, p.Forwarded, p.Passed, p.Reasons})
}

func printStats(w io.Writer, views []loader.VIPView, p maps.Packets) {
	table := newTable(w)
	table.row("VIP / BACKEND", "MODE", "WEIGHT", "STATE", "PACKETS", "BYTES", "CONNECTIONS", "ACTIVE")
	for i := range views {
		v := &views[i]
		table.row(v.VIP.String(), schedulerText(v), "", vipState(v), fmt.Sprint(v.Packets), fmt.Sprint(v.Bytes), connectionsText(v, v.Connections), activeText(v.Active))
		for _, b := range v.Backends {
			table.row("  -> "+b.At.String(), b.Mode.String(), fmt.Sprint(b.Weight), backendState(b),
				fmt.Sprint(b.Packets), fmt.Sprint(b.Bytes), connectionsText(v, b.Connections), activeText(b.Active))
		}
		if v.Handover != nil {
			b := v.Handover.Local
			table.row("  -> "+localStack, "", "", "", fmt.Sprint(b.Packets), fmt.Sprint(b.Bytes), connectionsText(v, b.Connections), activeText(b.Active))
		}
	}
	table.flush()
	fmt.Fprintf(w, "\nreceived %d = forwarded %d + passed %d + not forwarded %d\n", p.Received, p.Forwarded, p.Passed, p.Received-p.Forwarded-p.Passed)
	table = newTable(w)
	for _, name := range p.SortedReasons() {
		if n := p.Reasons[name]; n > 0 {
			table.row("  "+name, fmt.Sprint(n))
		}
	}
	table.flush()
}

func connectionsText(v *loader.VIPView, n uint64) string {
	if !countsConnections(v) {
		return "-"
	}
	return fmt.Sprint(n)
}

// backendState names what stands in the way of new flows, if anything does.
func backendState(b loader.BackendView) string {
	switch {
	case b.Health == "down":
		return "down"
	case b.Draining:
		return "drain"
	case !b.Resolved:
		return "unresolved"
	case b.Weight == 0:
		return "weight 0"
	}
	return "ok"
}

// watchStats shows what a second brings.
func watchStats(e *env, every time.Duration) error {
	interrupted := make(chan os.Signal, 1)
	signal.Notify(interrupted, os.Interrupt, syscall.SIGTERM)
	defer signal.Stop(interrupted)
	tick := time.NewTicker(every)
	defer tick.Stop()
	before, _, err := readStats(e)
	for began := time.Now(); err == nil; {
		select {
		case <-interrupted:
			return nil
		case <-tick.C:
		}
		var views []loader.VIPView
		var packets maps.Packets
		if views, packets, err = readStats(e); err != nil {
			break
		}
		seconds := time.Since(began).Seconds()
		began = time.Now()
		if e.json {
			err = printStatsJSON(e, views, packets)
		} else {
			printRates(e.stdout, before, views, seconds)
		}
		before = views
	}
	return err
}

func printRates(w io.Writer, before, after []loader.VIPView, seconds float64) {
	last := make(map[string]maps.Counters)
	for _, v := range before {
		last[v.VIP.String()] = v.Counters
		for _, b := range v.Backends {
			last[v.VIP.String()+b.At.String()] = b.Counters
		}
	}
	rate := func(now, then uint64) string {
		if now < then { // added anew meanwhile
			then = 0
		}
		return fmt.Sprintf("%.0f", float64(now-then)/seconds)
	}
	table := newTable(w)
	table.row("VIP / BACKEND", "PACKETS/S", "BYTES/S", "CONNECTIONS/S", "ACTIVE")
	row := func(name, key string, c maps.Counters, a loader.Active) {
		then := last[key]
		table.row(name, rate(c.Packets, then.Packets), rate(c.Bytes, then.Bytes), rate(c.Connections, then.Connections), activeText(a))
	}
	for _, v := range after {
		row(v.VIP.String(), v.VIP.String(), v.Counters, v.Active)
		for _, b := range v.Backends {
			row("  -> "+b.At.String(), v.VIP.String()+b.At.String(), b.Counters, b.Active)
		}
	}
	table.flush()
	fmt.Fprintln(w)
}
