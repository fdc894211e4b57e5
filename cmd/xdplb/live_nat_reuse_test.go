package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/xdplb/xdplb/cmd/xdplb/internal/lab"
)

const (
	reuseWorkers     = 100
	reuseConnections = 50_000
	reusePorts       = 64 // of each worker, which has an address of its own
	reuseLow         = 30000
)

// How a connection ends; the client asks for it.
const (
	clientFIN = 'c'
	serverFIN = 's'
	clientRST = 'C'
	serverRST = 'S'
	allEnds   = "csCS"
)

// TestPortsAreReusedAtOnce: clients that open and close connections as fast as they can, from few ports, wait for
// none. A connection whose first SYN is lost or refused takes a second, or fails.
func TestPortsAreReusedAtOnce(t *testing.T) {
	eachCase(t, testReuse)
}

func testReuse(t *testing.T, c natCase) {
	n := buildNAT(t, c, 3, 2)
	n.giveSources(reuseWorkers, c.v6)
	n.check(n.Client.Sysctl("net.ipv4.tcp_tw_reuse", "1"))
	n.check(n.Client.Pass("eth0")) // a SYN that overtakes the RST before it would take a second
	for _, server := range n.Servers {
		n.check(server.Pass("eth0"))
		n.serveEnds(server)
	}
	n.addVIP()

	var mu sync.Mutex
	var total reuseCount
	var wait sync.WaitGroup
	start := time.Now()
	for i := range reuseWorkers {
		wait.Go(func() {
			w := &reuseWorker{net: n, source: n.sources[i], rng: rand.New(rand.NewPCG(1, uint64(i)))}
			err := n.Client.Do(w.work)
			mu.Lock()
			defer mu.Unlock()
			if total.add(w.reuseCount); err != nil {
				t.Errorf("worker %d, after %d connections: %v", i, w.done, err)
			}
		})
	}
	wait.Wait()
	t.Logf("%d connections in %s; %d times no port was free; SYNs sent again %d, other segments %d; slowest %s",
		total.done, time.Since(start).Round(time.Millisecond), total.noPort, total.syns, total.segments, total.slowest)
	if few := 2 * reuseWorkers; total.segments > few { // the host may stand still for as long as TCP waits (200 ms)
		t.Errorf("%d segments were sent twice, of %d connections; %v", total.segments, total.done, n.stats().Reasons)
	}
	if total.done != reuseConnections || total.syns != 0 {
		t.Errorf("%d connections of %d, %d SYNs were sent twice; %v", total.done, reuseConnections, total.syns, n.stats().Reasons)
	}
	if got := n.vipStats(n.vip).Connections; got != uint64(total.done+total.syns) {
		t.Errorf("%d SYNs of %d connections were forwarded", got, total.done)
	}
	n.demandNone("snat_exhausted", "nat_clash", "twin_lost")
}

// reuseCount is what became of a worker's connections.
type reuseCount struct {
	done, noPort, syns, segments int // the latter two: sent again
	slowest                      time.Duration
}

func (c *reuseCount) add(o reuseCount) {
	c.done, c.noPort, c.syns, c.segments = c.done+o.done, c.noPort+o.noPort, c.syns+o.syns, c.segments+o.segments
	c.slowest = max(c.slowest, o.slowest)
}

// reuseWorker opens connections one after the other, with plain system calls.
type reuseWorker struct {
	net    *natNet
	source netip.Addr
	rng    *rand.Rand
	port   int
	reuseCount
}

func (w *reuseWorker) work() error {
	// A signal, such as those by which Go schedules, would interrupt a call that has a timeout. This thread ends with the
	// function.
	var all unix.Sigset_t
	for i := range all.Val {
		all.Val[i] = ^uint64(0)
	}
	if err := unix.PthreadSigmask(unix.SIG_BLOCK, &all, nil); err != nil {
		return err
	}
	for w.done < reuseConnections/reuseWorkers {
		end := allEnds[w.rng.IntN(len(allEnds))]
		err := w.once(end)
		switch {
		case errors.Is(err, unix.EADDRNOTAVAIL) || errors.Is(err, unix.EADDRINUSE): // in TIME_WAIT on this host
			w.noPort++
			if w.noPort%reusePorts == 0 {
				_ = unix.Nanosleep(&unix.Timespec{Nsec: 1e7}, nil)
			}
		case err != nil:
			return err
		default:
			w.done++
			if end == serverRST && w.rng.IntN(2) == 0 {
				continue // with the same port: nobody knows the old connection any more
			}
		}
		// Not at once after our own RST: it may wait in the server's socket, which then swallows the SYN as well.
		w.port = (w.port + 1) % reusePorts
	}
	return nil
}

func (w *reuseWorker) once(end byte) error {
	family := unix.AF_INET
	if w.source.Is6() {
		family = unix.AF_INET6
	}
	fd, err := unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	patience := unix.NsecToTimeval(int64(livePatience))
	err = errors.Join(unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &patience),
		unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &patience),
		unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1),
		unix.Bind(fd, sockaddr(netip.AddrPortFrom(w.source, uint16(reuseLow+w.port)))))
	if err != nil {
		return err
	}
	start := time.Now()
	if err := unix.Connect(fd, sockaddr(w.net.vip)); err != nil {
		return fmt.Errorf("connect: %w", err)
	}
	info, err := unix.GetsockoptTCPInfo(fd, unix.IPPROTO_TCP, unix.TCP_INFO)
	if err != nil {
		return err
	}
	w.syns += int(info.Total_retrans)
	if err := w.exchange(fd, end); err != nil {
		return fmt.Errorf("ending by %q: %w", end, err)
	}
	if info, err := unix.GetsockoptTCPInfo(fd, unix.IPPROTO_TCP, unix.TCP_INFO); err == nil {
		w.segments += int(info.Total_retrans)
	}
	w.slowest = max(w.slowest, time.Since(start))
	return nil
}

// exchange asks, reads the answer, and waits for the end that the server makes.
func (w *reuseWorker) exchange(fd int, end byte) error {
	if _, err := unix.Write(fd, []byte{end}); err != nil {
		return err
	}
	answer := make([]byte, 1)
	if got, err := unix.Read(fd, answer); err != nil || got != 1 || answer[0] != end {
		return fmt.Errorf("read %d bytes, %q: %w", got, answer, err)
	}
	switch end {
	case clientRST:
		return unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1})
	case serverFIN:
		if got, err := unix.Read(fd, answer); got != 0 || err != nil {
			return fmt.Errorf("read %d bytes at the end: %w", got, err)
		}
	case serverRST: // when we have the answer: a RST may overtake it
		if _, err := unix.Write(fd, []byte{end}); err != nil {
			return err
		}
		if _, err := unix.Read(fd, answer); !errors.Is(err, unix.ECONNRESET) {
			return fmt.Errorf("no RST at the end: %w", err)
		}
	}
	return nil
}

func sockaddr(a netip.AddrPort) unix.Sockaddr {
	if a.Addr().Is4() {
		return &unix.SockaddrInet4{Addr: a.Addr().As4(), Port: int(a.Port())}
	}
	return &unix.SockaddrInet6{Addr: a.Addr().As16(), Port: int(a.Port())}
}

// serveEnds answers a byte and ends the connection as it says.
func (n *natNet) serveEnds(server *lab.Node) {
	n.t.Helper()
	var ln net.Listener
	n.check(server.Do(func() (err error) {
		config := net.ListenConfig{KeepAlive: -1}
		ln, err = config.Listen(context.Background(), "tcp", fmt.Sprintf(":%d", natServerPort))
		return err
	}))
	n.t.Cleanup(func() { ln.Close() })
	go func() {
		for {
			conn, err := ln.Accept()
			if errors.Is(err, net.ErrClosed) {
				return
			}
			if err == nil {
				go serveEnd(conn.(*net.TCPConn))
			}
		}
	}()
}

func serveEnd(conn *net.TCPConn) {
	defer conn.Close()
	how := make([]byte, 1)
	if _, err := io.ReadFull(conn, how); err != nil {
		return
	}
	if _, err := conn.Write(how); err != nil {
		return
	}
	switch how[0] {
	case serverRST:
		_, _ = conn.Read(how)
		_ = conn.SetLinger(0)
	case clientFIN, clientRST:
		_, _ = conn.Read(how)
	}
}
