package loader

import (
	"strings"
	"testing"

	"pgregory.net/rapid"
)

func TestDefaultSNATPorts(t *testing.T) {
	for _, c := range []struct{ local, want PortRange }{
		{PortRange{32768, 60999}, PortRange{10000, 32767}},
		{PortRange{10000, 20000}, PortRange{20001, 65535}},
		{PortRange{1024, 60000}, PortRange{60001, 65535}},
		{PortRange{20000, 65535}, PortRange{10000, 19999}},
		{PortRange{1024, 65535}, PortRange{10000, 65535}}, // nothing is left
		{PortRange{1, 0}, PortRange{10000, 65535}},        // unknown
		{PortRange{1000, 2000}, PortRange{10000, 65535}},
	} {
		if got := defaultSNATPorts(c.local); got != c.want {
			t.Errorf("beside %s: %s, want %s", c.local, got, c.want)
		}
	}
}

// Whatever the host's own ports are, the default is beside them unless they leave nothing, and as large as can be.
func TestDefaultSNATPortsAreTheLargest(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		low := rapid.Uint16Range(1, 65535).Draw(t, "low")
		local := PortRange{low, rapid.Uint16Range(low, 65535).Draw(t, "high")}
		best, run := 0, 0 // the longest run of free ports, counted one by one
		for port := firstSNATPort; port <= 65535; port++ {
			if run++; local.Contains(uint16(port)) {
				run = 0
			}
			best = max(best, run)
		}
		got := defaultSNATPorts(local)
		if best == 0 {
			best = 65536 - firstSNATPort
		} else if got.overlap(local).Size() != 0 {
			t.Fatalf("beside %s: %s overlaps", local, got)
		}
		if got.Size() != best || got.Low < firstSNATPort {
			t.Fatalf("beside %s: %s, want %d ports", local, got, best)
		}
	})
}

func TestPortRangeWithout(t *testing.T) {
	for _, c := range []struct {
		r     PortRange
		ports []uint16
		want  PortRange
	}{
		{PortRange{10, 20}, nil, PortRange{10, 20}},
		{PortRange{10, 20}, []uint16{30}, PortRange{10, 20}},
		{PortRange{10, 20}, []uint16{10}, PortRange{11, 20}},
		{PortRange{10, 20}, []uint16{20}, PortRange{10, 19}},
		{PortRange{10, 20}, []uint16{18}, PortRange{10, 17}},
		{PortRange{10, 20}, []uint16{11}, PortRange{12, 20}},
		{PortRange{10, 20}, []uint16{18, 11, 11}, PortRange{12, 17}},
		{PortRange{10, 11}, []uint16{10, 11}, PortRange{1, 0}},
		{PortRange{60000, 65535}, []uint16{65535}, PortRange{60000, 65534}},
	} {
		if got := c.r.without(c.ports); got != c.want {
			t.Errorf("%s without %d: %s, want %s", c.r, c.ports, got, c.want)
		}
	}
}

func TestParsePorts(t *testing.T) {
	for text, says := range map[string]string{
		"1-65535": "", "80-80": "", "": "not a range", "80": "not a range", "-80": "not a range", "80-": "not a range",
		"1-65536": "not a range", "a-b": "not a range", "1-2-3": "not a range", "0-80": "port 0", "81-80": "80-81",
	} {
		r, err := ParsePorts(text)
		if says == "" && (err != nil || r.String() != text) || says != "" && (err == nil || !strings.Contains(err.Error(), says)) {
			t.Errorf("%q: %s, %v; want %q", text, r, err, says)
		}
	}
}

func TestOverlapWarning(t *testing.T) {
	isolate(t)
	sysctl(t, "ipv4/ip_local_port_range", "32768 60999")
	for _, c := range []struct {
		r              PortRange
		reserved, says string
	}{
		{PortRange{10000, 32767}, "", ""},
		{PortRange{61000, 65535}, "", ""},
		{PortRange{10000, 32768}, "", "ip_local_reserved_ports=10000-32768"},
		{PortRange{40000, 40001}, "80,50000-50010", "ip_local_reserved_ports=80,50000-50010,40000-40001"},
		{PortRange{40000, 40001}, "80,40000-40001", ""},
		{PortRange{40000, 40001}, "80,40001", "ip_local_reserved_ports="},
		{PortRange{30000, 40001}, "32768-40001", ""}, // what is below is not the host's
	} {
		sysctl(t, "ipv4/ip_local_reserved_ports", c.reserved+"\n")
		got := OverlapWarning(c.r)
		if (got == "") != (c.says == "") || !strings.HasSuffix(got, c.says) && !strings.Contains(got, c.says) || strings.Contains(got, "\n") {
			t.Errorf("%s, reserved %q: %q, want %q", c.r, c.reserved, got, c.says)
		}
	}
}
