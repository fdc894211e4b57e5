package loader

import (
	"fmt"

	"github.com/xdplb/xdplb/bpf"
	"github.com/xdplb/xdplb/maps"
)

const reconnects = "nothing to mend: who sent it connects anew"

// followFlow is follow_flow of bpf/nat.h: a packet of the client in a flow of NAT or
// FULL-NAT. Returns the backend's id; 0 if the entry is dead, or where refused is
// set, lost.
func (w *walk) followFlow(e *entry) uint32 {
	switch {
	case e.toClient():
		w.Pin.Why = "it is the reply's entry of another flow"
		return 0
	case !w.alive(e, w.Proto):
		w.Pin.Why = "it has expired"
		return 0
	}
	b := w.backend(e.Backend)
	if b == nil { // freed since it was asked for
		w.Pin.Why = "its backend is gone or down"
		return 0
	}
	w.to = maps.Tuple{Src: maps.Addr(e.Far), SrcPort: e.FarPort, Dst: b.Addr(), DstPort: portOf(b, w.DstPort), Proto: w.Proto}
	w.followed = true
	if w.SYN && e.has(flowEnds|bpf.XdplbFlowStateFlowReset) {
		w.Pin.Why = "it is closing or closed, so the SYN begins a new connection"
		return 0
	}
	due := w.twinDue(e, w.Proto) || !w.SYN && !e.has(flowSpoken) || !w.SYN && !e.promoted && e.has(bpf.XdplbFlowStateFlowAnswered)
	if w.LastHop != nil && (*w.LastHop != e.LastHop || uint32(e.Interface) != w.Number) {
		due = true
	}
	if w.twin(e) == TwinOther && due {
		w.refused = bpf.XdplbReasonTwinLost
		w.end(w.refused, reconnects, "the tuple of the flow's replies is another flow's by now")
		return 0
	}
	return e.Backend
}

func portOf(b *maps.Backend, own uint16) uint16 {
	if b.Port == 0 {
		return own
	}
	return b.Port
}

// twin looks for the entry of the other direction, as touch_twin does.
func (w *walk) twin(e *entry) TwinState {
	w.Pin.Twin = TwinThere
	if twin := w.pin(reversed(w.to)); twin == nil {
		w.Pin.Twin = TwinGone
	} else if twin.Id != e.Id {
		w.Pin.Twin = TwinOther
	}
	return w.Pin.Twin
}

// openFlow is open_flow: a flow that has no entry, toward a backend of NAT or
// FULL-NAT. Returns the backend's id, or 0.
func (w *walk) openFlow(b *maps.Backend) uint32 {
	nat := Mode(b.Mode) == ModeNAT
	c := &claim{walk: w, backend: b.Id, reply: maps.Tuple{Src: b.Addr(), SrcPort: portOf(b, w.DstPort), Dst: w.Dst, Proto: w.Proto}}
	opens := w.SYN || !w.tcp()
	w.refused = bpf.XdplbReasonFlowUnknown
	switch {
	case !opens && nat && !tableNames(w.VIP):
		w.unknown("a connection without a flow is adopted only where the table alone names its backend")
		return 0
	case nat:
		c.reply.Dst, c.reply.DstPort, c.takesOwn = w.Src, w.SrcPort, true
		if !c.free() {
			w.clash(b, c.owner)
			return 0
		}
		w.Claim = &ExplainedClaim{Source: source(w.Tuple), Adopted: !opens}
	case !c.port():
		if opens {
			w.exhausted(b)
		} else {
			w.Claim = nil
			w.unknown("a connection without a flow: nobody knows which source its backend knows it by")
		}
		return 0
	}
	w.refused = bpf.XdplbReasonPassed
	w.followed = true
	w.to = reversed(c.reply)
	return b.Id
}

// tableNames is table_names.
func tableNames(v *maps.Service) bool { return v.InUse().Scheduler.Pure() && v.Affinity == 0 }

func (w *walk) unknown(detail string) {
	w.end(bpf.XdplbReasonFlowUnknown, reconnects, "%s", detail)
}

func (w *walk) clash(b *maps.Backend, owner *entry) {
	w.refused = bpf.XdplbReasonNatClash
	through := maps.VIP{Addr: maps.Addr(owner.Vip), Port: owner.VipPort, Proto: w.Proto}
	mend := fmt.Sprintf("xdplb backend set %s %s --mode fullnat", w.VIP.VIP, b.AddrPort())
	if through == w.VIP.VIP {
		mend = "wait: the server may still hold this tuple in TIME_WAIT"
	}
	w.end(w.refused, mend, "the client's port talks to %s through %s already", b.AddrPort(), through)
}

func (w *walk) exhausted(b *maps.Backend) {
	w.refused = bpf.XdplbReasonSnatExhausted
	if w.Claim == nil {
		w.end(w.refused, "xdplb snat ports LO-HI", "no SNAT ports are set")
		return
	}
	w.end(w.refused, "xdplb snat add ADDR, or xdplb snat ports LO-HI", "each of %d ports %s of %d SNAT addresses is in use toward %s",
		w.Claim.Ports.Size(), w.Claim.Ports, len(w.Claim.Addresses), b.AddrPort())
}

// sendBack is send_back of bpf/send.h and follow_reply of bpf/nat.h. False: the
// packet is no reply.
func (w *walk) sendBack() bool {
	e := w.pin(w.Tuple)
	if e == nil || !e.toClient() {
		return false
	}
	w.Pin = w.describePin(e)
	switch {
	case !w.up(e.Backend):
		w.Pin.Why = "its backend is gone or down"
		return false
	case !w.alive(e, w.Proto):
		w.Pin.Why = "it has expired"
		return false
	}
	w.Reply = true
	w.Backend = w.Pin.Backend
	w.to = maps.Tuple{Src: maps.Addr(e.Vip), SrcPort: e.VipPort, Dst: maps.Addr(e.Far), DstPort: e.FarPort, Proto: w.Proto}
	if e.has(bpf.XdplbFlowStateFlowClaimed) {
		w.Pin.Why = "another flow begins in its place"
		w.end(bpf.XdplbReasonTwinLost, reconnects, "the flow is dead, and another takes its tuple")
		return true
	}
	due := w.twinDue(e, w.Proto) || !e.has(bpf.XdplbFlowStateFlowAnswered)
	if w.twin(e) == TwinOther && due {
		w.Pin.Why = "its twin is another flow's"
		w.end(bpf.XdplbReasonTwinLost, reconnects, "the client has begun another flow meanwhile")
		return true
	}
	w.Pin.Followed = true
	out := w.attached(uint32(e.Interface))
	if out == nil {
		w.end(bpf.XdplbReasonNoNextHop, "xdplb attach IFACE, the one toward the client", "the interface that the client's frames came by is no longer attached")
		return true
	}
	w.Hop = &ExplainedHop{Interface: interfaceName(out.Ifindex), MAC: e.LastHop, MTU: int(out.Mtu), Resolved: true}
	w.leave(uint32(e.Interface), out)
	return true
}
