package maps

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/xdplb/xdplb/bpf"
)

// Flow is an entry of `flows` or `half_open`. One that is ToClient is the twin of
// another, and no pin: its tuple is the flow as its backend sends it, and may well
// lead to the address of a VIP.
type Flow struct {
	Tuple
	Backend      uint32
	Seen         uint64 // jiffies
	Spoken       bool   // more than SYNs were seen
	Closing      bool   // the client sent FIN or RST
	Answered     bool   // the backend spoke; this and the following four only of NAT and FULL-NAT
	Finished     bool   // the backend sent FIN
	Reset        bool   // one of the two sent RST
	BackendFirst bool   // the backend's FIN came before the client's
	ToClient     bool
	Open         bool // it counts toward the load of its backend: flow_open in bpf/flow.h
	HalfOpen     bool // it is in `half_open`
	value        bpf.XdplbFlow
}

// Pin is the flow as Settle sees it; slot is what its VIP's function picks.
func (f Flow) Pin(slot uint32, dead bool) Pin {
	return Pin{Tuple: f.Tuple, Slot: slot, Backend: f.Backend, HalfOpen: f.HalfOpen, Dead: dead, flow: f}
}

// Flow is the flow that the pin was made of.
func (p Pin) Flow() Flow { return p.flow }

// Translated reports whether the flow is one of NAT or FULL-NAT, which has two
// entries and whose states are those of both sides.
func (f Flow) Translated() bool { return f.value.Id != 0 }

// Far is what stands in the place of the client or of the VIP behind the balancer:
// to the backend the source that this sees, to the client the client.
func (f Flow) Far() netip.AddrPort { return netip.AddrPortFrom(Addr(f.value.Far), f.value.FarPort) }

// LastHop is where a flow's client is: the number of an interface in `interfaces`
// and what stands in the Ethernet header.
func (f Flow) LastHop() (iface uint16, hop bpf.XdplbHopMac) {
	return f.value.Interface, f.value.LastHop
}

// FromClient is the flow as its client sends it, whichever direction the entry has.
func (f Flow) FromClient() Tuple {
	if !f.ToClient {
		return f.Tuple
	}
	return Tuple{
		Src: Addr(f.value.Far), Dst: Addr(f.value.Vip),
		SrcPort: f.value.FarPort, DstPort: f.value.VipPort, Proto: f.Proto,
	}
}

// FlowState is what users read of the states.
type FlowState string

// The states of TCP, as far as the packets seen tell, and the one of UDP.
const (
	FlowHalfOpen    FlowState = "half-open"
	FlowEstablished FlowState = "established"
	FlowClosing     FlowState = "closing" // one side sent FIN; of DR and TUN: the client sent FIN or RST
	FlowClosed      FlowState = "closed"  // both did, or one sent RST
	FlowUDP         FlowState = "udp"
)

// State is the flow's. The backend's packets are not seen in DR and TUN, so their
// flows are never closed.
func (f Flow) State() FlowState {
	switch {
	case f.Proto == unix.IPPROTO_UDP:
		return FlowUDP
	case f.Reset || f.Closing && f.Finished:
		return FlowClosed
	case f.Closing || f.Finished:
		return FlowClosing
	case f.Spoken:
		return FlowEstablished
	}
	return FlowHalfOpen
}

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

// LiveFlows calls f once for each flow of a client that live accepts, until f
// returns false. Twins that lead to clients are left out.
func (m *Maps) LiveFlows(live func(Flow) bool, f func(Flow) bool) error {
	halfOpen := make(map[bpf.XdplbTuple]struct{}) // keys as they are: there may be a million
	return m.Flows(func(flow Flow) bool {
		if flow.ToClient || !live(flow) {
			return true
		}
		if flow.HalfOpen {
			halfOpen[flow.key()] = struct{}{}
		} else if _, promoted := halfOpen[flow.key()]; promoted { // meanwhile
			return true
		}
		return f(flow)
	})
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

// openMask: of these states an open flow has the first alone.
const openMask = uint64(bpf.XdplbFlowStateFlowSpoken | bpf.XdplbFlowStateFlowClosing | bpf.XdplbFlowStateFlowFinished | bpf.XdplbFlowStateFlowReset)

func decodeFlow(key bpf.XdplbTuple, value bpf.XdplbFlow, halfOpen bool) Flow {
	toClient := value.Direction == uint8(bpf.XdplbFlowDirectionFlowToClient)
	has := func(state bpf.XdplbFlowState) bool { return value.Stamp&uint64(state) != 0 }
	return Flow{
		Tuple: Tuple{
			Src: Addr(key.Src), Dst: Addr(key.Dst),
			SrcPort: key.Sport, DstPort: key.Dport, Proto: key.Proto,
		},
		Backend:      value.Backend,
		Seen:         value.Stamp >> uint64(bpf.XdplbFlowStampFlowStampShift),
		Spoken:       has(bpf.XdplbFlowStateFlowSpoken),
		Closing:      has(bpf.XdplbFlowStateFlowClosing),
		Answered:     has(bpf.XdplbFlowStateFlowAnswered),
		Finished:     has(bpf.XdplbFlowStateFlowFinished),
		Reset:        has(bpf.XdplbFlowStateFlowReset),
		BackendFirst: has(bpf.XdplbFlowStateFlowBackendFirst),
		ToClient:     toClient,
		Open:         !toClient && value.Stamp&openMask == uint64(bpf.XdplbFlowStateFlowSpoken),
		HalfOpen:     halfOpen,
		value:        value,
	}
}

func (t Tuple) key() bpf.XdplbTuple {
	return bpf.XdplbTuple{Src: Address(t.Src), Dst: Address(t.Dst), Sport: t.SrcPort, Dport: t.DstPort, Proto: t.Proto}
}

// DeleteFlow removes a dead entry from the map it was read from, and its twin with
// it, unless dead no longer says so: a packet has touched one of the two since.
func (m *Maps) DeleteFlow(f Flow, dead func(Flow) bool) error {
	twin, has, err := m.twin(f)
	if err != nil || has && !dead(twin) {
		return err
	}
	if has {
		err = m.deleteEntry(twin, dead)
	}
	return errors.Join(err, m.deleteEntry(f, dead))
}

// twin finds the entry of a flow's other direction.
func (m *Maps) twin(f Flow) (twin Flow, has bool, err error) {
	if !f.Translated() {
		return twin, false, nil
	}
	other := f.FromClient()
	if !f.ToClient {
		server, known := m.serverOf(f)
		if !known {
			return twin, false, nil
		}
		far := f.Far()
		other = Tuple{Src: server.Addr(), SrcPort: server.Port(), Dst: far.Addr(), DstPort: far.Port(), Proto: f.Proto}
	}
	for _, in := range []*ebpf.Map{m.HalfOpen, m.XdplbMaps.Flows} { // as a promotion goes
		var value bpf.XdplbFlow
		switch err := in.Lookup(other.key(), &value); {
		case errors.Is(err, ebpf.ErrKeyNotExist):
		case err != nil:
			return twin, false, fmt.Errorf("reading a flow: %w", err)
		case value.Id == f.value.Id:
			return decodeFlow(other.key(), value, in == m.HalfOpen), true, nil
		}
	}
	return twin, false, nil
}

// serverOf is where a flow of NAT or FULL-NAT goes. A record that was freed still
// tells, until its place is another's.
func (m *Maps) serverOf(f Flow) (at netip.AddrPort, known bool) {
	i := Index(f.Backend)
	if int(i) >= m.backends.len() {
		return at, false
	}
	var b Backend
	m.backends.read(i, &b.XdplbBackend)
	if b.Id != f.Backend && (b.Id != 0 || b.Vip != f.Backend) {
		return at, false
	}
	port := b.Port
	if port == 0 {
		port = f.DstPort
	}
	return netip.AddrPortFrom(b.Addr(), port), true
}

func (m *Maps) deleteEntry(f Flow, dead func(Flow) bool) error {
	from := m.XdplbMaps.Flows
	if f.HalfOpen {
		from = m.HalfOpen
	}
	var value bpf.XdplbFlow
	err := from.LookupAndDelete(f.key(), &value)
	if errors.Is(err, ebpf.ErrKeyNotExist) {
		return nil
	}
	if err == nil && (value.Id != f.value.Id || !dead(decodeFlow(f.key(), value, f.HalfOpen))) {
		err = from.Update(f.key(), value, ebpf.UpdateNoExist)
		if errors.Is(err, ebpf.ErrKeyExist) {
			return nil // a newer packet was quicker
		}
	}
	if err != nil {
		return fmt.Errorf("deleting a flow: %w", err)
	}
	return nil
}

// Of reports whether the flow is one of v, whose port 0 is every port. Twins that
// lead to clients are of none.
func (f Flow) Of(v VIP) bool {
	return !f.ToClient && f.Dst == v.Addr && f.Proto == v.Proto && (v.Port == 0 || f.DstPort == v.Port)
}

// Client is the flow's client.
func (f Flow) Client() netip.AddrPort {
	from := f.FromClient()
	return netip.AddrPortFrom(from.Src, from.SrcPort)
}
