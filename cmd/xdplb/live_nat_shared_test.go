package main

import (
	"errors"
	"net"
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"
)

// TestSharedBackends: two VIPs have the same servers and ports. Replies go to the right one; in NAT one port of a
// client cannot talk to one server through both, and in FULL-NAT it can.
func TestSharedBackends(t *testing.T) {
	eachCase(t, func(t *testing.T, c natCase) {
		t.Parallel()
		n := buildNAT(t, c, 1, 1)
		n.giveSources(1, c.v6)
		n.serveNamesAt(n.Servers[0], natServerPort)
		vips := []netip.AddrPort{n.vip, netip.AddrPortFrom(n.vip.Addr(), livePort+1)}
		for _, vip := range vips {
			n.must("vip", "add", vip.String(), "--mode", c.mode)
			n.must("backend", "add", vip.String(), n.at(0))
		}
		var open []*talk
		t.Cleanup(func() {
			for _, c := range open {
				c.Close()
			}
		})
		for i := range 40 {
			conn, err := n.dial(n.sources[0], vips[i%2])
			n.check(err)
			open = append(open, conn)
		}
		n.askAll(open, "server1")
		n.demandNone("nat_clash")

		port := uint16(9000)
		first, err := n.dialFrom(port, vips[0])
		n.check(err)
		open = append(open, first)
		n.askAll(open[len(open)-1:], "server1")
		second, err := n.dialFrom(port, vips[1])
		clashes := n.stats().Reasons["nat_clash"]
		switch c.mode {
		case "nat":
			if !errors.Is(err, unix.ECONNREFUSED) || clashes != 1 {
				t.Errorf("one port of a client to both VIPs: %v, %d under nat_clash; want a RST and one", err, clashes)
			}
		case "fullnat":
			n.check(err)
			open = append(open, second)
			if clashes != 0 {
				t.Errorf("%d under nat_clash; FULL-NAT can tell them apart", clashes)
			}
		}
		n.askAll(open, "server1") // the first has not suffered

		if c.mode == "nat" { // who comes when the other is gone is served
			n.check(first.Conn.(*net.TCPConn).SetLinger(0))
			n.check(first.Close())
			open[40] = nil
			open = open[:40]
			n.eventually("the port may talk to the other VIP", func() bool {
				conn, err := n.dialFrom(port, vips[1])
				if err != nil {
					return false
				}
				open = append(open, conn)
				return true
			})
			n.askAll(open, "server1")
		}
	})
}

// dialFrom connects from a port of the client's first address.
func (n *natNet) dialFrom(port uint16, vip netip.AddrPort) (*talk, error) {
	dialer := net.Dialer{
		Timeout: liveGap, LocalAddr: net.TCPAddrFromAddrPort(netip.AddrPortFrom(n.sources[0], port)), KeepAlive: -1,
		Control: reuseAddr,
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
