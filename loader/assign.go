package loader

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"net"
	"net/netip"
	"os"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// AssignAddress puts addr on an interface, as a /32 or /128, and announces it
// there, so that neighbours learn at once where it is now. An address that is
// on any interface already stays as it is and already is true: somebody else
// put it there, and they take it off. On a loopback device nothing is announced.
//
// IPv6 addresses get no duplicate address detection (they must serve at once,
// and may be on a standby balancer too) and are deprecated, so that the host's
// own connections do not start from them (RFC 6724, rule 3). Errors name the
// interface or address and the mend; after one, nothing was assigned.
func AssignAddress(iface string, addr netip.Addr) (already bool, err error) {
	addr = addr.Unmap()
	if err := checkUnicast(addr); err != nil {
		return false, fmt.Errorf("%s: %w", addr, err)
	}
	link, err := linkByName(iface)
	if err != nil {
		return false, err
	}
	already, err = isAssigned(addr)
	if already || err != nil {
		return already, err
	}
	socket, err := announcer()
	if err != nil {
		return false, err
	}
	defer unix.Close(socket)
	return false, assignTo(link, addr, socket)
}

// assignTo is AssignAddress of an address that no interface has.
func assignTo(link netlink.Link, addr netip.Addr, socket int) error {
	iface := link.Attrs().Name
	err := netlink.AddrAdd(link, hostAddress(addr))
	if errors.Is(err, unix.EACCES) && addr.Is6() {
		return fmt.Errorf("%s: %s has IPv6 disabled; sysctl net.ipv6.conf.%s.disable_ipv6=0", addr, iface, iface)
	}
	if err != nil {
		return fmt.Errorf("%s: cannot be put on %s: %w", addr, iface, err)
	}
	if link.Attrs().Flags&net.FlagLoopback != 0 {
		return nil
	}
	if err := announce(link, addr, socket); err != nil {
		if left := UnassignAddress(link.Attrs().Index, addr); left != nil {
			err = fmt.Errorf("%w (and %w)", err, left)
		}
		return err
	}
	return nil
}

// UnassignAddress takes off what AssignAddress put on the interface with the
// given index. An address or interface that is gone already is no error.
func UnassignAddress(ifindex int, addr netip.Addr) error {
	addr = addr.Unmap()
	link := &netlink.Dummy{LinkAttrs: netlink.LinkAttrs{Index: ifindex}}
	err := netlink.AddrDel(link, hostAddress(addr))
	if errors.Is(err, unix.EADDRNOTAVAIL) || errors.Is(err, unix.ENODEV) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("%s: cannot be taken off interface %d: %w", addr, ifindex, err)
	}
	return nil
}

func hostAddress(addr netip.Addr) *netlink.Addr {
	address := &netlink.Addr{IPNet: &net.IPNet{
		IP:   net.IP(addr.AsSlice()),
		Mask: net.CIDRMask(addr.BitLen(), addr.BitLen()),
	}}
	if addr.Is6() {
		address.Flags = unix.IFA_F_NODAD
		address.ValidLft = math.MaxUint32 // for ever; with it set, a preferred lifetime of 0 means deprecated
	}
	return address
}

// isAssigned tells whether any interface has addr, with whatever prefix length.
func isAssigned(addr netip.Addr) (bool, error) {
	family := netlink.FAMILY_V4
	if addr.Is6() {
		family = netlink.FAMILY_V6
	}
	all, err := netlink.AddrList(nil, family)
	if err != nil {
		return false, fmt.Errorf("%s: listing the interfaces' addresses: %w", addr, err)
	}
	for _, one := range all {
		if one.IP.Equal(net.IP(addr.AsSlice())) {
			return true, nil
		}
	}
	return false, nil
}

func linkByName(name string) (netlink.Link, error) {
	link, err := netlink.LinkByName(name)
	if errors.As(err, new(netlink.LinkNotFoundError)) {
		return nil, fmt.Errorf("%s: no such interface; `ip link` lists those there are", name)
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return link, nil
}

// Announce tells all neighbours on an interface that addr is at its MAC: by an
// ARP announcement (RFC 5227 section 2.3) or an unsolicited neighbour
// advertisement to all nodes (RFC 4861 section 7.2.6). One frame is sent; call
// again where frames get lost. The address need not be on the interface.
func Announce(iface string, addr netip.Addr) error {
	addr = addr.Unmap()
	link, err := linkByName(iface)
	if err != nil {
		return err
	}
	socket, err := announcer()
	if err != nil {
		return err
	}
	defer unix.Close(socket)
	return announce(link, addr, socket)
}

// announcer is a socket to announce by. Closing one takes some 10 ms: the kernel
// waits until no packet can be on its way to it (packet_release).
func announcer() (int, error) {
	// Protocol 0: the socket sends and receives nothing.
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("packet socket: %w; run as root", err)
	}
	return fd, nil
}

func announce(link netlink.Link, addr netip.Addr, socket int) error {
	attrs := link.Attrs()
	iface := attrs.Name
	if attrs.EncapType != "ether" || len(attrs.HardwareAddr) != 6 {
		return fmt.Errorf("%s: has no Ethernet frames to announce %s by; name an Ethernet interface", iface, addr)
	}
	mac := [6]byte(attrs.HardwareAddr)
	frame := arpAnnouncement(mac, addr)
	if addr.Is6() {
		frame = unsolicitedAdvertisement(mac, addr, forwardsIPv6(iface))
	}
	err := unix.Sendto(socket, frame, 0, &unix.SockaddrLinklayer{Ifindex: attrs.Index})
	if errors.Is(err, unix.ENETDOWN) {
		return fmt.Errorf("%s: is down, so %s cannot be announced; ip link set %s up", iface, addr, iface)
	}
	if err != nil {
		return fmt.Errorf("%s: announcing %s: %w", iface, addr, err)
	}
	return nil
}

// arpAnnouncement is an ARP request, broadcast, with addr as both sender and
// target and a target MAC of zero (RFC 5227 section 2.3).
func arpAnnouncement(mac [6]byte, addr netip.Addr) []byte {
	frame := make([]byte, 0, 60)
	frame = append(frame, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff)
	frame = append(frame, mac[:]...)
	frame = binary.BigEndian.AppendUint16(frame, unix.ETH_P_ARP)
	frame = binary.BigEndian.AppendUint16(frame, 1) // Ethernet
	frame = binary.BigEndian.AppendUint16(frame, unix.ETH_P_IP)
	frame = append(frame, 6, 4)                     // lengths of a MAC and of an address
	frame = binary.BigEndian.AppendUint16(frame, 1) // request
	frame = append(frame, mac[:]...)
	frame = append(frame, addr.AsSlice()...)
	frame = append(frame, make([]byte, 6)...)
	frame = append(frame, addr.AsSlice()...)
	return frame[:60] // the least an Ethernet frame has, without its checksum
}

// unsolicitedAdvertisement is a neighbour advertisement for addr, from addr to
// all nodes: not solicited, overriding what neighbours remember, with the MAC
// as option (RFC 4861 sections 4.4 and 7.2.6).
func unsolicitedAdvertisement(mac [6]byte, addr netip.Addr, router bool) []byte {
	const allNodes = "\xff\x02\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x01" // ff02::1
	flags := byte(0x20)                                                                 // override
	if router {
		flags |= 0x80
	}
	source := addr.As16()

	icmp := append([]byte{136, 0, 0, 0, flags, 0, 0, 0}, source[:]...)
	icmp = append(icmp, 2, 1) // target link-layer address, in units of 8 bytes
	icmp = append(icmp, mac[:]...)

	pseudo := append(source[:], allNodes...)
	pseudo = binary.BigEndian.AppendUint32(pseudo, uint32(len(icmp)))
	pseudo = binary.BigEndian.AppendUint32(pseudo, unix.IPPROTO_ICMPV6)
	binary.BigEndian.PutUint16(icmp[2:], internetChecksum(append(pseudo, icmp...)))

	frame := []byte{0x33, 0x33, 0, 0, 0, 1} // of ff02::1, RFC 2464 section 7
	frame = append(frame, mac[:]...)
	frame = binary.BigEndian.AppendUint16(frame, unix.ETH_P_IPV6)
	frame = append(frame, 0x60, 0, 0, 0)
	frame = binary.BigEndian.AppendUint16(frame, uint16(len(icmp)))
	frame = append(frame, unix.IPPROTO_ICMPV6, 255) // a lower hop limit is ignored: it came from afar
	frame = append(frame, source[:]...)
	frame = append(frame, allNodes...)
	return append(frame, icmp...)
}

// internetChecksum is that of RFC 1071, over an even number of bytes.
func internetChecksum(data []byte) uint16 {
	var sum uint32
	for ; len(data) >= 2; data = data[2:] {
		sum += uint32(binary.BigEndian.Uint16(data))
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}

// forwardsIPv6 tells what the router flag must say: without it, hosts that use
// the sender as their default router would stop doing so (RFC 4861 section 7.2.5).
func forwardsIPv6(iface string) bool {
	value, err := os.ReadFile("/proc/sys/net/ipv6/conf/" + iface + "/forwarding")
	return err == nil && strings.TrimSpace(string(value)) != "0"
}
