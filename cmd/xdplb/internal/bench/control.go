package main

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/xdplb/xdplb/loader"
	"github.com/xdplb/xdplb/maps"
)

// measureControl shows how long changes take, and how much memory things take.
func measureControl(rep *report, runs int) error {
	buildTables(rep, runs)
	if err := measureLast(rep, "adding-the-1000th-vip", runs, 1000, 3); err != nil {
		return err
	}
	if err := measureLast(rep, "adding-the-1000th-backend", runs, 1, 1000); err != nil {
		return err
	}
	return measureMemory(rep)
}

// buildTables times the Maglev builder alone.
func buildTables(rep *report, runs int) {
	words := maps.NewHashKey().Words()
	for _, n := range []int{3, 100, 1000, 10000} {
		entries := make([]maps.Entry, n)
		for i := range entries {
			entries[i] = maps.Entry{ID: uint32(i + 1), Addr: server(server4, i), Port: 80, Weight: 1}
		}
		for _, size := range []uint32{maps.DefaultTableSize, 65537} {
			if int(size) < n {
				continue
			}
			r := &row{name: fmt.Sprintf("control/table-build/slots=%d/backends=%d", size, n), unit: "ns/op"}
			for range runs {
				start := time.Now()
				maps.Maglev(&words, size, entries)
				r.values = append(r.values, float64(time.Since(start).Nanoseconds()))
			}
			rep.add(r)
		}
	}
}

// measureLast times adding the last VIP, or the last backend if there is one VIP, and takes it away again.
func measureLast(rep *report, name string, runs, vips, backends int) (err error) {
	w, err := newWorld(backends, defaultFlows)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, w.Close()) }()
	first, firstBackends := vips-1, backends
	if vips == 1 {
		first, firstBackends = 1, backends-1
	}
	if err := w.addVIPs(vip4, first, firstBackends, unix.IPPROTO_TCP, loader.ModeDR, loader.VIPOptions{}); err != nil {
		return err
	}
	v := maps.VIP{Addr: plus(vip4, vips-1), Port: 80, Proto: unix.IPPROTO_TCP}
	last := []netip.AddrPort{netip.AddrPortFrom(server(server4, backends-1), 80)}
	r := &row{name: "control/" + name, unit: "ns/op"}
	for range runs {
		start := time.Now()
		err := w.change(func(b *loader.Balancer) error {
			if vips > 1 {
				return b.AddVIP(v, loader.VIPOptions{})
			}
			_, err := b.AddBackends(v, last, loader.BackendOptions{})
			return err
		})
		if err != nil {
			return err
		}
		r.values = append(r.values, float64(time.Since(start).Nanoseconds()))
		err = w.change(func(b *loader.Balancer) error {
			if vips > 1 {
				return b.DeleteVIP(v)
			}
			return b.DeleteBackends(v, last)
		})
		if err != nil {
			return err
		}
	}
	rep.add(r)
	return nil
}

// measureMemory asks the kernel what it accounts for the maps, and divides by their places.
func measureMemory(rep *report) (err error) {
	w, err := newWorld(1, defaultFlows)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, w.Close()) }()
	return w.change(func(b *loader.Balancer) error {
		for _, m := range []struct {
			name string
			of   *ebpf.Map
		}{
			{"vip", b.Maps.Vips}, {"backend", b.Maps.Backends}, {"backend-counters", b.Maps.Counters},
			{"flow", b.Maps.XdplbMaps.Flows}, {"half-open-flow", b.Maps.HalfOpen},
		} {
			bytes, err := memlock(m.of)
			if err != nil {
				return err
			}
			rep.add(&row{name: "memory/" + m.name, unit: "B/place", values: []float64{bytes / float64(m.of.MaxEntries())}})
		}
		rep.add(&row{name: "memory/vip-table", unit: "B/place", values: []float64{8 * maps.DefaultTableSize}})
		return nil
	})
}

// memlock is what the kernel accounts for a map, in bytes (/proc/PID/fdinfo).
func memlock(m *ebpf.Map) (float64, error) {
	info, err := os.ReadFile(fmt.Sprintf("/proc/self/fdinfo/%d", m.FD()))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(info)) {
		if value, found := strings.CutPrefix(line, "memlock:"); found {
			var bytes float64
			_, err := fmt.Sscan(value, &bytes)
			return bytes, err
		}
	}
	return 0, fmt.Errorf("%v: the kernel does not say what it takes", m)
}
