package bpf_test

import (
	"bytes"
	"encoding/binary"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
	"golang.org/x/sys/unix"

	"github.com/xdplb/xdplb/bpf"
)

// wellFormed sends a frame and demands that what leaves is well formed: lengths
// are consistent, checksums are as right or wrong as they were, and nothing else
// differs. It returns the reason that was counted.
func (w *world) wellFormed(in []byte) string {
	w.Helper()
	got := w.send(in)
	fail := func(why string) {
		w.Helper()
		w.Errorf("%s: %s\nin  %x\nout %x", got, why, in, got.frame)
	}
	switch got.reason {
	case bpf.XdplbReasonPassed:
		if got.verdict != xdpPass || !bytes.Equal(in, got.frame) {
			fail("changed")
		}
	case bpf.XdplbReasonTransmitted, bpf.XdplbReasonRedirected:
		if want := map[bpf.XdplbReason]uint32{bpf.XdplbReasonTransmitted: xdpTX, bpf.XdplbReasonRedirected: xdpRedirect}; got.verdict != want[got.reason] {
			fail("another verdict")
		}
		well := forwardedWell
		if w.translates {
			well = translatedWell
		}
		if why := well(in, got.frame); why != "" {
			fail(why)
		}
	default:
		if got.verdict == xdpDrop {
			break
		}
		why := "an answer that is not transmitted"
		switch {
		case got.verdict != xdpTX:
		case got.reason == bpf.XdplbReasonEchoAnswered:
			why = echoedWell(in, got.frame)
		case got.reason == bpf.XdplbReasonFlowUnknown || got.reason == bpf.XdplbReasonNatClash:
			why = resetWell(in, got.frame)
		default:
			why = toldWell(in, got.frame)
		}
		if why != "" {
			fail(why)
		}
	}
	return names[got.reason]
}

// forwardedWell says what is wrong with out, if in was forwarded as it.
func forwardedWell(in, out []byte) string {
	before, at := linkOf(in)
	after, outAt := linkOf(out)
	inner, rest := in[at:], out[outAt:]
	added := len(out) - outAt - (len(in) - at)
	if added == 0 {
		if before != after {
			return "another ethertype"
		}
		return oneHopOn(inner, rest)
	}
	outer, size, why := outerOf(after, rest, before)
	if why != "" {
		return why
	}
	if size != len(rest)-len(in)+at {
		return "bytes lost behind the outer header"
	}
	if n := lengthOf(inner); int(outer) != n {
		return "the outer length is not that of the inner packet"
	}
	return oneHopOn(inner, rest[size:])
}

// outerOf reads an outer header: the length of what it holds, and its own.
func outerOf(proto layers.EthernetType, b []byte, inner layers.EthernetType) (holds, size int, why string) {
	want := layers.IPProtocolIPv4
	if inner == layers.EthernetTypeIPv6 {
		want = layers.IPProtocolIPv6
	}
	switch proto {
	case layers.EthernetTypeIPv4:
		var ip layers.IPv4
		if err := ip.DecodeFromBytes(b, gopacket.NilDecodeFeedback); err != nil {
			return 0, 0, err.Error()
		}
		if ip.IHL != 5 || ip.Protocol != want || ip.Flags != layers.IPv4DontFragment || ip.TTL != 64 || ip.Id != 0 || !summed(b[:20]) {
			return 0, 0, "a wrong outer header"
		}
		return int(ip.Length) - 20, 20, ""
	case layers.EthernetTypeIPv6:
		var ip layers.IPv6
		if err := ip.DecodeFromBytes(b, gopacket.NilDecodeFeedback); err != nil {
			return 0, 0, err.Error()
		}
		if ip.NextHeader != want || ip.HopLimit != 64 || ip.Version != 6 {
			return 0, 0, "a wrong outer header"
		}
		return int(ip.Length), 40, ""
	}
	return 0, 0, "no outer header"
}

func lengthOf(ip []byte) int {
	if ip[0]>>4 == 6 {
		return int(binary.BigEndian.Uint16(ip[4:])) + 40
	}
	return int(binary.BigEndian.Uint16(ip[2:]))
}

// summed reports whether a checksum is right.
func summed(b []byte) bool { return gopacket.FoldChecksum(gopacket.ComputeChecksum(b, 0)) == 0 }

// oneHopOn says what differs between two packets beside the TTL and its checksum.
func oneHopOn(in, out []byte) string {
	want := bytes.Clone(in)
	if in[0]>>4 == 6 {
		want[7]--
	} else {
		header := int(in[0]&15) * 4
		if summed(in[:header]) != summed(out[:header]) {
			return "the header's checksum changed between right and wrong"
		}
		want[8]--
		copy(want[10:12], out[10:12])
	}
	if !bytes.Equal(want, out) {
		return "more than the TTL changed"
	}
	return ""
}

// echoedWell says what is wrong with an answer to an echo request.
func echoedWell(in, out []byte) string {
	_, at := linkOf(in)
	want := bytes.Clone(in)
	copy(want, in[6:12])
	copy(want[6:], in[:6])
	before, now, got := in[at:], want[at:], out[at:]
	l4 := 0
	if before[0]>>4 == 6 {
		copy(now[8:], before[24:40])
		copy(now[24:], before[8:24])
		now[7] = 64
		for proto, next := before[6], 40; ; {
			l4 = next
			if proto == unix.IPPROTO_ICMPV6 {
				break
			}
			size := 8
			if proto != unix.IPPROTO_FRAGMENT {
				size += 8 * int(before[next+1])
			}
			proto, next = before[next], next+size
		}
		now[l4] = 129
	} else {
		copy(now[12:], before[16:20])
		copy(now[16:], before[12:16])
		now[8] = 64
		l4 = int(before[0]&15) * 4
		if summed(before[:l4]) != summed(got[:l4]) {
			return "the header's checksum changed between right and wrong"
		}
		copy(now[10:], got[10:12])
		now[l4] = 0
	}
	if end := lengthOf(before); pseudoSummed(before[:end], l4) != pseudoSummed(got[:end], l4) {
		return "the ICMP checksum changed between right and wrong"
	}
	copy(now[l4+2:], got[l4+2:l4+4])
	if !bytes.Equal(want, out) {
		return "an echo that is not the request turned around"
	}
	return ""
}

// pseudoSummed reports whether the ICMP checksum of an IP packet is right.
func pseudoSummed(ip []byte, l4 int) bool {
	var sum uint32
	if ip[0]>>4 == 6 { // RFC 8200, 8.1
		sum = gopacket.ComputeChecksum(ip[8:40], 0) + uint32(len(ip)-l4) + unix.IPPROTO_ICMPV6
	}
	return gopacket.FoldChecksum(gopacket.ComputeChecksum(ip[l4:], sum)) == 0
}

// toldWell says what is wrong with a message about in.
func toldWell(in, out []byte) string {
	_, at := linkOf(in)
	if len(out) < at+28 || !bytes.Equal(out[:6], in[6:12]) || !bytes.Equal(out[6:12], in[:6]) || !bytes.Equal(out[12:at], in[12:at]) {
		return "another link header"
	}
	ip, cause := out[at:], in[at:]
	l4 := 20
	if cause[0]>>4 == 6 {
		l4 = 40
		if !bytes.Equal(ip[8:24], cause[24:40]) || !bytes.Equal(ip[24:40], cause[8:24]) || ip[6] != unix.IPPROTO_ICMPV6 {
			return "other addresses"
		}
	} else if !summed(ip[:20]) || ip[0] != 0x45 || ip[9] != unix.IPPROTO_ICMP ||
		!bytes.Equal(ip[12:16], cause[16:20]) || !bytes.Equal(ip[16:20], cause[12:16]) {
		return "a wrong IP header"
	}
	if ip[0]>>4 != cause[0]>>4 || lengthOf(ip) != len(ip) || !pseudoSummed(ip, l4) {
		return "a wrong length or checksum"
	}
	if quote := ip[l4+8:]; len(quote) < min(lengthOf(cause)&^3, quoteMost) || !bytes.HasPrefix(cause, quote) {
		return "another packet quoted"
	}
	return ""
}
