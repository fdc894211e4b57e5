package loader

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
)

// Owner is the interface by which packets to an address come in.
type Owner struct {
	Interface string // empty: the address is one of a loopback device
	Has       bool   // the interface has the address; else it is the one that leads there
}

// OwnerOf finds the interface that has addr, or that leads to it: where to attach
// for a VIP. The error is that there is none of the two.
func OwnerOf(addr netip.Addr) (Owner, error) {
	all, err := netlink.AddrList(nil, netlink.FAMILY_ALL)
	if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
		return Owner{}, fmt.Errorf("%s: listing the interfaces' addresses: %w", addr, err)
	}
	for _, one := range all {
		if !one.IP.Equal(net.IP(addr.AsSlice())) {
			continue
		}
		link, err := netlink.LinkByIndex(one.LinkIndex)
		if err != nil {
			return Owner{}, fmt.Errorf("%s: its interface: %w", addr, err)
		}
		if link.Attrs().Flags&net.FlagLoopback != 0 {
			return Owner{Has: true}, nil
		}
		name, err := target(link)
		return Owner{name, true}, err
	}
	name, err := WayTo(addr)
	return Owner{Interface: name}, err
}

// WayTo is the interface by which frames leave for an address; empty if it is this host's.
func WayTo(addr netip.Addr) (iface string, err error) {
	hops, err := ResolveNextHops(context.Background(), []netip.Addr{addr}, 0)
	if err != nil {
		return "", err
	}
	hop := hops[addr]
	if hop.Err != nil || hop.Local {
		return "", hop.Err
	}
	link, err := netlink.LinkByIndex(hop.Interface)
	if err != nil {
		return "", fmt.Errorf("%s: its interface: %w", addr, err)
	}
	return target(link)
}

// target is the device to attach for a device.
func target(link netlink.Link) (string, error) {
	wrong := new(WrongDeviceError)
	err := AttachTarget(link)
	if errors.As(err, &wrong) && wrong.Instead != "" {
		return wrong.Instead, nil
	}
	return link.Attrs().Name, err
}
