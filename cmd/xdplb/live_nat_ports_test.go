package main

import (
	"net"
	"net/netip"
	"testing"
)

// TestPoolOfAHundredPorts: the 101st connection to one backend gets no port until another one closes; another backend
// has all the ports for itself.
func TestPoolOfAHundredPorts(t *testing.T) {
	t.Parallel()
	const ports = 100
	n := buildNAT(t, fullnatCase6, 2, 1, "--snat-ports", "20000-20099")
	n.giveSources(2, true)
	for _, server := range n.Servers {
		n.serveNamesAt(server, natServerPort)
	}
	other := netip.AddrPortFrom(n.vip.Addr(), livePort+1)
	for i, vip := range []netip.AddrPort{n.vip, other} {
		n.must("vip", "add", vip.String(), "--mode", n.mode)
		n.must("backend", "add", vip.String(), n.at(i))
	}
	var open []*talk
	t.Cleanup(func() {
		for _, c := range open {
			c.Close()
		}
	})
	for range ports {
		conn, err := n.dial(n.sources[0], n.vip)
		n.check(err)
		open = append(open, conn)
	}
	n.askAll(open, "server1")
	n.demandNone("snat_exhausted")

	late := n.dialPatiently(n.sources[1], n.vip)
	n.eventually("the 101st connection is refused", func() bool { return n.stats().Reasons["snat_exhausted"] > 0 })
	select {
	case l := <-late:
		t.Fatalf("the 101st connection found a port: %v", l.err)
	default:
	}
	if name, err := n.askOnce(n.sources[1], other); name != "server2" || err != nil {
		t.Errorf("a connection to another backend: %q answered, %v", name, err)
	}
	n.askAll(open, "server1") // who was there stays
	if flows, percent := n.fullest(); flows != ports || percent != 100 {
		t.Errorf("snat list shows %d flows toward one backend, %v %%, of %d", flows, percent, ports)
	}

	n.check(open[50].Close()) // the client's FIN comes first: the port is free soon
	l := <-late
	n.check(l.err)
	open[50] = newTalk(l.conn)
	n.askAll(open, "server1")

	late = n.dialPatiently(n.sources[1], n.vip)
	refused := n.stats().Reasons["snat_exhausted"]
	n.eventually("one more is refused", func() bool { return n.stats().Reasons["snat_exhausted"] > refused })
	n.check(open[7].Conn.(*net.TCPConn).SetLinger(0)) // a RST
	n.check(open[7].Close())
	l = <-late
	n.check(l.err)
	open[7] = newTalk(l.conn)
	n.askAll(open, "server1")

	n.check(open[0].Close())
	open = open[1:]
	n.eventually("the list shows a free port as soon as there is one", func() bool {
		flows, percent := n.fullest()
		return flows < ports && percent < 100
	})
	refused = n.stats().Reasons["snat_exhausted"]
	conn, err := n.dial(n.sources[1], n.vip)
	n.check(err)
	open = append(open, conn)
	if refusals := n.stats().Reasons["snat_exhausted"]; refusals != refused {
		t.Errorf("%d connections were refused, though there was a port", refusals-refused)
	}
	n.askAll(open, "server1")
}

// fullest is how many flows `snat list` shows toward the fullest backend, and of how many ports in percent.
func (n *natNet) fullest() (flows int, percent float64) {
	n.t.Helper()
	var list struct {
		Addresses []struct {
			Fullest struct {
				Flows   int
				Percent float64
			}
		}
	}
	n.ask(&list, "snat", "list")
	return list.Addresses[0].Fullest.Flows, list.Addresses[0].Fullest.Percent
}

// askAll: all of these are connected to one server.
func (n *natNet) askAll(open []*talk, want string) {
	n.t.Helper()
	for i, c := range open {
		if name, err := c.name(); name != want || err != nil {
			n.t.Fatalf("connection %d from %s: %q answered, %v", i, c.LocalAddr(), name, err)
		}
	}
}

type dialled struct {
	conn net.Conn
	err  error
}

// dialPatiently goes on asking for a connection as long as tests may wait.
func (n *natNet) dialPatiently(source netip.Addr, vip netip.AddrPort) <-chan dialled {
	done := make(chan dialled, 1)
	go func() {
		dialer := net.Dialer{Timeout: livePatience, LocalAddr: net.TCPAddrFromAddrPort(netip.AddrPortFrom(source, 0)), KeepAlive: -1}
		var d dialled
		err := n.Client.Do(func() (err error) {
			d.conn, err = dialer.Dial("tcp", vip.String())
			return err
		})
		d.err = err
		done <- d
	}()
	return done
}
