package main

import (
	"errors"
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"

	"github.com/xdplb/xdplb/loader"
)

const (
	ack = 0x10
	syn = 0x02
)

// flowCounts are how many flows there are, from what a cache line holds to what no cache does.
var flowCounts = []uint32{1, 1 << 10, 1 << 17, 1 << 20}

// VIPs of measurePaths: those at these offsets from the first.
const (
	vipDR = iota
	vipTun
	vipMoving
	vipForeign
)

func measurePaths(rep *report, runs int) (err error) {
	w, err := newWorld(3)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, w.Close()) }()
	tcp, udp := uint8(unix.IPPROTO_TCP), uint8(unix.IPPROTO_UDP)
	all := true
	for _, add := range []func() error{
		func() error { return w.addVIPs(plus(vip4, vipDR), 1, 3, tcp, loader.ModeDR, loader.VIPOptions{}) },
		func() error { return w.addVIPs(plus(vip4, vipDR), 1, 3, udp, loader.ModeDR, loader.VIPOptions{}) },
		func() error { return w.addVIPs(plus(vip4, vipTun), 1, 3, tcp, loader.ModeTUN, loader.VIPOptions{}) },
		func() error {
			return w.addVIPs(plus(vip4, vipMoving), 1, 3, tcp, loader.ModeDR, loader.VIPOptions{TrackAll: &all})
		},
		func() error { return w.addVIPs(plus(vip6, vipDR), 1, 3, tcp, loader.ModeDR, loader.VIPOptions{}) },
		func() error { return w.addVIPs(plus(vip6, vipTun), 1, 3, tcp, loader.ModeTUN, loader.VIPOptions{}) },
	} {
		if err := add(); err != nil {
			return err
		}
	}
	var paths []*path
	for _, n := range flowCounts {
		add := func(name, budget string, vip netip.Addr, proto uint8, flags byte) *path {
			client := client4
			if vip.Is6() {
				client = client6
			}
			p := &path{name: fmt.Sprintf("%s/flows=%d", name, n), budget: budget,
				frame: frame{client: client, vip: vip, proto: proto, flags: flags, flows: n}}
			paths = append(paths, p)
			return p
		}
		add("dr4", "55..60", plus(vip4, vipDR), tcp, ack)
		add("dr4-udp", "55..60", plus(vip4, vipDR), udp, 0)
		add("dr6", "65..70", plus(vip6, vipDR), tcp, ack)
		add("tun4in4", "75..82", plus(vip4, vipTun), tcp, ack)
		add("tun6in6", "85..92", plus(vip6, vipTun), tcp, ack)
		add("moving-pinned", "105..450", plus(vip4, vipMoving), tcp, ack)
		add("foreign-tcp", "30", plus(vip4, vipForeign), tcp, ack).passes = true
	}
	return w.measure(rep, "program", runs, paths)
}

// measureSpread shows what it costs that VIPs and backends exist, and that the traffic is spread over them.
func measureSpread(rep *report, runs int) error {
	for _, size := range []struct{ vips, backends int }{{1, 3}, {100, 3}, {1000, 3}, {1, 100}, {1, 1000}, {1000, 10}} {
		if err := measureSize(rep, runs, size.vips, size.backends); err != nil {
			return fmt.Errorf("%d VIPs with %d backends: %w", size.vips, size.backends, err)
		}
	}
	return nil
}

func measureSize(rep *report, runs, vips, backends int) (err error) {
	w, err := newWorld(backends)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, w.Close()) }()
	if err := w.addVIPs(vip4, vips, backends, unix.IPPROTO_TCP, loader.ModeDR, loader.VIPOptions{}); err != nil {
		return err
	}
	over := func(name string, spread uint32) *path {
		return &path{name: name, frame: frame{
			client: client4, vip: vip4, proto: unix.IPPROTO_TCP, flags: ack, flows: 1 << 17, vips: spread,
		}}
	}
	paths := []*path{over("dr4-one-vip", 1)}
	for _, spread := range []uint32{64, 512} { // the driver counts in powers of two
		if int(spread) < vips {
			paths = append(paths, over(fmt.Sprintf("dr4-spread=%d", spread), spread))
		}
	}
	return w.measure(rep, fmt.Sprintf("vips=%d/backends=%d", vips, backends), runs, paths)
}
