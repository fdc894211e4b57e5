package main

import (
	"errors"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestNewConnectionWithAnOldTuple: a client that uses an address and port again begins anew, whatever pin the
// connection left that had them: one that it closed, or one that timed out.
func TestNewConnectionWithAnOldTuple(t *testing.T) {
	t.Parallel()
	const idle = 2 * time.Second
	n := buildLive(t, 3)
	n.giveSources(1, false)
	vip := netip.AddrPortFrom(n.VIP4, livePort)
	n.must("timeout", "--tcp", idle.String())
	n.must("vip", "add", vip.String())
	n.must("backend", "add", vip.String(), n.backend(0), n.backend(1))
	var old []*talk // connections to server1
	for len(old) < 8 {
		conn, err := n.dial(n.sources[0], vip)
		n.check(err)
		name, err := conn.name()
		n.check(err)
		if name == "server1" {
			old = append(old, conn)
		}
	}
	n.must("backend", "add", vip.String(), n.backend(2))
	n.must("drain", n.backend(0))
	for i, conn := range old {
		if name, err := conn.name(); name != "server1" { // which makes it a pin
			t.Fatalf("a connection to server1, which drains: %q answered, %v", name, err)
		}
		if i%2 == 0 {
			n.check(conn.Conn.(*net.TCPConn).SetLinger(0)) // closes with a RST
		} else {
			n.check(closeSilently(conn.Conn.(*net.TCPConn)))
		}
		n.check(conn.Close())
	}
	before := n.vipStats(vip).Backends[0].Connections
	for i, conn := range old {
		if i%2 == 0 {
			n.again(conn, vip)
		}
	}
	n.eventually("the pins of the others are dead", func() bool {
		var flows struct{ Count int }
		n.ask(&flows, "flows", "--count", "--backend", n.backend(0))
		return flows.Count == 0
	})
	if n.status().Places.Flows.Used == 0 {
		t.Fatal("no dead pins are left")
	}
	for i, conn := range old {
		if i%2 != 0 {
			n.again(conn, vip)
		}
	}
	// A client that is sent to the wrong server comes to the right one in the end, with another SYN.
	if after := n.vipStats(vip).Backends[0].Connections; after != before {
		t.Errorf("server1, which takes no new connections, got %d SYNs", after-before)
	}
}

// vipStats are the counters of a VIP.
func (n *liveNet) vipStats(vip netip.AddrPort) liveVIP {
	n.t.Helper()
	for _, v := range n.stats().VIPs {
		if strings.HasPrefix(v.VIP, vip.String()) {
			return v
		}
	}
	n.t.Fatalf("stats do not show %s", vip)
	return liveVIP{}
}

// again connects from the address and port of a connection that was closed.
func (n *liveNet) again(old *talk, vip netip.AddrPort) {
	n.t.Helper()
	dialer := net.Dialer{Timeout: liveGap, LocalAddr: old.LocalAddr(), KeepAlive: -1}
	var conn net.Conn
	n.check(n.Client.Do(func() (err error) {
		conn, err = dialer.Dial("tcp", vip.String())
		return err
	}))
	defer conn.Close()
	if name, err := newTalk(conn).name(); err != nil || name == "server1" {
		n.t.Errorf("a new connection from %s: %q answered, %v; server1 takes none", old.LocalAddr(), name, err)
	}
}

// closeSilently makes the kernel forget a connection without a packet, as a client does that loses its power.
func closeSilently(conn *net.TCPConn) error {
	raw, err := conn.SyscallConn()
	if err != nil {
		return err
	}
	var failed error
	err = raw.Control(func(fd uintptr) { failed = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_REPAIR, 1) })
	return errors.Join(err, failed)
}
