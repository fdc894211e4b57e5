package loader

import (
	"bytes"
	"errors"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// capture opens a packet socket on the far end and returns a function that
// waits for the next frame that wanted accepts.
func (n *network) capture(t *testing.T) func(wanted func(gopacket.Packet) bool) []byte {
	t.Helper()
	var fd int
	n.within(t, func() {
		var err error
		// The protocol is given by bind, so that no frame of another device slips in before.
		fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
		must(t, err)
		everything := uint16(unix.ETH_P_ALL)<<8 | uint16(unix.ETH_P_ALL)>>8
		must(t, unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: everything, Ifindex: n.far.Attrs().Index}))
	})
	t.Cleanup(func() { unix.Close(fd) })
	limit := unix.NsecToTimeval(patience.Nanoseconds())
	must(t, unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &limit))
	return func(wanted func(gopacket.Packet) bool) []byte {
		t.Helper()
		buffer := make([]byte, 2048)
		for {
			size, from, err := unix.Recvfrom(fd, buffer, 0)
			if errors.Is(err, unix.EINTR) {
				continue
			}
			if err != nil {
				t.Fatalf("no such frame came: %v", err)
			}
			if from.(*unix.SockaddrLinklayer).Pkttype == unix.PACKET_OUTGOING {
				continue
			}
			if wanted(gopacket.NewPacket(buffer[:size], layers.LayerTypeEthernet, gopacket.Default)) {
				return buffer[:size]
			}
		}
	}
}

func isARP(p gopacket.Packet) bool { return p.Layer(layers.LayerTypeARP) != nil }

func isAdvertisement(p gopacket.Packet) bool {
	return p.Layer(layers.LayerTypeICMPv6NeighborAdvertisement) != nil
}

// expectedAnnouncement builds what must be on the wire without our own code.
func expectedAnnouncement(t *testing.T, mac net.HardwareAddr, addr netip.Addr, router bool) []byte {
	t.Helper()
	buffer := gopacket.NewSerializeBuffer()
	options := gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true}
	if addr.Is4() {
		must(t, gopacket.SerializeLayers(buffer, options,
			&layers.Ethernet{SrcMAC: mac, DstMAC: layers.EthernetBroadcast, EthernetType: layers.EthernetTypeARP},
			&layers.ARP{
				AddrType: layers.LinkTypeEthernet, Protocol: layers.EthernetTypeIPv4, HwAddressSize: 6, ProtAddressSize: 4,
				Operation:       layers.ARPRequest,
				SourceHwAddress: mac, SourceProtAddress: addr.AsSlice(),
				DstHwAddress: make([]byte, 6), DstProtAddress: addr.AsSlice(),
			}))
		return append(buffer.Bytes(), make([]byte, 60-len(buffer.Bytes()))...)
	}
	outer := &layers.IPv6{
		Version: 6, NextHeader: layers.IPProtocolICMPv6, HopLimit: 255,
		SrcIP: addr.AsSlice(), DstIP: net.ParseIP("ff02::1"),
	}
	icmp := &layers.ICMPv6{TypeCode: layers.CreateICMPv6TypeCode(layers.ICMPv6TypeNeighborAdvertisement, 0)}
	must(t, icmp.SetNetworkLayerForChecksum(outer))
	flags := uint8(0x20)
	if router {
		flags = 0xa0
	}
	must(t, gopacket.SerializeLayers(buffer, options,
		&layers.Ethernet{SrcMAC: mac, DstMAC: net.HardwareAddr{0x33, 0x33, 0, 0, 0, 1}, EthernetType: layers.EthernetTypeIPv6},
		outer, icmp,
		&layers.ICMPv6NeighborAdvertisement{
			Flags: flags, TargetAddress: addr.AsSlice(),
			Options: layers.ICMPv6Options{{Type: layers.ICMPv6OptTargetAddress, Data: mac}},
		}))
	return buffer.Bytes()
}

// The peer remembers another balancer's MAC for the VIP. After the assignment
// its kernel must have ours, and the frame must be the RFC's to the byte.
func TestAssignAddressMovesNeighbours(t *testing.T) {
	isolate(t)
	n := join(t, "near")
	n.give(t, []string{"10.0.0.1/24", "2001:db8::1/64"}, []string{"10.0.0.2/24", "2001:db8::2/64"})
	next := n.capture(t)
	old := net.HardwareAddr{2, 0, 0, 0, 0, 9}

	changes := make(chan netlink.NeighUpdate, 64)
	done := make(chan struct{})
	defer close(done)
	must(t, netlink.NeighSubscribeAt(n.ns, changes, done))
	for _, vip := range []string{"10.0.0.80", "2001:db8::80"} {
		must(t, n.handle.NeighSet(&netlink.Neigh{
			LinkIndex: n.far.Attrs().Index, IP: net.ParseIP(vip), HardwareAddr: old, State: netlink.NUD_REACHABLE,
		}))
		already, err := AssignAddress("near", ip(vip))
		if err != nil || already {
			t.Fatalf("%s: already %v, %v", vip, already, err)
		}
		wanted := isARP
		if ip(vip).Is6() {
			wanted = isAdvertisement
		}
		got := next(wanted)
		if want := expectedAnnouncement(t, n.near.Attrs().HardwareAddr, ip(vip), false); !bytes.Equal(got, want) {
			t.Errorf("%s: on the wire\n got %x\nwant %x", vip, got, want)
		}
		awaitNeighbour(t, changes, vip, n.near.Attrs().HardwareAddr)
	}
}

// awaitNeighbour waits until the table whose changes these are has mac for addr.
func awaitNeighbour(t *testing.T, changes <-chan netlink.NeighUpdate, addr string, mac net.HardwareAddr) {
	t.Helper()
	deadline := time.After(patience)
	for {
		select {
		case change, open := <-changes:
			if !open {
				t.Fatal("no more news of neighbours")
			}
			if change.IP.String() == addr && bytes.Equal(change.HardwareAddr, mac) {
				return
			}
		case <-deadline:
			t.Fatalf("%s: the peer still has another MAC than %s", addr, mac)
		}
	}
}

func TestAnnounceAsRouter(t *testing.T) {
	isolate(t)
	n := join(t, "near")
	sysctl(t, "ipv6/conf/near/forwarding", "1")
	next := n.capture(t)
	vip := ip("2001:db8::80") // not assigned: announcing is apart
	must(t, Announce("near", vip))
	got := next(isAdvertisement)
	if want := expectedAnnouncement(t, n.near.Attrs().HardwareAddr, vip, true); !bytes.Equal(got, want) {
		t.Errorf("on the wire\n got %x\nwant %x", got, want)
	}
}

func TestAssignedAddress(t *testing.T) {
	isolate(t)
	n := join(t, "near")
	n.give(t, []string{"2001:db8::1/64"}, nil)
	index := n.near.Attrs().Index
	for _, vip := range []string{"10.0.0.80", "2001:db8::80", "::ffff:10.0.0.81"} {
		if already, err := AssignAddress("near", ip(vip)); already || err != nil {
			t.Fatalf("%s: already %v, %v", vip, already, err)
		}
		has := addressOn(t, index, vip)
		if has == nil {
			t.Fatalf("%s: not on the interface", vip)
		}
		if ones, bits := has.Mask.Size(); ones != bits {
			t.Errorf("%s: /%d, want a host address", vip, ones)
		}
		if has.Flags&unix.IFA_F_TENTATIVE != 0 {
			t.Errorf("%s: waits for duplicate address detection", vip)
		}
		if already, err := AssignAddress("near", ip(vip)); !already || err != nil {
			t.Errorf("%s: again: already %v, %v", vip, already, err)
		}
		if already, err := AssignAddress("lo", ip(vip)); !already || err != nil || addressOn(t, 1, vip) != nil {
			t.Errorf("%s: on lo as well: already %v, %v", vip, already, err)
		}
	}

	// The host's own connections start from its own address.
	got, err := ResolveNextHops(t.Context(), []netip.Addr{ip("2001:db8::2")}, 0)
	must(t, err)
	if res := got[ip("2001:db8::2")]; res.Source != ip("2001:db8::1") {
		t.Errorf("source %s, want 2001:db8::1", res.Source)
	}

	for range 2 { // taking off what is gone is no error
		for _, vip := range []string{"10.0.0.80", "2001:db8::80", "::ffff:10.0.0.81"} {
			must(t, UnassignAddress(index, ip(vip)))
			if addressOn(t, index, vip) != nil {
				t.Errorf("%s: still there", vip)
			}
		}
	}
	must(t, UnassignAddress(99, ip("10.0.0.80")))
	must(t, UnassignAddress(99, ip("2001:db8::80")))
	if addressOn(t, index, "2001:db8::1") == nil {
		t.Error("an address that is not ours was taken off")
	}
}

// Whatever its prefix length and interface, an address that is there already stays as it is.
func TestAssignAddressOfSomebodyElse(t *testing.T) {
	isolate(t)
	n := join(t, "near")
	n.give(t, []string{"10.0.0.80/24", "2001:db8::80/64"}, nil)
	for _, vip := range []string{"10.0.0.80", "2001:db8::80"} {
		for _, iface := range []string{"near", "lo"} {
			if already, err := AssignAddress(iface, ip(vip)); !already || err != nil {
				t.Errorf("%s on %s: already %v, %v", vip, iface, already, err)
			}
		}
		must(t, UnassignAddress(n.near.Attrs().Index, ip(vip)))
		if has := addressOn(t, n.near.Attrs().Index, vip); has == nil {
			t.Errorf("%s: taken off, but it was not ours", vip)
		}
	}
	if already, err := AssignAddress("lo", ip("192.0.2.1")); already || err != nil || addressOn(t, 1, "192.0.2.1") == nil {
		t.Errorf("on loopback, where nothing is announced: already %v, %v", already, err)
	}
}

func TestAssignAddressErrors(t *testing.T) {
	isolate(t)
	n := join(t, "near")
	cases := []struct {
		iface, addr, says string
		prepare           func()
	}{
		{"none0", "10.0.0.80", "none0: no such interface", nil},
		{"near", "224.0.0.1", "224.0.0.1: not the unicast address", nil},
		{"near", "fe80::80", "fe80::80: not the unicast address", nil},
		{"near", "2001:db8::80", "2001:db8::80: near has IPv6 disabled", func() { sysctl(t, "ipv6/conf/near/disable_ipv6", "1") }},
		{"near", "10.0.0.80", "near: is down, so 10.0.0.80 cannot be announced; ip link set near up", func() { must(t, netlink.LinkSetDown(n.near)) }},
	}
	for _, c := range cases {
		if c.prepare != nil {
			c.prepare()
		}
		already, err := AssignAddress(c.iface, ip(c.addr))
		if already || err == nil || !strings.HasPrefix(err.Error(), c.says) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s on %s: already %v, got %v, want %q", c.addr, c.iface, already, err, c.says)
		}
		if addressOn(t, n.near.Attrs().Index, c.addr) != nil {
			t.Errorf("%s on %s: assigned after an error", c.addr, c.iface)
		}
	}
	if err := Announce("lo", ip("127.0.0.1")); err == nil || !strings.Contains(err.Error(), "lo: has no Ethernet frames") {
		t.Errorf("announcing on lo: %v", err)
	}
}

// addressOn returns the address as the interface has it, or nil.
func addressOn(t *testing.T, index int, addr string) *netlink.Addr {
	t.Helper()
	all, err := netlink.AddrList(nil, netlink.FAMILY_ALL)
	must(t, err)
	for _, one := range all {
		if one.LinkIndex == index && one.IP.Equal(net.IP(ip(addr).AsSlice())) {
			return &one
		}
	}
	return nil
}
