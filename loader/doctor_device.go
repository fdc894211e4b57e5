package loader

import (
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"

	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/xdplb/xdplb/maps"
)

// devices looks at the devices in use, or at those named.
func (d *doctor) devices() {
	names := d.only
	if len(names) == 0 && d.balancer != nil {
		for _, r := range d.balancer.Maps.ReadInterfaces() {
			names = append(names, interfaceName(r.Ifindex))
		}
	}
	if len(names) == 0 && d.server != nil {
		for _, a := range d.server.Addresses {
			if a.Mode == ModeTUN && a.Interface != "" && !slices.Contains(names, a.Interface) {
				names = append(names, a.Interface)
			}
		}
	}
	if len(names) == 0 && d.server == nil {
		names = candidates()
	}
	for _, name := range names {
		d.device(name)
	}
}

func (d *doctor) device(name string) {
	l, err := linkByName(name)
	if err != nil {
		mend := ""
		if d.balancer != nil && len(d.only) == 0 { // it was attached, and has gone since
			mend = "xdplb refresh"
		}
		d.fail("link", mend, "%v", err)
		return
	}
	attrs := l.Attrs()
	if err := AttachTarget(l); err != nil {
		mend := ""
		if wrong := (*WrongDeviceError)(nil); errors.As(err, &wrong) && wrong.Instead != "" {
			mend = "xdplb attach " + wrong.Instead
		}
		d.fail("link", mend, "%v", err)
		return
	}
	if attrs.Flags&net.FlagUp == 0 {
		d.fail("link", fmt.Sprintf("ip link set dev %s up", name), "%s: is down", name)
		return
	}
	d.ok("link", "%s: up, MTU %d", name, attrs.MTU)
	report, err := InspectDevice(name)
	if err != nil {
		d.unknown("xdp", err)
		return
	}
	mode, on := d.program(attrs, report)
	d.findings(report, mode, on)
	d.receiveChecksum(report)
	d.reversePath(l)
}

// reversePath looks at what the kernel gets: what passes, and on a real server all.
func (d *doctor) reversePath(l netlink.Link) {
	if d.has("rp_filter", l.Attrs().Name) {
		return
	}
	for _, text := range strictFilter(l) {
		detail, mend := text, ""
		if i := strings.LastIndex(text, "; "); i >= 0 {
			detail, mend = text[:i], text[i+2:]
		}
		d.warn("rp_filter", mend, "%s", detail)
	}
	d.wellOf("rp_filter", l.Attrs().Name, "drops none of the clients")
}

// wellOf is well for one object.
func (d *doctor) wellOf(name, object, format string, a ...any) {
	if !d.has(name, object) {
		d.ok(name, "%s: %s", object, fmt.Sprintf(format, a...))
	}
}

func (d *doctor) has(name, object string) bool {
	return slices.ContainsFunc(d.checks, func(c Check) bool {
		return c.Name == name && strings.HasPrefix(c.Detail, object+":")
	})
}

// program looks at what runs on the device, and returns the mode it runs in or would, and whether it is ours.
func (d *doctor) program(attrs *netlink.LinkAttrs, report DeviceReport) (mode XDPMode, on bool) {
	name := attrs.Name
	on = d.ours(attrs)
	native := "native XDP"
	switch {
	case !report.XDP.Known:
		native = "native XDP or not: attaching will tell"
	case !report.XDP.Native:
		native = "no native XDP"
	}
	about := fmt.Sprintf("%s: driver %s, %s", name, orUnknown(report.Driver), native)
	mode = dryReport(report, XDPAuto).Mode
	if on {
		mode = attachedMode(attrs)
		about += fmt.Sprintf("; attached in %s mode", mode)
	}
	again := fmt.Sprintf("xdplb detach %s && xdplb attach %s", name, name)
	switch {
	case on && mode == XDPGeneric && report.XDP.Native:
		d.warn("xdp", again+" --xdp-mode native", "%s, which is slower", about)
	case mode == XDPGeneric:
		d.warn("xdp", "", "%s: generic mode works, and costs several times as much; use a card whose driver has it", about)
	default:
		d.ok("xdp", "%s", about)
	}
	if !on && attrs.Xdp != nil && attrs.Xdp.Attached {
		d.fail("other_xdp", fmt.Sprintf("ip link set dev %s xdp off", name), "%s: %s", name, strings.SplitN(foreignProgram(attrs).Error(), " is attached", 2)[0]+" is attached, and there is room for one")
		return mode, on
	}
	d.wellOf("other_xdp", name, "no other XDP program")
	d.record(attrs, on, again)
	return mode, on
}

// ours tells whether our program is on a device: the balancer's, or that of a real server.
func (d *doctor) ours(attrs *netlink.LinkAttrs) bool {
	if attrs.Xdp == nil || !attrs.Xdp.Attached {
		return false
	}
	dirs := []string{d.dir}
	if server, err := openRealserver(d.dir, false); err == nil && server != nil {
		dirs = append(dirs, server.dir)
		server.close()
	}
	return slices.ContainsFunc(dirs, func(dir string) bool {
		l, err := link.LoadPinnedLink(linkPin(dir, uint32(attrs.Index)), nil)
		if err != nil {
			return false
		}
		defer l.Close()
		info, err := l.Info()
		return err == nil && info.XDP() != nil && info.XDP().Ifindex == uint32(attrs.Index)
	})
}

// record compares what the balancer knows of an attached device with what it is.
func (d *doctor) record(attrs *netlink.LinkAttrs, on bool, again string) {
	if !d.attached[attrs.Index] {
		return
	}
	if !on {
		d.fail("xdp", again, "%s: was attached, and its program is gone", attrs.Name)
		return
	}
	for _, r := range d.balancer.Maps.ReadInterfaces() {
		if int(r.Ifindex) == attrs.Index && r.Mac != maps.MACWord(attrs.HardwareAddr) {
			d.fail("link", "xdplb refresh", "%s: has another MAC than when it was attached, so frames to it are not taken for ours", attrs.Name)
		}
	}
}

// harms says which check a finding belongs to.
var harms = map[string]string{
	"lro": "lro", "rx-gro-hw": "lro", "gro": "lro",
	"rxvlan": "vlan_offload", "rx-vlan-stag-hw-parse": "vlan_offload",
	"tx": "receive_checksum", "redirect": "redirect", "mtu": "mtu",
}

func (d *doctor) findings(report DeviceReport, mode XDPMode, on bool) {
	for _, f := range report.Findings {
		if f.Mode != "" && f.Mode != string(mode) {
			continue
		}
		status := CheckWarn
		switch f.Feature {
		case "lro", "rx-gro-hw", "gro", "tx":
			if strings.HasPrefix(f.State, "unknown") {
				continue // nothing that could be seen is wrong
			}
			if on {
				status = CheckFail
			}
		case "mtu":
			if on {
				continue // the driver took it
			}
		case "redirect":
			if len(d.attached) < 2 {
				continue // nothing is redirected to it
			}
			status = CheckFail
		}
		d.add(status, harms[f.Feature], f.Mend, "%s: %s %s: %s", report.Name, f.Feature, f.State, f.Why)
	}
	if len(d.attached) > 1 {
		d.wellOf("redirect", report.Name, "takes frames that other interfaces redirect to it")
	}
	d.wellOf("lro", report.Name, "received packets are not merged")
	d.wellOf("vlan_offload", report.Name, "VLAN tags stay in the frame")
}

// receiveChecksum: guests of one host send each other frames whose checksums are left
// to do, and virtio_net hands XDP such frames or drops them (receive_small and
// receive_mergeable in drivers/net/virtio_net.c).
func (d *doctor) receiveChecksum(report DeviceReport) {
	if report.Driver != "virtio_net" {
		d.wellOf("receive_checksum", report.Name, "arriving frames have their checksums")
		return
	}
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		d.unknown("receive_checksum", err)
		return
	}
	defer unix.Close(fd)
	features, err := ethtoolFeatures(fd, report.Name)
	if err != nil {
		d.unknown("receive_checksum", err)
		return
	}
	if rx := features["rx-checksum"]; rx.active {
		mend := ""
		if rx.changeable {
			mend = fmt.Sprintf("ethtool -K %s rx off", report.Name)
		}
		d.warn("receive_checksum", mend, "%s: rx on: frames from guests of the same host may come with unfinished checksums, and are lost", report.Name)
		return
	}
	d.ok("receive_checksum", "%s: arriving frames have their checksums", report.Name)
}

// tunnelMTU is about the largest packet that clients send: those over it get packet-too-big from us, which works
// as well as path MTU discovery works at the client.
func (d *doctor) tunnelMTU(backends []maps.Backend) {
	const usual = 1500
	need := map[uint16]int{} // of the interface with this number
	tunnels := 0
	for _, b := range backends {
		if Mode(b.Mode) != ModeTUN || !b.Listed() || !b.Resolved() {
			continue
		}
		tunnels++
		outer := 20
		if b.Addr().Is6() {
			outer = 40
		}
		if int(b.Link.Mtu) < usual+outer {
			need[b.Link.Interface] = max(need[b.Link.Interface], usual+outer)
		}
	}
	for _, r := range d.balancer.Maps.ReadInterfaces() {
		mtu, short := need[uint16(r.Number)]
		if !short {
			continue
		}
		name := interfaceName(r.Ifindex)
		d.warn("tun_mtu", fmt.Sprintf("ip link set dev %s mtu %d && xdplb refresh", name, mtu),
			"%s: packets of %d bytes do not fit a tunnel; clients are told, and those that do not hear it hang; the switch and the servers need the larger MTU as well", name, usual)
	}
	if tunnels > 0 {
		d.well("tun_mtu", "packets of %d bytes fit the tunnels", usual)
	}
}

func orUnknown(s string) string {
	if s == "" {
		return "unknown"
	}
	return s
}
