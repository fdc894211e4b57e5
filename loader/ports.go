package loader

import (
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
)

// PortRange is a range of ports, both ends included.
type PortRange struct{ Low, High uint16 }

func (r PortRange) String() string { return fmt.Sprintf("%d-%d", r.Low, r.High) }

// Contains reports whether a port is in the range.
func (r PortRange) Contains(port uint16) bool { return r.Low <= port && port <= r.High }

// Size is how many ports there are; 0 of a range whose ends are reversed.
func (r PortRange) Size() int { return max(0, int(r.High)-int(r.Low)+1) }

// overlap is the range that two have in common; of size 0 if there is none.
func (r PortRange) overlap(other PortRange) PortRange {
	return PortRange{max(r.Low, other.Low), min(r.High, other.High)}
}

// without is the largest part of the range that has none of the ports;
// of size 0 if there is none.
func (r PortRange) without(ports []uint16) PortRange {
	best := PortRange{1, 0}
	low := int(r.Low)
	for _, port := range slices.Sorted(slices.Values(ports)) {
		if !r.Contains(port) {
			continue
		}
		if int(port) > low {
			best = larger(best, PortRange{uint16(low), port - 1})
		}
		low = int(port) + 1
	}
	if low <= int(r.High) {
		best = larger(best, PortRange{uint16(low), r.High})
	}
	return best
}

func larger(a, b PortRange) PortRange {
	if b.Size() > a.Size() {
		return b
	}
	return a
}

// ParsePorts reads LO-HI.
func ParsePorts(s string) (r PortRange, err error) {
	low, high, cut := strings.Cut(s, "-")
	from, err1 := strconv.ParseUint(low, 10, 16)
	to, err2 := strconv.ParseUint(high, 10, 16)
	switch {
	case !cut || err1 != nil || err2 != nil:
		return r, fmt.Errorf("%s: not a range of ports; write it as 10000-32767", s)
	case from == 0:
		return r, fmt.Errorf("%s: port 0 is none; begin at 1 or above", s)
	case from > to:
		return r, fmt.Errorf("%s: an empty range; write the lower port first: %d-%d", s, to, from)
	}
	return PortRange{uint16(from), uint16(to)}, nil
}

const (
	localPortRange = "/proc/sys/net/ipv4/ip_local_port_range"
	reservedPorts  = "/proc/sys/net/ipv4/ip_local_reserved_ports"
)

// firstSNATPort leaves the ports below, where services listen, to the host.
const firstSNATPort = 10000

// localPorts are the ports from which the host's own connections start, of IPv6 as
// well (ip-sysctl: ip_local_port_range). Size 0 if they cannot be read.
func localPorts() PortRange {
	text, err := os.ReadFile(localPortRange)
	if err != nil {
		return PortRange{1, 0}
	}
	r, err := ParsePorts(strings.Join(strings.Fields(string(text)), "-"))
	if err != nil {
		return PortRange{1, 0}
	}
	return r
}

// defaultSNATPorts is what lies beside the host's own ports: the larger part. If
// they leave nothing, all from firstSNATPort on.
func defaultSNATPorts(local PortRange) PortRange {
	all := PortRange{firstSNATPort, 65535}
	if local.overlap(all).Size() == 0 {
		return all
	}
	below, above := PortRange{all.Low, local.Low - 1}, PortRange{local.High, all.High}
	if above.Low++; local.High == all.High {
		above = PortRange{1, 0}
	}
	if best := larger(below, above); best.Size() > 0 {
		return best
	}
	return all
}

// OverlapWarning says how ports that both the host's own connections and FULL-NAT
// take come to be FULL-NAT's alone; empty if there are none. The host answers what
// it has no connection for with a RST, and replies to its own would be taken for flows.
func OverlapWarning(r PortRange) string {
	local := localPorts()
	shared := r.overlap(local)
	if shared.Size() == 0 {
		return ""
	}
	text, _ := os.ReadFile(reservedPorts)
	reserved := strings.TrimSpace(string(text))
	if covers(reserved, shared) {
		return ""
	}
	if reserved != "" {
		reserved += ","
	}
	return fmt.Sprintf("ports %s: the host's own connections start from %s of them as well; reserve them: sysctl net.ipv4.ip_local_reserved_ports=%s%s", r, shared, reserved, r)
}

// covers reports whether one of the kernel's list of ports and ranges, which it
// writes merged, has all of r.
func covers(list string, r PortRange) bool {
	for _, part := range strings.Split(list, ",") {
		if !strings.Contains(part, "-") {
			part += "-" + part
		}
		if one, err := ParsePorts(part); err == nil && one.overlap(r) == r {
			return true
		}
	}
	return false
}
