package loader

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Of include/uapi/linux/ethtool.h.
const flagRxVLAN = 1 << 8 // ETH_FLAG_RXVLAN

// setOffload runs an ethtool request with one value, as ethtool -K does.
func setOffload(t *testing.T, iface string, request, value uint32) {
	t.Helper()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	must(t, err)
	defer unix.Close(fd)
	must(t, ethtool(fd, iface, []uint32{request, value}))
}

// states are the findings by feature, with the command that mends each.
func states(report DeviceReport) map[string][2]string {
	got := make(map[string][2]string)
	for _, finding := range report.Findings {
		got[finding.Feature] = [2]string{finding.State, finding.Mend}
	}
	return got
}

func inspect(t *testing.T, iface string) DeviceReport {
	t.Helper()
	report, err := InspectDevice(iface)
	must(t, err)
	for _, finding := range report.Findings {
		if finding.Why == "" || strings.Contains(finding.Why, "\n") {
			t.Errorf("%s %s: no reason in one line: %q", iface, finding.Feature, finding.Why)
		}
	}
	return report
}

// A pair inside one namespace: every finding goes away by what it says mends it.
func TestInspectVeth(t *testing.T) {
	isolate(t)
	must(t, netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "here"}, PeerName: "there"}))
	for _, name := range []string{"here", "there"} {
		link, err := netlink.LinkByName(name)
		must(t, err)
		must(t, netlink.LinkSetUp(link)) // gro makes a device a target only while it is up
	}
	report := inspect(t, "here")
	if report.Driver != "veth" || report.MTU != 1500 || !report.XDP.Known || !report.XDP.Native || !report.XDP.Redirect || !report.XDP.Frags {
		t.Errorf("%+v", report)
	}
	want := map[string][2]string{
		"rxvlan":                {"on", "ethtool -K here rxvlan off"},
		"rx-vlan-stag-hw-parse": {"on", "ethtool -K here rx-vlan-stag-hw-parse off"},
		"tx":                    {"on at the peer", "ethtool -K there tx off"},
		"redirect":              {"off", "ethtool -K there gro on"},
	}
	if diff := cmp.Diff(want, states(report)); diff != "" {
		t.Error(diff)
	}

	setOffload(t, "here", unix.ETHTOOL_SFLAGS, 0)
	delete(want, "rxvlan")
	setOffload(t, "there", unix.ETHTOOL_STXCSUM, 0)
	delete(want, "tx")
	setOffload(t, "there", unix.ETHTOOL_SGRO, 1)
	delete(want, "redirect")
	setOffload(t, "here", unix.ETHTOOL_SGRO, 1)
	want["gro"] = [2]string{"on", "ethtool -K here gro off"}
	if diff := cmp.Diff(want, states(inspect(t, "here"))); diff != "" {
		t.Error(diff)
	}
	setOffload(t, "here", unix.ETHTOOL_SFLAGS, flagRxVLAN)
	if _, ok := states(inspect(t, "here"))["rxvlan"]; !ok {
		t.Error("rxvlan is on again and not reported")
	}
}

// The peer's settings are out of sight in another namespace, so there is a warning.
func TestInspectVethAcrossNamespaces(t *testing.T) {
	isolate(t)
	join(t, "near")
	got := states(inspect(t, "near"))["tx"]
	if want := [2]string{"unknown: the peer is in another network namespace", "ethtool -K PEER tx off"}; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

// A tap device has native XDP with one page per frame.
func TestInspectMTU(t *testing.T) {
	isolate(t)
	tap := &netlink.Tuntap{LinkAttrs: netlink.LinkAttrs{Name: "tap0"}, Mode: netlink.TUNTAP_MODE_TAP}
	must(t, netlink.LinkAdd(tap))
	for _, c := range []struct {
		mtu  int
		want [2]string
	}{
		{9000, [2]string{"9000", "ip link set dev tap0 mtu 3498"}},
		{3499, [2]string{"3499", "ip link set dev tap0 mtu 3498"}},
		{3498, [2]string{}},
		{1500, [2]string{}},
	} {
		must(t, netlink.LinkSetMTU(tap, c.mtu))
		report := inspect(t, "tap0")
		if report.Driver != "tun" || !report.XDP.Native || report.XDP.Frags {
			t.Fatalf("not the device this test needs: %+v", report)
		}
		if got := states(report)["mtu"]; got != c.want {
			t.Errorf("MTU %d: got %q, want %q", c.mtu, got, c.want)
		}
	}
}

func TestInspectDeviceWithoutNativeXDP(t *testing.T) {
	isolate(t)
	must(t, netlink.LinkAdd(&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "br0", MTU: 9000}}))
	report := inspect(t, "br0")
	if !report.XDP.Known || report.XDP.Native || report.Driver != "bridge" {
		t.Errorf("%+v", report)
	}
	for _, finding := range report.Findings {
		if finding.Mode == "native" {
			t.Errorf("about native XDP, which there is none of: %+v", finding)
		}
	}
}

func TestInspectNothing(t *testing.T) {
	isolate(t)
	if _, err := InspectDevice("none0"); err == nil || !strings.HasPrefix(err.Error(), "none0: no such interface") {
		t.Errorf("got %v", err)
	}
}
