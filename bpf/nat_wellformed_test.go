package bpf_test

import (
	"bytes"
	"encoding/binary"

	"github.com/gopacket/gopacket"
	"golang.org/x/sys/unix"
)

// layout is where an IP packet has its parts.
type layout struct {
	proto uint8
	l4    int  // 0: unknown
	later bool // a fragment without ports
	part  bool // any fragment
	end   int
}

func layoutOf(ip []byte) (l layout) {
	if len(ip) < 20 || ip[0]>>4 == 6 && len(ip) < 40 {
		return layout{}
	}
	l.end = min(lengthOf(ip), len(ip))
	if ip[0]>>4 == 4 {
		fragment := binary.BigEndian.Uint16(ip[6:])
		l.proto, l.l4 = ip[9], int(ip[0]&15)*4
		l.part, l.later = fragment&0x3fff != 0, fragment&0x1fff != 0
		return l
	}
	l.proto, l.l4 = ip[6], 40
	for l.l4+8 <= l.end {
		size := 8
		switch l.proto {
		default:
			return l
		case unix.IPPROTO_FRAGMENT:
			offset := binary.BigEndian.Uint16(ip[l.l4+2:])
			l.part, l.later = l.part || offset&0xfff9 != 0, offset&0xfff8 != 0
			if l.later {
				l.proto = ip[l.l4]
				return l
			}
		case unix.IPPROTO_HOPOPTS, unix.IPPROTO_DSTOPTS, unix.IPPROTO_ROUTING:
			size += 8 * int(ip[l.l4+1])
		}
		l.proto, l.l4 = ip[l.l4], l.l4+size
	}
	return l
}

// addressesOf are the parts of an IP header.
func addressesOf(ip []byte) (src, dst []byte) {
	if ip[0]>>4 == 4 {
		return ip[12:16], ip[16:20]
	}
	return ip[8:24], ip[24:40]
}

// checkOf is a transport checksum, nil if the packet does not show it.
func (l layout) checkOf(ip []byte) []byte {
	at := map[uint8]int{unix.IPPROTO_TCP: 16, unix.IPPROTO_UDP: 6, unix.IPPROTO_ICMP: 2, unix.IPPROTO_ICMPV6: 2}[l.proto]
	if at == 0 || l.later || l.l4+at+2 > l.end {
		return nil
	}
	return ip[l.l4+at : l.l4+at+2]
}

// summed reports whether the transport checksum of a whole packet is right.
func (l layout) summed(ip []byte) bool {
	size := l.end - l.l4
	if l.proto == unix.IPPROTO_UDP {
		size = min(size, int(binary.BigEndian.Uint16(ip[l.l4+4:])))
	}
	var sum uint32
	if l.proto != unix.IPPROTO_ICMP {
		src, dst := addressesOf(ip)
		sum = gopacket.ComputeChecksum(append(bytes.Clone(src), dst...), uint32(size)+uint32(l.proto))
	}
	return gopacket.FoldChecksum(gopacket.ComputeChecksum(ip[l.l4:l.l4+size], sum)) == 0
}

// translatedWell says what is wrong with out, if in was translated to it: beside
// addresses, ports, checksums and TTL nothing may differ.
func translatedWell(in, out []byte) string {
	before, at := linkOf(in)
	after, outAt := linkOf(out)
	ip, got := in[at:], out[outAt:]
	if before != after || len(ip) != len(got) {
		return "another ethertype or length"
	}
	l := layoutOf(ip)
	want := bytes.Clone(ip)
	copyAddresses(want, got)
	if ip[0]>>4 == 4 {
		if summed(ip[:l.l4]) != summed(got[:l.l4]) {
			return "the header's checksum changed between right and wrong"
		}
		want[8]--
		copy(want[10:12], got[10:12])
	} else {
		want[7]--
	}
	if !l.later {
		if why := l.transportWell(ip, got, want); why != "" {
			return why
		}
	}
	if !bytes.Equal(want, got) {
		return "more changed than addresses, ports, checksums and TTL"
	}
	return ""
}

func copyAddresses(to, from []byte) {
	src, dst := addressesOf(to)
	newSrc, newDst := addressesOf(from)
	copy(src, newSrc)
	copy(dst, newDst)
}

// transportWell puts into want what may change behind the IP header.
func (l layout) transportWell(ip, got, want []byte) string {
	if !l.part && l.summed(ip) != l.summed(got) && !l.without(ip) {
		return "the transport checksum changed between right and wrong"
	}
	if l.without(ip) != l.without(got) {
		return "a UDP checksum appeared or went away"
	}
	copy(l.checkOf(want), l.checkOf(got))
	if l.proto == unix.IPPROTO_TCP || l.proto == unix.IPPROTO_UDP {
		copy(want[l.l4:l.l4+4], got[l.l4:])
		return ""
	}
	quote, newQuote := want[l.l4+8:l.end], got[l.l4+8:l.end]
	q := layoutOf(quote)
	copyAddresses(quote, newQuote)
	if quote[0]>>4 == 4 {
		copy(quote[10:12], newQuote[10:12])
	}
	copy(quote[q.l4:q.l4+4], newQuote[q.l4:])
	q.end = len(quote)
	if q.without(quote) != q.without(newQuote) {
		return "a UDP checksum appeared in a quote or went away"
	}
	copy(q.checkOf(quote), q.checkOf(newQuote))
	return ""
}

// without reports whether a UDP packet has no checksum.
func (l layout) without(ip []byte) bool {
	check := l.checkOf(ip)
	return l.proto == unix.IPPROTO_UDP && check != nil && check[0] == 0 && check[1] == 0
}

// resetWell says what is wrong with a RST about in.
func resetWell(in, out []byte) string {
	_, at := linkOf(in)
	if len(out) < at+40 || !bytes.Equal(out[:6], in[6:12]) || !bytes.Equal(out[6:12], in[:6]) || !bytes.Equal(out[12:at], in[12:at]) {
		return "another link header"
	}
	cause, ip := in[at:], out[at:]
	was, is := layoutOf(cause), layoutOf(ip)
	src, dst := addressesOf(cause)
	newSrc, newDst := addressesOf(ip)
	if !bytes.Equal(src, newDst) || !bytes.Equal(dst, newSrc) || ip[0]>>4 == 4 && !summed(ip[:20]) {
		return "a wrong IP header"
	}
	if is.proto != unix.IPPROTO_TCP || is.end != len(ip) || lengthOf(ip) != len(ip) || len(ip)-is.l4 != 20 || !is.summed(ip) {
		return "a wrong length or checksum"
	}
	refused, tcp := cause[was.l4:], ip[is.l4:]
	if !bytes.Equal(tcp[:2], refused[2:4]) || !bytes.Equal(tcp[2:4], refused[:2]) || tcp[13]&4 == 0 || refused[13]&4 != 0 {
		return "another flow, or no RST"
	}
	return ""
}
