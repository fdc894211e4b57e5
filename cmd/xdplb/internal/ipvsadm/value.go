package ipvsadm

import (
	"errors"
	"fmt"
	"math/bits"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"
)

// parseHost reads HOST[:PORT]; IPv6 with a port stands in brackets.
func parseHost(g given, p Protocol, names Resolver) (addr netip.Addr, port *uint16, err error) {
	host, service, named := splitHost(g.value)
	if addr, err = netip.ParseAddr(host); err != nil && names.Addr != nil && host != "" && !strings.Contains(host, ":") {
		addr, err = names.Addr(host)
	}
	if err != nil || addr.Zone() != "" {
		return addr, nil, usagef("%s %s: not an address; write ADDR[:PORT], IPv6 with a port in brackets, such as 192.0.2.10:80 or [2001:db8::10]:80", g.name(), g.value)
	}
	if !named {
		return addr.Unmap(), nil, nil
	}
	n, err := strconv.ParseUint(service, 10, 16)
	number := uint16(n)
	if err != nil && names.Port != nil {
		number, err = names.Port(service, p)
	}
	if err != nil {
		return addr, nil, usagef("%s %s: %q is no port; use 0 to 65535, or a name of /etc/services", g.name(), g.value, service)
	}
	return addr.Unmap(), &number, nil
}

func splitHost(s string) (host, port string, named bool) {
	if strings.HasPrefix(s, "[") {
		host, after, closed := strings.Cut(s[1:], "]")
		if !closed {
			return s, "", false
		}
		port, named = strings.CutPrefix(after, ":")
		if !named && after != "" {
			return s, "", false
		}
		return host, port, named
	}
	if strings.Count(s, ":") > 1 {
		return s, "", false
	}
	return strings.Cut(s, ":")
}

// defaultPersistent is what -p alone means.
const defaultPersistent = 300

// The longest times that IPVS takes.
const (
	maxPersistent = 31 * 24 * 3600
	maxTimeout    = 31 * 24 * 3600
)

func parsePersistent(g given) (*uint32, error) {
	seconds := uint32(defaultPersistent)
	if g.has {
		n, err := strconv.ParseUint(g.value, 10, 32)
		if err != nil || n > maxPersistent {
			return nil, usagef("-p %s: use 1 to %d seconds; 0 ends it", g.value, maxPersistent)
		}
		seconds = uint32(n)
	}
	return &seconds, nil
}

// parseMask reads a netmask, dotted or as a number of bits.
func parseMask(s string) (*int, error) {
	n, err := strconv.ParseUint(s, 10, 8)
	count := int(n)
	if err != nil {
		mask, bad := netip.ParseAddr(s)
		if bad != nil || !mask.Is4() {
			return nil, usagef("-M %s: not a netmask; write it as 255.255.255.0, or as a number of bits", s)
		}
		b := mask.As4()
		word := uint32(b[0])<<24 | uint32(b[1])<<16 | uint32(b[2])<<8 | uint32(b[3])
		if count = bits.LeadingZeros32(^word); word<<count != 0 {
			return nil, usagef("-M %s: has bits behind a gap; use a mask whose bits are together, such as 255.255.255.0", s)
		}
	}
	if count == 0 || count > 128 {
		return nil, usagef("-M %s: use 1 bit or more, to 32 of IPv4 and 128 of IPv6", s)
	}
	return &count, nil
}

// dotted is a netmask as IPv4 writes it, and the number of bits for IPv6.
func dotted(a netip.Addr, count int) string {
	if a.Is6() {
		return strconv.Itoa(count)
	}
	word := ^uint32(0) << (32 - count)
	return netip.AddrFrom4([4]byte{byte(word >> 24), byte(word >> 16), byte(word >> 8), byte(word)}).String()
}

func parseWeight(s string) (*uint16, error) {
	n, err := strconv.ParseUint(s, 10, 16)
	if err != nil {
		return nil, weightError{UsageError{fmt.Errorf("-w %s: use 0 to 65535; 0 takes no new connections", s)}, s}
	}
	weight := uint16(n)
	return &weight, nil
}

// weightError is a weight that there is not.
type weightError struct {
	UsageError
	value string
}

func (w weightError) Unwrap() error { return w.UsageError }

// NearestWeight is the weight that is nearest to a number; not ok if it is none.
func NearestWeight(s string) (near string, ok bool) {
	digits, negative := strings.CutPrefix(s, "-")
	digits = strings.TrimPrefix(digits, "+")
	if digits == "" || strings.Trim(digits, "0123456789") != "" {
		return "", false
	}
	if negative {
		return "0", true
	}
	if n, err := strconv.ParseUint(digits, 10, 16); err == nil {
		return strconv.FormatUint(n, 10), true
	}
	return "65535", true
}

// Mended is a command line that has the nearest weight, if a wrong one is all that
// an error of it says.
func Mended(words []string, err error) ([]string, bool) {
	wrong := weightError{}
	if !errors.As(err, &wrong) {
		return nil, false
	}
	near, ok := NearestWeight(wrong.value)
	if !ok {
		return nil, false
	}
	words = slices.Clone(words)
	for i, w := range words {
		before, is := strings.CutSuffix(w, wrong.value)
		short := strings.HasPrefix(w, "-") && !strings.HasPrefix(w, "--")
		switch {
		case is && before == "" && i > 0 && (words[i-1] == "--weight" || strings.HasPrefix(words[i-1], "-") && strings.HasSuffix(words[i-1], "w")),
			is && before == "--weight=",
			is && short && strings.HasSuffix(strings.TrimSuffix(before, "="), "w"):
			words[i] = before + near
			return words, true
		}
	}
	return nil, false
}

func parseHandover(s string) (time.Duration, error) {
	d, err := time.ParseDuration(s)
	if err != nil || d <= 0 {
		return 0, usagef("--handover %s: use a time such as 15m", s)
	}
	return d, nil
}

func (c *Command) takeTimeouts(rest []string) error {
	if len(rest) != len(c.Timeouts) {
		return usagef("--set: wants three times in seconds, of tcp, tcpfin and udp; 0 keeps one")
	}
	for i, s := range rest {
		n, err := strconv.ParseUint(s, 10, 32)
		if err != nil || n > maxTimeout {
			return usagef("--set %s: use 0 to %d seconds; 0 keeps what it is", s, maxTimeout)
		}
		c.Timeouts[i] = time.Duration(n) * time.Second
	}
	return nil
}

// clock is a time as listings of connections write it.
func clock(d time.Duration) string {
	seconds := int(d / time.Second)
	return fmt.Sprintf("%02d:%02d", seconds/60, seconds%60)
}
