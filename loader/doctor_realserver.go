package loader

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"

	"github.com/vishvananda/netlink"
)

// realserver looks at what a real server of DR or TUN needs: what was accepted, and
// addresses that somebody put on lo by hand, as LVS users do.
func (d *doctor) realserver() {
	accepted := map[netip.Addr]bool{}
	if d.server != nil {
		closed := map[string][]string{} // by the interface whose program is gone, because one command mends them all
		for _, a := range d.server.Addresses {
			accepted[a.Address] = true
			if a.State == StateDetached {
				closed[a.Interface] = append(closed[a.Interface], a.Address.String())
				continue
			}
			d.accepted(a)
		}
		for dev, addrs := range closed {
			d.fail("decapsulation", fmt.Sprintf("xdplb realserver accept %s --mode tun --dev %s", strings.Join(addrs, " "), dev),
				"%s: tunnels are not opened: the XDP program is gone from %s", strings.Join(addrs, ", "), dev)
		}
		d.well("vip_on_lo", "%d addresses are accepted", len(accepted))
	}
	all, err := places()
	own, err2 := d.ownVIPs()
	if err = errors.Join(err, err2); err != nil {
		d.unknown("vip_on_lo", err)
		return
	}
	var silent, manual []netip.Addr
	for _, p := range all {
		addr := p.prefix.Addr()
		if !p.loopback() || addr.IsLoopback() || !addr.Is4() || own[addr] {
			continue
		}
		silent = append(silent, addr)
		if !accepted[addr] {
			manual = append(manual, addr)
		}
	}
	if len(silent) > 0 {
		d.arpRules(silent, len(manual) == len(silent))
	}
}

// ownVIPs are addresses that are on lo, if they are, because this host balances them.
func (d *doctor) ownVIPs() (map[netip.Addr]bool, error) {
	own := map[netip.Addr]bool{}
	if d.balancer == nil {
		return own, nil
	}
	services, err := d.balancer.Maps.Services()
	for _, s := range services {
		own[s.Addr] = true
	}
	return own, err
}

func (d *doctor) accepted(a AcceptedVIP) {
	again := fmt.Sprintf("xdplb realserver accept %s --mode %s --dev %s", a.Address, a.Mode, orIface(a.Interface))
	name := "vip_on_lo"
	switch a.State {
	case StateOK:
	case StateInterfaceGone:
		d.fail(name, again, "%s: the interface on which its packets arrived is gone; accept it on another", a.Address)
		return
	default:
		d.fail(name, again, "%s: not on this host any more, so its packets are not for it", a.Address)
		return
	}
	if a.Mode == ModeTUN {
		d.ok("decapsulation", "%s: tunnels are opened on %s, %s mode", a.Address, a.Interface, a.XDPMode)
	}
	if dev, err := netlink.LinkByName(a.Interface); err == nil {
		d.reversePath(dev)
	}
}

func orIface(name string) string {
	if name == "" {
		return "IFACE"
	}
	return name
}

// arpRules: a host must not answer ARP for what is on its lo, nor speak for it. By hand: nobody told us that the
// addresses are VIPs of a balancer.
func (d *doctor) arpRules(addrs []netip.Addr, byHand bool) {
	links, err := netlink.LinkList()
	if err != nil {
		d.unknown("arp_ignore", err)
		return
	}
	status, condition := CheckFail, ""
	if byHand {
		status, condition = CheckWarn, "if it is a balancer's VIP: "
	}
	says := map[string]string{
		"arp_ignore":   "this host answers ARP for it, and takes the balancer's packets",
		"arp_announce": "this host's own ARP requests may announce it, and take the balancer's packets",
	}
	for _, rule := range arpRules {
		for _, link := range links {
			attrs := link.Attrs()
			if attrs.EncapType != "ether" || attrs.Flags&net.FlagUp == 0 || attrs.MasterIndex != 0 {
				continue
			}
			all, err := readIPv4("all", rule.file)
			one, err2 := readIPv4(attrs.Name, rule.file)
			if err != nil || err2 != nil || rule.enough(max(all, one)) {
				continue
			}
			d.add(status, rule.file, fmt.Sprintf("sysctl net.ipv4.conf.all.%[2]s=%[3]d net.ipv4.conf.%[1]s.%[2]s=%[3]d", attrs.Name, rule.file, rule.want),
				"%s: %s%s on %s is %d, so %s", addrs[0], condition, rule.file, attrs.Name, max(all, one), says[rule.file])
		}
		d.well(rule.file, "set for what is on lo")
	}
}
