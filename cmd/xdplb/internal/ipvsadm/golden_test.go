package ipvsadm

import (
	"bytes"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// golden is what ipvsadm 1.31 printed for the state that `observed` returns; its README tells more.
const golden = "../../testdata/ipvsadm"

func read(t *testing.T, name string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(golden, name))
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func key(p Protocol, at string) Key { return Key{Proto: p, At: netip.MustParseAddrPort(at)} }

// observed is the made-up state.
func observed() Table {
	counters := Figures{1234567, 123456789, 98765432, 12345678901, 987654321012}
	server := func(at string, way Forward, weight uint16) Server {
		return Server{
			At: netip.MustParseAddrPort(at), Forward: way, Weight: weight, Figures: counters,
			Active: Count{N: 321}, Inactive: Count{N: 45}, Sticky: Count{N: 7}, Upper: 5000, Lower: 4000,
		}
	}
	return Table{
		{
			Key: key(TCP, "192.0.2.10:80"), Scheduling: Scheduling{Name: "mh", Fallback: true, Port: true}, Figures: counters,
			Servers: []Server{server("198.51.100.11:80", Route, 100), server("198.51.100.12:80", Tunnel, 0)},
		},
		{
			Key: key(TCP, "192.0.2.10:443"), Scheduling: Scheduling{Name: "wlc"}, Persistent: 600, MaskBits: 24,
			Servers: []Server{server("198.51.100.11:8443", Masq, 100)},
		},
		{
			Key: key(UDP, "192.0.2.10:53"), Scheduling: Scheduling{Name: "sh", Fallback: true, Port: true, OnePacket: true},
			Servers: []Server{server("198.51.100.11:53", Route, 100)},
		},
		{
			Key: Key{Proto: firewallMark, mark: 7}, Scheduling: Scheduling{Name: "rr"},
			Servers: []Server{server("198.51.100.11:0", Masq, 100)},
		},
	}
}

// rates replaces the counters, which are totals, by what they grew in a second.
func rates(t Table) Table {
	second := Figures{1200, 50000, 48000, 4000000, 300000000}
	for i := range t {
		if t[i].Figures != (Figures{}) {
			t[i].Figures = second
		}
		for j := range t[i].Servers {
			t[i].Servers[j].Figures = second
		}
	}
	return t
}

func TestListingsAreThoseOfIpvsadmToTheByte(t *testing.T) {
	for file, listing := range map[string]Listing{
		"Ln.txt":                  {},
		"Ln--stats.txt":           {Kind: Stats},
		"Ln--stats--exact.txt":    {Kind: Stats, Exact: true},
		"Ln--rate.txt":            {Kind: Rates},
		"Ln--thresholds.txt":      {Kind: Thresholds},
		"Ln--persistent-conn.txt": {Kind: PersistentConns},
	} {
		state := observed()
		if listing.Kind == Rates {
			state = rates(state)
		}
		state[0], state[3] = state[3], state[0]
		state.Sort()
		var out bytes.Buffer
		Printer{Writer: &out}.All(state, listing)
		if diff := cmp.Diff(read(t, file), out.String()); diff != "" {
			t.Errorf("%s (- ipvsadm, + here):\n%s", file, diff)
		}
	}
}

func TestConnectionsAndTimeoutsToTheByte(t *testing.T) {
	ap := netip.MustParseAddrPort
	var out bytes.Buffer
	Printer{Writer: &out}.Connections([]Connection{
		{key(TCP, "192.0.2.10:80"), ap("203.0.113.5:50000"), ap("198.51.100.11:80"), "ESTABLISHED", 895 * time.Second},
		{key(TCP, "192.0.2.10:443"), ap("203.0.113.5:0"), ap("198.51.100.11:8443"), "NONE", 300 * time.Second},
		{key(UDP, "192.0.2.10:53"), ap("203.0.113.6:54321"), ap("198.51.100.11:53"), "UDP", 299900 * time.Millisecond},
		{key(TCP, "[2001:db8::80]:80"), ap("[2001:db8::5]:50000"), ap("[2001:db8::a0a0]:80"), "FIN_WAIT", 110 * time.Second},
	})
	if diff := cmp.Diff(read(t, "Lnc.txt"), out.String()); diff != "" {
		t.Errorf("Lnc.txt (- ipvsadm, + here):\n%s", diff)
	}
	out.Reset()
	Printer{Writer: &out}.Timeouts(15*time.Minute, 2*time.Minute, 5*time.Minute)
	if diff := cmp.Diff(read(t, "Ln--timeout.txt"), out.String()); diff != "" {
		t.Errorf("Ln--timeout.txt (- ipvsadm, + here):\n%s", diff)
	}
}

// withoutMarks is a save file without its firewall marks, which are refused here.
func withoutMarks(text string) string {
	var kept strings.Builder
	for line := range strings.Lines(text) {
		if !strings.Contains(line, " -f ") {
			kept.WriteString(line)
		}
	}
	return kept.String()
}

func TestSaveIsThatOfIpvsadmToTheByteAndRestoresToItself(t *testing.T) {
	var out bytes.Buffer
	observed().Save(&out)
	file := read(t, "S-n.txt")
	if diff := cmp.Diff(file, out.String()); diff != "" {
		t.Fatalf("S-n.txt (- ipvsadm, + here):\n%s", diff)
	}
	if _, err := Read(strings.NewReader(file), Resolver{}); err == nil || !strings.HasPrefix(err.Error(), "line 8: -f 7: ") {
		t.Errorf("a firewall mark gives %v", err)
	}
	file = withoutMarks(file)
	lines, err := Read(strings.NewReader(file), Resolver{})
	if err != nil {
		t.Fatal(err)
	}
	var table Table
	for range 2 { // a second time changes nothing
		if _, err := table.Restore(lines); err != nil {
			t.Fatal(err)
		}
	}
	table.Sort()
	out.Reset()
	table.Save(&out)
	if diff := cmp.Diff(file, out.String()); diff != "" {
		t.Errorf("restored and saved again (-before +after):\n%s", diff)
	}
}

func TestFiguresFitTheirColumns(t *testing.T) {
	for n, want := range map[uint64]string{
		0: "        0", 99999999: " 99999999", 100000000: "  100000K", 999999999: "  999999K",
		1000000000: "    1000M", 99999999999: "   99999M", 100000000000: "     100G",
		99999999999999: "   99999G", 100000000000000: "     100T",
	} {
		if got := figure(n, false); got != want {
			t.Errorf("%d is %q, want %q", n, got, want)
		}
	}
	if got := figure(123456789012, true); got != " 123456789012" {
		t.Errorf("exact: %q", got)
	}
}
