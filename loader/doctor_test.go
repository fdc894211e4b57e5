package loader

import (
	"encoding/hex"
	"net"
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"
)

func TestWorst(t *testing.T) {
	for want, statuses := range map[CheckStatus][]CheckStatus{
		CheckOK:   {CheckOK, CheckOK},
		CheckWarn: {CheckOK, CheckWarn, CheckOK},
		CheckFail: {CheckWarn, CheckFail, CheckWarn, CheckOK},
	} {
		var checks []Check
		for _, s := range statuses {
			checks = append(checks, Check{Status: s})
		}
		if got := Worst(checks); got != want {
			t.Errorf("%v: %s, want %s", statuses, got, want)
		}
	}
	if got := Worst(nil); got != CheckOK {
		t.Errorf("nothing: %s", got)
	}
}

// TestARPAnswered asks the kernel: what arpAnswered says of arp_ignore is what it does.
func TestARPAnswered(t *testing.T) {
	isolate(t)
	n := join(t, "near")
	n.give(t, []string{"192.0.2.2/24"}, []string{"192.0.2.3/24", "192.0.2.10/32"})
	n.within(t, func() {
		lo, err := netlink.LinkByName("lo")
		must(t, err)
		must(t, netlink.LinkSetUp(lo))
		must(t, netlink.AddrAdd(lo, address(t, "192.0.2.20/32")))
	})
	here, elsewhere, nobody := ip("192.0.2.10"), ip("192.0.2.20"), ip("192.0.2.30")
	all, err := places()
	must(t, err)
	for _, ignore := range []uint32{0, 1, 2, 3, 4, 8} {
		n.within(t, func() { must(t, writeIPv4("far", "arp_ignore", ignore)) })
		others, err := askOthers([]netip.Addr{here, elsewhere, nobody, ip("2001:db8::1")}, all)
		must(t, err)
		want := map[netip.Addr]net.HardwareAddr{}
		if arpAnswered(ignore, true) {
			want[here] = n.far.Attrs().HardwareAddr
		}
		if arpAnswered(ignore, false) {
			want[elsewhere] = n.far.Attrs().HardwareAddr
		}
		if ignore == 2 { // a probe has no sender that could be in a subnet
			delete(others, here)
		}
		if diff := cmp.Diff(want, others); diff != "" {
			t.Errorf("arp_ignore %d (-want +got):\n%s", ignore, diff)
		}
	}
}

func TestARPAnswer(t *testing.T) {
	const reply = "02000000000202000000000108060001080006040002" + "020000000001c000020a" + "020000000002c0000202"
	frame, err := hex.DecodeString(reply)
	must(t, err)
	addr, mac, ok := arpAnswer(frame)
	if !ok || addr != ip("192.0.2.10") || mac.String() != "02:00:00:00:00:01" {
		t.Errorf("%v %v %v", addr, mac, ok)
	}
	for name, change := range map[string]func([]byte) []byte{
		"a request":    func(f []byte) []byte { f[21] = 1; return f },
		"IPv4":         func(f []byte) []byte { f[13] = 0; return f },
		"not Ethernet": func(f []byte) []byte { f[15] = 6; return f },
		"cut short":    func(f []byte) []byte { return f[:41] },
	} {
		if _, _, ok := arpAnswer(change([]byte(string(frame)))); ok {
			t.Errorf("%s was taken for an answer", name)
		}
	}
}

func TestSegmentsOf(t *testing.T) {
	eth0 := &netlink.Device{LinkAttrs: attrs(2, "eth0")}
	eth1 := &netlink.Device{LinkAttrs: attrs(3, "eth1")}
	lo := &netlink.Device{LinkAttrs: attrs(1, "lo", func(a *netlink.LinkAttrs) { a.Flags = net.FlagLoopback })}
	at := func(l netlink.Link, prefix string) place { return place{l, netip.MustParsePrefix(prefix), 0} }
	all := []place{
		at(lo, "127.0.0.1/8"), at(lo, "198.51.100.10/32"), at(eth0, "192.0.2.2/24"), at(eth0, "192.0.2.3/24"),
		at(eth1, "192.0.2.4/25"), at(eth1, "192.0.2.200/32"), at(eth1, "2001:db8::2/64"), at(lo, "203.0.113.1/24"),
	}
	for addr, want := range map[string][]string{
		"192.0.2.10": {"eth0", "eth1"}, "192.0.2.200": {"eth0"}, "198.51.100.10": nil, "203.0.113.7": nil,
		"2001:db8::10": {"eth1"}, "2001:db9::10": nil,
	} {
		var got []string
		for _, s := range segmentsOf(ip(addr), all) {
			got = append(got, s.name())
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", addr, diff)
		}
	}
	if got := placesOf(ip("192.0.2.200"), all); len(got) != 1 || got[0].name() != "eth1" {
		t.Errorf("192.0.2.200 is at %v", got)
	}
}
