package loader

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// What can be wrong with an address whose next hop is asked for. The errors in
// a Resolution wrap one of these and name the address and the mend.
var (
	// ErrNoRoute: the kernel has no route, or one that refuses (unreachable, prohibit, blackhole).
	ErrNoRoute = errors.New("no route to it")
	// ErrNotUnicast: the address cannot be that of a server reached by routing
	// (unspecified, multicast, broadcast, IPv6 link-local).
	ErrNotUnicast = errors.New("not the unicast address of a server")
	// ErrUnusableDevice: the route leaves by a device whose frames XDP cannot write.
	ErrUnusableDevice = errors.New("its route leaves by an unusable device")
	// ErrNeighboursFull: the kernel's neighbour table takes no more entries.
	ErrNeighboursFull = errors.New("the kernel's neighbour table is full")
)

// NextHop says how a frame reaches an address. Values are comparable.
type NextHop struct {
	Interface int        // index of the device to transmit on; for a VLAN device its parent; 0 if Local
	VLAN      uint16     // 802.1Q VLAN id the frame must carry, 0 for none
	MAC       [6]byte    // destination; zero unless Resolved, and zero if Local
	MTU       int        // largest IP packet in bytes: the route's MTU or the device's, whichever is less
	Source    netip.Addr // the address the kernel would send from; invalid if it has none
	Gateway   netip.Addr // the router on the way; invalid if the address is on-link or Local
	Local     bool       // the address is one of this host's
	Resolved  bool       // the MAC is known, or the address is Local
}

// Resolution is the outcome for one address: a next hop, or why there is none.
type Resolution struct {
	NextHop
	Err error
}

// ResolveNextHops asks the kernel of the calling thread's network namespace how
// each address is reached. Neighbours it does not know are probed, all at
// once, and awaited for at most wait; one that stays silent is left with
// Resolved false, which is no error. With wait zero the probes are sent but
// not awaited, so that a later call finds their answers.
//
// The map is keyed by the addresses as given. The error is that of netlink
// itself, or of ctx, which ends the waiting; then the map holds what was known.
func ResolveNextHops(ctx context.Context, addrs []netip.Addr, wait time.Duration) (map[netip.Addr]Resolution, error) {
	handle, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("netlink: %w", err)
	}
	defer handle.Close()
	links := cachedLinks(handle)
	own, err := ownIPv6(handle, addrs)
	if err != nil {
		return nil, err
	}

	results := make(map[netip.Addr]Resolution, len(addrs))
	users := make(map[neighbour][]netip.Addr)
	for _, addr := range addrs {
		if _, done := results[addr]; done {
			continue
		}
		hop, at, err := routeTo(handle, links, addr)
		if err != nil {
			results[addr] = Resolution{Err: fmt.Errorf("%s: %w", addr.Unmap(), err)}
			continue
		}
		if own[addr] {
			hop = NextHop{MTU: hop.MTU, Source: addr, Local: true, Resolved: true}
		}
		results[addr] = Resolution{NextHop: hop}
		if !hop.Local {
			users[at] = append(users[at], addr)
		}
	}

	answers, err := resolveNeighbours(ctx, handle, users, wait)
	for at, answer := range answers {
		for _, addr := range users[at] {
			res := results[addr]
			res.MAC, res.Resolved = answer.mac, answer.known
			if answer.err != nil {
				res = Resolution{Err: fmt.Errorf("%s: %w", addr.Unmap(), answer.err)}
			}
			results[addr] = res
		}
	}
	return results, err
}

// ownIPv6 returns this host's IPv6 addresses if any of addrs could be one. The
// kernel adds the local route of a new address only a while later (addrconf_dad_work
// in net/ipv6/addrconf.c), and until then routes it like any other's.
func ownIPv6(handle *netlink.Handle, addrs []netip.Addr) (map[netip.Addr]bool, error) {
	if !slices.ContainsFunc(addrs, func(addr netip.Addr) bool { return addr.Unmap().Is6() }) {
		return nil, nil
	}
	all, err := handle.AddrList(nil, netlink.FAMILY_V6)
	if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
		return nil, fmt.Errorf("addresses: %w", err)
	}
	own := make(map[netip.Addr]bool, len(all))
	for _, one := range all {
		addr, _ := netip.AddrFromSlice(one.IP)
		own[addr] = true
	}
	return own, nil
}

// linkLookup finds a device by its index.
type linkLookup func(index int) (netlink.Link, error)

// cachedLinks asks the kernel for each device once.
func cachedLinks(handle *netlink.Handle) linkLookup {
	known := make(map[int]netlink.Link)
	return func(index int) (netlink.Link, error) {
		if link, ok := known[index]; ok {
			return link, nil
		}
		link, err := handle.LinkByIndex(index)
		if err != nil {
			return nil, fmt.Errorf("interface %d: %w", index, err)
		}
		known[index] = link
		return link, nil
	}
}

// routeTo fills all of a next hop but its MAC, and names the neighbour whose MAC that is.
func routeTo(handle *netlink.Handle, links linkLookup, addr netip.Addr) (NextHop, neighbour, error) {
	target := addr.Unmap()
	if err := checkUnicast(target); err != nil {
		return NextHop{}, neighbour{}, err
	}
	routes, err := handle.RouteGet(net.IP(target.AsSlice()))
	if err == nil && len(routes) == 0 {
		err = unix.ENETUNREACH
	}
	if err != nil {
		return NextHop{}, neighbour{}, routeError(err)
	}
	route := routes[0]
	switch route.Type {
	case unix.RTN_UNICAST, unix.RTN_LOCAL:
	case unix.RTN_BROADCAST, unix.RTN_MULTICAST, unix.RTN_ANYCAST:
		return NextHop{}, neighbour{}, fmt.Errorf("%w; give one server's own address", ErrNotUnicast)
	default:
		return NextHop{}, neighbour{}, routeError(unix.EHOSTUNREACH)
	}
	link, err := links(route.LinkIndex)
	if err != nil {
		return NextHop{}, neighbour{}, err
	}

	hop := NextHop{MTU: link.Attrs().MTU, Gateway: gateway(route)}
	hop.Source, _ = netip.AddrFromSlice(route.Src)
	hop.Source = hop.Source.Unmap()
	if route.MTU > 0 && route.MTU < hop.MTU {
		hop.MTU = route.MTU
	}
	if route.Type == unix.RTN_LOCAL {
		hop.Local, hop.Resolved = true, true
		return hop, neighbour{}, nil
	}
	if hop.Interface, hop.VLAN, err = egress(link, links); err != nil {
		return NextHop{}, neighbour{}, err
	}
	at := neighbour{link: route.LinkIndex, addr: target}
	if hop.Gateway.IsValid() {
		at.addr = hop.Gateway
	}
	return hop, at, nil
}

// limitedBroadcast never has a route (RFC 919), which would be a misleading answer.
var limitedBroadcast = netip.AddrFrom4([4]byte{255, 255, 255, 255})

func checkUnicast(addr netip.Addr) error {
	switch {
	case !addr.IsValid(), addr.IsUnspecified(), addr.IsMulticast(), addr == limitedBroadcast:
		return fmt.Errorf("%w; give one server's own address", ErrNotUnicast)
	case addr.Is6() && addr.IsLinkLocalUnicast(), addr.Zone() != "":
		// It names a server only together with an interface, and no route leads to it.
		return fmt.Errorf("%w but link-local; give its global or unique local address", ErrNotUnicast)
	}
	return nil
}

// routeError puts the kernel's refusal into words. The errno of each route type
// is in fib_props, net/ipv4/fib_semantics.c; IPv6 uses the same.
func routeError(err error) error {
	kind := ""
	switch {
	case errors.Is(err, unix.ENETUNREACH):
		return fmt.Errorf("%w; add one or use --mode tun via a gateway", ErrNoRoute)
	case errors.Is(err, unix.EHOSTUNREACH):
		kind = "unreachable"
	case errors.Is(err, unix.EACCES):
		kind = "prohibit"
	case errors.Is(err, unix.EINVAL):
		kind = "blackhole"
	default:
		return fmt.Errorf("route lookup: %w", err)
	}
	return fmt.Errorf("%w: one of type %s refuses it; remove that or add a narrower one", ErrNoRoute, kind)
}

// gateway returns the router of a route, which for an IPv4 route may be an IPv6 one (RTA_VIA).
func gateway(route netlink.Route) netip.Addr {
	ip := route.Gw
	if via, ok := route.Via.(*netlink.Via); ok && via != nil {
		ip = via.Addr
	}
	addr, _ := netip.AddrFromSlice(ip)
	if route.Family == unix.AF_INET {
		addr = addr.Unmap()
	}
	return addr
}

// egress finds the device that really transmits what is sent on link, and the
// VLAN tag such a frame carries. Next hops have room for one 802.1Q tag.
func egress(link netlink.Link, links linkLookup) (index int, vlan uint16, err error) {
	attrs := link.Attrs()
	if attrs.EncapType != "ether" {
		return 0, 0, fmt.Errorf("%w: %s has no Ethernet frames; route it by a device that has", ErrUnusableDevice, attrs.Name)
	}
	tagged, ok := link.(*netlink.Vlan)
	if !ok {
		return attrs.Index, 0, nil
	}
	if attrs.NetNsID >= 0 {
		return 0, 0, fmt.Errorf("%w: the parent of %s is in another network namespace; run xdplb there", ErrUnusableDevice, attrs.Name)
	}
	parent, err := links(attrs.ParentIndex)
	if err != nil {
		return 0, 0, err
	}
	if _, double := parent.(*netlink.Vlan); double || tagged.VlanProtocol == netlink.VLAN_PROTOCOL_8021AD {
		return 0, 0, fmt.Errorf("%w: %s needs more than one 802.1Q tag; route it by a device that needs one at most", ErrUnusableDevice, attrs.Name)
	}
	return parent.Attrs().Index, uint16(tagged.VlanId), nil
}

// WrongDeviceError says that XDP must be attached elsewhere to see a device's frames.
type WrongDeviceError struct {
	Device  string // the device asked for
	Why     string // what it is: "a VLAN device", "a port of bond0"
	Instead string // the device to attach; empty if it is in another network namespace
}

func (e *WrongDeviceError) Error() string {
	if e.Instead == "" {
		return fmt.Sprintf("%s: is %s whose parent is in another network namespace; attach there", e.Device, e.Why)
	}
	return fmt.Sprintf("%s: is %s; attach %s instead", e.Device, e.Why, e.Instead)
}

// AttachTarget returns nil if link is a device to attach to, or a
// *WrongDeviceError that names the one to attach instead: for a VLAN device
// its parent, for a port of a bond, team or bridge that device.
func AttachTarget(link netlink.Link) error {
	return attachTarget(link, netlink.LinkByIndex)
}

func attachTarget(link netlink.Link, links linkLookup) error {
	name := link.Attrs().Name
	var wrong *WrongDeviceError
	// Devices stack at most eight deep (MAX_NEST_DEV in include/linux/netdevice.h).
	for range 8 {
		upper, why, err := framesGoTo(link, links)
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		if why == "" {
			break
		}
		if wrong == nil {
			wrong = &WrongDeviceError{Device: name, Why: why}
		}
		if upper == nil {
			wrong.Instead = ""
			break
		}
		wrong.Instead = upper.Attrs().Name
		link = upper
	}
	if wrong == nil {
		return nil
	}
	return wrong
}

// framesGoTo returns the device that stands for link where XDP is concerned and
// why; no reason means link itself, a reason without a device one we cannot see.
func framesGoTo(link netlink.Link, links linkLookup) (netlink.Link, string, error) {
	attrs := link.Attrs()
	if attrs.MasterIndex != 0 {
		master, err := links(attrs.MasterIndex)
		if err != nil {
			return nil, "", err
		}
		switch master.Type() {
		case "bond", "team", "bridge":
			return master, "a port of " + master.Attrs().Name, nil
		}
	}
	if link.Type() != "vlan" {
		return nil, "", nil
	}
	if attrs.NetNsID >= 0 {
		return nil, "a VLAN device", nil
	}
	parent, err := links(attrs.ParentIndex)
	return parent, "a VLAN device", err
}
