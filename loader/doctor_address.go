package loader

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/xdplb/xdplb/maps"
)

// place is an address on an interface.
type place struct {
	link   netlink.Link
	prefix netip.Prefix
	flags  int
}

func places() (all []place, err error) {
	addrs, err := netlink.AddrList(nil, netlink.FAMILY_ALL)
	if err != nil {
		return nil, fmt.Errorf("listing the interfaces' addresses: %w", err)
	}
	links := map[int]netlink.Link{}
	for _, one := range addrs {
		link := links[one.LinkIndex]
		if link == nil {
			if link, err = netlink.LinkByIndex(one.LinkIndex); err != nil {
				continue // gone meanwhile
			}
			links[one.LinkIndex] = link
		}
		addr, _ := netip.AddrFromSlice(one.IP)
		bits, _ := one.Mask.Size()
		all = append(all, place{link, netip.PrefixFrom(addr.Unmap(), bits), one.Flags})
	}
	return all, nil
}

func (p place) name() string { return p.link.Attrs().Name }

func (p place) loopback() bool { return p.link.Attrs().Flags&net.FlagLoopback != 0 }

// ownAddresses makes sure that clients or their routers find the VIPs here, and servers what FULL-NAT sends from.
func (d *doctor) ownAddresses(services []maps.Service, snat []SNATAddress) {
	all, err := places()
	if err != nil {
		d.unknown("vip_address", err)
		return
	}
	var addrs []netip.Addr
	checkOf := map[netip.Addr]string{}
	for _, s := range services {
		if checkOf[s.Addr] == "" {
			addrs = append(addrs, s.Addr)
			checkOf[s.Addr] = "vip_address"
		}
	}
	vips := len(addrs)
	for _, s := range snat {
		if checkOf[s.Addr] == "" {
			addrs = append(addrs, s.Addr)
			checkOf[s.Addr] = "snat_address"
		}
	}
	others, err := askOthers(addrs, all)
	if err != nil {
		d.unknown("address_conflict", err)
	}
	for _, addr := range addrs {
		d.ownAddress(checkOf[addr], addr, all, others[addr])
	}
	const well = "%d addresses: all are on an interface, and answer where they are asked for"
	if vips > 0 {
		d.well("vip_address", well, vips)
	}
	if n := len(addrs) - vips; n > 0 {
		d.well("snat_address", well, n)
	}
	if len(addrs) > 0 {
		d.well("address_conflict", "nobody else answers ARP for them")
	}
}

// ownAddress looks at one; other is the MAC of whoever else answers for it.
func (d *doctor) ownAddress(check string, addr netip.Addr, all []place, other net.HardwareAddr) {
	segments, at := segmentsOf(addr, all), placesOf(addr, all)
	if len(at) == 0 {
		switch {
		case other != nil:
			d.warn(check, "", "%s: on no interface here, and %s answers for it: another balancer, if that is meant", addr, other)
		case len(segments) > 0:
			d.fail(check, addAddress(addr, segments[0].name()), "%s: on no interface, so nobody answers for it on %s", addr, segments[0].name())
		default:
			d.warn(check, addAddress(addr, "lo"), "%s: on no interface, and of no network here: a router must send it to this host, and what is for none of its VIPs would go back there, round and round", addr)
		}
		return
	}
	if other != nil {
		d.fail("address_conflict", fmt.Sprintf("xdplb realserver accept %s --mode dr --dev eth0", addr),
			"%s: %s answers for it as well; a real server, most likely: run this on that host, with its interface's name", addr, other)
	}
	for _, p := range at {
		if p.flags&(unix.IFA_F_DADFAILED|unix.IFA_F_TENTATIVE) != 0 {
			d.fail(check, fmt.Sprintf("ip address del %s dev %s && %s nodad", p.prefix, p.name(), addAddress(addr, p.name())),
				"%s: %s does not use it: another host has it, says duplicate address detection", addr, p.name())
			return
		}
	}
	for _, s := range segments {
		if !d.answers(check, addr, s, at) {
			return
		}
	}
}

// answers tells whether neighbours on a segment get an answer for an address of this host.
func (d *doctor) answers(check string, addr netip.Addr, segment place, at []place) bool {
	name := segment.name()
	here := slices.ContainsFunc(at, func(p place) bool { return p.name() == name })
	if addr.Is6() {
		if !here { // ndisc_recv_ns in net/ipv6/ndisc.c: only addresses of the interface that was asked
			d.fail(check, addAddress(addr, name)+" nodad", "%s: is on %s and not on %s, where it is asked for, so nobody answers", addr, at[0].name(), name)
		}
		return here
	}
	ignore, err := readIPv4(name, "arp_ignore")
	all, err2 := readIPv4("all", "arp_ignore")
	if err != nil || err2 != nil || arpAnswered(max(ignore, all), here) {
		return true
	}
	d.fail(check, fmt.Sprintf("sysctl net.ipv4.conf.all.arp_ignore=0 net.ipv4.conf.%s.arp_ignore=0", name),
		"%s: arp_ignore is %d on %s, so nobody answers for it there", addr, max(ignore, all), name)
	return false
}

// arpAnswered follows arp_ignore in Documentation/networking/ip-sysctl.rst; a VIP
// has a /32 of its own, so no sender is in its subnet.
func arpAnswered(ignore uint32, here bool) bool {
	switch ignore {
	case 1:
		return here
	case 2, 8:
		return false
	}
	return true
}

// segmentsOf are the places whose network an address is of: neighbours there ask for it.
func segmentsOf(addr netip.Addr, all []place) (found []place) {
	for _, p := range all {
		if !p.loopback() && p.prefix.Bits() < addr.BitLen() && p.prefix.Masked().Contains(addr) &&
			!slices.ContainsFunc(found, func(f place) bool { return f.name() == p.name() }) {
			found = append(found, p)
		}
	}
	return found
}

func placesOf(addr netip.Addr, all []place) (found []place) {
	for _, p := range all {
		if p.prefix.Addr() == addr {
			found = append(found, p)
		}
	}
	return found
}

func addAddress(addr netip.Addr, dev string) string {
	return fmt.Sprintf("ip address add %s dev %s", netip.PrefixFrom(addr, addr.BitLen()), dev)
}

// answerWait is how long others have to answer an ARP request: hosts answer at once.
const answerWait = 500 * time.Millisecond

// askOthers asks by ARP, on each network that IPv4 addresses are of, who else has
// them. Real servers of DR have, and must not answer.
func askOthers(addrs []netip.Addr, all []place) (map[netip.Addr]net.HardwareAddr, error) {
	byLink := map[int][]netip.Addr{}
	for _, addr := range addrs {
		if !addr.Is4() {
			continue
		}
		for _, s := range segmentsOf(addr, all) {
			byLink[s.link.Attrs().Index] = append(byLink[s.link.Attrs().Index], addr)
		}
	}
	others := map[netip.Addr]net.HardwareAddr{}
	for index, asked := range byLink {
		link, err := netlink.LinkByIndex(index)
		if err != nil {
			return others, err
		}
		if len(link.Attrs().HardwareAddr) != 6 {
			continue
		}
		if err := askARP(link.Attrs(), asked, others); err != nil {
			return others, fmt.Errorf("%s: asking by ARP: %w", link.Attrs().Name, err)
		}
	}
	return others, nil
}

// askARP sends ARP probes (RFC 5227, 2.1.1), which change nobody's ARP cache.
func askARP(attrs *netlink.LinkAttrs, addrs []netip.Addr, others map[netip.Addr]net.HardwareAddr) error {
	const protocol = unix.ETH_P_ARP<<8&0xff00 | unix.ETH_P_ARP>>8 // in network order
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, protocol)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: protocol, Ifindex: attrs.Index}); err != nil {
		return err
	}
	for _, addr := range addrs {
		probe := arpAnnouncement([6]byte(attrs.HardwareAddr), addr)
		clear(probe[28:32]) // the sender's address: none
		if err := unix.Sendto(fd, probe, 0, &unix.SockaddrLinklayer{Ifindex: attrs.Index}); err != nil {
			return err
		}
	}
	frame := make([]byte, 128)
	for deadline := time.Now().Add(answerWait); ; {
		left := time.Until(deadline)
		if left <= 0 {
			return nil
		}
		ready, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, int(left.Milliseconds())+1)
		if err == unix.EINTR || err == nil && ready == 0 {
			continue
		}
		if err != nil {
			return err
		}
		n, err := unix.Read(fd, frame)
		if err != nil {
			return err
		}
		if addr, mac, ok := arpAnswer(frame[:n]); ok && slices.Contains(addrs, addr) && string(mac) != string(attrs.HardwareAddr) {
			others[addr] = mac
		}
	}
}

// arpAnswer reads an ARP reply (RFC 826) for an IPv4 address over Ethernet.
func arpAnswer(frame []byte) (addr netip.Addr, mac net.HardwareAddr, ok bool) {
	const head = "\x00\x01\x08\x00\x06\x04\x00\x02" // Ethernet, IPv4, lengths, reply
	if len(frame) < 42 || string(frame[12:14]) != "\x08\x06" || string(frame[14:22]) != head {
		return addr, nil, false
	}
	return netip.AddrFrom4([4]byte(frame[28:32])), slices.Clone(net.HardwareAddr(frame[22:28])), true
}
