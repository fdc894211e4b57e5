package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"time"

	"github.com/xdplb/xdplb/cmd/xdplb/internal/lab"
)

const (
	demoConnections = 300
	demoPort        = 80

	demoDownload = 200 // MiB
	demoBefore   = 50  // MiB of it that have arrived when the server is drained
	demoDuring   = 100 // MiB of it that arrive while new connections are made
)

// demoResult is what `demo -o json` prints.
type demoResult struct {
	Modes    []*demoMode `json:"modes"`
	Failures []string    `json:"failures"`
	Removed  bool        `json:"removed"` // nothing that the demo made is left
	Seconds  float64     `json:"seconds"`
}

type demoMode struct {
	Mode       string          `json:"mode"`
	VIPs       []answers       `json:"vips"`
	Drain      *demoDrain      `json:"drain"`
	Processes  []lab.Process   `json:"balancer_processes"`
	Unattended *answers        `json:"unattended"` // connections while those were all processes
	Stats      json.RawMessage `json:"stats"`
}

type demoDrain struct {
	Server      string  `json:"server"`
	Connections answers `json:"connections"` // made after the drain, during the download
	MiB         int     `json:"download_mib"`
	MiBBefore   int     `json:"download_mib_when_drained"`
	MiBAfter    int     `json:"download_mib_after_connections"`
	Digest      string  `json:"digest"`
	DigestEqual bool    `json:"digest_equal"`
	Error       string  `json:"error,omitempty"` // that ended the download
}

// demo is one run of `xdplb demo`.
type demo struct {
	ctx    context.Context
	screen *screen
	net    *lab.Network
	vips   []netip.AddrPort
	result *demoResult
}

// fail notes that something is not as it should be; the demo goes on.
func (d *demo) fail(format string, args ...any) {
	d.result.Failures = append(d.result.Failures, fmt.Sprintf(format, args...))
}

// run shows the modes one after the other. Its error is one that the demo cannot go on after.
func (d *demo) run(modes []string) error {
	d.vips = []netip.AddrPort{
		netip.AddrPortFrom(d.net.VIP4, demoPort), netip.AddrPortFrom(d.net.VIP6, demoPort),
	}
	d.drawNetwork()
	for _, server := range d.net.Servers {
		if err := server.ServeHTTP(demoPort); err != nil {
			return err
		}
	}
	if err := d.xdplb(d.net.Balancer, "attach", "eth0"); err != nil {
		return err
	}
	for _, mode := range modes {
		m := &demoMode{Mode: mode}
		d.result.Modes = append(d.result.Modes, m)
		if err := d.showMode(m); err != nil {
			return err
		}
	}
	d.screen.heading("Taking it away")
	return d.xdplb(d.net.Balancer, "detach", "--all", "--purge")
}

func (d *demo) drawNetwork() {
	d.screen.heading(fmt.Sprintf("A network of its own: %d network namespaces, one of them the switch", len(d.net.Nodes())))
	row := func(name string, v4, v6 netip.Addr, what string) {
		d.screen.say("%-9s %-12s %-16s %s", name, v4, v6, what)
	}
	row("client", d.net.Client4, d.net.Client6, "opens TCP connections")
	row("balancer", d.net.Balancer4, d.net.Balancer6, "runs xdplb on eth0")
	for i, server := range d.net.Servers {
		row(server.Name, d.net.Servers4[i], d.net.Servers6[i], "serves HTTP, tells its name")
	}
	row("VIP", d.net.VIP4, d.net.VIP6, "what the client connects to")
	d.screen.blank()
}

var modeHeadings = map[string]string{
	"dr":      "Mode dr: a new destination MAC; servers on the same segment answer the client directly",
	"tun":     "Mode tun: an outer IP header; servers anywhere unpack it and answer the client directly",
	"nat":     "Mode nat: the server's address in place of the VIP; replies come back through the balancer",
	"fullnat": "Mode fullnat: the balancer's address in place of the client's, too; servers need nothing at all",
}

func (d *demo) showMode(m *demoMode) error {
	d.screen.heading(modeHeadings[m.Mode])
	if err := d.setUp(m.Mode); err != nil {
		return err
	}
	for _, vip := range d.vips {
		if err := d.spread(m, vip); err != nil {
			return err
		}
	}
	if err := d.drain(m); err != nil {
		return err
	}
	if err := d.unattended(m); err != nil {
		return err
	}
	d.screen.blank()
	if err := d.xdplb(d.net.Balancer, "stats"); err != nil {
		return err
	}
	var err error
	if m.Stats, err = d.quiet(d.net.Balancer, "stats", "-o", "json"); err != nil {
		return err
	}
	return d.tearDown(m.Mode)
}

func (d *demo) setUp(mode string) error {
	if err := d.prepareServers(mode); err != nil {
		return err
	}
	for i, vip := range d.vips {
		if err := d.xdplb(d.net.Balancer, "vip", "add", vip.String(), "--mode", mode, "--assign", "eth0"); err != nil {
			return err
		}
		add := []string{"backend", "add", vip.String()}
		for _, addr := range [][]netip.Addr{d.net.Servers4, d.net.Servers6}[i] {
			add = append(add, addr.String())
		}
		if err := d.xdplb(d.net.Balancer, add...); err != nil {
			return err
		}
	}
	return d.awaitNextHops()
}

// prepareServers gives them what a mode asks of servers.
func (d *demo) prepareServers(mode string) error {
	switch mode {
	case "nat":
		d.screen.say("%s", d.screen.paint(dim, "  (each server gets a route: to the client via the balancer)"))
		for _, server := range d.net.Servers {
			for _, route := range [][2]netip.Addr{{d.net.Client4, d.net.Balancer4}, {d.net.Client6, d.net.Balancer6}} {
				if err := server.Route(netip.PrefixFrom(route[0], route[0].BitLen()).String(), route[1].String()); err != nil {
					return err
				}
			}
		}
		return nil
	case "fullnat":
		return d.xdplb(d.net.Balancer, "snat", "add", d.net.Balancer4.String(), d.net.Balancer6.String())
	}
	accept := []string{"realserver", "accept"}
	for _, vip := range d.vips {
		accept = append(accept, vip.Addr().String())
	}
	return d.onServers(append(accept, "--mode", mode, "--dev", "eth0"))
}

func (d *demo) tearDown(mode string) error {
	d.screen.blank()
	for _, vip := range d.vips {
		if err := d.xdplb(d.net.Balancer, "vip", "del", vip.String()); err != nil {
			return err
		}
	}
	if mode == "nat" || mode == "fullnat" {
		return nil
	}
	return d.onServers([]string{"realserver", "release", "--all"})
}

// awaitNextHops waits until every backend can be reached, as far as the balancer knows.
func (d *demo) awaitNextHops() error {
	for tick := time.Tick(50 * time.Millisecond); ; {
		out, err := d.quiet(d.net.Balancer, "stats", "-o", "json")
		if err != nil {
			return err
		}
		var stats struct {
			VIPs []struct {
				Backends []struct {
					NextHop string `json:"next_hop"`
				} `json:"backends"`
			} `json:"vips"`
		}
		if err := json.Unmarshal(out, &stats); err != nil {
			return fmt.Errorf("stats -o json: %w", err)
		}
		ready := 0
		for _, vip := range stats.VIPs {
			for _, backend := range vip.Backends {
				if backend.NextHop == "ok" {
					ready++
				}
			}
		}
		if ready == len(d.vips)*len(d.net.Servers) {
			return nil
		}
		select {
		case <-tick:
		case <-d.ctx.Done():
			return fmt.Errorf("only %d backends became reachable", ready)
		}
		if _, err := d.quiet(d.net.Balancer, "refresh"); err != nil {
			return err
		}
	}
}

func (d *demo) names() (names []string) {
	for _, server := range d.net.Servers {
		names = append(names, server.Name)
	}
	return names
}

func (d *demo) judge(mode, when string, a answers) {
	if a.Failed > 0 {
		d.fail("mode %s: %d of %d connections to %s failed %s: %s",
			mode, a.Failed, a.Connections, a.VIP, when, a.FirstFailure)
	}
}

func (d *demo) spread(m *demoMode, vip netip.AddrPort) error {
	d.screen.blank()
	a := ask(d.ctx, d.net.Client, vip, demoConnections, func() {})
	if err := d.ctx.Err(); err != nil {
		return err
	}
	m.VIPs = append(m.VIPs, a)
	d.screen.say("%d TCP connections from client to %s", a.Connections, a.VIP)
	d.screen.bars(d.names(), a)
	d.judge(m.Mode, "", a)
	for _, name := range d.names() {
		if a.Answers[name] == 0 {
			d.fail("mode %s: %s answered none of %d connections to %s", m.Mode, name, a.Connections, a.VIP)
		}
	}
	return nil
}
