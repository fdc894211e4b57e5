package loader

import (
	"fmt"
	"os"

	"github.com/vishvananda/netlink"
)

// Detach takes the balancer off interfaces, or off all if ifaces is nil; VIPs and
// counters stay. With purge, which needs all to be off, nothing stays.
func Detach(dir string, ifaces []string, purge bool) (names []string, err error) {
	b, err := OpenLocked(dir)
	if err != nil {
		return nil, err
	}
	defer b.Close()
	names, indexes, err := b.attachedAs(ifaces)
	if err != nil {
		return nil, err
	}
	attached := b.Maps.ReadInterfaces()
	if purge && len(indexes) < len(attached) {
		return nil, fmt.Errorf("--purge: other interfaces are attached, and need what it removes; use: xdplb detach --all --purge")
	}
	for _, r := range attached {
		if !indexes[r.Ifindex] {
			continue
		}
		if err := takeOff(linkPin(dir, r.Ifindex)); err != nil {
			return nil, err
		}
		if err := b.Maps.DeleteInterface(r.Number); err != nil {
			return nil, err
		}
	}
	if !purge {
		return names, nil
	}
	b.unassignAll()
	// Out of the way at once: half of the pins would be no balancer, and no room for one.
	away := temporaryPins(dir)
	if err := os.Rename(dir, away); err != nil {
		return nil, fmt.Errorf("removing the pins: %w", err)
	}
	return names, os.RemoveAll(away)
}

// attachedAs checks that every interface is attached.
func (b *Balancer) attachedAs(ifaces []string) (names []string, indexes map[uint32]bool, err error) {
	indexes = make(map[uint32]bool)
	if ifaces == nil {
		for _, r := range b.Maps.ReadInterfaces() {
			indexes[r.Ifindex] = true
			names = append(names, interfaceName(r.Ifindex))
		}
		return names, indexes, nil
	}
	for _, name := range ifaces {
		l, err := linkByName(name)
		if err != nil {
			return nil, nil, err
		}
		index := uint32(l.Attrs().Index)
		if _, exists, err := b.record(index); err != nil || !exists {
			return nil, nil, fmt.Errorf("%s: not attached; xdplb status lists what is", name)
		}
		indexes[index] = true
	}
	return ifaces, indexes, nil
}

func interfaceName(ifindex uint32) string {
	if l, err := netlink.LinkByIndex(int(ifindex)); err == nil {
		return l.Attrs().Name
	}
	return fmt.Sprintf("interface %d (gone)", ifindex)
}
