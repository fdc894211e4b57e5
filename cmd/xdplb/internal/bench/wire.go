package main

import (
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/xdplb/xdplb/bpf"
	"github.com/xdplb/xdplb/loader"
)

var (
	wireRounds = flag.Int("wire-rounds", 7, "rounds of the parts wire and requests")
	wireFrames = flag.Uint("wire-frames", 1<<20, "frames of each path in a round of the part wire")
	wireFlows  = flag.Uint("wire-flows", 1<<16, "flows of the part wire, a power of two")
)

// wirePath is a way from the generator through a balancer back to the sink.
type wirePath struct {
	name     string
	wire     *wire
	frame    frame
	expected bpf.BenchFrameExpected
	rate     *row // Mpps that arrived as forwarded
	loss     *row
	share    *row // of the floor's rate in the same round
}

// measureWire sends live frames over a cable to xdplb, to the floor, and to the kernel's own forwarding, in turns.
// One CPU does it all: it makes the frames, forwards them, and counts what arrives. So nothing is lost for want of
// time; what is lost, the path lost.
func measureWire(rep *report, _ int) (err error) {
	if *wireFlows == 0 || *wireFlows&(*wireFlows-1) != 0 || *wireFrames == 0 || *wireRounds < 1 {
		return errors.New("-wire-flows is a power of two, -wire-frames and -wire-rounds are 1 or more")
	}
	var wires []*wire
	defer func() {
		for _, w := range wires {
			err = errors.Join(err, w.Close())
		}
	}()
	for _, become := range []func(*wire) error{(*wire).becomeFloor, (*wire).becomeXdplb, (*wire).becomeKernel} {
		w, err := newWire()
		if err != nil {
			return err
		}
		wires = append(wires, w)
		if err := become(w); err != nil {
			return err
		}
	}
	paths := wirePaths(wires[0], wires[1], wires[2])
	defer func() { addWire(rep, paths) }() // what was measured is measured
	for _, p := range paths {
		if _, _, err := p.send(); err != nil { // warm: flows that speak again are promoted
			return fmt.Errorf("%s: %w", p.name, err)
		}
	}
	for range *wireRounds {
		for _, p := range paths {
			rate, loss, err := p.send()
			if err != nil {
				return fmt.Errorf("%s: %w", p.name, err)
			}
			p.rate.values = append(p.rate.values, rate)
			p.loss.values = append(p.loss.values, loss)
			if p.share != nil {
				floor := paths[0].rate.values
				p.share.values = append(p.share.values, 100*rate/floor[len(floor)-1])
			}
		}
	}
	return nil
}

func addWire(rep *report, paths []*wirePath) {
	for _, p := range paths {
		for _, r := range []*row{p.rate, p.loss, p.share} {
			if r != nil && len(r.values) > 0 {
				rep.add(r)
			}
		}
	}
}

func wirePaths(floor, xdplb, kernel *wire) (paths []*wirePath) {
	addFrame := func(w *wire, name string, f frame, e expectation) {
		f.to, f.proto, f.flags, f.flows = w.mac, unix.IPPROTO_TCP, ack, uint32(*wireFlows)
		p := &wirePath{name: "wire/" + name, wire: w, expected: e.frame(), frame: f}
		p.rate = &row{name: p.name, unit: "Mpps"}
		p.loss = &row{name: p.name, unit: "%loss"}
		if len(paths) > 0 {
			p.share = &row{name: p.name, unit: "%floor"}
		}
		paths = append(paths, p)
	}
	add := func(w *wire, name string, vip netip.Addr, e expectation) {
		f := frame{client: client4, vip: vip}
		if vip.Is6() {
			f.client = client6
		}
		addFrame(w, name, f, e)
	}
	// The outermost destination is the VIP still, or one of the servers 1, 2 and 3 in these prefixes.
	servers := netip.PrefixFrom(server4.Addr(), 30)
	servers6 := netip.PrefixFrom(server6.Addr(), 126)
	only := func(a netip.Addr) netip.Prefix { return netip.PrefixFrom(a, a.BitLen()) }
	tcp := uint8(unix.IPPROTO_TCP)

	add(floor, "floor", vip4, expectation{to: generatorMAC, proto: tcp, dst: only(vip4)})
	add(xdplb, "dr4", plus(vip4, vipDR), expectation{to: serverMAC, proto: tcp, dst: only(plus(vip4, vipDR))})
	add(xdplb, "dr6", plus(vip6, vipDR), expectation{to: serverMAC, proto: tcp, dst: only(plus(vip6, vipDR))})
	add(xdplb, "tun4in4", plus(vip4, vipTun), expectation{to: serverMAC, proto: unix.IPPROTO_IPIP, dst: servers})
	add(xdplb, "tun6in6", plus(vip6, vipTun), expectation{to: serverMAC, proto: unix.IPPROTO_IPV6, dst: servers6})
	add(xdplb, "moving-pinned", plus(vip4, vipMoving), expectation{to: serverMAC, proto: tcp, dst: only(plus(vip4, vipMoving))})
	for _, v := range translatedVIPs {
		vip, backend, backendSees := plus(vip4, v.offset), server(server4, 0), replyTo(v.mode, 0)
		near := func(a netip.Addr) netip.Prefix { return netip.PrefixFrom(a, 10) } // more than the most flows
		add(xdplb, v.name, vip, expectation{to: serverMAC, proto: tcp, src: near(backendSees), dst: only(backend)})
		addFrame(xdplb, v.name+"-reply", frame{client: backendSees, vip: backend, reply: true},
			expectation{to: generatorMAC, proto: tcp, src: only(vip), dst: near(client4)})
	}
	add(kernel, "kernel-nft-dnat", vip4, expectation{to: serverMAC, proto: tcp, dst: servers})
	return paths
}

// becomeXdplb gives the balancer a VIP for every mode.
func (w *wire) becomeXdplb() error {
	all, tcp := true, uint8(unix.IPPROTO_TCP)
	if err := w.node.Do(func() error { return w.attach(wireServers, defaultFlows) }); err != nil {
		return err
	}
	for _, v := range []struct {
		addr    netip.Addr
		mode    loader.Mode
		options loader.VIPOptions
	}{
		{plus(vip4, vipDR), loader.ModeDR, loader.VIPOptions{}},
		{plus(vip4, vipTun), loader.ModeTUN, loader.VIPOptions{}},
		{plus(vip4, vipMoving), loader.ModeDR, loader.VIPOptions{TrackAll: &all}},
		{plus(vip6, vipDR), loader.ModeDR, loader.VIPOptions{}},
		{plus(vip6, vipTun), loader.ModeTUN, loader.VIPOptions{}},
	} {
		if err := w.addVIPs(v.addr, 1, wireServers, tcp, v.mode, v.options); err != nil {
			return err
		}
	}
	for _, v := range translatedVIPs {
		vip := plus(vip4, v.offset)
		if err := w.addVIPs(vip, 1, wireServers, tcp, v.mode, loader.VIPOptions{}); err != nil {
			return err
		}
		if err := w.fillFlows(vip, v.mode, int(*wireFlows), 1); err != nil {
			return err
		}
	}
	return nil
}

// send sends the frames of a round. It returns the millions a second that arrived as forwarded, and the share in
// percent of those that did not arrive.
func (p *wirePath) send() (rate, loss float64, err error) {
	o := p.wire.objects
	if err := o.Template.Put(uint32(0), checksummed(p.frame)); err != nil {
		return 0, 0, err
	}
	if err := o.Expected.Put(uint32(0), p.expected); err != nil {
		return 0, 0, err
	}
	before, err := p.wire.arrived()
	if err != nil {
		return 0, 0, err
	}
	took, err := p.wire.generate(uint32(*wireFrames))
	if err != nil {
		return 0, 0, err
	}
	after, err := p.wire.settled()
	if err != nil {
		return 0, 0, err
	}
	forwarded, others := after.Forwarded-before.Forwarded, after.Others-before.Others
	sent := uint64(*wireFrames)
	// A hundredth is room for what the balancer's kernel says by itself, such as neighbour discovery.
	if forwarded < sent/2 || forwarded > sent || others > sent/100+100 {
		return 0, 0, fmt.Errorf("of %d frames %d arrived as forwarded, and %d others: this path does not forward", sent, forwarded, others)
	}
	return float64(forwarded) / took.Seconds() / 1e6, 100 * float64(sent-forwarded) / float64(sent), nil
}

// generate puts frames on the wire and returns the time until all were given to it.
func (w *wire) generate(frames uint32) (took time.Duration, err error) {
	err = w.far.Do(func() error {
		if err := blockSignals(); err != nil { // one would end it early
			return err
		}
		unpin, err := pinCPU()
		if err != nil {
			return err
		}
		defer unpin()
		context := make([]byte, 24) // struct xdp_md: data_end and ingress_ifindex
		binary.NativeEndian.PutUint32(context[4:], frameLength)
		binary.NativeEndian.PutUint32(context[12:], uint32(w.farIndex))
		start := time.Now()
		_, err = w.objects.Generate.Run(&ebpf.RunOptions{
			Data: make([]byte, frameLength), Context: context, Repeat: frames,
			Flags: unix.BPF_F_TEST_XDP_LIVE_FRAMES, BatchSize: wireBatch,
		})
		took = time.Since(start)
		return err
	})
	return took, err
}

// arrived reads the sink's counters.
func (w *wire) arrived() (sum bpf.BenchFrameArrivals, err error) {
	var each []bpf.BenchFrameArrivals
	if err := w.objects.Arrivals.Lookup(uint32(0), &each); err != nil {
		return sum, err
	}
	for _, a := range each {
		sum.Forwarded += a.Forwarded
		sum.Others += a.Others
	}
	return sum, nil
}

// settled reads the sink's counters once nothing arrives any more.
func (w *wire) settled() (bpf.BenchFrameArrivals, error) {
	last, err := w.arrived()
	for quiet := 0; quiet < 3 && err == nil; quiet++ {
		time.Sleep(2 * time.Millisecond)
		var now bpf.BenchFrameArrivals
		if now, err = w.arrived(); now != last {
			last, quiet = now, -1
		}
	}
	return last, err
}

// checksummed is the template of frames whose checksums the generator finishes: the kernel looks at them.
func checksummed(f frame) bpf.BenchFrameTemplate {
	t := f.template()
	b := t.Bytes[:frameLength]
	addresses, l4 := b[26:34], b[34:]
	if f.vip.Is6() {
		addresses, l4 = b[22:54], b[54:]
		t.TcpSum = 54 + 16
	} else {
		t.IpSum, t.TcpSum = 24, 34+16
	}
	varying := slices.Clone(b[t.Source : t.Source+4])
	clear(b[t.Source : t.Source+4])
	if f.vip.Is4() {
		binary.BigEndian.PutUint16(b[t.IpSum:], sum16(0, b[14:34]))
	}
	sum := sum16(uint32(unix.IPPROTO_TCP)+uint32(len(l4)), addresses)
	sum = sum16(uint32(sum), l4)
	binary.BigEndian.PutUint16(b[t.TcpSum:], sum)
	copy(b[t.Source:], varying)
	return t
}

// sum16 is the one's complement sum of a start and big-endian words (RFC 1071).
func sum16(start uint32, b []byte) uint16 {
	for ; len(b) > 1; b = b[2:] {
		start += uint32(b[0])<<8 | uint32(b[1])
	}
	for start > 0xffff {
		start = start>>16 + start&0xffff
	}
	return uint16(start)
}
