package loader

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/vishvananda/netlink"

	"github.com/xdplb/xdplb/maps"
)

// balance looks at VIPs, backends, and how full the maps are.
func (d *doctor) balance() {
	services, err := d.balancer.Maps.Services()
	if err != nil {
		d.unknown("vip_address", err)
		return
	}
	backends := d.balancer.Maps.ReadBackends(func(uint32) bool { return true })
	snat, err := d.balancer.SNAT()
	if err != nil {
		d.unknown("snat_ports", err)
	}
	if !uses(backends, ModeFullNAT) {
		snat.Addresses = nil // a pool that nobody uses needs nothing
	}
	d.ownAddresses(services, snat.Addresses)
	d.nextHops(backends)
	d.tunnelMTU(backends)
	d.forwarding(backends)
	if len(snat.Addresses) > 0 {
		d.snatPorts(&snat)
	}
	d.places(len(services), len(backends))
	d.flows()
}

// nextHops compares what packets follow with what the kernel finds now.
func (d *doctor) nextHops(backends []maps.Backend) {
	var servers []netip.Addr
	for _, b := range backends { // in the order of their addresses
		if n := len(servers); b.Listed() && (n == 0 || servers[n-1] != b.Addr()) {
			servers = append(servers, b.Addr())
		}
	}
	found, err := ResolveNextHops(context.Background(), servers, probeWait)
	if err != nil {
		d.unknown("next_hop", err)
		return
	}
	told := map[netip.Addr]bool{}
	for _, b := range backends {
		if addr := b.Addr(); b.Listed() && !told[addr] {
			told[addr] = d.nextHop(&b, found[addr])
		}
	}
	if len(servers) > 0 {
		d.well("next_hop", "%d servers: all resolved, as the kernel knows them now", len(servers))
	}
}

// nextHop tells whether there was something to say.
func (d *doctor) nextHop(b *maps.Backend, res Resolution) bool {
	addr := b.Addr()
	status := CheckFail
	if drained(b) {
		status = CheckWarn // it gets nothing new
	}
	now, err := (&change{b: d.balancer}).hop(b.AddrPort(), Mode(b.Mode), res)
	switch {
	case err != nil:
		text, mend := err.Error(), ""
		if i := strings.Index(text, "run: "); i >= 0 {
			mend = text[i+len("run: "):] + " && xdplb refresh"
		}
		d.add(status, "next_hop", mend, "%s", text)
	case !res.Resolved:
		d.add(status, "next_hop", "xdplb refresh", "%s: nobody answers at this address; take it out (xdplb drain %s), or start the server and then run this", addr, addr)
	case !b.Resolved():
		d.add(status, "next_hop", "xdplb refresh", "%s: answers, and gets no traffic: it did not when its next hop was asked for", addr)
	case now.Mac != b.Mac || now.Link != b.Link:
		d.add(status, "next_hop", "xdplb refresh", "%s: the way to it has changed since its next hop was asked for", addr)
	default:
		return false
	}
	return true
}

// forwarding: replies of NAT are forwarded in XDP. What is left to the kernel is what servers behind the balancer
// send on their own, such as to update themselves.
func (d *doctor) forwarding(backends []maps.Backend) {
	by := map[uint16]bool{} // interfaces, by number, toward IPv4 servers
	four, six := false, false
	for _, b := range backends {
		if !b.Listed() || Mode(b.Mode) != ModeNAT {
			continue
		}
		if b.Addr().Is4() {
			four, by[b.Link.Interface] = true, true
		} else {
			six = true
		}
	}
	if four && d.forwards("ipv4/ip_forward") {
		for _, r := range d.balancer.Maps.ReadInterfaces() {
			if by[uint16(r.Number)] {
				d.redirects(int(r.Ifindex))
			}
		}
	}
	if six {
		d.forwards("ipv6/conf/all/forwarding")
	}
}

func (d *doctor) forwards(path string) bool {
	name := "net." + strings.ReplaceAll(path, "/", ".")
	on, err := readNet(path)
	switch {
	case err != nil:
		d.unknown("ip_forward", err)
	case on == 0:
		d.warn("ip_forward", fmt.Sprintf("sysctl %s=1", name),
			"%s: 0: replies to clients are forwarded all the same, but servers whose default route is this host reach nothing else through it", name)
	default:
		d.ok("ip_forward", "%s: %d", name, on)
	}
	return on != 0
}

// redirects: a server that the kernel told of a shorter way (RFC 1812, 5.2.7.2) would answer that client past the balancer.
func (d *doctor) redirects(ifindex int) {
	name := interfaceName(uint32(ifindex))
	all, err := readIPv4("all", "send_redirects")
	one, err2 := readIPv4(name, "send_redirects")
	routes, err3 := netlink.RouteListFiltered(netlink.FAMILY_V4, &netlink.Route{LinkIndex: ifindex}, netlink.RT_FILTER_OIF)
	if err := errors.Join(err, err2, err3); err != nil {
		d.unknown("send_redirects", err)
		return
	}
	out := slices.ContainsFunc(routes, func(r netlink.Route) bool { return r.Gw != nil })
	if out && max(all, one) != 0 {
		d.warn("send_redirects", fmt.Sprintf("sysctl net.ipv4.conf.all.send_redirects=0 net.ipv4.conf.%s.send_redirects=0", name),
			"%s: servers and a router are both on it, and the kernel tells servers to go to the router by themselves: their replies would miss this host", name)
		return
	}
	d.ok("send_redirects", "%s: no server is sent past this host", name)
}

func uses(backends []maps.Backend, mode Mode) bool {
	return slices.ContainsFunc(backends, func(b maps.Backend) bool { return b.Listed() && Mode(b.Mode) == mode })
}

// snatPorts looks for ports that both FULL-NAT and the host's own connections take, and for addresses that have few left.
func (d *doctor) snatPorts(snat *SNATView) {
	if text := OverlapWarning(snat.Ports); text != "" {
		detail, mend, _ := strings.Cut(text, "; reserve them: ")
		d.warn("snat_ports", mend, "%s", detail)
	}
	for _, a := range snat.Addresses {
		load := snat.Fullest[a.Addr]
		if snat.Percent(load) < nearlyFull {
			continue
		}
		mend := ""
		if wider := d.balancer.widestSNATPorts(); wider.Size() > snat.Ports.Size() {
			mend = setPorts + wider.String()
		}
		d.warn("snat_ports", mend, "%s: %d of %d ports toward %s are taken; give FULL-NAT more ports, or another address: xdplb snat add ADDR",
			a.Addr, load.Flows, snat.Ports.Size(), load.Backend)
	}
	d.well("snat_ports", "%s on %d addresses: none of the host's own, and enough are free", snat.Ports, len(snat.Addresses))
}

// nearlyFull is the share in percent from which on places, or ports, are soon gone.
const nearlyFull = 80

func (d *doctor) places(vips, backends int) {
	m := d.balancer.Maps
	for _, p := range []struct {
		what, field string
		Places
	}{
		{"VIPs", "max_vips", Places{vips, int(m.MaxVIPs())}},
		{"backends", "max_backends", Places{backends, int(m.Backends.MaxEntries()) - 1}},
	} {
		if 100*p.Used >= nearlyFull*p.Max {
			d.warn("map_places", enlarge(p.field, p.Max), "%s: %d of %d places are taken; making more takes the balancer out for a moment", p.what, p.Used, p.Max)
			continue
		}
		d.ok("map_places", "%s: %d of %d", p.what, p.Used, p.Max)
	}
}

// flows counts those that live: dead ones give way to new ones.
func (d *doctor) flows() {
	b := d.balancer
	now, err := b.Now()
	if err != nil {
		d.unknown("flow_table", err)
		return
	}
	promoted, halfOpen := 0, 0
	err = b.Maps.Flows(func(f maps.Flow) bool {
		switch {
		case !b.Settings.Live(f, now):
		case f.HalfOpen:
			halfOpen++
		default:
			promoted++
		}
		return true
	})
	if err != nil {
		d.unknown("flow_table", err)
		return
	}
	most := int(b.Maps.XdplbMaps.Flows.MaxEntries())
	if 100*promoted >= nearlyFull*most {
		d.fail("flow_table", enlarge("max_flows", most), "%d of %d places are taken by flows that live; the one that is silent longest gives way to a new one; making more places breaks those there are", promoted, most)
	} else {
		d.ok("flow_table", "flows: %d of %d", promoted, most)
	}
	if places := int(b.Maps.HalfOpen.MaxEntries()); 100*halfOpen >= nearlyFull*places {
		d.warn("flow_table", "", "%d of %d places for half-open flows are taken: a flood, most likely; open connections are in no danger", halfOpen, places)
	} else {
		d.ok("flow_table", "half-open flows: %d of %d", halfOpen, places)
	}
}

// enlarge makes a map twice as large; sizes are fixed while pins exist.
func enlarge(field string, from int) string {
	return fmt.Sprintf("xdplb save larger.yaml && sed -i 's/^%[1]s: .*/%[1]s: %[2]d/' larger.yaml && xdplb detach --all --purge && xdplb restore larger.yaml",
		field, 2*from)
}

// readNet reads a number under /proc/sys/net.
func readNet(path string) (uint64, error) {
	text, err := os.ReadFile("/proc/sys/net/" + path)
	if err != nil {
		return 0, err
	}
	return strconv.ParseUint(strings.TrimSpace(string(text)), 10, 32)
}
