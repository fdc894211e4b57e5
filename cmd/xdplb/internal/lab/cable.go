package lab

import (
	"fmt"
	"runtime"
	"unsafe"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// End is one end of a cable.
type End struct {
	Node *Node
	Dev  string // the device's name in the node

	// Pass gives the device an XDP program that passes every frame. What an XDP program on the other end
	// transmits with XDP_TX, or redirects into that end, arrives only then.
	Pass bool

	// Offload leaves checksums to the device, which here is nobody: frames carry unfinished checksums and
	// come in pieces of 64 KiB. Without it the kernel finishes what it sends, as on a wire.
	Offload bool
}

// Cable joins two nodes by a pair of virtual Ethernet devices and sets both up.
func (l *Lab) Cable(a, b End) error {
	err := a.Node.Do(func() error {
		attrs := netlink.NewLinkAttrs()
		attrs.Name = a.Dev
		veth := &netlink.Veth{LinkAttrs: attrs, PeerName: b.Dev, PeerNamespace: netlink.NsFd(b.Node.net.Fd())}
		if err := netlink.LinkAdd(veth); err != nil {
			return fmt.Errorf("%s: cannot make a veth pair with %s of %s: %w", a.Dev, b.Dev, b.Node.Name, err)
		}
		return nil
	})
	if err != nil {
		return a.Node.wrap(err)
	}
	for _, end := range []End{a, b} {
		if err := l.prepare(end); err != nil {
			return end.Node.wrap(err)
		}
	}
	return nil
}

func (l *Lab) prepare(end End) error {
	return end.Node.Do(func() error {
		if !end.Offload {
			if err := txChecksumOff(end.Dev); err != nil {
				return fmt.Errorf("%s: cannot turn checksum offload off: %w", end.Dev, err)
			}
		}
		if end.Pass {
			if err := l.passOn(end.Dev); err != nil {
				return err
			}
		}
		return up(end.Dev)
	})
}

// passOn works on a device of the calling thread's namespace.
func (l *Lab) passOn(dev string) error {
	return withLink(dev, "attach an XDP program", func(link netlink.Link) error {
		return netlink.LinkSetXdpFdWithFlags(link, l.pass.FD(), nl.XDP_FLAGS_DRV_MODE)
	})
}

// Pass gives a device of the node what End.Pass does. Frames are then taken in the order in which they came, which
// else depends on the processors that they are taken by (netif_rx).
func (n *Node) Pass(dev string) error {
	return n.wrap(n.Do(func() error { return n.lab.passOn(dev) }))
}

// txChecksumOff does what `ethtool -K DEV tx off` does; segmentation goes off with it.
func txChecksumOff(dev string) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)

	// struct ethtool_value (linux/ethtool.h) behind the pointer of struct ifreq (linux/if.h).
	value := struct{ cmd, data uint32 }{cmd: unix.ETHTOOL_STXCSUM}
	var request struct {
		name [unix.IFNAMSIZ]byte
		data unsafe.Pointer
		_    [16]byte // the rest of the union
	}
	copy(request.name[:unix.IFNAMSIZ-1], dev)
	request.data = unsafe.Pointer(&value)
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SIOCETHTOOL, uintptr(unsafe.Pointer(&request)))
	runtime.KeepAlive(&value)
	if errno != 0 {
		return errno
	}
	return nil
}

// Switch is a node with a bridge, named br0, that learns addresses and floods what it does not know.
type Switch struct{ *Node }

// Switch makes a switch without ports.
func (l *Lab) Switch(name string) (*Switch, error) {
	n, err := l.Node(name)
	if err != nil {
		return nil, err
	}
	err = n.Do(func() error {
		attrs := netlink.NewLinkAttrs()
		attrs.Name = "br0"
		// Snooping would lose neighbour discovery while no querier speaks.
		snoop := false
		if err := netlink.LinkAdd(&netlink.Bridge{LinkAttrs: attrs, MulticastSnooping: &snoop}); err != nil {
			return fmt.Errorf("cannot make a bridge: %w; the kernel needs CONFIG_BRIDGE", err)
		}
		return up("br0")
	})
	if err != nil {
		return nil, n.wrap(err)
	}
	return &Switch{n}, nil
}

// Plug joins a node to the switch by a cable with the device dev in the node. The switch's end, named after
// the node and the device, passes what XDP programs on dev transmit.
func (s *Switch) Plug(n *Node, dev string) error {
	port := portName(n.Name, dev)
	if err := s.lab.Cable(End{Node: n, Dev: dev}, End{Node: s.Node, Dev: port, Pass: true}); err != nil {
		return err
	}
	return s.wrap(s.Do(func() error {
		bridge, err := netlink.LinkByName("br0")
		if err != nil {
			return err
		}
		return withLink(port, "join the bridge", func(link netlink.Link) error {
			return netlink.LinkSetMaster(link, bridge)
		})
	}))
}

// portName fits both names into the 15 bytes of a device name.
func portName(node, dev string) string {
	if room := unix.IFNAMSIZ - 2 - len(dev); len(node) > room {
		node = node[:room]
	}
	return node + "-" + dev
}
