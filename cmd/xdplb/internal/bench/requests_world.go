package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/xdplb/xdplb/cmd/xdplb/internal/lab"
	"github.com/xdplb/xdplb/loader"
	"github.com/xdplb/xdplb/maps"
)

// Ports of the servers, and the first of two on which each proxy passes them on.
const (
	namePort    = 79
	httpPort    = 80
	haproxyPort = 8000
	nginxPort   = 9000
)

// requestWorld is a client, a balancer and servers on a switch.
type requestWorld struct {
	*lab.Network
	ctx context.Context
}

func newRequestWorld(ctx context.Context) (w *requestWorld, err error) {
	n, err := lab.BuildNetwork(lab.Plan{RouteVIPs: true})
	if err != nil {
		return nil, err
	}
	for _, s := range n.Servers {
		page := fmt.Sprintf("HTTP/1.1 200 OK\r\n%s: %s\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s",
			lab.ServerHeader, s.Name, len(s.Name), s.Name)
		if err := errors.Join(serve(s, namePort, "", s.Name), serve(s, httpPort, "\r\n\r\n", page)); err != nil {
			return nil, errors.Join(err, n.Close())
		}
	}
	return &requestWorld{n, ctx}, nil
}

// serve gives an answer to everyone whose request ended as said, and closes.
func serve(n *lab.Node, port int, end, answer string) error {
	ln, err := n.Listen("tcp", fmt.Sprintf(":%d", port))
	if err != nil {
		return err
	}
	go func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return // the lab closed it
			}
			go func(c net.Conn) {
				defer c.Close()
				request := make([]byte, 0, 512)
				for !bytes.HasSuffix(request, []byte(end)) && len(request) < cap(request) {
					n, err := c.Read(request[len(request):cap(request)])
					if err != nil {
						return
					}
					request = request[:len(request)+n]
				}
				_, _ = io.WriteString(c, answer)
			}(conn)
		}
	}()
	return nil
}

// balance makes the balancer and its servers what `xdplb attach`, `vip add`, `backend add` and `realserver accept` do.
func (w *requestWorld) balance() error {
	for _, s := range w.Servers {
		err := s.Do(func() error {
			_, err := loader.AcceptVIPs(loader.DefaultPins, []netip.Addr{w.VIP4}, loader.AcceptOptions{Mode: loader.ModeDR, Interface: "eth0"})
			return err
		})
		if err != nil {
			return fmt.Errorf("%s: %w", s.Name, err)
		}
	}
	return w.Balancer.Do(func() error {
		if _, err := loader.Attach(loader.DefaultPins, []string{"eth0"}, loader.AttachOptions{}); err != nil {
			return err
		}
		if err := loader.Probe(w.Servers4); err != nil {
			return err
		}
		b, err := loader.OpenLocked(loader.DefaultPins)
		if err != nil {
			return err
		}
		defer b.Close()
		for _, port := range []uint16{namePort, httpPort} {
			v := maps.VIP{Addr: w.VIP4, Port: port, Proto: unix.IPPROTO_TCP}
			if err := b.AddVIP(v, loader.VIPOptions{}); err != nil {
				return err
			}
			var at []netip.AddrPort
			for _, s := range w.Servers4 {
				at = append(at, netip.AddrPortFrom(s, port))
			}
			silent, err := b.AddBackends(v, at, loader.BackendOptions{})
			if err == nil && len(silent) > 0 {
				err = fmt.Errorf("%v: nobody answers there", silent)
			}
			if err != nil {
				return err
			}
		}
		return nil
	})
}

// startHAProxy starts HAProxy in TCP mode on the balancer.
func (w *requestWorld) startHAProxy(dir string) error {
	program, err := tool("haproxy", "haproxy")
	if err != nil {
		return err
	}
	var c strings.Builder
	c.WriteString("global\n\tmaxconn 4096\ndefaults\n\tmode tcp\n\tbalance roundrobin\n" +
		"\ttimeout connect 10s\n\ttimeout client 10s\n\ttimeout server 10s\n")
	for i, port := range []int{namePort, httpPort} {
		fmt.Fprintf(&c, "listen port%d\n\tbind %s:%d\n", port, w.Balancer4, haproxyPort+i)
		for j, s := range w.Servers4 {
			fmt.Fprintf(&c, "\tserver s%d %s:%d\n", j+1, s, port)
		}
	}
	file := filepath.Join(dir, "haproxy.cfg")
	if err := os.WriteFile(file, []byte(c.String()), 0o644); err != nil {
		return err
	}
	return w.start(haproxyPort, program, "-db", "-q", "-f", file)
}

// startNginx starts nginx with its stream module on the balancer.
func (w *requestWorld) startNginx(dir string) error {
	program, err := tool("nginx", "nginx-light")
	if err != nil {
		return err
	}
	module := "/usr/lib/nginx/modules/ngx_stream_module.so"
	if _, err := os.Stat(module); err != nil {
		return fmt.Errorf("%s: not installed; install the Debian package libnginx-mod-stream", module)
	}
	var c strings.Builder
	fmt.Fprintf(&c, "load_module %s;\ndaemon off;\nuser root;\nworker_processes auto;\npid %s;\nerror_log stderr;\n"+
		"events { worker_connections 4096; }\nstream {\n", module, filepath.Join(dir, "nginx.pid"))
	for i, port := range []int{namePort, httpPort} {
		fmt.Fprintf(&c, "\tupstream port%d {\n", port)
		for _, s := range w.Servers4 {
			fmt.Fprintf(&c, "\t\tserver %s:%d;\n", s, port)
		}
		fmt.Fprintf(&c, "\t}\n\tserver {\n\t\tlisten %s:%d;\n\t\tproxy_pass port%d;\n\t}\n", w.Balancer4, nginxPort+i, port)
	}
	c.WriteString("}\n")
	file := filepath.Join(dir, "nginx.conf")
	if err := os.WriteFile(file, []byte(c.String()), 0o644); err != nil {
		return err
	}
	return w.start(nginxPort, program, "-e", "stderr", "-p", dir, "-c", file)
}

// start starts a proxy on the balancer and waits until both of its ports answer. It ends with the lab.
func (w *requestWorld) start(port int, program string, args ...string) error {
	name := filepath.Base(program)
	var said strings.Builder
	proxy := w.Balancer.Command(w.ctx, program, args...)
	proxy.Stdout, proxy.Stderr = &said, &said
	if err := proxy.Start(); err != nil {
		return err
	}
	ended := make(chan error, 1)
	go func() { ended <- proxy.Wait() }()
	deadline := time.After(requestPatience)
	for i := range 2 {
		for {
			conn, err := w.Client.DialContext(w.ctx, "tcp", fmt.Sprintf("%s:%d", w.Balancer4, port+i))
			if err == nil {
				_ = conn.Close()
				break
			}
			select {
			case err := <-ended:
				return fmt.Errorf("%s: it ended: %w: %s", name, errors.Join(err, w.ctx.Err()), oneLine(said.String()))
			case <-deadline:
				return fmt.Errorf("%s: nothing on port %d after %v: %w", name, port+i, requestPatience, err)
			case <-time.After(20 * time.Millisecond):
			}
		}
	}
	return nil
}

func oneLine(s string) string { return strings.Join(strings.Fields(s), " ") }
