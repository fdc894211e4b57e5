package loader

import (
	"encoding/binary"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"

	"github.com/xdplb/xdplb/bpf"
	"github.com/xdplb/xdplb/maps"
)

// ChosenBy says who chose a backend.
type ChosenBy string

// Who chooses. ByOld and ByNext are for established flows of moving slots that
// have no pin.
const (
	BySlot     ChosenBy = "slot"     // the slot of the packet's hash
	ByPin      ChosenBy = "pin"      // the flow's pin
	ByOld      ChosenBy = "old"      // where flows of this slot went before it moved
	ByNext     ChosenBy = "next"     // likewise, but that one is gone or down
	ByTurn     ChosenBy = "turn"     // the next slot in turn, of scheduler rr
	ByLoad     ChosenBy = "load"     // the less loaded of two, of scheduler lc
	ByAffinity ChosenBy = "affinity" // what the client had last
)

// ExplainedChoice is how the backend was chosen.
type ExplainedChoice struct {
	By     ChosenBy
	Turn   uint32          // of ByTurn: the slot
	Loads  []ExplainedLoad // of ByLoad: the two
	Client string          // of ByAffinity: masked
	Idle   time.Duration   // of ByAffinity: since its last new flow
}

// ExplainedLoad is one of the two that scheduler lc compares.
type ExplainedLoad struct {
	maps.Backend
	Load uint64 // open flows
}

// ExplainedPin is the entry of a flow in `flows` or `half_open`.
type ExplainedPin struct {
	HalfOpen bool
	ToClient bool
	Twins    bool // of NAT or FULL-NAT, with an entry for either direction
	State    maps.FlowState
	Idle     time.Duration
	Lifetime time.Duration
	Backend  *maps.Backend // nil: gone
	Followed bool
	Twin     TwinState
	Why      string // it is not followed; empty if it is
}

// Expired reports whether the entry is past its timeout.
func (p *ExplainedPin) Expired() bool { return p.Idle > p.Lifetime }

// TwinState is that of a flow's other entry.
type TwinState string

// Twins. TwinGone: it was evicted, and the packet brings it back. TwinOther: its
// tuple is another flow's by now.
const (
	TwinNone  TwinState = ""
	TwinThere TwinState = "there"
	TwinGone  TwinState = "gone"
	TwinOther TwinState = "other"
)

func (w *walk) describePin(e *entry) *ExplainedPin {
	p := &ExplainedPin{
		HalfOpen: !e.promoted, ToClient: e.toClient(), Twins: e.Id != 0,
		Idle: w.settings.Duration(w.now - min(e.seen(), w.now)), Backend: w.backend(e.Backend),
		State: maps.Flow{
			Tuple: w.Tuple, Spoken: e.has(flowSpoken), Closing: e.has(bpf.XdplbFlowStateFlowClosing),
			Finished: e.has(bpf.XdplbFlowStateFlowFinished), Reset: e.has(bpf.XdplbFlowStateFlowReset),
		}.State(),
	}
	lifetime := w.pinLifetime(e)
	if p.Twins {
		lifetime = w.lifetime(e, w.Proto)
	} else if w.Proto == unix.IPPROTO_UDP && e.has(flowSpoken) {
		lifetime = w.settings.UdpIdle
	}
	p.Lifetime = w.settings.Duration(lifetime)
	return p
}

// selectMoving is select_moving of bpf/select.h. Returns a backend's id, or 0.
func (w *walk) selectMoving() uint32 {
	if id := w.pinned(w.pin(w.Tuple)); id != 0 || w.refused != bpf.XdplbReasonPassed {
		return id
	}
	var id uint32
	if w.SYN || w.surelyNew() {
		id = w.choose()
	} else {
		id = w.unpinned()
	}
	if b := w.backend(id); b != nil && translates(b) {
		return w.openFlow(b)
	}
	return id
}

// pinned is the backend that an entry, if there is one, names; 0 if it does not
// count, or where refused is set, ends the packet's way.
func (w *walk) pinned(e *entry) uint32 {
	if e == nil {
		return 0
	}
	w.Pin = w.describePin(e)
	id := w.followPin(e)
	if w.Pin.Followed = id != 0; id != 0 || w.refused != bpf.XdplbReasonPassed {
		w.Choice = &ExplainedChoice{By: ByPin}
	}
	return id
}

// followPin is follow_pin and follow_flow: the pin's backend, or 0.
func (w *walk) followPin(e *entry) uint32 {
	switch {
	case !w.up(e.Backend):
		w.Pin.Why = "its backend is gone or down"
		return 0
	case e.Id != 0:
		return w.followFlow(e)
	case w.SYN && !w.live(e):
		w.Pin.Why = "it has expired, so the SYN begins a new connection"
		return 0
	case w.SYN && e.has(bpf.XdplbFlowStateFlowClosing):
		w.Pin.Why = "it is closing, so the SYN begins a new connection"
		return 0
	}
	return e.Backend
}

// surelyNew is surely_new; with a clock that went back it holds, as there.
func (w *walk) surelyNew() bool {
	if w.Proto != unix.IPPROTO_UDP {
		return false
	}
	since := w.VIP.PinnedSince
	return w.now-w.VIP.ChangedAt >= w.settings.UdpGrace ||
		!tableNames(w.VIP) && since != 0 && w.now-since > w.settings.UdpIdle
}

func (w *walk) wasHash() uint64 {
	was := maps.SlotFunction{Scheduler: maps.Scheduler(w.VIP.Was.Scheduler), SourcePrefix: w.VIP.Was.SourcePrefix}
	return was.Hash(&w.settings.HashKey, w.Tuple)
}

// unpinned is unpinned_backend and old_backend.
func (w *walk) unpinned() uint32 {
	slot, there := w.Slot.Slot, true
	if w.VIP.Has(bpf.XdplbVipFlagVipWas) {
		slot, there = w.slot(w.VIP, w.wasHash())
	}
	old := slot.Backend
	if slot.Moving {
		old = slot.Old
	}
	if there && w.up(old) {
		w.Choice = &ExplainedChoice{By: ByOld}
		if old == w.Slot.Backend {
			w.Choice.By = BySlot
		}
		return old
	}
	w.Choice = &ExplainedChoice{By: ByNext}
	return w.Slot.Backend
}

func translates(b *maps.Backend) bool { return Mode(b.Mode) == ModeNAT || Mode(b.Mode) == ModeFullNAT }

// forward is forward of bpf/send.h.
func (w *walk) forward() {
	b := w.Backend
	out := w.attached(uint32(b.Link.Interface))
	w.Hop = &ExplainedHop{
		MAC: b.Mac, MTU: int(b.Link.Mtu), Resolved: b.Resolved(),
		Local: b.Link.Flags&uint32(bpf.XdplbHopFlagHopLocal) != 0,
	}
	if out != nil {
		w.Hop.Interface = interfaceName(out.Ifindex)
	}
	switch {
	case w.Hop.Local:
		w.end(bpf.XdplbReasonPassed, "", "the backend is the local stack: the packet goes to the kernel as it came")
		if IsLocalStack(w.VIP.VIP, b) {
			w.Detail = "the local stack serves this flow (handover): the packet goes to the kernel as it came"
		}
	case !b.Resolved():
		w.end(bpf.XdplbReasonNoNextHop, "xdplb refresh", "no neighbour answered for %s when it was last asked; is the server up, and on the same network?", b.Addr())
	case out == nil:
		w.end(bpf.XdplbReasonNoNextHop, "xdplb attach IFACE, the one that the route to "+b.Addr().String()+" leaves by; then xdplb refresh", "the interface toward %s is not attached", b.Addr())
	case translates(b) && !w.followed:
		w.end(bpf.XdplbReasonFlowUnknown, "xdplb refresh", "the slot names a backend of %s before every flow is followed: a command was killed", Mode(b.Mode))
	default:
		w.leave(uint32(b.Link.Interface), out)
	}
}

// leave is send_on and send_frame.
func (w *walk) leave(number uint32, out *bpf.XdplbInterface) {
	after := &ExplainedHeader{
		Src: w.Source(), Dst: w.Destination(), From: out.Mac, To: w.Hop.MAC,
	}
	var ifindex uint32
	switch {
	case number == w.Number:
		w.end(bpf.XdplbReasonTransmitted, "", "it leaves by %s, where it came in", w.Hop.Interface)
	case !w.look(w.Devices, number, &ifindex):
		w.end(bpf.XdplbReasonNoNextHop, "xdplb attach "+w.Hop.Interface, "%s is no target of redirects: a command was killed", w.Hop.Interface)
		return
	default:
		w.end(bpf.XdplbReasonRedirected, "", "it leaves by %s", w.Hop.Interface)
	}
	w.After = after
	switch {
	case w.Backend != nil && Mode(w.Backend.Mode) == ModeTUN && !w.Reply:
		after.OuterDst = w.Backend.Addr()
		after.OuterSrc = w.outerSource()
		w.Hop.MTU -= outerSize(w.Backend)
	case w.Reply || translates(w.Backend):
		after.Src, after.Dst = source(w.to), destination(w.to)
	}
}

func outerSize(b *maps.Backend) int {
	if b.Addr().Is4() {
		return 20
	}
	return 40
}

// Source is where the packet comes from.
func (p *Packet) Source() netip.AddrPort { return source(p.Tuple) }

// Destination is where it is sent to.
func (p *Packet) Destination() netip.AddrPort { return destination(p.Tuple) }

func source(t maps.Tuple) netip.AddrPort { return netip.AddrPortFrom(t.Src, t.SrcPort) }

func destination(t maps.Tuple) netip.AddrPort { return netip.AddrPortFrom(t.Dst, t.DstPort) }

// outerSource is outer_source of bpf/encap.h.
func (w *walk) outerSource() netip.Addr {
	if w.Backend.Addr().Is6() || w.settings.SpreadMask == 0 {
		return maps.Addr(w.Backend.Source)
	}
	var hash, prefix, mask [4]byte
	binary.BigEndian.PutUint32(hash[:], uint32(w.hash))
	binary.LittleEndian.PutUint32(prefix[:], w.settings.SpreadPrefix) // network order, in memory
	binary.LittleEndian.PutUint32(mask[:], w.settings.SpreadMask)
	for i := range prefix {
		prefix[i] |= hash[i] & mask[i]
	}
	return netip.AddrFrom4(prefix)
}
