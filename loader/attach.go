package loader

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/xdplb/xdplb/bpf"
	"github.com/xdplb/xdplb/maps"
)

// XDPMode says where the program runs: in the driver, or in the stack.
type XDPMode string

// XDP modes. XDPAuto is native if the driver can, else generic.
const (
	XDPAuto    XDPMode = "auto"
	XDPNative  XDPMode = "native"
	XDPGeneric XDPMode = "generic"
)

// AttachOptions are the settings of Attach. Zero sizes are the default for new
// pins, and whatever they are for existing ones.
type AttachOptions struct {
	Mode        XDPMode
	AcceptMACs  []net.HardwareAddr // further destination MACs that are ours; nil: unchanged
	MaxVIPs     uint32
	MaxBackends uint32
	MaxFlows    uint32
	HashKey     *maps.HashKey // nil: random for new pins
	TunSpread   *netip.Prefix // outer IPv4 sources of tunnels vary within it; 0 bits: off
	SNAT        []netip.Addr  // added to the pool that FULL-NAT sends from
	AnySNAT     bool          // they need not be this host's
	SNATPorts   *PortRange    // ports that FULL-NAT sends from; nil: unchanged, at first those beside the host's own
}

// Attached is the outcome for one interface.
type Attached struct {
	Interface string
	Mode      XDPMode
	Upgraded  bool   // it was attached before; no packet was lost
	Warning   string // empty, or why native mode did not work
}

// Sizes of new pins.
const (
	DefaultMaxVIPs     = 4096
	DefaultMaxBackends = 16384
	DefaultMaxFlows    = 262144
)

// Attach attaches the balancer to interfaces, all or none; pins are made in dir
// if there are none. An interface that is attached gets the new program in place.
func Attach(dir string, ifaces []string, o AttachOptions) ([]Attached, error) {
	if err := checkPrivilege(); err != nil {
		return nil, err
	}
	if err := checkBPFFS(dir); err != nil {
		return nil, err
	}
	unlock, err := lockPins(dir)
	if err != nil {
		return nil, err
	}
	defer unlock()
	if err := removeStale(dir); err != nil {
		return nil, err
	}
	links, err := attachable(ifaces) // after that: a stale link is a program on an interface
	if err != nil {
		return nil, err
	}
	m, err := maps.Open(dir)
	if err == nil {
		defer m.Close()
		return attachToPins(dir, m, links, o)
	}
	if !errors.Is(err, maps.ErrNotAttached) {
		return nil, fmt.Errorf("%w; the running balancer is unchanged", err)
	}
	return attachFirst(dir, links, o)
}

// attachable checks what can be checked without changing anything.
func attachable(ifaces []string) ([]netlink.Link, error) {
	links := make([]netlink.Link, len(ifaces))
	for i, name := range ifaces {
		link, err := linkByName(name)
		if err != nil {
			return nil, err
		}
		if err := AttachTarget(link); err != nil {
			return nil, err
		}
		attrs := link.Attrs()
		if attrs.Flags&net.FlagUp == 0 {
			return nil, fmt.Errorf("%s: the interface is down; bring it up: ip link set %s up", name, name)
		}
		if len(attrs.HardwareAddr) != 6 {
			return nil, fmt.Errorf("%s: not an Ethernet interface; attach one that has a MAC address", name)
		}
		links[i] = link
	}
	return links, nil
}

// attachFirst makes everything in a temporary directory and renames it into place.
func attachFirst(dir string, links []netlink.Link, o AttachOptions) (done []Attached, err error) {
	m, err := createMaps(o)
	if err != nil {
		return nil, err
	}
	defer m.Close()
	temporary := temporaryPins(dir)
	if err := os.Mkdir(temporary, 0o700); err != nil {
		return nil, fmt.Errorf("%s: %w", dir, errors.Unwrap(err))
	}
	defer func() {
		if err != nil {
			os.RemoveAll(temporary)
		}
	}()
	if err := m.Pin(temporary); err != nil {
		return nil, err
	}
	if done, err = attachToPins(temporary, m, links, o); err != nil {
		return nil, err
	}
	// Not os.Rename: it refuses an existing empty directory, which a killed purge leaves.
	if err := unix.Rename(temporary, dir); err != nil {
		return nil, fmt.Errorf("%s: making the pins: %w", dir, err)
	}
	return done, nil
}

// attachToPins attaches to the maps pinned in dir; on failure it takes off again
// what it has put on.
func attachToPins(dir string, m *maps.Maps, links []netlink.Link, o AttachOptions) (done []Attached, err error) {
	settings, err := m.ReadSettings()
	if err != nil {
		return nil, err
	}
	b := &Balancer{Maps: m, Settings: settings, dir: dir}
	if err := b.checkNamespace(); err != nil {
		return nil, err
	}
	iface := "IFACE" // without any, only the pins are made
	if len(links) > 0 {
		iface = links[0].Attrs().Name
	}
	if err := b.checkSNAT(o, iface); err != nil {
		return nil, err
	}
	if err := b.checkFixed(o); err != nil {
		return nil, err
	}
	b.dropVanished()
	var undo []func()
	defer func() {
		if err != nil {
			for _, f := range undo {
				f()
			}
		}
	}()
	for _, link := range links {
		one, off, err := b.attachOne(link, o)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", link.Attrs().Name, err)
		}
		undo = append(undo, off)
		done = append(done, one)
	}
	if err := attachTracers(dir, m); err != nil {
		return nil, err
	}
	return done, errors.Join(b.applySpread(o), b.applySNAT(o))
}

// checkFixed refuses what cannot change while VIPs or pins exist.
func (b *Balancer) checkFixed(o AttachOptions) error {
	for _, size := range []struct {
		flag      string
		want, has uint32
	}{
		{"--max-vips", o.MaxVIPs, b.Maps.MaxVIPs()},
		{"--max-backends", o.MaxBackends, b.Maps.Backends.MaxEntries() - 1},
		{"--max-flows", o.MaxFlows, b.Maps.XdplbMaps.Flows.MaxEntries()},
	} {
		if size.want != 0 && size.want != size.has {
			return fmt.Errorf("%s %d: it is %d, and fixed while pins exist; to change it: xdplb detach --all --purge", size.flag, size.want, size.has)
		}
	}
	if o.HashKey == nil || o.HashKey.Fingerprint() == b.Settings.KeyFingerprint {
		return nil
	}
	if services, err := b.Maps.Services(); err != nil || len(services) > 0 {
		return errors.Join(err, errors.New("--hash-key: fixed while VIPs exist; to change it: xdplb detach --all --purge"))
	}
	b.Settings.SetKey(*o.HashKey)
	return b.Maps.PutSettings(b.Settings)
}

func (b *Balancer) applySpread(o AttachOptions) error {
	if o.TunSpread == nil {
		return nil
	}
	b.Settings.SpreadPrefix, b.Settings.SpreadMask = spreadWords(*o.TunSpread)
	return b.Maps.PutSettings(b.Settings)
}

// dropVanished forgets interfaces that were deleted while attached.
func (b *Balancer) dropVanished() {
	for _, r := range b.Maps.ReadInterfaces() {
		if _, err := netlink.LinkByIndex(int(r.Ifindex)); errors.As(err, new(netlink.LinkNotFoundError)) {
			_ = b.Maps.DeleteInterface(r.Number)
			_ = takeOff(linkPin(b.dir, r.Ifindex))
		}
	}
}

// record finds the interface's record, or a free one.
func (b *Balancer) record(ifindex uint32) (r maps.Interface, exists bool, err error) {
	used := make(map[uint32]bool)
	for _, r := range b.Maps.ReadInterfaces() {
		if r.Ifindex == ifindex {
			return r, true, nil
		}
		used[r.Number] = true
	}
	for n := range b.Maps.MaxInterfaces() {
		if !used[n] {
			return maps.Interface{Number: n, XdplbInterface: bpf.XdplbInterface{Ifindex: ifindex}}, false, nil
		}
	}
	return r, false, fmt.Errorf("%d interfaces are attached, which is the most", b.Maps.MaxInterfaces())
}

// attachOne returns how to take it off again.
func (b *Balancer) attachOne(link netlink.Link, o AttachOptions) (done Attached, off func(), err error) {
	attrs := link.Attrs()
	before, exists, err := b.record(uint32(attrs.Index))
	if err != nil {
		return done, nil, err
	}
	r := before
	r.Mac, r.Mtu = maps.MACWord(attrs.HardwareAddr), mtuOf(attrs)
	if o.AcceptMACs != nil {
		if len(o.AcceptMACs) > len(r.Accept) {
			return done, nil, fmt.Errorf("--accept-mac: %d of them; at most %d", len(o.AcceptMACs), len(r.Accept))
		}
		r.Accept = [len(r.Accept)]uint64{}
		for i, mac := range o.AcceptMACs {
			r.Accept[i] = maps.MACWord(mac)
		}
	}
	program, err := loadProgram(b.Maps, r.Number)
	if err != nil {
		return done, nil, err
	}
	defer program.Close()
	if err := b.Maps.PutInterface(r); err != nil {
		return done, nil, err
	}
	restore := func() {
		if exists {
			_ = b.Maps.PutInterface(before)
		} else {
			_ = b.Maps.DeleteInterface(r.Number)
		}
	}
	done, takeOff, err := putOn(linkPin(b.dir, r.Ifindex), link, program, o.Mode)
	if err != nil {
		restore()
		return done, nil, err
	}
	r.Flags &^= uint16(bpf.XdplbInterfaceFlagInterfaceGeneric)
	if done.Mode == XDPGeneric {
		r.Flags |= uint16(bpf.XdplbInterfaceFlagInterfaceGeneric)
	}
	off = func() { takeOff(); restore() }
	if err := b.Maps.PutInterface(r); err != nil {
		off()
		return done, nil, err
	}
	return done, off, nil
}
