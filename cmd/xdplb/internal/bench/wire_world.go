package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os/exec"
	"strings"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/xdplb/xdplb/bpf"
	"github.com/xdplb/xdplb/cmd/xdplb/internal/lab"
)

const (
	wireServers = 3
	wireBatch   = 64 // a poll of a veth device takes as many
)

var (
	generatorMAC = net.HardwareAddr{2, 0, 0, 0, 0, 2} // source of frame.template
	serverMAC    = net.HardwareAddr{2, 0, 0, 0, 0, 1} // of every server, as the balancer sees them
)

// wire is a balancer with one cable. At its other end are the generator and, for all that comes back, the sink.
type wire struct {
	world
	far      *lab.Node
	farIndex int
	objects  *bpf.BenchObjects
}

// newWire makes a balancer that does nothing yet.
func newWire() (w *wire, err error) {
	l, err := lab.New()
	if err != nil {
		return nil, err
	}
	w = &wire{world: world{Lab: l}}
	defer func() {
		if err != nil {
			err = errors.Join(err, w.Close())
			w = nil
		}
	}()
	if w.node, err = l.Node("balancer"); err != nil {
		return w, err
	}
	if w.far, err = l.Node("far"); err != nil {
		return w, err
	}
	if err := l.Cable(lab.End{Node: w.node, Dev: "eth0"}, lab.End{Node: w.far, Dev: "eth0"}); err != nil {
		return w, err
	}
	if err := w.node.Addr("eth0", "198.18.255.254/16", "2001:db8:2::ffff/64"); err != nil {
		return w, err
	}
	if w.mac, err = w.node.MAC("eth0"); err != nil {
		return w, err
	}
	w.objects = new(bpf.BenchObjects)
	if err := bpf.LoadBenchObjects(w.objects, nil); err != nil {
		w.objects = nil
		return w, fmt.Errorf("loading the generator: %w", err)
	}
	w.farIndex, err = putXDP(w.far, w.objects.Sink.FD())
	return w, err
}

func (w *wire) Close() error {
	var err error
	if w.program != nil {
		err = w.program.Close()
	}
	if w.objects != nil {
		err = errors.Join(err, w.objects.Close())
	}
	return errors.Join(err, w.world.Close())
}

// becomeFloor makes the balancer send everything back, with the MACs swapped.
func (w *wire) becomeFloor() error {
	_, err := putXDP(w.node, w.objects.SwapMacs.FD())
	return err
}

// putXDP puts a program on eth0 of a node.
func putXDP(n *lab.Node, program int) (index int, err error) {
	err = n.Do(func() error {
		eth0, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		index = eth0.Attrs().Index
		return netlink.LinkSetXdpFdWithFlags(eth0, program, nl.XDP_FLAGS_DRV_MODE)
	})
	return index, err
}

// becomeKernel makes the balancer a router that balances by a DNAT map.
func (w *wire) becomeKernel() error {
	nft, err := tool("nft", "nftables")
	if err != nil {
		return err
	}
	for _, s := range [][2]string{
		{"net.ipv4.ip_forward", "1"},
		// It goes out where it came in, and nobody wants to be told.
		{"net.ipv4.conf.all.send_redirects", "0"},
		{"net.ipv4.conf.eth0.send_redirects", "0"},
	} {
		if err := w.node.Sysctl(s[0], s[1]); err != nil {
			return err
		}
	}
	var to []string
	for i := range wireServers {
		to = append(to, fmt.Sprintf("%d : %s", i, server(server4, i)))
	}
	rules := w.node.Command(context.Background(), nft, "-f", "-")
	rules.Stdin = strings.NewReader(fmt.Sprintf(`table ip bench {
	chain prerouting {
		type nat hook prerouting priority dstnat; policy accept;
		ip daddr %s tcp dport 80 dnat to jhash ip saddr . tcp sport mod %d map { %s }
	}
}
`, vip4, wireServers, strings.Join(to, ", ")))
	if _, err := rules.Output(); err != nil {
		return fmt.Errorf("nft: %w", err)
	}
	err = w.node.Do(func() error {
		eth0, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		for i := range wireServers {
			err := netlink.NeighSet(&netlink.Neigh{
				LinkIndex: eth0.Attrs().Index, State: netlink.NUD_PERMANENT,
				IP: server(server4, i).AsSlice(), HardwareAddr: serverMAC,
			})
			if err != nil {
				return fmt.Errorf("neighbour %d: %w", i, err)
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	_, err = putXDP(w.node, w.objects.PassAll.FD())
	return err
}

// expectation says what a frame looks like that was forwarded.
type expectation struct {
	to    net.HardwareAddr
	proto uint8
	src   netip.Prefix // of the outermost IP header; the zero Prefix: any
	dst   netip.Prefix
}

func (e expectation) frame() (f bpf.BenchFrameExpected) {
	var bytes, mask [64]byte
	expect := func(offset int, b ...byte) {
		copy(bytes[offset:], b)
		for i := range b {
			mask[offset+i] = 0xff
		}
	}
	expect(0, e.to...)
	protoAt, dstAt := 23, 30
	if e.dst.Addr().Is4() {
		expect(12, 0x08, 0x00, 0x45)
	} else {
		protoAt, dstAt = 20, 38
		expect(12, 0x86, 0xdd)
	}
	expect(protoAt, e.proto)
	expectIn := func(offset int, p netip.Prefix) {
		copy(bytes[offset:], p.Masked().Addr().AsSlice())
		copy(mask[offset:], net.CIDRMask(p.Bits(), p.Addr().BitLen()))
	}
	if e.src.IsValid() {
		expectIn(dstAt-len(e.dst.Addr().AsSlice()), e.src)
	}
	expectIn(dstAt, e.dst)
	for i := range f.Words {
		f.Words[i] = binary.NativeEndian.Uint64(bytes[8*i:])
		f.Mask[i] = binary.NativeEndian.Uint64(mask[8*i:])
	}
	return f
}

// blockSignals keeps signals, such as those by which Go schedules, from a thread that ends with its function.
func blockSignals() error {
	var all unix.Sigset_t
	for i := range all.Val {
		all.Val[i] = ^uint64(0)
	}
	return unix.PthreadSigmask(unix.SIG_BLOCK, &all, nil)
}

// tool finds a program that a Debian package brings.
func tool(name, debian string) (string, error) {
	for _, try := range []string{name, "/usr/sbin/" + name} {
		if path, err := exec.LookPath(try); err == nil {
			return path, nil
		}
	}
	return "", fmt.Errorf("%s: not installed; install the Debian package %s", name, debian)
}
