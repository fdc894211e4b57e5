package loader

import (
	"errors"
	"time"

	"github.com/cilium/ebpf"

	"github.com/xdplb/xdplb/bpf"
	"github.com/xdplb/xdplb/maps"
)

// reader reads single elements of maps, as a packet does. It keeps the first
// error, after which nothing is found.
type reader struct {
	*maps.Maps
	settings *maps.Settings
	now      uint64 // jiffies
	err      error
}

func (r *reader) look(in *ebpf.Map, key, value any) bool {
	if r.err != nil {
		return false
	}
	err := in.Lookup(key, value)
	if err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
		r.err = err
	}
	return err == nil
}

func (r *reader) ago(jiffies uint64) time.Duration {
	return r.settings.Duration(r.now - min(jiffies, r.now)).Round(time.Millisecond)
}

// backend is find_backend of bpf/table.h: nil if the id is free or another's.
func (r *reader) backend(id uint32) *maps.Backend {
	b := new(maps.Backend)
	if id == 0 || !r.look(r.Backends, maps.Index(id), &b.XdplbBackend) || b.Id != id {
		return nil
	}
	return b
}

// up is backend_up.
func (r *reader) up(id uint32) bool {
	b := r.backend(id)
	return b != nil && b.Up()
}

// slot is find_slot.
func (r *reader) slot(v *maps.Service, hash uint64) (maps.Slot, bool) {
	var table *ebpf.Map
	if !r.look(r.Tables, v.Id, &table) {
		return maps.Slot{}, false
	}
	defer table.Close()
	return r.slotAt(table, maps.SlotIndex(hash, v.TableSize))
}

func (r *reader) slotAt(table *ebpf.Map, index uint32) (maps.Slot, bool) {
	var word uint64
	if !r.look(table, index, &word) {
		return maps.Slot{}, false
	}
	return maps.DecodeSlot(word), true
}

// attached is the record of an interface; nil if none has this number.
func (r *reader) attached(number uint32) *bpf.XdplbInterface {
	record := new(bpf.XdplbInterface)
	if !r.look(r.Interfaces, number, record) || record.Ifindex == 0 {
		return nil
	}
	return record
}

func keyOf(t maps.Tuple) bpf.XdplbTuple {
	return bpf.XdplbTuple{Src: maps.Address(t.Src), Dst: maps.Address(t.Dst), Sport: t.SrcPort, Dport: t.DstPort, Proto: t.Proto}
}

func reversed(t maps.Tuple) maps.Tuple {
	return maps.Tuple{Src: t.Dst, Dst: t.Src, SrcPort: t.DstPort, DstPort: t.SrcPort, Proto: t.Proto}
}

// entry is one of `flows`, or if it is not promoted of `half_open`.
type entry struct {
	bpf.XdplbFlow
	promoted bool
}

// entryIn looks a tuple up in one of the two.
func (r *reader) entryIn(in *ebpf.Map, t maps.Tuple) *entry {
	e := &entry{promoted: in == r.XdplbMaps.Flows}
	if !r.look(in, keyOf(t), &e.XdplbFlow) {
		return nil
	}
	return e
}

// pin is find_pin of bpf/flow.h.
func (r *reader) pin(t maps.Tuple) *entry {
	if e := r.entryIn(r.XdplbMaps.Flows, t); e != nil {
		return e
	}
	return r.entryIn(r.HalfOpen, t)
}

func (e *entry) has(any bpf.XdplbFlowState) bool { return e.Stamp&uint64(any) != 0 }

func (e *entry) seen() uint64 { return e.Stamp >> uint64(bpf.XdplbFlowStampFlowStampShift) }

func (e *entry) toClient() bool {
	return e.Direction == uint8(bpf.XdplbFlowDirectionFlowToClient)
}

// States as bpf/claim.h and bpf/flow.h group them.
const (
	flowSpoken = bpf.XdplbFlowStateFlowSpoken
	flowEnds   = bpf.XdplbFlowStateFlowClosing | bpf.XdplbFlowStateFlowFinished
)

// closed is flow_closed of bpf/claim.h.
func (e *entry) closed() bool {
	return e.has(bpf.XdplbFlowStateFlowReset) || e.has(bpf.XdplbFlowStateFlowClosing) && e.has(bpf.XdplbFlowStateFlowFinished)
}

// Seconds of bpf/claim.h.
const (
	closedSeconds   = 10
	timeWaitSeconds = 60
)

// lifetime is flow_lifetime, of flows of NAT and FULL-NAT.
func (r *reader) lifetime(e *entry, proto uint8) uint64 {
	switch {
	case e.closed():
		if !e.has(bpf.XdplbFlowStateFlowReset) && e.has(bpf.XdplbFlowStateFlowBackendFirst) {
			return uint64(r.settings.Hz) * timeWaitSeconds
		}
		return uint64(r.settings.Hz) * closedSeconds
	case e.has(flowEnds):
		return r.settings.Closing
	case !e.has(flowSpoken):
		return r.settings.HalfOpen
	}
	return r.settings.Idle(proto)
}

// older is older_than: signed, for another CPU's clock may be ahead.
func (r *reader) older(e *entry, limit uint64) bool {
	return int64(r.now-e.seen()) > int64(limit)
}

// alive is flow_alive.
func (r *reader) alive(e *entry, proto uint8) bool { return !r.older(e, r.lifetime(e, proto)) }

// live is flow_live of bpf/flow.h: what a SYN asks of a pin of DR or TUN.
func (r *reader) live(e *entry) bool { return r.now-e.seen() <= r.pinLifetime(e) }

func (r *reader) pinLifetime(e *entry) uint64 {
	if e.has(flowSpoken) {
		return r.settings.TcpIdle
	}
	return r.settings.HalfOpen
}

// twinLag is twin_lag: how far behind a flow's other entry may be.
func (r *reader) twinLag(e *entry, proto uint8) uint64 {
	return r.settings.TwinLag(r.lifetime(e, proto))
}

// twinDue is twin_is_due of bpf/nat.h.
func (r *reader) twinDue(e *entry, proto uint8) bool {
	return uint64(uint32(r.now)-e.Touched) >= r.twinLag(e, proto)
}
