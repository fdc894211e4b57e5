package main

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"regexp"
	"runtime"
	"slices"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/xdplb/xdplb/bpf"
)

// leastPackets is how often a run drives a program at least; and every flow speaks once.
const leastPackets = 1 << 18

// driver drives one program at a time with BPF_PROG_RUN.
type driver struct {
	objects bpf.BenchObjects
	runs    uint32 // of shuffled frames
}

func newDriver() (*driver, error) {
	d := new(driver)
	if err := bpf.LoadBenchObjects(&d.objects, nil); err != nil {
		return nil, fmt.Errorf("loading the driver: %w", err)
	}
	return d, nil
}

func (d *driver) Close() error { return d.objects.Close() }

// frame says what the driver sends.
type frame struct {
	to     net.HardwareAddr
	client netip.Addr
	vip    netip.Addr
	proto  uint8
	flags  byte // TCP
	flows  uint32
	vips   uint32
	reply  bool // the other way: vip is a backend, and answers the client
	// Flows speak in another order each time. Else it is always the same, which also is that of their entries in memory.
	shuffled bool
}

const (
	frameLength = 96
	clientPort  = 40000
	vipPort     = 80
)

func (f frame) packets() uint32 { return max(f.flows, leastPackets) }

func (f frame) template() bpf.BenchFrameTemplate {
	t := bpf.BenchFrameTemplate{Length: frameLength, Flows: f.flows, Vips: max(f.vips, 1), Stride: 0x9e3779b1}
	b := t.Bytes[:]
	copy(b, f.to)
	copy(b[6:], []byte{2, 0, 0, 0, 0, 2})
	l4, src, dst := 54, f.client, f.vip
	ports := []uint16{clientPort, vipPort}
	if f.reply {
		src, dst = dst, src
		slices.Reverse(ports)
	}
	if f.vip.Is4() {
		l4 = 34
		binary.BigEndian.PutUint16(b[12:], unix.ETH_P_IP)
		b[14], b[22], b[23] = 0x45, 64, f.proto
		binary.BigEndian.PutUint16(b[16:], frameLength-14)
		copy(b[26:], src.AsSlice())
		copy(b[30:], dst.AsSlice())
		t.Source, t.Vip = 26, 30
	} else {
		binary.BigEndian.PutUint16(b[12:], unix.ETH_P_IPV6)
		b[14], b[20], b[21] = 0x60, f.proto, 64
		binary.BigEndian.PutUint16(b[18:], frameLength-54)
		copy(b[22:], src.AsSlice())
		copy(b[38:], dst.AsSlice())
		t.Source, t.Vip = 34, 50
	}
	if f.reply {
		t.Source, t.Vip = t.Vip, t.Source
	}
	binary.BigEndian.PutUint16(b[l4:], ports[0])
	binary.BigEndian.PutUint16(b[l4+2:], ports[1])
	if f.proto == unix.IPPROTO_TCP {
		b[l4+12], b[l4+13] = 0x50, f.flags
	} else {
		binary.BigEndian.PutUint16(b[l4+4:], uint16(frameLength-l4))
	}
	return t
}

// run drives the program with the frame and returns nanoseconds a packet.
func (d *driver) run(p *ebpf.Program, f frame) (float64, error) {
	t := f.template()
	if f.shuffled {
		d.runs++
		t.Stride += d.runs % 64 * 0x4f1bbcdc
	}
	if err := d.objects.Template.Put(uint32(0), t); err != nil {
		return 0, err
	}
	if err := d.objects.Target.Put(uint32(0), p); err != nil {
		return 0, err
	}
	// The kernel's own figure: that of the call has some 20 ms of waiting in it, for XDP programs to be exchanged.
	_, ns, err := d.objects.Drive.Benchmark(t.Bytes[:frameLength], int(f.packets()), nil)
	return float64(ns), err
}

// path is one way through the program.
type path struct {
	name    string
	frame   frame
	passes  bool         // not ours: passed, where all others are forwarded
	warm    bool         // driven once right before each run
	prepare func() error // before each run
	budget  string
	row     *row
}

// measure runs all paths round by round, the floor first in each, and checks that
// every packet took its path: one that was not forwarded is a failure, not a fast result.
func (w *world) measure(rep *report, name string, runs int, paths []*path) error {
	d, err := newDriver()
	if err != nil {
		return err
	}
	defer d.Close()
	unpin, err := pinCPU()
	if err != nil {
		return err
	}
	defer unpin()
	if *pathFilter != "" {
		paths = slices.DeleteFunc(paths, func(p *path) bool { return !regexp.MustCompile(*pathFilter).MatchString(p.name) })
	}
	if len(paths) == 0 {
		return nil
	}
	floor := &row{name: name + "/floor", unit: "ns/op"}
	for _, p := range paths {
		p.row = &row{name: name + "/" + p.name, unit: "ns/op", over: []float64{}, budget: p.budget}
		p.frame.to = w.mac
		for range 2 { // flows that speak again are promoted
			if _, err := d.run(w.program, p.frame); err != nil {
				return err
			}
		}
	}
	for range runs {
		base, err := d.run(d.objects.SwapMacs, paths[0].frame)
		if err != nil {
			return err
		}
		floor.values = append(floor.values, base)
		for _, p := range paths {
			ns, err := w.once(d, p)
			if err != nil {
				return fmt.Errorf("%s: %w", p.row.name, err)
			}
			p.row.values, p.row.over = append(p.row.values, ns), append(p.row.over, ns-base)
		}
	}
	rep.add(floor)
	for _, p := range paths {
		rep.add(p.row)
	}
	return nil
}

func (w *world) once(d *driver, p *path) (float64, error) {
	if p.prepare != nil {
		if err := p.prepare(); err != nil {
			return 0, err
		}
	}
	if p.warm {
		if _, err := d.run(w.program, p.frame); err != nil {
			return 0, err
		}
	}
	before, err := w.packets()
	if err != nil {
		return 0, err
	}
	ns, err := d.run(w.program, p.frame)
	if err != nil {
		return 0, err
	}
	after, err := w.packets()
	if err != nil {
		return 0, err
	}
	forwarded, passed, sent := after.Forwarded-before.Forwarded, after.Passed-before.Passed, uint64(p.frame.packets())
	if p.passes && passed < sent || !p.passes && forwarded < sent {
		return 0, fmt.Errorf("of %d packets %d were forwarded and %d passed: %v", sent, forwarded, passed, after.Reasons)
	}
	return ns, nil
}

// pinCPU keeps the measuring thread on the last CPU.
func pinCPU() (unpin func(), err error) {
	runtime.LockOSThread()
	var before, one unix.CPUSet
	if err := unix.SchedGetaffinity(0, &before); err != nil {
		return nil, err
	}
	one.Set(runtime.NumCPU() - 1)
	if err := unix.SchedSetaffinity(0, &one); err != nil {
		return nil, err
	}
	return func() {
		_ = unix.SchedSetaffinity(0, &before)
		runtime.UnlockOSThread()
	}, nil
}
