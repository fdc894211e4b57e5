package lab

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Node is a machine of the lab: a network namespace and a mount namespace.
type Node struct {
	Name string

	lab      *Lab
	net, mnt *os.File
	inode    uint64 // of the network namespace
}

// Node makes a node whose loopback device is up and that has no other.
func (l *Lab) Node(name string) (*Node, error) {
	n := &Node{Name: name, lab: l}
	err := onThread(func() error {
		var err error
		if n.net, n.mnt, err = newNamespaces(); err != nil {
			return err
		}
		var st unix.Stat_t
		if err := unix.Fstat(int(n.net.Fd()), &st); err != nil {
			return err
		}
		n.inode = st.Ino
		if err := defaults(); err != nil {
			return err
		}
		if err := up("lo"); err != nil {
			return err
		}
		return l.add(n)
	})
	if err != nil {
		if n.mnt != nil {
			_ = n.net.Close()
			_ = n.mnt.Close()
		}
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return n, nil
}

// defaults sets what every node wants, before it has devices.
func defaults() error {
	for _, s := range []struct {
		key, value string
		optional   bool // a kernel may be built without it
	}{
		// An address is usable at once.
		{"net.ipv6.conf.all.accept_dad", "0", true},
		{"net.ipv6.conf.default.accept_dad", "0", true},
		{"net.ipv6.conf.default.dad_transmits", "0", true},
		{"net.ipv6.conf.default.accept_ra", "0", true},
		// A socket whose process was killed keeps the namespace no longer than it must.
		{"net.ipv4.tcp_orphan_retries", "1", false},
		{"net.ipv4.tcp_fin_timeout", "5", false},
		// Replies of DR servers come another way than the request went.
		{"net.ipv4.conf.all.rp_filter", "0", false},
		{"net.ipv4.conf.default.rp_filter", "0", false},
		{"net.bridge.bridge-nf-call-iptables", "0", true},
		{"net.bridge.bridge-nf-call-ip6tables", "0", true},
		{"net.bridge.bridge-nf-call-arptables", "0", true},
	} {
		err := writeSysctl(s.key, s.value)
		if err != nil && !(s.optional && errors.Is(err, os.ErrNotExist)) {
			return err
		}
	}
	return nil
}

// Do runs f on a thread of its own inside the node: sockets, children and netlink requests made by f, and by
// nothing that f starts as a goroutine, belong to the node. It returns f's error.
func (n *Node) Do(f func() error) error {
	dir, _ := os.Getwd() // a deleted one is no reason to fail
	return onThread(func() error {
		if err := n.enter(dir); err != nil {
			return err
		}
		return f()
	})
}

// NetNS returns the node's network namespace, for netlink requests that name one. It belongs to the node.
func (n *Node) NetNS() *os.File { return n.net }

// Sysctl sets a kernel setting of the node, as in `net.ipv4.ip_forward`.
func (n *Node) Sysctl(key, value string) error {
	return n.wrap(n.Do(func() error { return writeSysctl(key, value) }))
}

// writeSysctl works for keys without a device name that has dots. /proc/sys/net is that of the calling thread.
func writeSysctl(key, value string) error {
	path := "/proc/sys/" + strings.ReplaceAll(key, ".", "/")
	if err := os.WriteFile(path, []byte(value), 0); err != nil {
		return fmt.Errorf("cannot set %s: %w", key, errors.Unwrap(err))
	}
	return nil
}

// Up sets a device up.
func (n *Node) Up(dev string) error {
	return n.wrap(n.Do(func() error { return up(dev) }))
}

func up(dev string) error {
	return withLink(dev, "set it up", netlink.LinkSetUp)
}

// Down sets a device down.
func (n *Node) Down(dev string) error {
	return n.wrap(n.Do(func() error { return withLink(dev, "set it down", netlink.LinkSetDown) }))
}

// MTU sets the MTU of a device, in bytes of the IP packet.
func (n *Node) MTU(dev string, mtu int) error {
	return n.wrap(n.Do(func() error {
		return withLink(dev, "set MTU "+strconv.Itoa(mtu), func(link netlink.Link) error {
			return netlink.LinkSetMTU(link, mtu)
		})
	}))
}

// Addr puts addresses with prefix length on a device, as in 192.0.2.1/24.
func (n *Node) Addr(dev string, addrs ...string) error {
	return n.eachAddr(dev, "add", netlink.AddrAdd, addrs)
}

// DelAddr takes addresses with prefix length off a device.
func (n *Node) DelAddr(dev string, addrs ...string) error {
	return n.eachAddr(dev, "delete", netlink.AddrDel, addrs)
}

func (n *Node) eachAddr(dev, verb string, change func(netlink.Link, *netlink.Addr) error, addrs []string) error {
	return n.wrap(n.Do(func() error {
		for _, s := range addrs {
			p, err := netip.ParsePrefix(s)
			if err != nil {
				return err
			}
			addr := &netlink.Addr{IPNet: ipNet(p)}
			if p.Addr().Is6() {
				addr.Flags = unix.IFA_F_NODAD
			}
			err = withLink(dev, verb+" "+s, func(link netlink.Link) error { return change(link, addr) })
			if err != nil {
				return err
			}
		}
		return nil
	}))
}

// Route adds a route to a prefix ("default4" and "default6" are all of a family) via a gateway.
func (n *Node) Route(prefix, via string) error {
	switch prefix {
	case "default4":
		prefix = "0.0.0.0/0"
	case "default6":
		prefix = "::/0"
	}
	return n.wrap(n.Do(func() error {
		dst, err := netip.ParsePrefix(prefix)
		if err != nil {
			return err
		}
		gw, err := netip.ParseAddr(via)
		if err != nil {
			return err
		}
		if err := netlink.RouteAdd(&netlink.Route{Dst: ipNet(dst), Gw: gw.AsSlice()}); err != nil {
			return fmt.Errorf("cannot add a route to %s via %s: %w", prefix, via, err)
		}
		return nil
	}))
}

// MAC returns the hardware address of a device.
func (n *Node) MAC(dev string) (mac net.HardwareAddr, err error) {
	err = n.wrap(n.Do(func() error {
		return withLink(dev, "read it", func(link netlink.Link) error {
			mac = link.Attrs().HardwareAddr
			return nil
		})
	}))
	return mac, err
}

func (n *Node) wrap(err error) error {
	if err == nil || strings.HasPrefix(err.Error(), n.Name+": ") {
		return err
	}
	return fmt.Errorf("%s: %w", n.Name, err)
}

// withLink calls f with a device of the calling thread's namespace.
func withLink(dev, what string, f func(netlink.Link) error) error {
	link, err := netlink.LinkByName(dev)
	if err != nil {
		return fmt.Errorf("%s: %w", dev, err)
	}
	if err := f(link); err != nil {
		return fmt.Errorf("%s: cannot %s: %w", dev, what, err)
	}
	return nil
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}
