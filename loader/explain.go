package loader

import (
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"

	"github.com/xdplb/xdplb/bpf"
	"github.com/xdplb/xdplb/maps"
)

// Packet is what Explain is asked about: a whole TCP or UDP packet, without FIN or
// RST, whose TTL is above 1 and which is small enough for its way.
type Packet struct {
	maps.Tuple
	SYN    bool   // TCP: it opens a connection
	Number uint32 // of the attached interface that it comes in by
	// LastHop is the MAC that the frame comes from, and its VLAN; nil: where the
	// flow's frames came from before.
	LastHop *bpf.XdplbHopMac
}

// Explanation says what would become of a packet now. What the packet does not
// come to is nil.
type Explanation struct {
	Packet
	VIP     *maps.Service  // nil: no VIP's, or a reply
	AnyPort bool           // the VIP was found under port 0
	Reply   bool           // it is what a backend of NAT or FULL-NAT sends to a client
	Slot    *ExplainedSlot // nil: the VIP has no table
	Pin     *ExplainedPin
	Choice  *ExplainedChoice // nil: nobody was chosen
	Claim   *ExplainedClaim  // of a flow of NAT or FULL-NAT that begins with this packet
	Backend *maps.Backend    // whose packet it is; nil: nobody's
	Hop     *ExplainedHop
	After   *ExplainedHeader // nil: it is not forwarded
	Reason  bpf.XdplbReason  // what it is counted under
	Reset   bool             // its sender gets a RST
	Detail  string           // how it comes to Reason
	Mend    string           // a command, or what else helps; empty: nothing is wrong
}

// Forwarded reports whether the packet leaves toward a backend or a client.
func (x *Explanation) Forwarded() bool {
	return x.Reason == bpf.XdplbReasonTransmitted || x.Reason == bpf.XdplbReasonRedirected
}

// ExplainedSlot is the slot of the VIP's table that the packet's hash picks.
type ExplainedSlot struct {
	maps.Slot
	Hash   uint64
	Index  uint32
	Looked bool   // flow tables are asked before the slot
	Why    string // it is settled or moving
}

// ExplainedHop is how the packet would leave.
type ExplainedHop struct {
	Interface string // empty: none
	MAC       bpf.XdplbHopMac
	MTU       int // of the IP packet that came, bytes
	Resolved  bool
	Local     bool // this host's own stack
}

// ExplainedHeader is the packet's header as it leaves. A Src that is invalid is
// one of Claim's.
type ExplainedHeader struct {
	Src, Dst netip.AddrPort
	From     uint64 // source MAC
	To       bpf.XdplbHopMac
	// With TUN.
	OuterSrc, OuterDst netip.Addr
}

// Explain says what the data path would do with a packet now. It reads maps and
// changes nothing; the order in which LRU maps forget is left alone as well, for
// they do not take lookups by syscall for uses (kernel/bpf/hashtab.c,
// htab_lru_map_lookup_elem_sys).
//
// It is bpf/xdplb.c once more, and a test holds the two together.
func (b *Balancer) Explain(p Packet) (*Explanation, error) {
	now, err := b.Now()
	if err != nil {
		return nil, err
	}
	return explainAt(b.Maps, &b.Settings, now, p)
}

func explainAt(m *maps.Maps, settings *maps.Settings, now uint64, p Packet) (*Explanation, error) {
	w := &walk{reader: reader{Maps: m, settings: settings, now: now}, Explanation: &Explanation{Packet: p}}
	w.balance()
	if w.err != nil {
		return nil, fmt.Errorf("explaining a packet: %w", w.err)
	}
	return w.Explanation, nil
}

// walk is the way of one packet.
type walk struct {
	reader
	*Explanation
	hash     uint64
	followed bool            // NAT, FULL-NAT: what it becomes is known
	refused  bpf.XdplbReason // why it goes no further
	to       maps.Tuple      // what it becomes; no Src: one that is drawn at random
}

func (w *walk) tcp() bool { return w.Proto == unix.IPPROTO_TCP }

func (w *walk) end(reason bpf.XdplbReason, mend, format string, a ...any) {
	w.Reason, w.Mend, w.Detail = reason, mend, fmt.Sprintf(format, a...)
}

// balance is balance of bpf/xdplb.c.
func (w *walk) balance() {
	service := maps.Service{VIP: maps.VIP{Addr: w.Dst, Port: w.DstPort, Proto: w.Proto}}
	found := w.LookupVIP(service.VIP, &service.XdplbVip)
	if !found && w.settings.Has(bpf.XdplbSettingFlagSettingTranslates) && w.sendBack() {
		return
	}
	if !found && w.settings.Has(bpf.XdplbSettingFlagSettingAnyPort) {
		service.Port = 0
		w.AnyPort = w.LookupVIP(service.VIP, &service.XdplbVip)
		found = w.AnyPort
	}
	if !found {
		w.end(bpf.XdplbReasonPassed, "", "no VIP has this address, port and protocol, and no flow this reply: the packet goes to the kernel as it came")
		return
	}
	w.VIP = &service
	w.serve()
}

// serve is serve and select_backend.
func (w *walk) serve() {
	function := w.VIP.InUse()
	w.hash = function.Hash(&w.settings.HashKey, w.Tuple)
	if slot, there := w.slot(w.VIP, w.hash); there {
		w.Slot = &ExplainedSlot{Slot: slot, Hash: w.hash, Index: maps.SlotIndex(w.hash, w.VIP.TableSize)}
		w.describeSlot()
	}
	id := uint32(0)
	if w.VIP.Has(bpf.XdplbVipFlagVipPinAll) { // one that is in `flows` needs no slot
		id = w.pinned(w.entryIn(w.XdplbMaps.Flows, w.Tuple))
	}
	if id == 0 && w.refused == bpf.XdplbReasonPassed {
		if w.Slot == nil {
			w.end(bpf.XdplbReasonNoBackend, "xdplb backend add "+w.VIP.String()+" ADDR", "the VIP has no table: a command that added it was killed")
			return
		}
		id = w.selectSlot()
	}
	if w.Backend = w.backend(id); w.Backend == nil {
		w.refuse(id)
		return
	}
	w.forward()
}

// selectSlot is the part of select_backend behind the slot.
func (w *walk) selectSlot() uint32 {
	if w.Slot.Looked {
		return w.selectMoving()
	}
	w.Choice = &ExplainedChoice{By: BySlot}
	return w.Slot.Backend
}

// describeSlot is slot_moves, and says why.
func (w *walk) describeSlot() {
	s, v := w.Slot, w.VIP
	switch {
	case v.Has(bpf.XdplbVipFlagVipPinAll):
		s.Why = "flows are looked up: " + pinsAll(v)
	case v.Has(bpf.XdplbVipFlagVipWas):
		was := maps.SlotFunction{Scheduler: maps.Scheduler(v.Was.Scheduler), SourcePrefix: v.Was.SourcePrefix}
		s.Why = fmt.Sprintf("moving: the scheduler was %s until %s ago", was.Scheduler, w.ago(v.ChangedAt))
	case s.Moving:
		s.Why = fmt.Sprintf("moving: the backends changed, last %s ago", w.ago(v.ChangedAt))
	default:
		s.Why = "settled: no flow is looked up"
	}
	s.Looked = s.Moving || v.Has(bpf.XdplbVipFlagVipPinAll) || v.Has(bpf.XdplbVipFlagVipWas)
}

func pinsAll(v *maps.Service) string {
	switch {
	case v.Has(bpf.XdplbVipFlagVipTrackAll):
		return "--track all pins every one"
	case !v.InUse().Scheduler.Pure():
		return fmt.Sprintf("scheduler %s pins every one", v.InUse().Scheduler)
	case v.Affinity != 0:
		return "--affinity pins every one"
	}
	return "a NAT or FULL-NAT backend pins every one"
}

// refuse is refuse of bpf/xdplb.c, for a packet that has no backend.
func (w *walk) refuse(id uint32) {
	switch w.refused {
	case bpf.XdplbReasonPassed:
		w.noBackend(id)
		return
	case bpf.XdplbReasonFlowUnknown, bpf.XdplbReasonNatClash:
		w.Reset = w.tcp() && mayBeSource(w.Src)
	}
	w.Reason = w.refused // who refused has said why
	w.Choice = nil
}

// mayBeSource is deserves_error of bpf/icmp.h.
func mayBeSource(a netip.Addr) bool {
	if a.Is6() {
		return !a.IsMulticast() && !a.IsUnspecified()
	}
	first := a.As4()[0]
	return first != 0 && first != 127 && first < 224
}

// noBackend says why nobody is there, by what the VIP has.
func (w *walk) noBackend(id uint32) {
	w.Choice = nil
	var draining, unresolved, down int
	var last maps.Backend
	all := w.ReadBackends(func(vip uint32) bool { return vip == w.VIP.Id })
	listed := 0
	for i := range all {
		r := &all[i]
		if !r.Listed() {
			continue
		}
		listed++
		last = *r
		switch {
		case r.Has(bpf.XdplbBackendFlagBackendDown):
			down++
		case r.Has(bpf.XdplbBackendFlagBackendDrain), r.Weight == 0:
			draining++
		case !r.Resolved():
			unresolved++
		}
	}
	const reason = bpf.XdplbReasonNoBackend
	switch {
	case listed == 0:
		w.end(reason, fmt.Sprintf("xdplb backend add %s ADDR", w.VIP.VIP), "the VIP has no backend")
	case id != 0:
		w.end(reason, "", "the backend that had this flow was deleted; a new connection gets another")
	case unresolved > 0 && draining+unresolved+down == listed:
		w.end(reason, "xdplb refresh", "no backend takes new flows: %d unresolved (no neighbour answers), %d draining, %d down", unresolved, draining, down)
	case draining > 0 && draining+down == listed:
		w.end(reason, fmt.Sprintf("xdplb enable %s", last.AddrPort()), "no backend takes new flows: %d draining or of weight 0, %d down", draining, down)
	case down == listed:
		w.end(reason, "mend the servers: health checks say that they are down", "no backend serves: %d down", down)
	default:
		w.end(reason, "xdplb refresh", "the slot names no backend, though %d could serve: a command was killed", listed-draining-unresolved-down)
	}
}
