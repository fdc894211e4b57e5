package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/pflag"
	"github.com/vishvananda/netlink"

	"github.com/xdplb/xdplb/cmd/xdplb/internal/lab"
)

// demoModes are the modes that forward, in the order in which they are shown.
var demoModes = []string{"dr", "tun", "nat", "fullnat"}

func demoCommands() []command {
	return []command{{
		name: "demo", summary: "show all of this on real connections, in a network made for it and removed again",
		setup: setupDemo,
	}}
}

func setupDemo(flags *pflag.FlagSet) func(*env) error {
	mode := flags.String("mode", "all", "show one mode only: "+strings.Join(demoModes, ", "))
	return func(e *env) error {
		modes := demoModes
		if *mode != "all" {
			if !slices.Contains(demoModes, *mode) {
				return usagef("--mode %s: not a mode that it shows; use %s or all", *mode, strings.Join(demoModes, ", "))
			}
			modes = []string{*mode}
		}
		return runDemo(e, modes)
	}
}

// demoLimit is when a demo that hangs gives up.
const demoLimit = 200 * time.Second

// runDemo shows modes in a network that it makes and removes. It fails if anything that it shows is not as it
// should be.
func runDemo(e *env, modes []string) error {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	context.AfterFunc(ctx, stop) // a second signal ends the process at once
	interrupted := ctx
	ctx, cancel := context.WithTimeout(ctx, demoLimit)
	defer cancel()

	start := time.Now()
	show := newScreen(e.stdout)
	if e.json {
		show = newScreen(io.Discard)
	}
	network, err := lab.BuildNetwork(lab.Plan{})
	if err != nil {
		return err
	}
	d := &demo{ctx: ctx, screen: show, net: network, result: &demoResult{Failures: []string{}}}
	err = d.run(modes)
	nodes := len(network.Nodes())
	closed := network.Close()
	d.result.Removed = closed == nil
	d.result.Seconds = time.Since(start).Round(time.Millisecond).Seconds()
	switch {
	case interrupted.Err() != nil:
		err = errors.New("interrupted; everything it made is removed")
	case errors.Is(err, context.DeadlineExceeded):
		err = fmt.Errorf("not done after %s; everything it made is removed", demoLimit)
	case err == nil:
		err = closed
	}
	if err != nil {
		d.result.Failures = append(d.result.Failures, err.Error())
	}
	if e.json {
		if err := e.printJSON(d.result); err != nil {
			return err
		}
	} else if err == nil {
		d.goodbye(nodes)
	}
	return d.result.failure()
}

// failure returns the first failure and how many there are, or nil.
func (r *demoResult) failure() error {
	switch len(r.Failures) {
	case 0:
		return nil
	case 1:
		return errors.New(r.Failures[0])
	}
	return fmt.Errorf("%s (and %d more)", r.Failures[0], len(r.Failures)-1)
}

// goodbye says what is gone and how it went.
func (d *demo) goodbye(nodes int) {
	s := d.screen
	s.blank()
	s.say("Removed: %d network namespaces with their devices, addresses, mounts, pins and programs.", nodes)
	s.say("Nothing outside of them was touched.")
	connections, failed := 0, 0
	for _, m := range d.result.Modes {
		for _, a := range append(m.VIPs, m.Drain.Connections, *m.Unattended) {
			connections += a.Connections
			failed += a.Failed
		}
	}
	good := len(d.result.Failures) == 0
	s.blank()
	s.say("%s %d connections, %d failed, %.1f s in all", s.mark(good), connections, failed, d.result.Seconds)
	for _, failure := range d.result.Failures {
		s.say("  %s", s.paint(red, failure))
	}
	if good {
		d.next()
	}
}

// next says what to type on a real interface.
func (d *demo) next() {
	s := d.screen
	dev := defaultDevice()
	vip, server := d.net.VIP4.String(), d.net.Servers4[0].String()
	s.heading("Next, on a network of yours (put your addresses in)")
	for _, line := range []struct {
		host, why string
		args      []string
	}{
		{"balancer", "what this interface can do; changes nothing", []string{"attach", dev, "--dry-run"}},
		{"balancer", "", []string{"attach", dev}},
		{"balancer", "", []string{"vip", "add", vip + ":80", "--assign", dev}},
		{"server", "on each server, before it is added", []string{"realserver", "accept", vip, "--mode", "dr", "--dev", "eth0"}},
		{"balancer", "", []string{"backend", "add", vip + ":80", server}},
		{"balancer", "", []string{"stats", "--watch", "1s"}},
		{"balancer", "and away again", []string{"detach", "--all", "--purge"}},
	} {
		if line.why != "" {
			s.say("%s", s.paint(dim, "# "+line.why))
		}
		s.command(line.host, append([]string{"xdplb"}, line.args...))
	}
}

// defaultDevice names the interface that this machine reaches the world by; eth0 if there is none.
func defaultDevice() string {
	routes, err := netlink.RouteList(nil, netlink.FAMILY_ALL)
	if err != nil {
		return "eth0"
	}
	for _, route := range routes {
		if ones := prefixBits(route); ones > 0 || route.LinkIndex == 0 || route.Gw == nil {
			continue
		}
		if link, err := netlink.LinkByIndex(route.LinkIndex); err == nil {
			return link.Attrs().Name
		}
	}
	return "eth0"
}

func prefixBits(route netlink.Route) int {
	if route.Dst == nil {
		return 0
	}
	ones, _ := route.Dst.Mask.Size()
	return ones
}
