package main

import (
	"fmt"
	"net/netip"

	"github.com/spf13/pflag"

	"github.com/xdplb/xdplb/loader"
)

func snatCommands() []command {
	return []command{
		{name: "snat add", args: "ADDR...", min: 1, max: -1, changes: true, summary: "add addresses that FULL-NAT sends from", setup: setupSNATAdd},
		{name: "snat del", args: "ADDR...", min: 1, max: -1, changes: true, summary: "take addresses away; flows that use them go on", setup: noFlags(snatDel)},
		{name: "snat ports", args: "LO-HI", min: 1, max: 1, changes: true, summary: "set the ports that FULL-NAT sends from", setup: noFlags(snatPorts)},
		{name: "snat list", args: "", summary: "list the addresses, and how full each is", setup: noFlags(snatList)},
	}
}

// parseSNAT reads addresses.
func parseSNAT(args []string) (addrs []netip.Addr, err error) {
	for _, arg := range args {
		addr, err := netip.ParseAddr(arg)
		if err != nil || addr.Zone() != "" {
			return nil, fmt.Errorf("%s: not an address; write it as 192.0.2.4 or 2001:db8::4", arg)
		}
		addrs = append(addrs, addr.Unmap())
	}
	return addrs, nil
}

// parseVIPSNAT reads those of one VIP; pool is none of its own.
func parseVIPSNAT(args []string) (*[]netip.Addr, error) {
	if len(args) == 1 && args[0] == "pool" {
		return new([]netip.Addr), nil
	}
	addrs, err := parseSNAT(args)
	if err != nil {
		return nil, fmt.Errorf("--snat %w (or pool)", err)
	}
	return &addrs, nil
}

func warnOfOverlap(e *env, command string, r loader.PortRange) {
	if warning := loader.OverlapWarning(r); warning != "" {
		e.notice("%s: %s", command, warning)
	}
}

// warnOfSNATPorts is for attach, which may have chosen the ports.
func warnOfSNATPorts(e *env) error {
	b, err := loader.Open(e.pins)
	if err != nil {
		return err
	}
	defer b.Close()
	warnOfOverlap(e, "attach", b.SNATPorts())
	return nil
}

func setupSNATAdd(flags *pflag.FlagSet) func(*env) error {
	anyHost := flags.Bool("any-snat", false, "they need not be this host's")
	return func(e *env) error {
		addrs, err := parseSNAT(e.args)
		if err != nil {
			return usageError{err}
		}
		return change(e, func(b *loader.Balancer) error {
			if err := b.AddSNAT(addrs, *anyHost); err != nil {
				return err
			}
			warnOfOverlap(e, "snat add", b.SNATPorts())
			return nil
		})
	}
}

func snatDel(e *env) error {
	addrs, err := parseSNAT(e.args)
	if err != nil {
		return usageError{err}
	}
	return change(e, func(b *loader.Balancer) error {
		if err := b.DeleteSNAT(addrs); err != nil {
			return err
		}
		s, err := b.SNAT()
		if err != nil {
			return err
		}
		for _, addr := range addrs {
			if n := s.Flows[addr]; n > 0 {
				e.notice("snat del %s: %d flows use it, and go on as long as it leads here; new ones use others", addr, n)
			}
		}
		return nil
	})
}

func snatPorts(e *env) error {
	r, err := loader.ParsePorts(e.args[0])
	if err != nil {
		return usageError{err}
	}
	return change(e, func(b *loader.Balancer) error {
		if err := b.SetSNATPorts(r); err != nil {
			return err
		}
		warnOfOverlap(e, "snat ports", r)
		return nil
	})
}

type snatPortsJSON struct {
	Low  uint16 `json:"low"`
	High uint16 `json:"high"`
}

type fullestJSON struct {
	Backend string  `json:"backend"`
	Flows   int     `json:"flows"`
	Percent float64 `json:"percent"`
}

// snatAddressJSON is an address of the pool, of a VIP's own, or a VIP's address
// that FULL-NAT sends from because there is no other.
type snatAddressJSON struct {
	Address string       `json:"address"`
	Source  string       `json:"source"` // pool, own or vip
	VIP     *string      `json:"vip"`    // null: the pool
	Flows   int          `json:"flows"`
	Fullest *fullestJSON `json:"fullest"` // null: no flows
}

type snatJSON struct {
	Ports     snatPortsJSON     `json:"ports"`
	Addresses []snatAddressJSON `json:"addresses"`
}

func snatOf(s loader.SNATView) snatJSON {
	j := snatJSON{snatPortsJSON{s.Ports.Low, s.Ports.High}, []snatAddressJSON{}}
	for _, a := range s.Addresses {
		one := snatAddressJSON{Address: a.Addr.String(), Source: a.Source, Flows: s.Flows[a.Addr]}
		if a.VIP != nil {
			vip := a.VIP.String()
			one.VIP = &vip
		}
		if f, ok := s.Fullest[a.Addr]; ok {
			one.Fullest = &fullestJSON{f.Backend.String(), f.Flows, s.Percent(f)}
		}
		j.Addresses = append(j.Addresses, one)
	}
	return j
}

func snatList(e *env) error {
	b, err := loader.Open(e.pins)
	if err != nil {
		return err
	}
	defer b.Close()
	s, err := b.SNAT()
	if err != nil {
		return err
	}
	j := snatOf(s)
	if e.json {
		return e.printJSON(j)
	}
	table := newTable(e.stdout)
	table.row("ADDRESS", "VIP", "PORTS", "FLOWS", "FULLEST")
	for _, a := range j.Addresses {
		vip, fullest := "-", "-"
		if a.VIP != nil {
			vip = *a.VIP
		}
		if a.Fullest != nil {
			fullest = fmt.Sprintf("%s %s", a.Fullest.Backend, percentText(a.Fullest.Percent))
		}
		table.row(a.Address, vip, s.Ports.String(), fmt.Sprint(a.Flows), fullest)
	}
	table.flush()
	if len(j.Addresses) == 0 {
		fmt.Fprintf(e.stdout, "no addresses: FULL-NAT sends from the VIP's own, ports %s\n", s.Ports)
	}
	return nil
}

// snatSummary is what status says.
func snatSummary(s *loader.SNATView) string {
	flows, most := 0, 0.0
	for _, a := range s.Addresses {
		if f, ok := s.Fullest[a.Addr]; ok {
			most = max(most, s.Percent(f))
		}
	}
	for _, n := range s.Flows {
		flows += n
	}
	text := fmt.Sprintf("snat %d addresses, ports %s, %d flows", len(s.Addresses), s.Ports, flows)
	if flows > 0 {
		text += ", the fullest " + percentText(most)
	}
	return text
}

// percentText never says that what is in use is empty, nor that what has room is full.
func percentText(p float64) string {
	switch {
	case p < 1:
		return "<1 %"
	case p > 99 && p < 100:
		return ">99 %"
	}
	return fmt.Sprintf("%.0f %%", p)
}
