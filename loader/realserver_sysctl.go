package loader

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/vishvananda/netlink"

	"github.com/xdplb/xdplb/bpf"
)

// arpRule is a sysctl that keeps the addresses of lo out of ARP, as
// Documentation/networking/ip-sysctl.rst has it. The larger of an interface's
// value and that of `all` counts, so both are set.
type arpRule struct {
	key    bpf.RealserverSysctl
	file   string
	want   uint32
	enough func(uint32) bool // values that need not be changed
}

var arpRules = []arpRule{
	// 1: only addresses of the interface that was asked. 2: those, and only to the same subnet. 8: none.
	{bpf.RealserverSysctlArpIgnore, "arp_ignore", 1, func(v uint32) bool { return v == 1 || v == 2 || v == 8 }},
	// 2: never ask with a source that is not of this interface, which would announce it.
	{bpf.RealserverSysctlArpAnnounce, "arp_announce", 2, func(v uint32) bool { return v == 2 }},
}

// silence sets the ARP rules of dev and of all interfaces, remembering what
// was there. It needs no undo: settle restores whatever no address needs.
func (server *realserver) silence(dev netlink.Link) error {
	for _, at := range []struct {
		ifindex uint32
		name    string
	}{{0, "all"}, {uint32(dev.Attrs().Index), dev.Attrs().Name}} {
		for _, rule := range arpRules {
			if err := server.setRule(at.ifindex, at.name, rule); err != nil {
				return err
			}
		}
	}
	return nil
}

func (server *realserver) setRule(ifindex uint32, iface string, rule arpRule) error {
	current, err := readIPv4(iface, rule.file)
	if err != nil || rule.enough(current) {
		return err
	}
	key := bpf.RealserverSysctlKey{Ifindex: ifindex, Name: rule.key}
	value := bpf.RealserverSysctlValue{Before: current, Set: rule.want}
	// Somebody changed it since: what was there at first is still what release restores.
	var remembered bpf.RealserverSysctlValue
	switch err := server.maps.Sysctls.Lookup(key, &remembered); {
	case err == nil:
		value.Before = remembered.Before
	case !errors.Is(err, ebpf.ErrKeyNotExist):
		return fmt.Errorf("%s: %w", iface, err)
	}
	if err := server.maps.Sysctls.Put(key, value); err != nil {
		return fmt.Errorf("%s: %s cannot be remembered: %w; at most %d values can be", iface, rule.file, err, server.maps.Sysctls.MaxEntries())
	}
	return writeIPv4(iface, rule.file, rule.want)
}

// restoreRules gives back the sysctls of interfaces that `needed` does not have.
func (server *realserver) restoreRules(needed map[uint32]bool) error {
	var key bpf.RealserverSysctlKey
	var value bpf.RealserverSysctlValue
	values := map[bpf.RealserverSysctlKey]bpf.RealserverSysctlValue{}
	all := server.maps.Sysctls.Iterate()
	for all.Next(&key, &value) {
		if !needed[key.Ifindex] {
			values[key] = value
		}
	}
	if err := all.Err(); err != nil {
		return fmt.Errorf("reading the remembered sysctls: %w", err)
	}
	for key, value := range values {
		if err := restoreRule(key, value); err != nil {
			return err
		}
		if err := server.maps.Sysctls.Delete(key); err != nil {
			return fmt.Errorf("forgetting a sysctl: %w", err)
		}
	}
	return nil
}

func restoreRule(key bpf.RealserverSysctlKey, value bpf.RealserverSysctlValue) error {
	iface := "all"
	if key.Ifindex != 0 {
		link, err := netlink.LinkByIndex(int(key.Ifindex))
		if errors.As(err, new(netlink.LinkNotFoundError)) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("interface %d: %w", key.Ifindex, err)
		}
		iface = link.Attrs().Name
	}
	for _, rule := range arpRules {
		if rule.key != key.Name {
			continue
		}
		current, err := readIPv4(iface, rule.file)
		if err != nil || current != value.Set {
			return err
		}
		return writeIPv4(iface, rule.file, value.Before)
	}
	return nil
}

// strictFilter warns where the kernel would drop what arrives. Packets bear
// the client's address; a strict rp_filter (RFC 3704, 2.2) drops them unless
// the route to the client leaves by the same interface. It stays as it is:
// whether that is so is the user's to know.
func strictFilter(dev netlink.Link) []string {
	name := dev.Attrs().Name
	one, err := readIPv4(name, "rp_filter")
	if err != nil {
		return nil
	}
	all, err := readIPv4("all", "rp_filter")
	if err != nil || max(one, all) != 1 {
		return nil
	}
	routes, err := netlink.RouteList(nil, netlink.FAMILY_V4)
	if err != nil {
		return nil
	}
	for _, route := range routes {
		if route.Dst != nil && !isDefault(route.Dst) {
			continue
		}
		if route.LinkIndex == dev.Attrs().Index {
			return nil
		}
		for _, hop := range route.MultiPath {
			if hop.LinkIndex == dev.Attrs().Index {
				return nil
			}
		}
	}
	return []string{fmt.Sprintf("%s: rp_filter is strict and no default route leaves by %s: clients that are routed elsewhere are dropped; sysctl net.ipv4.conf.%s.rp_filter=2", name, name, name)}
}

func isDefault(dst *net.IPNet) bool {
	ones, _ := dst.Mask.Size()
	return ones == 0
}

// The kernel shows each thread the sysctls of that thread's own network namespace here.
func ipv4Path(iface, file string) string {
	return filepath.Join("/proc/sys/net/ipv4/conf", iface, file)
}

func readIPv4(iface, file string) (uint32, error) {
	text, err := os.ReadFile(ipv4Path(iface, file))
	if err != nil {
		return 0, fmt.Errorf("%s: reading %s: %w", iface, file, err)
	}
	value, err := strconv.ParseUint(strings.TrimSpace(string(text)), 10, 32)
	if err != nil {
		return 0, fmt.Errorf("%s: %s: %w", iface, file, err)
	}
	return uint32(value), nil
}

func writeIPv4(iface, file string, value uint32) error {
	err := os.WriteFile(ipv4Path(iface, file), []byte(strconv.FormatUint(uint64(value), 10)), 0)
	if errors.Is(err, fs.ErrPermission) || isReadOnly(err) {
		return fmt.Errorf("%s: %s cannot be set (%w); run as root where /proc/sys is writable", iface, file, err)
	}
	if err != nil {
		return fmt.Errorf("%s: setting %s: %w", iface, file, err)
	}
	return nil
}
