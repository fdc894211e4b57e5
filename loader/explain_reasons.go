package loader

import (
	"fmt"
	"strings"

	"github.com/xdplb/xdplb/maps"
)

// ExplainedReason says what a counter of `stats` means.
type ExplainedReason struct {
	Name   string
	Means  string
	Causes string
	Mends  string
}

var reasonTexts = map[string]ExplainedReason{
	"passed": {
		Means:  "the packet went to the kernel as it came",
		Causes: "it belongs to no VIP and no flow, it is neither TCP, UDP nor an ICMP error about them, or its backend is this host",
		Mends:  "nothing to mend; if it should have been balanced, compare its address, port and protocol with: xdplb vip list",
	},
	"transmitted": {
		Means:  "forwarded, by the interface that it came in by",
		Causes: "the next hop is on the same network as the sender",
		Mends:  "nothing to mend",
	},
	"redirected": {
		Means:  "forwarded, by another interface than it came in by",
		Causes: "the next hop is on another network than the sender",
		Mends:  "nothing to mend",
	},
	"no_backend": {
		Means:  "dropped: the VIP has no backend for this flow",
		Causes: "it has none at all, all of them drain, are down or unresolved, or the flow's own was deleted",
		Mends:  "xdplb backend add VIP BACKEND, xdplb enable BACKEND, or xdplb refresh; xdplb backend list shows who takes no flows",
	},
	"no_next_hop": {
		Means:  "dropped: how to reach the flow's backend or client is unknown",
		Causes: "no neighbour answered for the backend, or the interface toward it (of a reply: toward the client) is not attached",
		Mends:  "start the server, then xdplb refresh; or xdplb attach IFACE, then xdplb refresh",
	},
	"ttl_exceeded": {
		Means:  "dropped: the TTL or hop limit ran out here; the sender was told",
		Causes: "a traceroute; or many at once: balancers or routers that send packets round in a circle",
		Mends:  "look for the circle: no backend may be another balancer's VIP that leads back here (xdplb backend list)",
	},
	"too_big": {
		Means:  "dropped: larger than the way to the next hop takes; the sender was told what fits",
		Causes: "a tunnel takes 20 bytes of IPv4 or 40 of IPv6 off the MTU; a few are how senders find out, many mean that they do not hear of it",
		Mends:  "let ICMP reach the senders, or raise the MTU toward the backends: ip link set IFACE mtu 1540, then xdplb refresh",
	},
	"rate_limited": {
		Means:  "dropped: an answer of our own (echo, ICMP error, RST) was due beyond 1,000 a second and CPU",
		Causes: "a flood of pings or of packets that belong to no flow, a circle of routes, or many connections cut at once",
		Mends:  "find out with xdplb stats what else is counted, and end that",
	},
	"echo_answered": {
		Means:  "an echo request to a VIP, answered here",
		Causes: "somebody pings the VIP",
		Mends:  "nothing to mend",
	},
	"fragment_unknown": {
		Means:  "dropped: a later fragment whose first one was not seen, to a VIP of every port",
		Causes: "fragments overtake each other or are lost, the first went to another balancer, or there are more than fit into the table",
		Mends:  "have senders use smaller packets, and routers keep fragments of one packet on one balancer",
	},
	"no_headroom": {
		Means:  "dropped: the driver left no room for an outer header or VLAN tag, or the frame was cut short",
		Causes: "a driver or device that gives XDP less than 256 bytes before the frame",
		Mends:  "xdplb attach IFACE --xdp-mode generic, or --mode dr for the backends behind it",
	},
	"snat_exhausted": {
		Means:  "dropped: FULL-NAT had no free port toward this backend for a new flow",
		Causes: "more flows to one backend than the SNAT addresses have ports, or many that are half-open or wait to be closed",
		Mends:  "xdplb snat add ADDR, or xdplb snat ports LO-HI; xdplb snat list shows how full each address is",
	},
	"nat_clash": {
		Means:  "not forwarded: with NAT this client's port talks to this backend through another VIP, or the backend still holds the tuple; who sent TCP got a RST",
		Causes: "two VIPs share a NAT backend and port, and a client uses one port for both; or a client uses a port again within seconds",
		Mends:  "xdplb backend set VIP BACKEND --mode fullnat on one of the two VIPs, or a port of its own on the backend for each",
	},
	"flow_unknown": {
		Means:  "not forwarded: a packet within a connection that nobody here knows; who sent TCP got a RST, and connects anew",
		Causes: "the flow was silent beyond its timeout, was pushed out of a full table, or began on another balancer; with FULL-NAT, rr, lc or affinity its pin alone knew its backend",
		Mends:  "xdplb timeout --tcp 1h for clients that are silent for long; xdplb doctor prints the commands that enlarge full tables",
	},
	"twin_lost": {
		Means:  "dropped: of a flow of NAT or FULL-NAT, whose other direction is another flow's by now",
		Causes: "one of the flow's two entries was pushed out of a full table, and another flow took its place",
		Mends:  "xdplb doctor prints the commands that enlarge full tables",
	},
	"redirect_failed": {
		Means:  "lost after the verdict: the kernel refused to redirect the frame, and it is taken off those forwarded",
		Causes: "the interface to leave by is down, its driver cannot send frames of XDP, or its MTU is smaller",
		Mends:  "ip link set IFACE up; xdplb doctor; on a veth pair: ethtool -K PEER gro on, or an XDP program on the peer",
	},
	"tx_failed": {
		Means:  "lost after the verdict: the driver did not send the frame, and it is taken off those forwarded",
		Causes: "a full send queue, a link that is down, or a veth pair whose peer has no XDP program",
		Mends:  "ethtool -S IFACE shows what the driver counts; ethtool -G IFACE tx N for a longer queue; xdplb doctor",
	},
}

// ExplainReasons are the texts of all reasons, in the order of enum reason.
func ExplainReasons() ([]ExplainedReason, error) {
	names, err := maps.ReasonNames()
	if err != nil {
		return nil, err
	}
	all := make([]ExplainedReason, len(names))
	for i, name := range names {
		all[i] = reasonTexts[name]
		all[i].Name = name
	}
	return all, nil
}

// ExplainReason is the text of one reason.
func ExplainReason(name string) (ExplainedReason, error) {
	all, err := ExplainReasons()
	if err != nil {
		return ExplainedReason{}, err
	}
	names := make([]string, len(all))
	for i, r := range all {
		if r.Name == name {
			return r, nil
		}
		names[i] = r.Name
	}
	return ExplainedReason{}, fmt.Errorf("--reason %s: no such counter; there are %s", name, strings.Join(names, ", "))
}
