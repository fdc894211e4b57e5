package main

import (
	"context"
	"net"
	"net/netip"
	"strings"
	"testing"

	"github.com/xdplb/xdplb/cmd/xdplb/internal/lab"
)

// TestRunCountsFailures: a rival that resets connections is measured all the same; our own balancer may reset none.
func TestRunCountsFailures(t *testing.T) {
	const count, resets = 200, 20
	for _, c := range []struct {
		name  string
		rival bool
		every int // so many connections, one is reset
		want  string
	}{
		{"ours", false, count / resets, "reset by peer"},
		{"rival", true, count / resets, ""},
		{"broken rival", true, 1, "more than half of 200 failed"},
	} {
		t.Run(c.name, func(t *testing.T) {
			l, err := lab.New()
			if err != nil {
				t.Fatal(err)
			}
			defer func() {
				if err := l.Close(); err != nil {
					t.Error(err)
				}
			}()
			client, err := l.Node("client")
			if err != nil {
				t.Fatal(err)
			}
			to := serveUnreliably(t, client, c.every)
			p := &requestPath{client: client, to: to, ask: askName, names: map[string]bool{"server1": true}}
			if c.rival {
				p.failed = new(row)
			}
			rate, failures, err := p.run(context.Background(), count)
			if c.want != "" {
				if err == nil || !strings.Contains(err.Error(), c.want) {
					t.Fatalf("error %v, want one with %q", err, c.want)
				}
				return
			}
			if err != nil || failures != resets || rate <= 0 {
				t.Errorf("%v a second, %d failures, error %v; want %d failures", rate, failures, err, resets)
			}
		})
	}
}

// serveUnreliably answers on a port of the node, and resets every n-th connection.
func serveUnreliably(t *testing.T, n *lab.Node, every int) netip.AddrPort {
	t.Helper()
	ln, err := n.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		for i := 1; ; i++ {
			conn, err := ln.Accept()
			if err != nil {
				return // the lab closed it
			}
			if i%every == 0 {
				_ = conn.(*net.TCPConn).SetLinger(0)
			} else {
				_, _ = conn.Write([]byte("server1"))
			}
			_ = conn.Close()
		}
	}()
	return netip.MustParseAddrPort(ln.Addr().String())
}
