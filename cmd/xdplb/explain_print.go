package main

import (
	"fmt"
	"net"
	"net/netip"
	"strings"
	"time"

	"github.com/xdplb/xdplb/bpf"
	"github.com/xdplb/xdplb/loader"
	"github.com/xdplb/xdplb/maps"
)

// told is an explanation with the names that printing it needs.
type told struct {
	*loader.Explanation
	arrives string
	reasons []string
}

func (t told) print(e *env, opens *loader.Explanation) {
	table := newTable(e.stdout)
	row := func(step, format string, a ...any) { table.row(step, e.said(fmt.Sprintf(format, a...))) }
	row("packet", "%s, %s, comes in by %s", t.ports(), t.kind(), t.arrives)
	if t.VIP != nil {
		row("vip", "%s", t.vip())
	}
	if s := t.Slot; s != nil {
		row("slot", "%d of %d, hash %016x; %s", s.Index, t.VIP.TableSize, s.Hash, s.Why)
	}
	if t.Pin != nil {
		row("pin", "%s", t.pin())
	} else if t.Slot != nil && t.Slot.Looked {
		row("pin", "none")
	}
	if t.Backend != nil {
		row("backend", "%s", t.backend())
	}
	if t.Claim != nil {
		row("source", "%s", t.source())
	}
	if t.Hop != nil {
		row("next hop", "%s", t.hop())
	}
	if h := t.After; h != nil {
		row("before", "%s", t.ports())
		row("after", "%s", t.after())
	}
	row("verdict", "%s: %s", t.verdict(), t.Detail)
	if t.Mend != "" {
		row("mend", "%s", t.Mend)
	}
	if opens != nil {
		row("syn", "a SYN instead: %s", told{opens, t.arrives, t.reasons}.brief())
	}
	table.flush()
}

func (t told) ports() string {
	return fmt.Sprintf("%s → %s/%s", t.Source(), t.Destination(), maps.ProtoName(t.Proto))
}

func (t told) kind() string {
	switch {
	case t.SYN:
		return "a SYN"
	case t.Reply:
		return "a backend's answer"
	case maps.ProtoName(t.Proto) == "udp":
		return "a datagram"
	}
	return "of an open connection (no SYN)"
}

func (t told) vip() string {
	how := "found by its port"
	if t.AnyPort {
		how = "found by port 0, which is every port that no other VIP has"
	}
	scheduler := t.VIP.InUse().Scheduler.String()
	if t.VIP.Affinity != 0 {
		scheduler += " with affinity"
	}
	return fmt.Sprintf("%s, %s; scheduler %s", t.VIP.VIP, how, scheduler)
}

func (t told) pin() string {
	p := t.Pin
	place, server := "flows", "a backend that is gone"
	if p.HalfOpen {
		place = "half_open"
	}
	if p.Backend != nil {
		server = p.Backend.AddrPort().String()
	}
	text := fmt.Sprintf("in %s, %s, of %s; last seen %s ago, ", place, p.State, server, rounded(p.Idle))
	if p.Expired() {
		text += fmt.Sprintf("expired %s ago", rounded(p.Idle-p.Lifetime))
	} else {
		text += fmt.Sprintf("expires in %s", rounded(p.Lifetime-p.Idle))
	}
	switch p.Twin {
	case loader.TwinThere:
		text += "; the other direction has its entry"
	case loader.TwinGone:
		text += "; the entry of the other direction is gone, and made anew"
	case loader.TwinOther:
		text += "; the entry of the other direction is another flow's"
	}
	if p.Why != "" {
		text += "; not followed: " + p.Why
	}
	return text
}

func rounded(d time.Duration) string { return fmt.Sprintf("%.0f s", d.Seconds()) }

func (t told) backend() string {
	b := t.Backend
	if t.Hop != nil && t.Hop.Local {
		return t.localStack() + t.why()
	}
	text := fmt.Sprintf("%s, %s, weight %d", b.AddrPort(), loader.Mode(b.Mode), b.Weight)
	if b.Has(bpf.XdplbBackendFlagBackendDrain) || b.Weight == 0 {
		text += fmt.Sprintf(", draining: it keeps the flows that it has (to end that: xdplb enable %s)", b.AddrPort())
	}
	if b.Has(bpf.XdplbBackendFlagBackendUnlisted) {
		text += ", in the mode that it had before"
	}
	return text + t.why()
}

func (t told) localStack() string {
	if loader.IsLocalStack(t.VIP.VIP, t.Backend) {
		return "the local stack (handover)"
	}
	return fmt.Sprintf("the local stack (%s is an address of this host)", t.Backend.Addr())
}

// why says who chose the backend.
func (t told) why() string {
	c := t.Choice
	if c == nil {
		return ""
	}
	switch c.By {
	case loader.BySlot:
		return "; its slot names it"
	case loader.ByPin:
		return "; its pin names it"
	case loader.ByOld:
		return "; flows of this slot went there before it moved"
	case loader.ByNext:
		return "; its slot names it, and who had flows of this slot before is gone or down"
	case loader.ByTurn:
		return fmt.Sprintf("; slot %d is the next in turn, unless another flow takes it first", c.Turn)
	case loader.ByAffinity:
		return fmt.Sprintf("; client %s had it %s ago", c.Client, rounded(c.Idle))
	}
	loads := make([]string, len(c.Loads))
	for i, l := range c.Loads {
		loads[i] = fmt.Sprintf("%s has %d flows for weight %d", l.AddrPort(), l.Load, l.Weight)
	}
	if len(loads) == 1 {
		return "; the only one of two that takes new flows: " + loads[0]
	}
	return "; the less loaded of two: " + strings.Join(loads, ", ")
}

func (t told) source() string {
	c := t.Claim
	switch {
	case c.Addresses == nil:
		if c.Adopted {
			return fmt.Sprintf("%s, the client's own; its flow is adopted", c.Source)
		}
		return fmt.Sprintf("%s, the client's own", c.Source)
	case c.Adopted:
		return fmt.Sprintf("%s, which its other entry still has", c.Source)
	case c.Source.IsValid() && c.Source == c.First:
		return fmt.Sprintf("%s, which its hash picks of ports %s of %s", c.Source, c.Ports, addresses(c.Addresses))
	case c.Source.IsValid():
		return fmt.Sprintf("%s, the next that is free behind %s, of ports %s of %s", c.Source, c.First, c.Ports, addresses(c.Addresses))
	case t.Forwarded():
		return fmt.Sprintf("one of ports %s of %s, drawn at random: %s is in use", c.Ports, addresses(c.Addresses), c.First)
	}
	return fmt.Sprintf("none of ports %s of %s", c.Ports, addresses(c.Addresses))
}

func addresses(all []netip.Addr) string {
	texts := make([]string, len(all))
	for i, a := range all {
		texts[i] = a.String()
	}
	return strings.Join(texts, ", ")
}

func (t told) hop() string {
	h := t.Hop
	if h.Local {
		return "none: the kernel of this host"
	}
	name := h.Interface
	if name == "" {
		name = "an interface that is not attached"
	}
	if !h.Resolved {
		return fmt.Sprintf("%s, no neighbour: unresolved", name)
	}
	return fmt.Sprintf("%s, %s, %s, packets up to %d bytes", name, net.HardwareAddr(h.MAC.Mac[:]), vlanText(h.MAC.Vlan), h.MTU)
}

func vlanText(vlan uint16) string {
	switch vlan {
	case 0:
		return "VLAN tags as they came"
	case uint16(bpf.XdplbHopVlanHopUntagged):
		return "untagged"
	}
	return fmt.Sprintf("VLAN %d", vlan)
}

func (t told) after() string {
	h := t.After
	src := h.Src.String()
	if !h.Src.IsValid() {
		src = "(drawn at random)"
	}
	text := fmt.Sprintf("%s → %s/%s", src, h.Dst, maps.ProtoName(t.Proto))
	if h.OuterDst.IsValid() {
		text += fmt.Sprintf(" in %s → %s", h.OuterSrc, h.OuterDst)
	}
	return text + fmt.Sprintf("; MAC %s → %s", loader.MAC(h.From), net.HardwareAddr(h.To.Mac[:]))
}

func (t told) verdict() string {
	name := t.reasons[t.Reason]
	switch {
	case t.Reset:
		name += ", and a RST to its sender"
	case !t.Forwarded() && t.Reason != bpf.XdplbReasonPassed:
		name += ", dropped"
	}
	return name
}

// brief is one line about a packet.
func (t told) brief() string {
	if t.Backend == nil || !t.Forwarded() {
		text := t.verdict() + ": " + t.Detail
		if t.Mend != "" {
			text += "; mend: " + t.Mend
		}
		return text
	}
	text := "to " + t.backend()
	if t.Claim != nil && t.Claim.Addresses != nil {
		text += "; from " + t.source()
	}
	return text
}
