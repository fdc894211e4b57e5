package loader

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
)

// devices is a lookup over links that this kernel may have no module for.
func devices(links ...netlink.Link) linkLookup {
	return func(index int) (netlink.Link, error) {
		for _, link := range links {
			if link.Attrs().Index == index {
				return link, nil
			}
		}
		return nil, fmt.Errorf("interface %d: not there", index)
	}
}

func attrs(index int, name string, change ...func(*netlink.LinkAttrs)) netlink.LinkAttrs {
	a := netlink.NewLinkAttrs()
	a.Index, a.Name, a.EncapType = index, name, "ether"
	for _, f := range change {
		f(&a)
	}
	return a
}

func parent(index int) func(*netlink.LinkAttrs) {
	return func(a *netlink.LinkAttrs) { a.ParentIndex = index }
}

func master(index int) func(*netlink.LinkAttrs) {
	return func(a *netlink.LinkAttrs) { a.MasterIndex = index }
}

func elsewhere(a *netlink.LinkAttrs) { a.NetNsID = 3 }

func bare(a *netlink.LinkAttrs) { a.EncapType = "none" }

func vlan(id int, a netlink.LinkAttrs) *netlink.Vlan {
	return &netlink.Vlan{LinkAttrs: a, VlanId: id, VlanProtocol: netlink.VLAN_PROTOCOL_8021Q}
}

func TestEgress(t *testing.T) {
	card := &netlink.Device{LinkAttrs: attrs(2, "eth0")}
	tagged := vlan(100, attrs(3, "eth0.100", parent(2)))
	provider := vlan(100, attrs(5, "eth0.s", parent(2)))
	provider.VlanProtocol = netlink.VLAN_PROTOCOL_8021AD
	links := devices(card, tagged)

	cases := []struct {
		link  netlink.Link
		index int
		vlan  uint16
		says  string // of the error
	}{
		{link: card, index: 2},
		{link: tagged, index: 2, vlan: 100},
		{link: vlan(4094, attrs(4, "far", parent(2))), index: 2, vlan: 4094},
		{link: vlan(7, attrs(4, "eth0.100.7", parent(3))), says: "eth0.100.7 needs more than one 802.1Q tag"},
		{link: provider, says: "eth0.s needs more than one 802.1Q tag"},
		{link: vlan(7, attrs(4, "eth7.7", parent(2), elsewhere)), says: "parent of eth7.7 is in another network namespace"},
		{link: vlan(7, attrs(4, "eth9.7", parent(9))), says: "interface 9"},
		{link: &netlink.Wireguard{LinkAttrs: attrs(6, "wg0", bare)}, says: "wg0 has no Ethernet frames"},
	}
	for _, c := range cases {
		name := c.link.Attrs().Name
		index, tag, err := egress(c.link, links)
		if c.says != "" {
			if err == nil || !strings.Contains(err.Error(), c.says) {
				t.Errorf("%s: got error %v, want %q", name, err, c.says)
			}
			continue
		}
		if err != nil || index != c.index || tag != c.vlan {
			t.Errorf("%s: got interface %d, VLAN %d, %v; want %d, %d", name, index, tag, err, c.index, c.vlan)
		}
	}
}

func TestAttachTargetOfStackedDevices(t *testing.T) {
	card := &netlink.Device{LinkAttrs: attrs(2, "eth0")}
	bond := netlink.NewLinkBond(attrs(3, "bond0"))
	slave := &netlink.Device{LinkAttrs: attrs(4, "eth1", master(3))}
	bridge := &netlink.Bridge{LinkAttrs: attrs(5, "br0")}
	bridged := netlink.NewLinkBond(attrs(6, "bond1", master(5)))
	slaveBelow := &netlink.Device{LinkAttrs: attrs(7, "eth2", master(6))}
	team := &netlink.GenericLink{LinkAttrs: attrs(8, "team0"), LinkType: "team"}
	routed := &netlink.Vrf{LinkAttrs: attrs(9, "blue")}
	tagged := vlan(5, attrs(10, "eth0.5", parent(2)))
	links := devices(card, bond, slave, bridge, bridged, slaveBelow, team, routed, tagged)

	cases := []struct {
		link netlink.Link
		want string // the error, if any
	}{
		{card, ""},
		{bond, ""},
		{bridge, ""},
		{&netlink.Device{LinkAttrs: attrs(20, "eth3", master(9))}, ""},
		{slave, "eth1: is a port of bond0; attach bond0 instead"},
		{bridged, "bond1: is a port of br0; attach br0 instead"},
		{slaveBelow, "eth2: is a port of bond1; attach br0 instead"},
		{&netlink.Device{LinkAttrs: attrs(20, "eth4", master(8))}, "eth4: is a port of team0; attach team0 instead"},
		{tagged, "eth0.5: is a VLAN device; attach eth0 instead"},
		{vlan(6, attrs(20, "eth0.5.6", parent(10))), "eth0.5.6: is a VLAN device; attach eth0 instead"},
		{vlan(6, attrs(20, "bond0.6", parent(3))), "bond0.6: is a VLAN device; attach bond0 instead"},
		{vlan(6, attrs(20, "eth0.6", parent(2), elsewhere)), "eth0.6: is a VLAN device whose parent is in another network namespace; attach there"},
		{vlan(6, attrs(20, "eth9.6", parent(99))), "eth9.6: interface 99: not there"},
	}
	for _, c := range cases {
		got := ""
		if err := attachTarget(c.link, links); err != nil {
			got = err.Error()
		}
		if got != c.want {
			t.Errorf("%s:\n got %q\nwant %q", c.link.Attrs().Name, got, c.want)
		}
	}
}

func TestAttachTargetOfBridgePort(t *testing.T) {
	isolate(t)
	n := join(t, "near")
	must(t, AttachTarget(n.near))
	bridge := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "br0"}}
	must(t, netlink.LinkAdd(bridge))
	must(t, netlink.LinkSetMaster(n.near, bridge))
	port, err := netlink.LinkByName("near")
	must(t, err)
	var wrong *WrongDeviceError
	if err := AttachTarget(port); !errors.As(err, &wrong) || wrong.Device != "near" || wrong.Instead != "br0" {
		t.Errorf("got %v, want br0 named", err)
	}
	must(t, AttachTarget(bridge))
}
