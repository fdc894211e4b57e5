package main

import (
	"errors"
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"

	"github.com/xdplb/xdplb/loader"
	"github.com/xdplb/xdplb/maps"
)

const (
	ack = 0x10
	syn = 0x02
)

// flowCounts are how many flows there are, from what a cache line holds to what no cache does.
var flowCounts = []uint32{1, 1 << 10, 1 << 17, 1 << 20}

// VIPs of the parts program and wire: those at these offsets from the first.
const (
	vipDR = iota
	vipTun
	vipMoving
	vipForeign
	vipNAT
	vipFullNAT
)

func measurePaths(rep *report, runs int) (err error) {
	w, err := newWorld(3, defaultFlows)
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
		if n > 1<<10 {
			add("moving-pinned-shuffled", "", plus(vip4, vipMoving), tcp, ack).frame.shuffled = true
		}
		add("foreign-tcp", "30", plus(vip4, vipForeign), tcp, ack).passes = true
	}
	const most = 1 << 20
	for i, p := range []*path{
		{name: fmt.Sprintf("moving-syn-new/flows=%d", most), budget: "..1000", frame: frame{flags: syn}},
		{name: fmt.Sprintf("moving-ack-new/flows=%d", most), frame: frame{flags: ack}},
	} {
		p.frame.vip = plus(vip4, vipMoving)
		paths = append(paths, p.fresh(i))
	}
	return w.measure(rep, "program", runs, paths)
}

// fresh makes the path's flows come only once: every run has others, and other ones than the fresh path of another number.
// Its name tells how many there are besides.
func (p *path) fresh(number int) *path {
	p.frame.proto, p.frame.flows = unix.IPPROTO_TCP, leastPackets
	p.frame.client = plus(client4, (number+1)<<26)
	p.prepare = func() error {
		p.frame.client = plus(p.frame.client, int(p.frame.flows))
		return nil
	}
	return p
}

// measureSpread shows what it costs that VIPs and backends exist, and that the traffic is spread over them.
func measureSpread(rep *report, runs int) error {
	for _, size := range []extent{{1, 3, normal}, {100, 3, normal}, {1, 100, normal}, {1, 1000, normal}, {1000, 10, normal}, {1000, 10, small}} {
		if err := measureSize(rep, runs, size); err != nil {
			return fmt.Errorf("%v: %w", size, err)
		}
	}
	return nil
}

// extent is how much there is; slots are those of each VIP's table.
type extent struct {
	vips, backends int
	slots          uint32
}

// A table of 100 slots a backend is as well balanced as a larger one; many small ones stay in the cache.
const (
	normal = maps.DefaultTableSize
	small  = 1021
)

func (e extent) String() string {
	return fmt.Sprintf("vips=%d/backends=%d/slots=%d", e.vips, e.backends, e.slots)
}

func measureSize(rep *report, runs int, e extent) (err error) {
	w, err := newWorld(e.backends, defaultFlows)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, w.Close()) }()
	if err := w.addVIPs(vip4, e.vips, e.backends, unix.IPPROTO_TCP, loader.ModeDR, loader.VIPOptions{TableSize: &e.slots}); err != nil {
		return err
	}
	over := func(name string, spread uint32) *path {
		return &path{name: name, frame: frame{
			client: client4, vip: vip4, proto: unix.IPPROTO_TCP, flags: ack, flows: 1 << 17, vips: spread,
		}}
	}
	paths := []*path{over("dr4-one-vip", 1)}
	for _, spread := range []uint32{100, 1000} {
		if int(spread) <= e.vips {
			paths = append(paths, over(fmt.Sprintf("dr4-spread=%d", spread), spread))
		}
	}
	return w.measure(rep, e.String(), runs, paths)
}
