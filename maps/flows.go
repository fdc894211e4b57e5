package maps

import (
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/cilium/ebpf"

	"github.com/xdplb/xdplb/bpf"
)

// Flow is an entry of `flows` or `half_open`: a tuple pinned to a backend.
type Flow struct {
	Tuple
	Backend  uint32
	Seen     uint64 // jiffies
	Spoken   bool   // more than SYNs were seen
	Closing  bool   // the client sent FIN or RST
	HalfOpen bool   // it is in `half_open`
	key      bpf.XdplbTuple
}

// Pin is the flow as Settle sees it; slot is what its VIP's function picks.
func (f Flow) Pin(slot uint32, dead bool) Pin {
	return Pin{Tuple: f.Tuple, Slot: slot, Backend: f.Backend, HalfOpen: f.HalfOpen, Dead: dead, flow: f}
}

// Flow is the flow that the pin was made of.
func (p Pin) Flow() Flow { return p.flow }

// closedAfter is how long a flow stays that its client has closed, before it
// counts as ended: IPVS keeps closed connections as long.
const closedAfter = 10 * time.Second

const flowBatch = 4096

// Flows calls f for each entry, first those of `half_open` and then those of
// `flows`, until f returns false. While packets flow an entry may be seen twice,
// and one that comes meanwhile not at all.
func (m *Maps) Flows(f func(Flow) bool) error {
	for _, from := range []*ebpf.Map{m.HalfOpen, m.XdplbMaps.Flows} {
		more, err := eachFlow(from, from == m.HalfOpen, f)
		if err != nil || !more {
			return err
		}
	}
	return nil
}

func eachFlow(from *ebpf.Map, halfOpen bool, f func(Flow) bool) (more bool, err error) {
	size := min(flowBatch, int(from.MaxEntries()))
	keys, values := make([]bpf.XdplbTuple, size), make([]bpf.XdplbFlow, size)
	for cursor := new(ebpf.MapBatchCursor); ; {
		n, err := from.BatchLookup(cursor, keys, values, nil)
		for i := range n {
			if !f(decodeFlow(keys[i], values[i], halfOpen)) {
				return false, nil
			}
		}
		if errors.Is(err, ebpf.ErrKeyNotExist) {
			return true, nil
		}
		if err != nil {
			return false, fmt.Errorf("reading %v: %w", from, err)
		}
	}
}

func decodeFlow(key bpf.XdplbTuple, value bpf.XdplbFlow, halfOpen bool) Flow {
	return Flow{
		Tuple: Tuple{
			Src: Addr(key.Src), Dst: Addr(key.Dst),
			SrcPort: key.Sport, DstPort: key.Dport, Proto: key.Proto,
		},
		Backend:  value.Backend,
		Seen:     value.Stamp >> uint64(bpf.XdplbFlowStampFlowStampShift),
		Spoken:   value.Stamp&uint64(bpf.XdplbFlowStateFlowSpoken) != 0,
		Closing:  value.Stamp&uint64(bpf.XdplbFlowStateFlowClosing) != 0,
		HalfOpen: halfOpen,
		key:      key,
	}
}

// DeleteFlow removes a dead entry from the map it was read from, unless a packet
// has touched it since.
func (m *Maps) DeleteFlow(f Flow) error {
	from := m.XdplbMaps.Flows
	if f.HalfOpen {
		from = m.HalfOpen
	}
	var value bpf.XdplbFlow
	err := from.LookupAndDelete(f.key, &value)
	if errors.Is(err, ebpf.ErrKeyNotExist) {
		return nil
	}
	if err == nil && decodeFlow(f.key, value, f.HalfOpen).Seen != f.Seen {
		err = from.Update(f.key, value, ebpf.UpdateNoExist)
		if errors.Is(err, ebpf.ErrKeyExist) {
			return nil // a newer packet was quicker
		}
	}
	if err != nil {
		return fmt.Errorf("deleting a flow: %w", err)
	}
	return nil
}

// Of reports whether the flow is one of v, whose port 0 is every port.
func (f Flow) Of(v VIP) bool {
	return f.Dst == v.Addr && f.Proto == v.Proto && (v.Port == 0 || f.DstPort == v.Port)
}

// Client is the flow's client.
func (f Flow) Client() netip.AddrPort { return netip.AddrPortFrom(f.Src, f.SrcPort) }
