package loader

import (
	"bytes"
	"encoding/binary"
	"net"
	"net/netip"
	"path/filepath"
	"testing"
	"time"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// privateBPFFS mounts a bpffs that only the test's thread sees, and returns
// the pins to use in it. At the end nothing of ours may be left there.
func privateBPFFS(t *testing.T) (pins string) {
	t.Helper()
	dir := t.TempDir()
	must(t, unix.Unshare(unix.CLONE_NEWNS))
	must(t, unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""))
	must(t, unix.Mount("bpf", dir, "bpf", 0, ""))
	pins = filepath.Join(dir, "xdplb")
	t.Cleanup(func() {
		left, err := filepath.Glob(pins + "*")
		if err != nil || (len(left) > 0 && !t.Failed()) {
			t.Errorf("left in bpffs: %v, %v", left, err)
		}
		must(t, unix.Unmount(dir, 0))
	})
	return pins
}

// realserverHost is a real server with eth0 (10.0.0.2, 2001:db8::2) and a
// default route to whoever is at the far end.
func realserverHost(t *testing.T) (pins string, lan *network) {
	t.Helper()
	isolate(t)
	pins = privateBPFFS(t)
	lan = join(t, "eth0")
	lan.give(t, []string{"10.0.0.2/24", "2001:db8::2/64"}, []string{"10.0.0.1/24", "2001:db8::1/64"})
	for _, any := range []string{"0.0.0.0/0", "::/0"} {
		addRoute(t, any, netlink.Route{LinkIndex: lan.near.Attrs().Index})
	}
	return pins, lan
}

// wire sends and receives whole frames at the far end.
type wire struct {
	fd     int
	source net.HardwareAddr
	target net.HardwareAddr
}

func openWire(t *testing.T, lan *network) *wire {
	t.Helper()
	w := &wire{source: lan.far.Attrs().HardwareAddr, target: lan.near.Attrs().HardwareAddr}
	lan.within(t, func() {
		all := int(binary.BigEndian.Uint16(binary.NativeEndian.AppendUint16(nil, unix.ETH_P_ALL)))
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, all)
		must(t, err)
		must(t, unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: uint16(all), Ifindex: lan.far.Attrs().Index}))
		must(t, unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: int64(patience / time.Second)}))
		w.fd = fd
	})
	t.Cleanup(func() { unix.Close(w.fd) })
	return w
}

func (w *wire) send(t *testing.T, stack ...gopacket.SerializableLayer) {
	t.Helper()
	buffer := gopacket.NewSerializeBuffer()
	must(t, gopacket.SerializeLayers(buffer, gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true}, stack...))
	_, err := unix.Write(w.fd, buffer.Bytes())
	must(t, err)
}

func (w *wire) ethernet(to net.HardwareAddr, kind layers.EthernetType) *layers.Ethernet {
	return &layers.Ethernet{SrcMAC: w.source, DstMAC: to, EthernetType: kind}
}

func ipLayer(src, dst netip.Addr, proto layers.IPProtocol) gopacket.SerializableLayer {
	if src.Is4() {
		return &layers.IPv4{Version: 4, TTL: 60, Protocol: proto, SrcIP: src.AsSlice(), DstIP: dst.AsSlice()}
	}
	return &layers.IPv6{Version: 6, HopLimit: 60, NextHeader: proto, SrcIP: src.AsSlice(), DstIP: dst.AsSlice()}
}

func etherType(addr netip.Addr) layers.EthernetType {
	if addr.Is4() {
		return layers.EthernetTypeIPv4
	}
	return layers.EthernetTypeIPv6
}

// tunnel sends a datagram from client to vip inside a packet from source to host.
func (w *wire) tunnel(t *testing.T, source, host, client netip.Addr, vip netip.AddrPort, payload string) {
	t.Helper()
	inner := ipLayer(client, vip.Addr(), layers.IPProtocolUDP)
	udp := &layers.UDP{SrcPort: 4000, DstPort: layers.UDPPort(vip.Port())}
	must(t, udp.SetNetworkLayerForChecksum(inner.(gopacket.NetworkLayer)))
	proto := layers.IPProtocolIPv4
	if client.Is6() {
		proto = layers.IPProtocolIPv6
	}
	w.send(t, w.ethernet(w.target, etherType(source)), ipLayer(source, host, proto), inner, udp, gopacket.Payload(payload))
}

// answersARP asks for addr, then for known, which is answered; answers come in
// the order of the questions.
func (w *wire) answersARP(t *testing.T, addr, known string) bool {
	t.Helper()
	for _, target := range []string{addr, known} {
		w.send(t, w.ethernet(layers.EthernetBroadcast, layers.EthernetTypeARP), &layers.ARP{
			AddrType: layers.LinkTypeEthernet, Protocol: layers.EthernetTypeIPv4, HwAddressSize: 6, ProtAddressSize: 4,
			Operation: layers.ARPRequest, SourceHwAddress: w.source, SourceProtAddress: ip("10.0.0.1").AsSlice(),
			DstHwAddress: make([]byte, 6), DstProtAddress: ip(target).AsSlice(),
		})
	}
	return w.answered(t, addr, known, func(packet gopacket.Packet) []byte {
		if arp, ok := packet.Layer(layers.LayerTypeARP).(*layers.ARP); ok && arp.Operation == layers.ARPReply {
			return arp.SourceProtAddress
		}
		return nil
	})
}

// answersND is answersARP for IPv6: asked by multicast, or as a check of a neighbour that is known.
func (w *wire) answersND(t *testing.T, addr, known string, unicast bool) bool {
	t.Helper()
	for _, target := range []string{addr, known} {
		last := ip(target).As16()
		dst, mac := ip("ff02::1:ff00:0").As16(), net.HardwareAddr{0x33, 0x33, 0xff, last[13], last[14], last[15]}
		copy(dst[13:], last[13:])
		if unicast {
			dst, mac = last, w.target
		}
		ipv6 := &layers.IPv6{Version: 6, HopLimit: 255, NextHeader: layers.IPProtocolICMPv6, SrcIP: ip("2001:db8::1").AsSlice(), DstIP: dst[:]}
		icmp := &layers.ICMPv6{TypeCode: layers.CreateICMPv6TypeCode(layers.ICMPv6TypeNeighborSolicitation, 0)}
		must(t, icmp.SetNetworkLayerForChecksum(ipv6))
		w.send(t, w.ethernet(mac, layers.EthernetTypeIPv6), ipv6, icmp, &layers.ICMPv6NeighborSolicitation{
			TargetAddress: last[:],
			Options:       layers.ICMPv6Options{{Type: layers.ICMPv6OptSourceAddress, Data: w.source}},
		})
	}
	return w.answered(t, addr, known, func(packet gopacket.Packet) []byte {
		if answer, ok := packet.Layer(layers.LayerTypeICMPv6NeighborAdvertisement).(*layers.ICMPv6NeighborAdvertisement); ok && answer.Solicited() {
			return answer.TargetAddress
		}
		return nil
	})
}

// answered reads frames until one answers for known, and tells whether one for addr came before.
func (w *wire) answered(t *testing.T, addr, known string, answer func(gopacket.Packet) []byte) (seen bool) {
	t.Helper()
	frame := make([]byte, 4096)
	for {
		size, err := unix.Read(w.fd, frame)
		if err != nil {
			t.Fatalf("no answer for %s: %v", known, err)
		}
		of := answer(gopacket.NewPacket(frame[:size], layers.LayerTypeEthernet, gopacket.Default))
		seen = seen || bytes.Equal(of, ip(addr).AsSlice())
		if bytes.Equal(of, ip(known).AsSlice()) {
			return seen
		}
	}
}

// listen opens a UDP server on addr in the test's namespace.
func listen(t *testing.T, addr netip.Addr) (*net.UDPConn, netip.AddrPort) {
	t.Helper()
	conn, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(addr, 0)))
	must(t, err)
	t.Cleanup(func() { conn.Close() })
	must(t, conn.SetReadDeadline(time.Now().Add(patience)))
	return conn, netip.AddrPortFrom(addr, conn.LocalAddr().(*net.UDPAddr).AddrPort().Port())
}

func receive(t *testing.T, conn *net.UDPConn) (payload string, from netip.Addr) {
	t.Helper()
	data := make([]byte, 2048)
	size, source, err := conn.ReadFromUDPAddrPort(data)
	if err != nil {
		t.Fatal(err)
	}
	return string(data[:size]), source.Addr().Unmap()
}
