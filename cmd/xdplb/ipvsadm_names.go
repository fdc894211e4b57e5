package main

import (
	"bufio"
	"context"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/xdplb/xdplb/cmd/xdplb/internal/ipvsadm"
)

// nameWait bounds a question to a name server, and all those of a listing together.
const nameWait = 3 * time.Second

// names resolves names of hosts and of /etc/services.
func names() ipvsadm.Resolver {
	return ipvsadm.Resolver{
		Addr: func(host string) (netip.Addr, error) {
			ctx, cancel := context.WithTimeout(context.Background(), nameWait)
			defer cancel()
			addrs, err := net.DefaultResolver.LookupNetIP(ctx, "ip", host)
			if err != nil {
				return netip.Addr{}, err
			}
			return addrs[0].Unmap(), nil
		},
		Port: func(service string, p ipvsadm.Protocol) (uint16, error) {
			ctx, cancel := context.WithTimeout(context.Background(), nameWait)
			defer cancel()
			port, err := net.DefaultResolver.LookupPort(ctx, strings.ToLower(p.String()), service)
			return uint16(port), err
		},
	}
}

// nameFunctions are how a listing without -n prints addresses and ports. What has
// no name is a number, and so is the rest once the names take too long.
func nameFunctions() (addr func(netip.Addr) string, port func(uint16, ipvsadm.Protocol) string) {
	deadline := time.Now().Add(nameWait)
	known := make(map[netip.Addr]string)
	services := readServices("/etc/services")
	addr = func(a netip.Addr) string {
		if name, asked := known[a]; asked {
			return name
		}
		known[a] = a.String()
		ctx, cancel := context.WithDeadline(context.Background(), deadline)
		defer cancel()
		if found, err := net.DefaultResolver.LookupAddr(ctx, a.String()); err == nil && len(found) > 0 {
			known[a] = strings.TrimSuffix(found[0], ".")
		}
		return known[a]
	}
	port = func(n uint16, p ipvsadm.Protocol) string {
		number := strconv.Itoa(int(n))
		if name := services[number+"/"+strings.ToLower(p.String())]; name != "" {
			return name
		}
		return number
	}
	return addr, port
}

// readServices reads services(5): from "80/tcp" to "http".
func readServices(file string) map[string]string {
	f, err := os.Open(file)
	if err != nil {
		return nil
	}
	defer f.Close()
	byPort := make(map[string]string)
	for scanner := bufio.NewScanner(f); scanner.Scan(); {
		line, _, _ := strings.Cut(scanner.Text(), "#")
		fields := strings.Fields(line)
		if len(fields) >= 2 && byPort[fields[1]] == "" {
			byPort[fields[1]] = fields[0]
		}
	}
	return byPort
}
