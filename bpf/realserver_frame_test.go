package bpf

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net"
	"testing"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
)

var (
	realserverClient = map[int]string{4: "198.51.100.7", 6: "2001:db8:c::7"}
	realserverVIP    = map[int]string{4: "192.0.2.10", 6: "2001:db8:f::10"}
	realserverDR     = map[int]string{4: "192.0.2.11", 6: "2001:db8:f::11"} // accepted, but not for tunnels
	realserverHost   = map[int]string{4: "10.0.0.2", 6: "2001:db8::2"}
	balancerSource   = map[int]string{4: "10.0.0.1", 6: "2001:db8::1"}
)

const (
	ecnNone = iota
	ecnECT1
	ecnECT0
	ecnCE
)

// realserverFrame is what a balancer sends, before it is written out.
type realserverFrame struct {
	outer, inner     int // IP version
	tags             int
	tcp              bool
	options          bool // IPv4 options in both headers that can have them
	payload          int
	source, host     string
	client, vip      string
	outerTOS         uint8
	innerTOS         uint8
	fragmentOffset   uint16
	moreFragments    bool
	padding          int
	innerLengthDelta int
}

func newRealserverFrame(outer, inner int) realserverFrame {
	return realserverFrame{
		outer: outer, inner: inner, payload: 100,
		source: balancerSource[outer], host: realserverHost[outer],
		client: realserverClient[inner], vip: realserverVIP[inner],
	}
}

func (f realserverFrame) network(version int, src, dst string, proto layers.IPProtocol, tos uint8) gopacket.SerializableLayer {
	if version == 6 {
		return &layers.IPv6{Version: 6, HopLimit: 63, TrafficClass: tos, FlowLabel: 0x12345, NextHeader: proto,
			SrcIP: net.ParseIP(src), DstIP: net.ParseIP(dst)}
	}
	ip := &layers.IPv4{Version: 4, TTL: 63, TOS: tos, Id: 4711, Protocol: proto,
		SrcIP: net.ParseIP(src).To4(), DstIP: net.ParseIP(dst).To4()}
	if f.options {
		ip.Options = []layers.IPv4Option{{OptionType: 148, OptionLength: 4, OptionData: []byte{0, 0}}} // router alert
	}
	return ip
}

// write serializes the frame; without the outer header if decapsulated.
func (f realserverFrame) write(t testing.TB, decapsulated bool, innerTOS uint8) []byte {
	t.Helper()
	var stack []gopacket.SerializableLayer
	etherType := map[int]layers.EthernetType{4: layers.EthernetTypeIPv4, 6: layers.EthernetTypeIPv6}
	first := etherType[f.outer]
	if decapsulated {
		first = etherType[f.inner]
	}
	ethernet := &layers.Ethernet{SrcMAC: net.HardwareAddr{2, 0, 0, 0, 0, 1}, DstMAC: net.HardwareAddr{2, 0, 0, 0, 0, 2}, EthernetType: first}
	stack = append(stack, ethernet)
	switch f.tags {
	case 1:
		ethernet.EthernetType = layers.EthernetTypeDot1Q
		stack = append(stack, &layers.Dot1Q{Priority: 5, VLANIdentifier: 100, Type: first})
	case 2:
		ethernet.EthernetType = layers.EthernetTypeQinQ
		stack = append(stack,
			&layers.Dot1Q{Priority: 3, VLANIdentifier: 200, Type: layers.EthernetTypeDot1Q},
			&layers.Dot1Q{DropEligible: true, VLANIdentifier: 4094, Type: first})
	}
	if !decapsulated {
		proto := layers.IPProtocolIPv4
		if f.inner == 6 {
			proto = layers.IPProtocolIPv6
		}
		outer := f.network(f.outer, f.source, f.host, proto, f.outerTOS)
		if ip, ok := outer.(*layers.IPv4); ok {
			ip.FragOffset = f.fragmentOffset
			if f.moreFragments {
				ip.Flags = layers.IPv4MoreFragments
			}
		}
		stack = append(stack, outer)
	}
	proto := layers.IPProtocolUDP
	if f.tcp {
		proto = layers.IPProtocolTCP
	}
	network := f.network(f.inner, f.client, f.vip, proto, innerTOS)
	stack = append(stack, network)
	if f.tcp {
		tcp := &layers.TCP{SrcPort: 40000, DstPort: 80, Seq: 1, Ack: 2, ACK: true, PSH: true, Window: 512}
		must(t, tcp.SetNetworkLayerForChecksum(network.(gopacket.NetworkLayer)))
		stack = append(stack, tcp)
	} else {
		udp := &layers.UDP{SrcPort: 40000, DstPort: 80}
		must(t, udp.SetNetworkLayerForChecksum(network.(gopacket.NetworkLayer)))
		stack = append(stack, udp)
	}
	payload := make([]byte, f.payload)
	for i := range payload {
		payload[i] = byte(i)
	}
	stack = append(stack, gopacket.Payload(payload))
	buffer := gopacket.NewSerializeBuffer()
	must(t, gopacket.SerializeLayers(buffer, gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true}, stack...))
	frame := append(bytes.Clone(buffer.Bytes()), make([]byte, f.padding)...)
	if f.innerLengthDelta != 0 && !decapsulated {
		at := f.innerAt() + 2
		if f.inner == 6 {
			at = f.innerAt() + 4
		}
		length := binary.BigEndian.Uint16(frame[at:])
		binary.BigEndian.PutUint16(frame[at:], uint16(int(length)+f.innerLengthDelta))
	}
	return frame
}

// innerAt is the offset of the inner IP header.
func (f realserverFrame) innerAt() int {
	at := 14 + 4*f.tags
	if f.outer == 6 {
		return at + 40
	}
	if f.options {
		return at + 24
	}
	return at + 20
}

func (f realserverFrame) name() string {
	return fmt.Sprintf("outer%d/inner%d/tags%d/tcp=%v/options=%v/payload%d/padding%d", f.outer, f.inner, f.tags, f.tcp, f.options, f.payload, f.padding)
}
