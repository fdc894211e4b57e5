package main

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/xdplb/xdplb/cmd/xdplb/internal/lab"
)

var labShapes = map[string]lab.Shape{"flat": lab.Flat, "routed": lab.Routed, "two-armed": lab.TwoArmed}

// labOf finds the network of a running script.
var labOf = map[*testscript.TestScript]*lab.Network{}

// labCommand builds the network, and tells `on` in the environment how to enter its nodes.
func labCommand(ts *testscript.TestScript, neg bool, args []string) {
	shape, known := labShapes[append(args, "")[0]]
	if neg || !known || len(args) > 2 {
		ts.Fatalf("usage: lab flat|routed|two-armed [SERVERS]")
	}
	plan := lab.Plan{Shape: shape}
	if len(args) == 2 {
		n, err := strconv.Atoi(args[1])
		ts.Check(err)
		plan.Servers = n
	}
	n, err := lab.BuildNetwork(plan)
	ts.Check(err)
	leftovers.mu.Lock()
	labOf[ts] = n
	leftovers.mu.Unlock()
	ts.Defer(func() { ts.Check(n.Close()) })
	for _, node := range n.Nodes() {
		enlist(ts, node)
	}
}

// enlist tells the script how to enter a node.
func enlist(ts *testscript.TestScript, n *lab.Node) {
	ts.Check(leftovers.witness.sees(ts.Name(), n))
	m, err := openMounts(n)
	ts.Check(err)
	ts.Defer(func() {
		ts.Check(leftovers.notePins(ts.Name(), n))
		m.Close()
	})
	ts.Setenv("node_"+n.Name, fmt.Sprintf("/proc/%[1]d/fd/%[2]d /proc/%[1]d/fd/%[3]d", os.Getpid(), m.Fd(), n.NetNS().Fd()))
}

// routerCommand makes nodes that forward and have no device yet.
func routerCommand(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) == 0 {
		ts.Fatalf("usage: router NODE...")
	}
	for _, name := range args {
		n, err := network(ts).Node(name)
		ts.Check(err)
		enlist(ts, n)
		for _, key := range []string{"net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding"} {
			ts.Check(n.Sysctl(key, "1"))
		}
	}
}

func network(ts *testscript.TestScript) *lab.Network {
	leftovers.mu.Lock()
	defer leftovers.mu.Unlock()
	n := labOf[ts]
	if n == nil {
		ts.Fatalf("no network; begin with: lab")
	}
	return n
}

func node(ts *testscript.TestScript, name string) *lab.Node {
	for _, n := range network(ts).Nodes() {
		if n.Name == name {
			return n
		}
	}
	ts.Fatalf("%s: no such node", name)
	return nil
}

func cableCommand(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: cable NODE:DEV NODE:DEV")
	}
	ends := [2]lab.End{}
	for i, arg := range args {
		name, dev, _ := strings.Cut(arg, ":")
		ends[i] = lab.End{Node: node(ts, name), Dev: dev, Pass: true}
	}
	ts.Check(network(ts).Cable(ends[0], ends[1]))
}

const nginxConfig = `daemon off;
master_process off;
pid %[1]s/pid;
events {}
http {
	access_log off;
	keepalive_requests 1000000;
	client_body_temp_path %[1]s/body;
	proxy_temp_path %[1]s/proxy;
	server {
		listen 80;
		listen [::]:80;
		listen 8080;
		listen [::]:8080;
		location / { return 200 "%[2]s\n"; }
		location /peer { return 200 "%[2]s $server_port $remote_addr\n"; }
	}
}
`

// webCommand starts nginx in nodes and waits until it listens.
func webCommand(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) == 0 {
		ts.Fatalf("usage: web NODE...")
	}
	for _, name := range args {
		n := node(ts, name)
		dir := ts.MkAbs(filepath.Join(".nginx", name))
		ts.Check(os.MkdirAll(dir, 0o755))
		config := filepath.Join(dir, "conf")
		ts.Check(os.WriteFile(config, fmt.Appendf(nil, nginxConfig, dir, name), 0o644))
		c := n.Command(context.Background(), "nginx", "-e", "stderr", "-p", dir, "-c", config)
		c.Stderr = os.Stderr
		ts.Check(c.Start())
		go func() { _ = c.Wait() }()
	}
	for _, name := range args {
		ts.Check(awaitWeb(node(ts, name)))
	}
}

func awaitWeb(n *lab.Node) (err error) {
	tick, deadline := time.NewTicker(10*time.Millisecond), time.After(patience)
	defer tick.Stop()
	for {
		var conn net.Conn
		if conn, err = n.DialContext(context.Background(), "tcp", "127.0.0.1:80"); err == nil {
			return conn.Close()
		}
		select {
		case <-tick.C:
		case <-deadline:
			return fmt.Errorf("%s: nginx does not listen: %w", n.Name, err)
		}
	}
}
