package main

import (
	"bufio"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"os"
	"os/signal"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/xdplb/xdplb/cmd/xdplb/internal/lab"
)

var requestCount = flag.Int("requests", 3000, "connections and requests of each balancer in a round of the part requests")

const (
	requestWorkers  = 32
	requestPatience = 10 * time.Second // bounds what must happen
)

// ask connects to a server, and returns the name that it gave.
type ask func(io.ReadWriter) (name string, err error)

// askName reads what a server of bare connections says, to its end.
func askName(c io.ReadWriter) (string, error) {
	name, err := io.ReadAll(io.LimitReader(c, 64))
	return string(name), err
}

// askHTTP makes the only request of a connection.
func askHTTP(c io.ReadWriter) (string, error) {
	if _, err := io.WriteString(c, "GET / HTTP/1.1\r\nHost: bench\r\nConnection: close\r\n\r\n"); err != nil {
		return "", err
	}
	response, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		return "", err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(io.LimitReader(response.Body, 1<<10))
	if err != nil {
		return "", err
	}
	name := strings.TrimSpace(string(body))
	if response.StatusCode != http.StatusOK || response.Header.Get(lab.ServerHeader) != name {
		return "", fmt.Errorf("answered %s by %q and %q", response.Status, response.Header.Get(lab.ServerHeader), name)
	}
	return name, nil
}

// requestPath is a way to the servers.
type requestPath struct {
	name   string
	client *lab.Node
	to     netip.AddrPort
	ask    ask
	names  map[string]bool // of the servers that must answer, and no others
	rate   *row
	share  *row // of what the client reaches without a balancer, in the same round
	direct *requestPath
	// Those that failed, of a balancer that is not ours: under load a proxy may reset connections. nil: none may fail.
	failed *row
}

// measureRequests makes connections and requests through xdplb, HAProxy and nginx, and to a server without any
// balancer, in turns: the same client, the same servers, on the same topology.
func measureRequests(rep *report, _ int) (err error) {
	if *requestCount < 100 || *wireRounds < 1 {
		return errors.New("-requests is 100 or more, -wire-rounds 1 or more")
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	files, err := os.MkdirTemp("", "xdplb-bench-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(files)) }()
	// A network each: an XDP program on the balancer's device would slow the others down.
	ours, err := newRequestWorld(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, ours.Close()) }()
	if err := ours.balance(); err != nil {
		return err
	}
	theirs, err := newRequestWorld(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, theirs.Close()) }()
	for _, start := range []func(string) error{theirs.startHAProxy, theirs.startNginx} {
		if err := start(files); err != nil {
			return err
		}
	}
	paths := requestPaths(ours, theirs)
	defer func() { addRequests(rep, paths) }() // what was measured is measured
	for _, p := range paths {
		if _, _, err := p.run(ctx, requestWorkers*10); err != nil { // warm
			return fmt.Errorf("%s: %w", p.name, err)
		}
	}
	for range *wireRounds {
		for _, p := range paths {
			rate, failed, err := p.run(ctx, *requestCount)
			if err != nil {
				return fmt.Errorf("%s: %w", p.name, err)
			}
			p.rate.values = append(p.rate.values, rate)
			if p.failed != nil {
				p.failed.values = append(p.failed.values, float64(failed))
			}
			if p.direct != nil {
				ceiling := p.direct.rate.values
				p.share.values = append(p.share.values, 100*rate/ceiling[len(ceiling)-1])
			}
		}
	}
	return nil
}

func addRequests(rep *report, paths []*requestPath) {
	for _, p := range paths {
		for _, r := range []*row{p.rate, p.share, p.failed} {
			if r != nil && len(r.values) > 0 {
				rep.add(r)
			}
		}
	}
}

func requestPaths(ours, theirs *requestWorld) (paths []*requestPath) {
	all := map[string]bool{}
	for _, s := range theirs.Servers {
		all[s.Name] = true
	}
	for _, kind := range []struct {
		name, unit string
		ask        ask
		port       uint16
		shift      uint16 // of the port on which HAProxy and nginx listen for it
	}{{"connections", "conn/s", askName, namePort, 0}, {"http", "req/s", askHTTP, httpPort, 1}} {
		var direct *requestPath
		add := func(name string, w *requestWorld, to netip.Addr, port uint16) *requestPath {
			p := &requestPath{
				name: "requests/" + kind.name + "/" + name, client: w.Client, to: netip.AddrPortFrom(to, port), ask: kind.ask,
				names: all, direct: direct,
			}
			p.rate = &row{name: p.name, unit: kind.unit}
			if direct != nil {
				p.share = &row{name: p.name, unit: "%direct"}
			}
			paths = append(paths, p)
			return p
		}
		direct = add("direct", theirs, theirs.Servers4[0], kind.port)
		direct.names = map[string]bool{theirs.Servers[0].Name: true}
		add("xdplb-dr", ours, ours.VIP4, kind.port)
		for _, rival := range []*requestPath{
			add("haproxy", theirs, theirs.Balancer4, haproxyPort+kind.shift),
			add("nginx", theirs, theirs.Balancer4, nginxPort+kind.shift),
		} {
			rival.failed = &row{name: rival.name, unit: "failed"}
		}
	}
	return paths
}

// run makes that many connections, one request on each. It returns how many a second were answered, and how many were
// not; those of our own balancer must all be.
func (p *requestPath) run(ctx context.Context, count int) (rate float64, failures int, err error) {
	ctx, fail := context.WithCancelCause(ctx)
	defer fail(nil)
	var (
		left, failed atomic.Int64
		workers      sync.WaitGroup
		mu           sync.Mutex
	)
	left.Store(int64(count))
	answered := map[string]int{}
	begin := make(chan struct{})
	for range requestWorkers {
		workers.Go(func() {
			mine := map[string]int{}
			// A thread of its own in the client's namespace, once for all connections of the worker.
			err := p.client.Do(func() error {
				if err := blockSignals(); err != nil { // timeouts of sockets make system calls end by them
					return err
				}
				<-begin
				for ctx.Err() == nil && left.Add(-1) >= 0 {
					name, err := p.once()
					switch {
					case err == nil:
						mine[name]++
					case p.failed == nil:
						return err
					case failed.Add(1) > int64(count)/2:
						return fmt.Errorf("more than half of %d failed, the last: %w", count, err)
					}
				}
				return nil
			})
			if err != nil {
				fail(err)
			}
			mu.Lock()
			defer mu.Unlock()
			for name, n := range mine {
				answered[name] += n
			}
		})
	}
	start := time.Now()
	close(begin)
	workers.Wait()
	took := time.Since(start)
	if ctx.Err() != nil {
		return 0, 0, context.Cause(ctx)
	}
	total := 0
	for _, n := range answered {
		total += n
	}
	failures = int(failed.Load())
	if total+failures != count || len(answered) != len(p.names) {
		return 0, failures, fmt.Errorf("%d were answered, by %v; want %d, by every server of %v", total, answered, count-failures, p.names)
	}
	return float64(total) / took.Seconds(), failures, nil
}

// once makes a connection and asks on it who answers: one of p.names. The calling thread waits in the kernel: Go's poller would cost more than
// some of what is measured.
func (p *requestPath) once() (string, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return "", err
	}
	defer unix.Close(fd)
	patience := unix.NsecToTimeval(int64(requestPatience))
	for _, option := range []int{unix.SO_RCVTIMEO, unix.SO_SNDTIMEO} {
		if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, option, &patience); err != nil {
			return "", err
		}
	}
	if err := unix.Connect(fd, &unix.SockaddrInet4{Port: int(p.to.Port()), Addr: p.to.Addr().As4()}); err != nil {
		return "", fmt.Errorf("connect to %s: %w", p.to, err)
	}
	name, err := p.ask(blocking(fd))
	if err == nil && !p.names[name] {
		err = fmt.Errorf("%s: answered by %q", p.to, name)
	}
	return name, err
}

// blocking is a socket that is read and written by system calls that block.
type blocking int

func (b blocking) Read(into []byte) (int, error) {
	n, err := unix.Read(int(b), into)
	switch {
	case err != nil:
		return 0, fmt.Errorf("read: %w", err)
	case n == 0 && len(into) > 0:
		return 0, io.EOF
	}
	return n, nil
}

func (b blocking) Write(from []byte) (int, error) { // less than the send buffer takes at once
	n, err := unix.Write(int(b), from)
	return max(n, 0), err
}
