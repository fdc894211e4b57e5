package main

import (
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/xdplb/xdplb/bpf"
	"github.com/xdplb/xdplb/loader"
	"github.com/xdplb/xdplb/maps"
)

const (
	modeNAT     = loader.Mode(bpf.XdplbModeModeNat)
	modeFullNAT = loader.Mode(bpf.XdplbModeModeFullnat)

	translatedFlows = 1 << 20
	translateSpread = 4 // backends that the flows are spread over, a power of two
)

// snat4 is the first SNAT address. Of the flows that are put into the tables each has its own, counted as the
// clients are: the driver varies one word, and to the tables a tuple is a tuple.
var snat4 = netip.MustParseAddr("100.64.0.0")

// translatedVIPs are those of the part wire.
var translatedVIPs = []struct {
	name   string
	mode   loader.Mode
	offset int
}{{"nat", modeNAT, vipNAT}, {"fullnat", modeFullNAT, vipFullNAT}}

// measureTranslation shows what NAT and FULL-NAT cost in both directions.
func measureTranslation(rep *report, runs int) error {
	for _, v := range translatedVIPs {
		if err := measureMode(rep, v.name, v.mode, runs); err != nil {
			return fmt.Errorf("%s: %w", v.name, err)
		}
	}
	return nil
}

func measureMode(rep *report, name string, mode loader.Mode, runs int) (err error) {
	w, err := newWorld(translateSpread, 3*translatedFlows) // two entries a flow
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, w.Close()) }()
	if err := w.addVIPs(vip4, 1, translateSpread, unix.IPPROTO_TCP, mode, loader.VIPOptions{}); err != nil {
		return err
	}
	if err := w.fillSNAT(); err != nil {
		return err
	}
	if err := w.fillFlows(vip4, mode, translatedFlows, translateSpread); err != nil {
		return err
	}
	return w.measure(rep, name, runs, translationPaths(mode))
}

func translationPaths(mode loader.Mode) (paths []*path) {
	const budget = "120..500"
	toBackend := func(n uint32) frame {
		return frame{client: client4, vip: vip4, proto: unix.IPPROTO_TCP, flags: ack, flows: n}
	}
	for i := len(flowCounts) - 1; i >= 0; i-- {
		n := flowCounts[i]
		reply := frame{
			client: replyTo(mode, 0), vip: server(server4, 0), proto: unix.IPPROTO_TCP, flags: ack, flows: n,
			vips: min(n, translateSpread), reply: true,
		}
		paths = append(paths,
			&path{name: fmt.Sprintf("to-backend/flows=%d", n), budget: budget, frame: toBackend(n), warm: true},
			&path{name: fmt.Sprintf("to-client/flows=%d", n), budget: budget, frame: reply, warm: true})
	}
	paths = append(paths, (&path{name: fmt.Sprintf("syn-new/flows=%d", translatedFlows), frame: frame{vip: vip4, flags: syn}}).fresh(0))
	if mode == modeNAT {
		paths = append(paths, (&path{name: fmt.Sprintf("ack-adopted/flows=%d", translatedFlows), frame: frame{vip: vip4, flags: ack}}).fresh(1))
	}
	// Every packet also touches the flow's other entry, as is due every 4 s. Paths in between use up most of them.
	spoke := time.Now()
	paths[0].prepare = func() error { spoke = time.Now().Add(2 * time.Second); return nil } // it takes no longer
	return append(paths, &path{
		name: fmt.Sprintf("to-backend-after-silence/flows=%d", translatedFlows), frame: toBackend(translatedFlows),
		prepare: func() error { time.Sleep(time.Until(spoke.Add(4100 * time.Millisecond))); return nil },
	})
}

// replyTo is where a backend answers to in the i-th flow of fillFlows.
func replyTo(mode loader.Mode, i int) netip.Addr {
	if mode == modeFullNAT {
		return plus(snat4, i)
	}
	return plus(client4, i)
}

// fillSNAT gives FULL-NAT room for a few million new flows.
func (w *world) fillSNAT() error {
	const addresses = 64
	return w.change(func(b *loader.Balancer) error {
		for i := range addresses {
			if err := b.Maps.XdplbMaps.Snat.Put(uint32(i), maps.Address(plus(snat4, i))); err != nil {
				return fmt.Errorf("SNAT address %d: %w", i, err)
			}
		}
		b.Settings.Snat = bpf.XdplbSnatPool{Count4: addresses}
		b.Settings.SnatLow, b.Settings.SnatHigh = 1024, 65535
		return b.Maps.PutSettings(b.Settings)
	})
}

// fillFlows puts established flows of one VIP into the table, both entries of each.
func (w *world) fillFlows(vip netip.Addr, mode loader.Mode, flows, spread int) error {
	return w.change(func(b *loader.Balancer) error {
		now, err := b.Now()
		if err != nil {
			return err
		}
		ids, err := backendIDs(b, vip)
		if err != nil {
			return err
		}
		const batch = 1 << 16
		keys, values := make([]bpf.XdplbTuple, 0, 2*batch), make([]bpf.XdplbFlow, 0, 2*batch)
		for i := range flows {
			f := flowNumber(i, vip, mode, spread)
			f.id, f.now = ids[f.backend], now
			keys, values = f.add(keys, values)
			if len(keys) < 2*batch && i+1 < flows {
				continue
			}
			if _, err := b.Maps.XdplbMaps.Flows.BatchUpdate(keys, values, &ebpf.BatchOptions{}); err != nil {
				return fmt.Errorf("filling the flow table: %w", err)
			}
			keys, values = keys[:0], values[:0]
		}
		return nil
	})
}

func backendIDs(b *loader.Balancer, vip netip.Addr) (map[netip.Addr]uint32, error) {
	services, err := b.Maps.Services()
	ids := map[netip.Addr]uint32{}
	for _, s := range services {
		if s.Addr != vip {
			continue
		}
		for _, backend := range b.Maps.ReadBackends(func(of uint32) bool { return of == s.Id }) {
			ids[backend.Addr()] = backend.Id
		}
	}
	return ids, err
}

// twins are the two entries of a flow in NAT or FULL-NAT.
type twins struct {
	client, vip, backend netip.Addr
	far                  netip.Addr // whom the backend answers
	id                   uint32     // of the backend
	number               uint64     // of the flow
	now                  uint64     // jiffies
}

// flowNumber is a flow whose packets the driver makes when it counts to i: eight in a row go to each backend.
func flowNumber(i int, vip netip.Addr, mode loader.Mode, spread int) twins {
	return twins{
		client: plus(client4, i), vip: vip, backend: server(server4, i>>3&(spread-1)), far: replyTo(mode, i), number: uint64(i) + 1,
	}
}

func (f twins) add(keys []bpf.XdplbTuple, values []bpf.XdplbFlow) ([]bpf.XdplbTuple, []bpf.XdplbFlow) {
	tuple := func(src, dst netip.Addr, sport, dport uint16) bpf.XdplbTuple {
		return bpf.XdplbTuple{Src: maps.Address(src), Dst: maps.Address(dst), Sport: sport, Dport: dport, Proto: unix.IPPROTO_TCP}
	}
	there := bpf.XdplbFlow{
		Stamp: f.now<<uint(bpf.XdplbFlowStampFlowStampShift) |
			uint64(bpf.XdplbFlowStateFlowSpoken|bpf.XdplbFlowStateFlowAnswered),
		Backend: f.id, Direction: uint8(bpf.XdplbFlowDirectionFlowToBackend), Id: f.number,
		Far: maps.Address(f.far), FarPort: clientPort, Vip: maps.Address(f.vip), VipPort: vipPort, Touched: uint32(f.now),
		// The only interface has number 0, and frame.template comes from this MAC.
		LastHop: bpf.XdplbHopMac{Mac: [6]uint8(generatorMAC), Vlan: uint16(bpf.XdplbHopVlanHopUntagged)},
	}
	back := there
	back.Direction = uint8(bpf.XdplbFlowDirectionFlowToClient)
	back.Far = maps.Address(f.client)
	return append(keys, tuple(f.client, f.vip, clientPort, vipPort), tuple(f.backend, f.far, vipPort, clientPort)),
		append(values, there, back)
}
