package bpf_test

import (
	"encoding/binary"
	"math/rand/v2"
	"net"
	"net/netip"
	"testing"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
	"golang.org/x/sys/unix"

	"github.com/xdplb/xdplb/bpf"
	"github.com/xdplb/xdplb/maps"
)

// packet is a frame before it is written out. Tests take a base packet and change
// some of it; lengths and checksums are computed anew each time.
type packet struct {
	to, from   net.HardwareAddr
	tags       []tag
	client     netip.AddrPort
	vip        netip.AddrPort
	proto      uint8 // transport
	ttl, tos   uint8
	label      uint32 // IPv6
	id         uint16 // IPv4
	df         bool
	options    []byte      // IPv4
	extensions []extension // IPv6
	part       *part
	tcp        layers.TCP // flags
	icmp       icmp
	payload    []byte
	padding    int // behind the IP packet
}

type tag struct {
	tpid     layers.EthernetType
	priority uint8
	dei      bool
	id       uint16
}

// extension is an IPv6 extension header; the first byte of body becomes the type
// of what follows.
type extension struct {
	proto uint8
	body  []byte
}

// part makes the packet a fragment that carries size bytes from offset; the
// rest if size is 0.
type part struct {
	id           uint32
	offset, size int
}

type icmp struct {
	kind, code uint8
	rest       uint32
}

func (p packet) ipv6() bool { return p.vip.Addr().Is6() }

func (p packet) tuple() maps.Tuple {
	return maps.Tuple{Src: p.client.Addr(), Dst: p.vip.Addr(), SrcPort: p.client.Port(), DstPort: p.vip.Port(), Proto: p.proto}
}

var clientMAC = net.HardwareAddr{2, 0, 0, 0, 9, 9}

var clients = map[bool]string{false: "198.51.100.7:40000", true: "[2001:db8:c::7]:40000"}

// base is a packet from a client to a VIP.
func base(vip maps.VIP) packet {
	return packet{
		to: interfaceMAC(inside), from: clientMAC,
		client: netip.MustParseAddrPort(clients[vip.Addr.Is6()]), vip: vip.AddrPort(), proto: vip.Proto,
		ttl: 57, tos: 0xb9, label: 0x54321, id: 4711, df: true,
		tcp:     layers.TCP{ACK: true, PSH: true},
		payload: bytesOf(100),
	}
}

func (s *service) base() packet { return base(s.VIP) }

func bytesOf(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(i*7 + 1)
	}
	return b
}

// randomClient has p come from anyone.
func (p packet) randomClient(r *rand.Rand) packet {
	a := p.client.Addr().As16()
	at := 12
	if p.ipv6() {
		at = 4
	}
	for i := at + 1; i < len(a); i++ {
		a[i] = byte(r.Uint32())
	}
	p.client = netip.AddrPortFrom(netip.AddrFrom16(a).Unmap(), uint16(1+r.Uint32N(65535)))
	return p
}

func serialize(t testing.TB, stack ...gopacket.SerializableLayer) []byte {
	t.Helper()
	buffer := gopacket.NewSerializeBuffer()
	must(t, gopacket.SerializeLayers(buffer, gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true}, stack...))
	return append([]byte(nil), buffer.Bytes()...)
}

// network is the IP header as a layer.
func (p packet) network(proto uint8) gopacket.NetworkLayer {
	if p.ipv6() {
		return &layers.IPv6{
			Version: 6, TrafficClass: p.tos, FlowLabel: p.label, HopLimit: p.ttl, NextHeader: layers.IPProtocol(proto),
			SrcIP: p.client.Addr().AsSlice(), DstIP: p.vip.Addr().AsSlice(),
		}
	}
	ip := &layers.IPv4{
		Version: 4, TOS: p.tos, Id: p.id, TTL: p.ttl, Protocol: layers.IPProtocol(proto),
		SrcIP: p.client.Addr().AsSlice(), DstIP: p.vip.Addr().AsSlice(),
	}
	if p.df {
		ip.Flags = layers.IPv4DontFragment
	}
	for o := p.options; len(o) > 0; o = o[o[1]:] { // each with its length
		ip.Options = append(ip.Options, layers.IPv4Option{OptionType: o[0], OptionLength: o[1], OptionData: o[2:o[1]]})
	}
	return ip
}

// transport is what follows the IP header of the whole packet.
func (p packet) transport(t testing.TB) []byte {
	t.Helper()
	ip := p.network(p.proto)
	switch p.proto {
	case unix.IPPROTO_TCP:
		tcp := p.tcp
		tcp.SrcPort, tcp.DstPort = layers.TCPPort(p.client.Port()), layers.TCPPort(p.vip.Port())
		tcp.Seq, tcp.Ack, tcp.Window = 0x01020304, 0x05060708, 512
		must(t, tcp.SetNetworkLayerForChecksum(ip))
		return serialize(t, &tcp, gopacket.Payload(p.payload))
	case unix.IPPROTO_UDP:
		udp := layers.UDP{SrcPort: layers.UDPPort(p.client.Port()), DstPort: layers.UDPPort(p.vip.Port())}
		must(t, udp.SetNetworkLayerForChecksum(ip))
		return serialize(t, &udp, gopacket.Payload(p.payload))
	case unix.IPPROTO_ICMP:
		message := layers.ICMPv4{
			TypeCode: layers.CreateICMPv4TypeCode(p.icmp.kind, p.icmp.code),
			Id:       uint16(p.icmp.rest >> 16), Seq: uint16(p.icmp.rest),
		}
		return serialize(t, &message, gopacket.Payload(p.payload))
	case unix.IPPROTO_ICMPV6:
		message := layers.ICMPv6{TypeCode: layers.CreateICMPv6TypeCode(p.icmp.kind, p.icmp.code)}
		must(t, message.SetNetworkLayerForChecksum(ip))
		return serialize(t, &message, gopacket.Payload(append(binary.BigEndian.AppendUint32(nil, p.icmp.rest), p.payload...)))
	}
	return p.payload
}

// ip is the IP packet.
func (p packet) ip(t testing.TB) []byte {
	t.Helper()
	body, proto := p.transport(t), p.proto
	rest := 0
	if p.part != nil {
		end := len(body)
		if p.part.size > 0 {
			end = min(end, p.part.offset+p.part.size)
		}
		rest = len(body) - end
		body = body[p.part.offset:end]
	}
	if p.part != nil && p.ipv6() {
		header := make([]byte, 8)
		header[0] = proto
		flags := uint16(p.part.offset)
		if rest > 0 {
			flags |= 1
		}
		binary.BigEndian.PutUint16(header[2:], flags)
		binary.BigEndian.PutUint32(header[4:], p.part.id)
		body, proto = append(header, body...), unix.IPPROTO_FRAGMENT
	}
	for i := len(p.extensions) - 1; i >= 0 && p.ipv6(); i-- {
		e := p.extensions[i]
		body = append(append([]byte{proto}, e.body[1:]...), body...)
		proto = e.proto
	}
	network := p.network(proto)
	if ip, ok := network.(*layers.IPv4); ok && p.part != nil {
		ip.Id, ip.FragOffset, ip.Flags = uint16(p.part.id), uint16(p.part.offset/8), 0
		if rest > 0 {
			ip.Flags = layers.IPv4MoreFragments
		}
	}
	return serialize(t, network.(gopacket.SerializableLayer), gopacket.Payload(body))
}

// framed puts an Ethernet header and tags before an IP packet.
func (p packet) framed(t testing.TB, ip []byte) []byte {
	t.Helper()
	var proto layers.EthernetType
	switch ip[0] >> 4 {
	case 4:
		proto = layers.EthernetTypeIPv4
	case 6:
		proto = layers.EthernetTypeIPv6
	}
	ethernet := &layers.Ethernet{SrcMAC: p.from, DstMAC: p.to, EthernetType: proto}
	stack := []gopacket.SerializableLayer{ethernet}
	for i, tag := range p.tags {
		if i == 0 {
			ethernet.EthernetType = tag.tpid
		}
		next := proto
		if i+1 < len(p.tags) {
			next = p.tags[i+1].tpid
		}
		stack = append(stack, &layers.Dot1Q{Priority: tag.priority, DropEligible: tag.dei, VLANIdentifier: tag.id, Type: next})
	}
	frame := serialize(t, append(stack, gopacket.Payload(ip))...)
	frame = frame[:p.l3()+len(ip)] // gopacket pads short frames
	return append(frame, make([]byte, p.padding)...)
}

// l3 is where the IP header begins.
func (p packet) l3() int { return 14 + 4*len(p.tags) }

func (p packet) bytes(t testing.TB) []byte { t.Helper(); return p.framed(t, p.ip(t)) }

// quoting is an ICMP error to the VIP about a packet that it sent to p's client,
// which quotes size bytes behind the IP header.
func (p packet) quoting(t testing.TB, size int) packet {
	t.Helper()
	sent := p
	sent.client, sent.vip, sent.ttl = p.vip, p.client, 3
	quote := sent.ip(t)
	headers := len(quote) - len(sent.transport(t))
	p.payload = quote[:headers+size]
	p.options, p.extensions, p.part = nil, nil, nil
	router := netip.MustParseAddr("203.0.113.1")
	p.proto, p.icmp = unix.IPPROTO_ICMP, icmp{3, 4, 1400}
	if p.ipv6() {
		router = netip.MustParseAddr("2001:db8:d::1")
		p.proto, p.icmp = unix.IPPROTO_ICMPV6, icmp{2, 0, 1400}
	}
	p.client = netip.AddrPortFrom(router, 0)
	return p
}

// answer is what the VIP itself sends back in answer to p.
func (p packet) answer(message icmp, payload []byte) packet {
	p.to, p.from = p.from, p.to
	p.client, p.vip = p.vip, p.client
	p.ttl, p.tos, p.label, p.id, p.df, p.padding = 64, 0, 0, 0, false, 0
	p.options, p.extensions, p.part = nil, nil, nil
	p.proto = unix.IPPROTO_ICMP
	if p.ipv6() {
		p.proto = unix.IPPROTO_ICMPV6
	}
	p.icmp, p.payload = message, payload
	return p
}

// hash is that of a flow of a VIP with scheduler maglev.
func (w *world) hash(t maps.Tuple) uint64 {
	return maps.SlotFunction{}.Hash(&w.settings.HashKey, t)
}

// forwarded is the frame that leaves toward b for p, of a flow that is p's own.
func (w *world) forwarded(p packet, b *maps.Backend) []byte {
	w.Helper()
	return w.forwardedAs(p, b, p.tuple())
}

// forwardedAs is forwarded for an ICMP error about the flow.
func (w *world) forwardedAs(p packet, b *maps.Backend, flow maps.Tuple) []byte {
	w.Helper()
	p.to, p.from = b.Mac.Mac[:], interfaceMAC(uint32(b.Link.Interface))
	if vlan := b.Mac.Vlan; vlan == untagged {
		p.tags = nil
	} else if vlan != 0 {
		if len(p.tags) == 0 {
			p.tags = []tag{{tpid: layers.EthernetTypeDot1Q}}
		}
		p.tags = append([]tag(nil), p.tags...)
		p.tags[0].id = vlan
	}
	p.ttl--
	ip := p.ip(w)
	if b.Mode == uint8(bpf.XdplbModeModeTun) {
		outer := packet{
			client: netip.AddrPortFrom(maps.Addr(b.Source), 0), vip: netip.AddrPortFrom(b.Addr(), 0),
			ttl: 64, tos: p.tos, df: true, label: uint32(w.hash(flow) & 0xfffff), payload: ip,
		}
		if w.settings.SpreadMask != 0 && !outer.ipv6() {
			outer.client = netip.AddrPortFrom(w.spread(w.hash(flow)), 0)
		}
		outer.proto = unix.IPPROTO_IPIP
		if p.ipv6() {
			outer.proto = unix.IPPROTO_IPV6
		}
		ip = outer.ip(w)
	}
	return p.framed(w, ip)
}

// spread is the outer source that --tun-spread makes of a hash.
func (w *world) spread(hash uint64) netip.Addr {
	var prefix, mask, source [4]byte
	binary.LittleEndian.PutUint32(prefix[:], w.settings.SpreadPrefix)
	binary.LittleEndian.PutUint32(mask[:], w.settings.SpreadMask)
	binary.BigEndian.PutUint32(source[:], uint32(hash))
	for i := range source {
		source[i] = prefix[i]&^mask[i] | source[i]&mask[i]
	}
	return netip.AddrFrom4(source)
}
func withPort(a netip.AddrPort, port uint16) netip.AddrPort {
	return netip.AddrPortFrom(a.Addr(), port)
}

func withAddr(a netip.AddrPort, addr string) netip.AddrPort {
	return netip.AddrPortFrom(netip.MustParseAddr(addr), a.Port())
}
