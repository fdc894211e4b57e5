package loader

import (
	"net/netip"

	"github.com/xdplb/xdplb/bpf"
	"github.com/xdplb/xdplb/maps"
)

// Limits of bpf/claim.h.
const (
	claimTries = 32  // ports of a large range that are tried
	claimWhole = 256 // a range up to this is tried whole
)

// ExplainedClaim is the source that a new flow of FULL-NAT gets, or of NAT keeps.
type ExplainedClaim struct {
	Addresses []netip.Addr
	Ports     PortRange
	First     netip.AddrPort // what is tried first: the flow's hash picks it
	Source    netip.AddrPort // invalid: First is taken, and another is drawn at random; or all are
	Adopted   bool           // an established flow goes on: its other entry is still there
}

// claim is struct translation, as far as a claim reads it.
type claim struct {
	*walk
	backend                      uint32
	reply                        maps.Tuple
	takesOwn, ownOnly, impatient bool
	owner                        *entry // that did not give way
	list, span                   uint32
	listed, low                  uint16
}

// sameFlow is same_flow: the entry is of the flow that this packet is of.
func (c *claim) sameFlow(e *entry) bool {
	return e.toClient() && e.Backend == c.backend && e.FarPort == c.SrcPort && e.VipPort == c.DstPort &&
		maps.Addr(e.Far) == c.Src && maps.Addr(e.Vip) == c.Dst
}

// keeps is owner_keeps: jiffies of silence after which the entry gives way.
func (c *claim) keeps(e *entry) uint64 {
	if b := c.walk.backend(e.Backend); b == nil || b.Has(bpf.XdplbBackendFlagBackendGone) {
		return 0
	}
	if e.closed() && (e.has(bpf.XdplbFlowStateFlowReset) || !e.has(bpf.XdplbFlowStateFlowBackendFirst)) {
		return c.settings.Jiffies(maps.ClosedKeeps)
	}
	limit := c.lifetime(e, c.Proto) + c.twinLag(e, c.Proto)
	if spoken := e.has(flowSpoken) || e.has(bpf.XdplbFlowStateFlowClosing) || e.has(bpf.XdplbFlowStateFlowFinished); c.impatient && !spoken {
		return min(limit, c.settings.Jiffies(maps.HandshakeKeeps))
	}
	return limit
}

// yields is take_over: whether the entry that has the tuple gives way.
func (c *claim) yields(e *entry) bool {
	own := c.takesOwn && c.sameFlow(e)
	if !own && (c.ownOnly || !c.older(e, c.keeps(e))) {
		return false
	}
	return !e.has(bpf.XdplbFlowStateFlowClaimed) || c.older(e, uint64(c.settings.Hz))
}

// free is claim.
func (c *claim) free() bool {
	c.owner = c.pin(c.reply)
	if c.owner == nil {
		return !c.ownOnly
	}
	return c.yields(c.owner)
}

// number is claim_number, of the numberth of all SNAT ports.
func (c *claim) number(n uint32) bool {
	if c.listed != 0 {
		var address bpf.XdplbAddress
		if !c.look(c.Snat, c.list+n/c.span, &address) {
			return false
		}
		c.reply.Dst = maps.Addr(address)
	}
	c.reply.DstPort = c.low + uint16(n%c.span)
	var taken bpf.XdplbVip
	if c.LookupVIP(maps.VIP{Addr: c.reply.Dst, Port: c.reply.DstPort, Proto: c.Proto}, &taken) {
		return false
	}
	return c.free()
}

// some is claim_some. random: the first is taken, and of a large range others are drawn.
func (c *claim) some(first, total uint32) (ok, random bool) {
	if c.number(first) {
		return true, false
	}
	if total > claimWhole {
		return false, true
	}
	for i := uint32(1); i < total; i++ {
		if c.number((first + i) % total) {
			return true, false
		}
	}
	return false, false
}

// port is claim_port. What is known of the outcome is in the Claim.
func (c *claim) port() (ok bool) {
	pool, count := c.settings.Snat, c.VIP.SnatCount
	c.list = uint32(c.VIP.SnatFirst)
	if count == 0 && c.Src.Is6() {
		c.list, count = uint32(pool.First6), pool.Count6
	} else if count == 0 {
		c.list, count = uint32(pool.First4), pool.Count4
	}
	c.listed, c.low = count, c.settings.SnatLow
	c.span = uint32(int32(c.settings.SnatHigh) - int32(c.settings.SnatLow) + 1)
	total := max(uint32(count), 1) * c.span
	if c.low == 0 || total == 0 {
		return false
	}
	x := &ExplainedClaim{Ports: PortRange{c.low, c.settings.SnatHigh}, Addresses: []netip.Addr{c.Dst}}
	if count > 0 {
		x.Addresses = nil
	}
	for i := range uint32(count) {
		var address bpf.XdplbAddress
		if c.look(c.Snat, c.list+i, &address) {
			x.Addresses = append(x.Addresses, maps.Addr(address))
		}
	}
	c.Claim = x
	first := uint32(maps.SlotFunction{Scheduler: maps.SchedulerMaglev}.Hash(&c.settings.HashKey, c.Tuple)) % total
	if int(first/c.span) < len(x.Addresses) {
		x.First = netip.AddrPortFrom(x.Addresses[first/c.span], c.low+uint16(first%c.span))
	}
	if !c.SYN {
		c.takesOwn, c.ownOnly = true, true
		if x.Adopted = c.number(first); x.Adopted {
			x.Source = x.First
			return true
		}
		if c.tcp() {
			return false
		}
		c.takesOwn, c.ownOnly = false, false
	}
	for _, c.impatient = range []bool{false, true} {
		ok, random := c.some(first, total)
		if ok {
			x.Source = destination(c.reply)
			return true
		}
		if random {
			c.reply.Dst, c.reply.DstPort = netip.Addr{}, 0
			return true
		}
	}
	return false
}
