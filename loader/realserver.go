package loader

import (
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/xdplb/xdplb/bpf"
)

// AcceptOptions say how AcceptVIPs makes a host a real server.
type AcceptOptions struct {
	Mode      Mode
	Interface string // on which the balancer's packets arrive
	// From replaces the prefixes that tunnels may come from, for all addresses.
	// None: they stay as they are, which is everywhere until somebody says else.
	From []netip.Prefix
}

// AcceptVIPs makes this host a real server of the given addresses: it puts
// them on lo and keeps the host from answering or announcing them by ARP
// (arp_ignore and arp_announce of the interface and of `all`; the rules of
// LVS-DR). IPv6 needs no such rule: neighbour discovery answers for addresses
// of the interface only that was asked (ndisc_recv_ns in net/ipv6/ndisc.c). In
// mode tun it also attaches an XDP program that strips the outer header.
//
// Errors name the object and the mend, and nothing is changed after one. The
// notices are what the user should know although all went well.
func AcceptVIPs(dir string, addresses []netip.Addr, o AcceptOptions) (notices []string, err error) {
	if err := checkPrivilege(); err != nil {
		return nil, err
	}
	addrs, err := vipAddresses(addresses)
	if err != nil {
		return nil, err
	}
	if o.Mode != ModeDR && o.Mode != ModeTUN {
		return nil, fmt.Errorf("--mode %s: a real server needs this command only for %s and %s; for the others its way back must lead to the balancer", o.Mode, ModeDR, ModeTUN)
	}
	dev, err := realserverDevice(o.Interface)
	if err != nil {
		return nil, err
	}
	unlock, err := lockPins(dir)
	if err != nil {
		return nil, err
	}
	defer unlock()
	server, err := openRealserver(dir, true)
	if err != nil {
		return nil, err
	}
	defer server.close()
	var undo undoList
	defer func() {
		// Also when all went well: what vanished interfaces left goes away.
		if settled := server.settle(); err == nil {
			err = settled
		} else if settled != nil {
			err = fmt.Errorf("%w (and undoing: %w)", err, settled)
		}
	}()
	defer func() {
		if err != nil {
			err = undo.run(err)
			notices = nil
		}
	}()

	old, err := server.records()
	if err != nil {
		return nil, err
	}
	present, err := hostAddresses()
	if err != nil {
		return nil, err
	}
	for _, addr := range addrs {
		if err := server.acceptable(addr, old, present); err != nil {
			return nil, err
		}
	}
	if o.Mode == ModeTUN {
		if err := server.attachable(dev); err != nil {
			return nil, err
		}
	}

	up, err := raiseLoopback(&undo)
	if err != nil {
		return nil, err
	}
	notices = append(notices, up...)
	if slices.ContainsFunc(addrs, netip.Addr.Is4) {
		if err := server.silence(dev); err != nil {
			return nil, err
		}
		notices = append(notices, strictFilter(dev)...)
	}
	if err := server.setHosts(present, addrs); err != nil {
		return nil, err
	}
	if err := server.setSources(o.From, &undo); err != nil {
		return nil, err
	}
	for _, addr := range addrs {
		record := bpf.RealserverAccepted{Ifindex: uint32(dev.Attrs().Index), Mode: bpf.RealserverMode(o.Mode)}
		before, stale := old[addr]
		if len(present[addr]) > 0 && (!stale || before.WasThere != 0) {
			record.WasThere = 1
		}
		if err := server.add(addr, record, before, stale, &undo); err != nil {
			return nil, err
		}
	}
	if o.Mode == ModeTUN {
		attached, err := server.attach(dev)
		if err != nil {
			return nil, err
		}
		notices = append(notices, attached...)
	}
	return notices, nil
}

// ReleaseVIPs undoes AcceptVIPs for some addresses, for all of them if none are
// given, and returns which. An address that was on lo before it was accepted
// stays there. What accepting changed besides (sysctls, XDP programs, pins) is
// undone with the last address that needs it; a sysctl that somebody changed
// since stays. Errors name the object; if one of the addresses is not accepted,
// nothing is released.
func ReleaseVIPs(dir string, addresses []netip.Addr) (released []netip.Addr, err error) {
	if err := checkPrivilege(); err != nil {
		return nil, err
	}
	unlock, err := lockPins(dir)
	if err != nil {
		return nil, err
	}
	defer unlock()
	server, err := openRealserver(dir, false)
	if err != nil {
		return nil, err
	}
	records := map[netip.Addr]bpf.RealserverAccepted{}
	if server != nil {
		defer server.close()
		if records, err = server.records(); err != nil {
			return nil, err
		}
	}
	released = slices.Collect(maps.Keys(records))
	if len(addresses) > 0 {
		released = nil
	}
	for _, addr := range addresses {
		addr = addr.Unmap()
		if _, ok := records[addr]; !ok {
			return nil, fmt.Errorf("%s: not accepted here; to see what is: xdplb realserver list", addr)
		}
		released = append(released, addr)
	}
	slices.SortFunc(released, netip.Addr.Compare)
	released = slices.Compact(released)
	if server == nil {
		return []netip.Addr{}, nil
	}
	for _, addr := range released {
		if err := server.drop(addr, records[addr]); err != nil {
			return nil, err
		}
	}
	return released, server.settle()
}

// drop takes addr off lo, unless it was there before, and then forgets it.
func (server *realserver) drop(addr netip.Addr, record bpf.RealserverAccepted) error {
	if record.WasThere == 0 {
		loopback, err := linkByName("lo")
		if err != nil {
			return err
		}
		if err := UnassignAddress(loopback.Attrs().Index, addr); err != nil {
			return err
		}
	}
	if err := server.maps.Accepted.Delete(mapKey(addr)); err != nil {
		return fmt.Errorf("%s: cannot be forgotten: %w", addr, err)
	}
	return nil
}

// RefreshRealserver captures the addresses of this host again, which are the
// destinations of tunnels to it. AcceptVIPs does so too. Without accepted
// addresses it does nothing.
func RefreshRealserver(dir string) error {
	if err := checkPrivilege(); err != nil {
		return err
	}
	unlock, err := lockPins(dir)
	if err != nil {
		return err
	}
	defer unlock()
	server, err := openRealserver(dir, false)
	if err != nil || server == nil {
		return err
	}
	defer server.close()
	present, err := hostAddresses()
	if err != nil {
		return err
	}
	return server.setHosts(present, nil)
}

// vipAddresses returns addresses unmapped, or why they cannot be accepted.
func vipAddresses(addresses []netip.Addr) (addrs []netip.Addr, err error) {
	if len(addresses) == 0 {
		return nil, errors.New("no address to accept")
	}
	for _, addr := range addresses {
		addr = addr.Unmap()
		if !addr.IsValid() || addr.Zone() != "" || addr.IsUnspecified() || addr.IsLoopback() || addr.IsMulticast() || addr.IsLinkLocalUnicast() {
			return nil, fmt.Errorf("%s: cannot be a VIP; give a global unicast address", addr)
		}
		if slices.Contains(addrs, addr) {
			return nil, fmt.Errorf("%s: named twice", addr)
		}
		addrs = append(addrs, addr)
	}
	return addrs, nil
}

// acceptable tells why addr cannot be accepted. A record whose interface,
// address or program is gone does not count: a reboot of what it named, or an
// accept that was killed, left it behind.
func (server *realserver) acceptable(addr netip.Addr, old map[netip.Addr]bpf.RealserverAccepted, present map[netip.Addr][]int) error {
	for _, ifindex := range present[addr] {
		link, err := netlink.LinkByIndex(ifindex)
		if err != nil {
			return fmt.Errorf("%s: on interface %d: %w", addr, ifindex, err)
		}
		// On lo, or on a dummy device as LVS guides have it, it is silent.
		if flags := link.Attrs().RawFlags; flags&(unix.IFF_LOOPBACK|unix.IFF_NOARP) == 0 {
			name := link.Attrs().Name
			return fmt.Errorf("%s: is on %s, which answers ARP and ND for it; `ip addr del %s dev %s`", addr, name, addr, name)
		}
	}
	record, ok := old[addr]
	if !ok {
		return nil
	}
	state, err := server.state(addr, record, present)
	if err != nil {
		return err
	}
	if state == StateOK {
		return fmt.Errorf("%s: already accepted on %s; release it first to change how", addr, interfaceName(record.Ifindex))
	}
	return nil
}

// add records addr and puts it on lo. The record comes first: after a kill in
// between, the next accept finds it without its address and goes on from there.
func (server *realserver) add(addr netip.Addr, record, before bpf.RealserverAccepted, stale bool, undo *undoList) error {
	if err := server.maps.Accepted.Put(mapKey(addr), record); err != nil {
		return fmt.Errorf("%s: cannot be recorded: %w; at most %d addresses can be accepted", addr, err, server.maps.Accepted.MaxEntries())
	}
	undo.add(func() error {
		if stale {
			return server.maps.Accepted.Put(mapKey(addr), before)
		}
		return server.maps.Accepted.Delete(mapKey(addr))
	})
	already, err := AssignAddress("lo", addr)
	if err != nil {
		return err
	}
	if !already {
		undo.add(func() error {
			loopback, err := linkByName("lo")
			if err != nil {
				return err
			}
			return UnassignAddress(loopback.Attrs().Index, addr)
		})
	}
	return nil
}

func realserverDevice(name string) (netlink.Link, error) {
	dev, err := linkByName(name)
	if err != nil {
		return nil, err
	}
	if dev.Attrs().Flags&net.FlagLoopback != 0 {
		return nil, fmt.Errorf("%s: no balancer's packets arrive there; name the interface on which they do", name)
	}
	if dev.Attrs().Flags&net.FlagUp == 0 {
		return nil, fmt.Errorf("%s: is down; `ip link set %s up`", name, name)
	}
	return dev, nil
}

// raiseLoopback: addresses of an lo that is down receive nothing, as in a fresh network namespace.
func raiseLoopback(undo *undoList) (notices []string, err error) {
	loopback, err := linkByName("lo")
	if err != nil {
		return nil, err
	}
	if loopback.Attrs().Flags&net.FlagUp != 0 {
		return nil, nil
	}
	if err := netlink.LinkSetUp(loopback); err != nil {
		return nil, fmt.Errorf("lo: is down and cannot be set up: %w", err)
	}
	undo.add(func() error { return netlink.LinkSetDown(loopback) })
	return []string{"lo was down; it is up now"}, nil
}

// undoList is what takes a change back that could not be finished.
type undoList []func() error

func (undo *undoList) add(step func() error) { *undo = append(*undo, step) }

// run takes everything back, last things first, and says what failed then.
func (undo undoList) run(cause error) error {
	for _, step := range slices.Backward(undo) {
		if err := step(); err != nil {
			cause = fmt.Errorf("%w (and undoing: %w)", cause, err)
		}
	}
	return cause
}
