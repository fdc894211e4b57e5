package main

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/xdplb/xdplb/cmd/xdplb/internal/lab"
)

const (
	loadConnections = 1000
	loadLife        = 400 * time.Millisecond // mean
	loadChecks      = 3
)

// TestActiveConnections: with lc and 1,000 connections of random lifetimes the backends' active connections are
// those that the servers' own ss counts, within 2 %, in every mode.
func TestActiveConnections(t *testing.T) {
	test := func(t *testing.T, n *natNet) {
		n.giveSources(8, n.v6)
		n.addVIP("--scheduler", "lc")
		l := &lives{net: n, quit: make(chan struct{})}
		for i := range loadConnections {
			l.wait.Go(func() { l.live(i) })
		}
		for range loadChecks {
			n.eventually("every connection has been opened anew", func() bool { return l.opened.Load() >= loadConnections*2 })
			l.check()
		}
		close(l.quit)
		l.wait.Wait()
		l.checkPaused(0)
		n.demandNone("snat_exhausted", "nat_clash", "twin_lost", "flow_unknown")
	}
	for _, c := range []natCase{{"DR", "dr", false}, {"TUN", "tun", false}} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			n := &natNet{liveNet: buildLive(t, 3), natCase: c, port: livePort}
			n.vip, n.servers = netip.AddrPortFrom(n.VIP4, livePort), n.Servers4
			n.name = n.vip.String()
			test(t, n)
		})
	}
	eachCase(t, func(t *testing.T, c natCase) {
		t.Parallel()
		n := buildNAT(t, c, 3, 1)
		for _, server := range n.Servers {
			n.serveNamesAt(server, natServerPort)
		}
		test(t, n)
	})
}

// lives are connections that come and go.
type lives struct {
	net    *natNet
	still  sync.RWMutex // held for reading while a connection is opened or closed
	open   atomic.Int64
	opened atomic.Int64 // since the last check
	quit   chan struct{}
	wait   sync.WaitGroup
}

// live opens one connection after the other.
func (l *lives) live(i int) {
	rng := rand.New(rand.NewPCG(2, uint64(i)))
	for {
		conn := l.begin(i)
		if conn == nil {
			return
		}
		life := time.NewTimer(time.Duration(rng.ExpFloat64() * float64(loadLife)))
		select {
		case <-life.C:
		case <-l.quit:
		}
		life.Stop()
		l.end(conn)
		select {
		case <-l.quit:
			return
		default:
		}
	}
}

func (l *lives) begin(i int) *talk {
	l.still.RLock()
	defer l.still.RUnlock()
	conn, err := l.net.dial(l.net.sources[i%len(l.net.sources)], l.net.vip)
	if err == nil {
		_, err = conn.name()
	}
	if err != nil {
		l.net.t.Errorf("a connection: %v", err)
		return nil
	}
	l.open.Add(1)
	l.opened.Add(1)
	return conn
}

func (l *lives) end(conn *talk) {
	l.still.RLock()
	defer l.still.RUnlock()
	conn.Close()
	l.open.Add(-1)
}

// check holds all connections still and compares.
func (l *lives) check() {
	l.net.t.Helper()
	l.still.Lock()
	defer l.still.Unlock()
	l.opened.Store(0)
	l.checkPaused(loadConnections / 20)
}

// checkPaused compares, server by server; at least so many connections are open.
func (l *lives) checkPaused(atLeast int) {
	n, open := l.net, int(l.open.Load())
	n.t.Helper()
	if open < atLeast {
		n.t.Errorf("only %d connections are open", open)
	}
	servers := make(map[string]int)
	n.eventually("the servers have heard of every FIN", func() bool {
		sum := 0
		for i, server := range n.Servers {
			servers[n.at(i)] = n.established(server)
			sum += servers[n.at(i)]
		}
		return sum == open
	})
	var list struct {
		VIPs []struct {
			Active   *int
			Backends []struct {
				Backend string
				Active  *int
			}
		}
	}
	n.ask(&list, "backend", "list", n.name)
	n.t.Logf("%d connections: %v", open, servers)
	for _, b := range list.VIPs[0].Backends {
		switch theirs := servers[b.Backend]; {
		case b.Active == nil:
			n.t.Errorf("%s: active is null", b.Backend)
		case abs(*b.Active-theirs)*50 > theirs:
			n.t.Errorf("%s: %d active connections; ss of the server counts %d", b.Backend, *b.Active, theirs)
		}
	}
	switch all := list.VIPs[0].Active; {
	case all == nil:
		n.t.Error("active of the VIP is null")
	case abs(*all-open)*50 > open:
		n.t.Errorf("the VIP has %d active connections of %d", *all, open)
	}
}

func abs(i int) int { return max(i, -i) }

// established is how many connections of the service a server's ss shows that the server has not closed: those whose
// client did may yet get an answer, and count as active.
func (n *natNet) established(server *lab.Node) int {
	n.t.Helper()
	out, err := server.Command(context.Background(), "ss", "-Htn", "state", "established", "state", "close-wait", fmt.Sprintf("( sport = :%d )", n.port)).Output()
	n.check(err)
	return bytes.Count(out, []byte("\n"))
}
