package main

import (
	"fmt"
	"strings"
	"time"

	"github.com/spf13/pflag"

	"github.com/xdplb/xdplb/loader"
	"github.com/xdplb/xdplb/maps"
)

func drainCommands() []command {
	return []command{
		{name: "drain", args: "ADDR|BACKEND", min: 1, max: 1, changes: true, summary: "let a server take no new flows, on every VIP or on one", setup: setupDrain},
		{name: "enable", args: "ADDR|BACKEND", min: 1, max: 1, changes: true, summary: "let it take new flows again", setup: setupEnable},
	}
}

func selection(e *env, vip string) (s loader.Selection, err error) {
	if s.At, err = loader.ParseBackend(e.args[0]); err != nil {
		return s, usageError{err}
	}
	if vip != "" {
		v, err := maps.ParseVIP(vip)
		if err != nil {
			return s, usageError{err}
		}
		s.VIP = &v
	}
	return s, nil
}

func setupEnable(flags *pflag.FlagSet) func(*env) error {
	vip := flags.String("vip", "", "only on this `VIP`")
	return func(e *env) error {
		s, err := selection(e, *vip)
		if err != nil {
			return err
		}
		return change(e, func(b *loader.Balancer) error {
			vips, err := b.Enable(s)
			if err != nil {
				return err
			}
			return report(e, "enabled", vips)
		})
	}
}

func setupDrain(flags *pflag.FlagSet) func(*env) error {
	vip := flags.String("vip", "", "only on this `VIP`")
	wait := flags.Duration("wait", 0, "show who is left, return when nobody is, and fail after this time")
	return func(e *env) error {
		s, err := selection(e, *vip)
		if err != nil {
			return err
		}
		if flags.Changed("wait") && *wait <= 0 {
			return usagef("--wait %s: use a time such as 20m", *wait)
		}
		err = change(e, func(b *loader.Balancer) error {
			vips, err := b.Drain(s)
			if err != nil {
				return err
			}
			return report(e, "draining", vips)
		})
		if err != nil || *wait == 0 {
			return err
		}
		return waitDrained(e, s, *wait)
	}
}

func report(e *env, what string, vips []maps.VIP) error {
	names := make([]string, len(vips))
	for i, v := range vips {
		names[i] = v.String()
	}
	if e.json {
		return e.printJSON(map[string]any{what: e.args[0], "vips": names})
	}
	fmt.Fprintf(e.stdout, "%s: %s on %s\n", e.args[0], what, strings.Join(names, ", "))
	return nil
}

// waitDrained returns when no connection is left. Silent ones show only with
// time: until the idle timeout has passed since the drain the count is a lower bound.
func waitDrained(e *env, s loader.Selection, limit time.Duration) error {
	deadline := time.Now().Add(limit)
	tick := time.NewTicker(500 * time.Millisecond)
	defer tick.Stop()
	said := ""
	for {
		left, err := remaining(e, s)
		if err != nil {
			return err
		}
		if left.Count == 0 && !left.AtLeast {
			if !e.json {
				fmt.Fprintf(e.stdout, "%s: drained\n", e.args[0])
			}
			return nil
		}
		if text := activeText(left); text != said && !e.json {
			fmt.Fprintf(e.stdout, "%s: %s active\n", e.args[0], text)
			said = text
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("%s: %s active after %s; it goes on draining, wait longer or see: xdplb flows --backend %s", e.args[0], activeText(left), limit, e.args[0])
		}
		<-tick.C
	}
}

func remaining(e *env, s loader.Selection) (sum loader.Active, err error) {
	b, err := loader.Open(e.pins)
	if err != nil {
		return sum, err
	}
	defer b.Close()
	views, err := b.Views(s.VIP, true)
	if err != nil {
		return sum, err
	}
	sum.Known = true
	for _, v := range views {
		for _, backend := range v.Backends {
			if s.Matches(backend.At) && backend.Draining {
				sum.Count += backend.Active.Count
				sum.AtLeast = sum.AtLeast || backend.Active.AtLeast
			}
		}
	}
	return sum, nil
}
