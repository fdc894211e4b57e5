package loader

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"unsafe"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// Finding is one thing about a device that stands in the way of XDP, or bends what XDP sees.
type Finding struct {
	Feature string // as ethtool -K names it, or "mtu", or "redirect"
	State   string // what it is now, such as "on", "on [fixed]", "9000"
	Why     string // what goes wrong
	Mend    string // a command to paste; empty if the driver allows no change
	Mode    string // the XDP mode it concerns, "native" or "generic"; empty for both
}

// XDPFeatures is what a driver says it can do (enum netdev_xdp_act in
// include/uapi/linux/netdev.h). Drivers can only be trusted so far: a load that
// succeeds is the proof.
type XDPFeatures struct {
	Known    bool // the kernel has the netdev family (Linux 6.3); if not, the others mean nothing
	Native   bool // XDP in the driver: pass, drop, transmit
	Redirect bool // frames can be redirected from the device
	Target   bool // frames can be redirected to the device, as it is set up now
	Frags    bool // frames of more than one buffer reach XDP
}

// generic tells that the driver is known to have no XDP of its own.
func (f XDPFeatures) generic() bool { return f.Known && !f.Native }

// DeviceReport is what can be learned of a device without attaching to it.
type DeviceReport struct {
	Name     string
	Index    int
	Driver   string // empty if it has no ethtool support
	MTU      int    // bytes of the largest IP packet
	XDP      XDPFeatures
	Findings []Finding
}

// InspectDevice reports a device's driver, XDP features, and what is in the way
// of balancing on it. It changes nothing. The error names the device.
func InspectDevice(iface string) (DeviceReport, error) {
	link, err := linkByName(iface)
	if err != nil {
		return DeviceReport{}, err
	}
	attrs := link.Attrs()
	report := DeviceReport{Name: iface, Index: attrs.Index, MTU: attrs.MTU}
	if report.XDP, err = xdpFeatures(attrs.Index); err != nil {
		return report, fmt.Errorf("%s: asking for XDP features: %w", iface, err)
	}

	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return report, fmt.Errorf("%s: socket: %w", iface, err)
	}
	defer unix.Close(fd)
	if info, err := unix.IoctlGetEthtoolDrvinfo(fd, iface); err == nil {
		report.Driver = unix.ByteSliceToString(info.Driver[:])
	}
	features, err := ethtoolFeatures(fd, iface)
	if err != nil {
		return report, fmt.Errorf("%s: asking for offloads: %w", iface, err)
	}
	for _, rule := range offloadRules {
		feature := features[rule.kernel]
		if !feature.active || rule.mode == "native" && report.XDP.generic() {
			continue
		}
		finding := Finding{Feature: rule.ethtool, State: "on [fixed]", Why: rule.why, Mode: rule.mode}
		if feature.changeable {
			finding.State = "on"
			finding.Mend = fmt.Sprintf("ethtool -K %s %s off", iface, rule.ethtool)
		}
		report.Findings = append(report.Findings, finding)
	}
	report.Findings = append(report.Findings, mtuFindings(report)...)
	if link.Type() == "veth" {
		report.Findings = append(report.Findings, vethFindings(fd, link, report.XDP)...)
	}
	return report, nil
}

// offloadRules are the offloads that harm, by the kernel's name (netdev_features_strings
// in net/ethtool/common.c) and by that of ethtool -K.
var offloadRules = []struct{ kernel, ethtool, mode, why string }{
	{"rx-lro", "lro", "native", "received packets are merged before XDP sees them; drivers turn it off when XDP comes, or refuse XDP"},
	{"rx-gro-hw", "rx-gro-hw", "native", "the card merges received packets before XDP sees them; drivers turn it off when XDP comes, or refuse XDP"},
	{"rx-gro", "gro", "generic", "received packets are merged before generic XDP sees them; the merged ones exceed the MTU of the way to a backend"},
	{"rx-vlan-hw-parse", "rxvlan", "", "VLAN tags are taken off before XDP sees them; tagged frames would leave without their tag"},
	{"rx-vlan-stag-hw-parse", "rx-vlan-stag-hw-parse", "", "802.1ad tags are taken off before XDP sees them; tagged frames would leave without their tag"},
}

// onePageMTU is the largest MTU whose frames, with two VLAN tags, fit one 4 KiB
// page beside XDP's headroom (256) and struct skb_shared_info (320): what
// native XDP gets by with in a driver that cannot hand it several buffers.
const onePageMTU = 4096 - 256 - 320 - 14 - 2*4

func mtuFindings(report DeviceReport) []Finding {
	if report.MTU <= onePageMTU || report.XDP.Frags || report.XDP.generic() {
		return nil
	}
	why := "the driver gives native XDP one page per frame and refuses to attach with a larger MTU"
	if !report.XDP.Known {
		why = "a driver that gives native XDP one page per frame refuses to attach with a larger MTU"
	}
	return []Finding{{
		Feature: "mtu",
		State:   strconv.Itoa(report.MTU),
		Why:     why,
		Mend:    fmt.Sprintf("ip link set dev %s mtu %d", report.Name, onePageMTU),
		Mode:    "native",
	}}
}

// vethFindings are about the other end of the pair. When it is in another
// network namespace its settings cannot be read, only warned of.
func vethFindings(fd int, link netlink.Link, xdp XDPFeatures) (findings []Finding) {
	attrs := link.Attrs()
	peer, state := "PEER", "unknown: the peer is in another network namespace"
	if attrs.NetNsID < 0 {
		if other, err := netlink.LinkByIndex(attrs.ParentIndex); err == nil {
			peer, state = other.Attrs().Name, "on at the peer"
			features, err := ethtoolFeatures(fd, peer)
			if err == nil && !features["tx-checksum-ip-generic"].active {
				state = ""
			}
		}
	}
	if state != "" {
		findings = append(findings, Finding{
			Feature: "tx",
			State:   state,
			Why:     "with transmit offloads on, the peer sends frames of up to 64 KiB and with unfinished checksums",
			Mend:    fmt.Sprintf("ethtool -K %s tx off", peer),
		})
	}
	if xdp.Known && !xdp.Target {
		findings = append(findings, Finding{
			Feature: "redirect",
			State:   "off",
			Why:     "frames redirected to this device are lost: its peer has neither an XDP program nor gro on",
			Mend:    fmt.Sprintf("ethtool -K %s gro on", peer),
			Mode:    "native",
		})
	}
	return findings
}

// feature is one line of ethtool -k.
type feature struct {
	active     bool
	changeable bool // by ethtool -K; if not, ethtool says [fixed]
}

// What follows are structs of include/uapi/linux/ethtool.h, with their data behind them.
const (
	ethSSFeatures    = 4  // ETH_SS_FEATURES
	ethGStringLength = 32 // ETH_GSTRING_LEN
)

// ethtoolFeatures reads the device's features by the kernel's names. A device
// without ethtool support has none.
func ethtoolFeatures(fd int, iface string) (map[string]feature, error) {
	// struct ethtool_sset_info: cmd, reserved, mask of 64 bits, one count.
	sizes := make([]uint32, 5)
	sizes[0] = unix.ETHTOOL_GSSET_INFO
	binary.NativeEndian.PutUint64(words(sizes[2:4]), 1<<ethSSFeatures)
	if err := ethtool(fd, iface, sizes); errors.Is(err, unix.EOPNOTSUPP) {
		return nil, nil
	} else if err != nil {
		return nil, err
	}
	count := int(sizes[4])

	// struct ethtool_gstrings: cmd, set, number, names.
	names := make([]uint32, 3+count*ethGStringLength/4)
	names[0], names[1], names[2] = unix.ETHTOOL_GSTRINGS, ethSSFeatures, uint32(count)
	if err := ethtool(fd, iface, names); err != nil {
		return nil, err
	}
	// struct ethtool_gfeatures: cmd, number of blocks; a block is available,
	// requested, active, never_changed, 32 features each.
	blocks := (count + 31) / 32
	bits := make([]uint32, 2+4*blocks)
	bits[0], bits[1] = unix.ETHTOOL_GFEATURES, uint32(blocks)
	if err := ethtool(fd, iface, bits); err != nil {
		return nil, err
	}

	features := make(map[string]feature, count)
	text := words(names[3:])
	for i := range count {
		block, bit := bits[2+i/32*4:], uint32(1)<<(i%32)
		name := unix.ByteSliceToString(text[i*ethGStringLength : (i+1)*ethGStringLength])
		features[name] = feature{
			changeable: block[0]&bit != 0 && block[3]&bit == 0,
			active:     block[2]&bit != 0,
		}
	}
	return features, nil
}

// ethtool runs one SIOCETHTOOL request that reads and writes data.
func ethtool(fd int, iface string, data []uint32) error {
	// struct ifreq, whose union is 24 bytes on 64-bit machines.
	request := struct {
		name [unix.IFNAMSIZ]byte
		data unsafe.Pointer
		_    [16]byte
	}{data: unsafe.Pointer(&data[0])}
	if len(iface) >= len(request.name) {
		return unix.ENAMETOOLONG
	}
	copy(request.name[:], iface)
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SIOCETHTOOL, uintptr(unsafe.Pointer(&request)))
	runtime.KeepAlive(data)
	if errno != 0 {
		return errno
	}
	return nil
}

// words is the memory of w as bytes.
func words(w []uint32) []byte {
	return unsafe.Slice((*byte)(unsafe.Pointer(unsafe.SliceData(w))), 4*len(w))
}

// Of include/uapi/linux/netdev.h.
const (
	netdevCmdDevGet      = 1
	netdevADevIfindex    = 1
	netdevADevXDP        = 3
	netdevXDPActBasic    = 1 << 0
	netdevXDPActRedirect = 1 << 1
	netdevXDPActNdoXmit  = 1 << 2
	netdevXDPActRxSG     = 1 << 5
)

// xdpFeatures asks the generic netlink family "netdev" what the device's driver can do.
func xdpFeatures(index int) (XDPFeatures, error) {
	family, err := netlink.GenlFamilyGet("netdev")
	if errors.Is(err, os.ErrNotExist) {
		return XDPFeatures{}, nil // a kernel before 6.3
	}
	if err != nil {
		return XDPFeatures{}, err
	}
	request := nl.NewNetlinkRequest(int(family.ID), 0)
	// struct genlmsghdr by hand: nl.Genlmsg leaves its reserved bytes to chance, and this family insists on zeros.
	header := []byte{netdevCmdDevGet, byte(family.Version), 0, 0}
	request.AddRawData(append(header, nl.NewRtAttr(netdevADevIfindex, nl.Uint32Attr(uint32(index))).Serialize()...))
	messages, err := request.Execute(unix.NETLINK_GENERIC, 0)
	if err != nil {
		return XDPFeatures{}, err
	}
	for _, message := range messages {
		attrs, err := nl.ParseRouteAttr(message[nl.SizeofGenlmsg:])
		if err != nil {
			return XDPFeatures{}, err
		}
		for _, attr := range attrs {
			if attr.Attr.Type != netdevADevXDP || len(attr.Value) < 8 {
				continue
			}
			bits := binary.NativeEndian.Uint64(attr.Value)
			return XDPFeatures{
				Known:    true,
				Native:   bits&netdevXDPActBasic != 0,
				Redirect: bits&netdevXDPActRedirect != 0,
				Target:   bits&netdevXDPActNdoXmit != 0,
				Frags:    bits&netdevXDPActRxSG != 0,
			}, nil
		}
	}
	return XDPFeatures{}, nil
}
