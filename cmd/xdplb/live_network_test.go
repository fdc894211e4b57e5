package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/xdplb/xdplb/cmd/xdplb/internal/lab"
)

// The live tests balance real TCP connections between network namespaces.

const (
	livePort     = 80
	livePatience = 40 * time.Second // bounds waits for what must happen
	liveGap      = 3 * time.Second  // the longest that an answer may take
)

// liveNet is a client with many addresses, a balancer, and servers that tell their names.
type liveNet struct {
	*lab.Network
	t       testing.TB
	sources []netip.Addr // the client's addresses of the VIP's family
	ports   atomic.Uint32
}

// wireLive makes a network. VIPs are host routes of the client.
func wireLive(t testing.TB, shape lab.Shape, servers int) *liveNet {
	t.Helper()
	network, err := lab.BuildNetwork(lab.Plan{Shape: shape, Servers: servers, RouteVIPs: true})
	if err != nil {
		t.Fatal(err)
	}
	n := &liveNet{Network: network, t: t}
	t.Cleanup(func() {
		if err := network.Close(); err != nil {
			t.Error(err)
		}
	})
	return n
}

// buildLive makes a network of DR and TUN; its balancer is attached.
func buildLive(t testing.TB, servers int, attachFlags ...string) *liveNet {
	t.Helper()
	n := wireLive(t, lab.Flat, servers)
	for _, server := range n.Servers {
		n.serveNames(server)
		n.check(n.on(server, "realserver", "accept", n.VIP4.String(), n.VIP6.String(), "--mode", "tun", "--dev", "eth0"))
	}
	n.must(append([]string{"attach", "eth0"}, attachFlags...)...)
	return n
}

// giveSources puts addresses on the client, of either family: schedulers that look at the source need several.
func (n *liveNet) giveSources(count int, v6 bool) {
	n.t.Helper()
	for i := range count {
		addr, bits := netip.AddrFrom4([4]byte{192, 0, 2, byte(128 + i)}), 24
		if v6 {
			addr, bits = netip.AddrFrom16([16]byte{0: 0x20, 1: 0x01, 2: 0x0d, 3: 0xb8, 5: 1, 14: 0x80, 15: byte(i)}), 64
		}
		n.check(n.Client.Addr("eth0", netip.PrefixFrom(addr, bits).String()))
		n.sources = append(n.sources, addr)
	}
}

func (n *liveNet) check(err error) {
	n.t.Helper()
	if err != nil {
		n.t.Fatal(err)
	}
}

// on runs a command in this process, in a node.
func (n *liveNet) on(node *lab.Node, args ...string) error {
	_, err := n.output(node, args...)
	return err
}

func (n *liveNet) output(node *lab.Node, args ...string) ([]byte, error) {
	var stdout, stderr bytes.Buffer
	err := node.Do(func() error {
		if status := run(args, &stdout, &stderr); status != exitDone {
			return fmt.Errorf("status %d: %s", status, strings.TrimSpace(stderr.String()))
		}
		return nil
	})
	return stdout.Bytes(), err
}

// must runs a command on the balancer.
func (n *liveNet) must(args ...string) {
	n.t.Helper()
	if err := n.on(n.Balancer, args...); err != nil {
		n.t.Fatalf("%s: %v", strings.Join(args, " "), err)
	}
}

// ask reads what a command of the balancer prints as JSON.
func (n *liveNet) ask(into any, args ...string) {
	n.t.Helper()
	out, err := n.output(n.Balancer, append(args, "-o", "json")...)
	n.check(err)
	if err := json.Unmarshal(out, into); err != nil {
		n.t.Fatalf("%s: %v in %s", strings.Join(args, " "), err, out)
	}
}

// liveVIP and liveStats are what the tests read of `stats -o json`.
type liveVIP struct {
	VIP                    string
	Scheduler, Mode, Track string
	Packets, Connections   uint64
	MovingSlots            int `json:"moving_slots"`
	TableSize              int `json:"table_size"`
	Backends               []liveBackend
}

type liveBackend struct {
	Backend, Mode, Admin string
	Weight               int
	Packets, Connections uint64
	NextHop              string `json:"next_hop"`
}

type liveStats struct {
	VIPs                        []liveVIP
	Received, Forwarded, Passed uint64
	Reasons                     map[string]uint64
}

func (n *liveNet) vip(vip string) liveVIP {
	n.t.Helper()
	var list struct{ VIPs []liveVIP }
	n.ask(&list, "vip", "list", vip)
	if len(list.VIPs) != 1 {
		n.t.Fatalf("vip list %s shows %d VIPs", vip, len(list.VIPs))
	}
	return list.VIPs[0]
}

func (n *liveNet) stats() (s liveStats) {
	n.t.Helper()
	n.ask(&s, "stats")
	return s
}

func (n *liveNet) status() (s statusJSON) {
	n.t.Helper()
	n.ask(&s, "status")
	return s
}

// backend is the text by which commands name a server's address.
func (n *liveNet) backend(i int) string { return n.Servers4[i].String() }

// eventually waits until f is true.
func (n *liveNet) eventually(what string, f func() bool) {
	n.t.Helper()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(livePatience); !f(); <-tick.C {
		if time.Now().After(deadline) {
			flows, _ := n.output(n.Balancer, "flows")
			n.t.Fatalf("in vain waited until %s; the flows:\n%s", what, flows[:min(len(flows), 2000)])
		}
	}
}

// arrived is how many frames have come to the balancer's interface: a veth device in NAPI mode counts each
// that it takes from its ring, right before it runs the XDP program (veth_xdp_rcv in drivers/net/veth.c).
func (n *liveNet) arrived() (packets uint64) {
	n.t.Helper()
	n.check(n.Balancer.Do(func() error {
		l, err := netlink.LinkByName("eth0")
		if err == nil {
			packets = l.Attrs().Statistics.RxPackets
		}
		return err
	}))
	return packets
}

func (n *liveNet) serveNames(node *lab.Node) {
	n.t.Helper()
	n.serveNamesAt(node, livePort)
}

// serveNamesAt answers each line with the node's name.
func (n *liveNet) serveNamesAt(node *lab.Node, port int) {
	n.t.Helper()
	// Probes of servers whose connection a deletion broke would go on being answered through the balancer.
	var ln net.Listener
	n.check(node.Do(func() (err error) {
		config := net.ListenConfig{KeepAlive: -1}
		ln, err = config.Listen(context.Background(), "tcp", fmt.Sprintf(":%d", port))
		return err
	}))
	n.t.Cleanup(func() { ln.Close() })
	name := []byte(node.Name + "\n")
	go func() {
		for {
			conn, err := ln.Accept()
			if errors.Is(err, net.ErrClosed) {
				return
			}
			if err != nil {
				continue
			}
			go func() {
				defer conn.Close()
				line := make([]byte, 64)
				for {
					if got, err := conn.Read(line); err != nil || got == 0 {
						return
					}
					if _, err := conn.Write(name); err != nil {
						return
					}
				}
			}()
		}
	}()
}

// talk is one connection to a VIP.
type talk struct {
	net.Conn
	lines *bufio.Reader
}

// dial connects from one of the client's addresses, or from any if source is not valid. From one of them it uses
// no port twice: a connection that a deletion broke may leave a pin, which a second one of the same tuple follows.
func (n *liveNet) dial(source netip.Addr, vip netip.AddrPort) (*talk, error) {
	dialer := net.Dialer{Timeout: liveGap, KeepAlive: -1} // only what we send may keep a flow alive
	if source.IsValid() {
		dialer.LocalAddr = net.TCPAddrFromAddrPort(netip.AddrPortFrom(source, uint16(10000+n.ports.Add(1)%50000)))
	}
	var conn net.Conn
	err := n.Client.Do(func() (err error) {
		conn, err = dialer.Dial("tcp", vip.String())
		return err
	})
	if err != nil {
		return nil, err
	}
	return newTalk(conn), nil
}

func newTalk(conn net.Conn) *talk { return &talk{conn, bufio.NewReaderSize(conn, 64)} }

// name asks the server's name, which may take liveGap.
func (c *talk) name() (string, error) {
	if err := c.SetDeadline(time.Now().Add(liveGap)); err != nil {
		return "", err
	}
	if _, err := c.Write([]byte("?")); err != nil {
		return "", err
	}
	line, err := c.lines.ReadString('\n')
	return strings.TrimSuffix(line, "\n"), err
}

// askOnce opens a connection, asks, and closes it.
func (n *liveNet) askOnce(source netip.Addr, vip netip.AddrPort) (string, error) {
	conn, err := n.dial(source, vip)
	if err != nil {
		return "", err
	}
	defer conn.Close()
	return conn.name()
}
