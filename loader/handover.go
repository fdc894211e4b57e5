package loader

import (
	"encoding/binary"
	"fmt"
	"slices"
	"time"

	"github.com/xdplb/xdplb/bpf"
	"github.com/xdplb/xdplb/maps"
)

// A VIP is taken over from what serves its address on this host already, such as IPVS, and
// given back to it, without a TCP connection lost. For that it has one more record, which
// nobody lists: the local stack. Its packets pass to the kernel.
//
//	taking over  every slot moves, `old` is the local stack: it keeps what it has, new flows are
//	             ours. As long as no backend takes any, they are its, too.
//	giving back  `backend` is the local stack in every slot: new flows are its, and the backends
//	             keep what they have.
//
// Either lasts for the time that was given, and then until it settles: see change.settle.
//
// UDP shows no beginning. A flow that is silent from the change on for longer than udp_grace,
// 10 s, is a new one with its next packet, and moves.

// Bounds of a handover: connections that are silent for longer than it are lost.
const (
	MinHandover = time.Second
	MaxHandover = 24 * time.Hour
)

// CheckHandover says what is wrong with the duration of a handover.
func CheckHandover(d time.Duration) error {
	if d < MinHandover || d > MaxHandover {
		return fmt.Errorf("--handover %s: use %s to %s; 15m is as long as IPVS keeps silent connections", d, MinHandover, "24h")
	}
	return nil
}

// handover is what the record of a local stack says.
type handover struct {
	until    uint64 // jiffies
	back     bool   // to the local stack
	affinity uint32 // jiffies; the VIP's own: see stored
}

// stored is the affinity that `vips` has: while the VIP is given back none, because clients
// that keep their backend would begin flows there.
func (h handover) stored() uint32 {
	if h.back {
		return 0
	}
	return h.affinity
}

// They are the two words of `source`, which only tunnels use.
func (h handover) writeTo(b *bpf.XdplbBackend) {
	word := h.until << 1
	if h.back {
		word |= 1
	}
	binary.LittleEndian.PutUint64(b.Source.Bytes[:8], word)
	binary.LittleEndian.PutUint64(b.Source.Bytes[8:], uint64(h.affinity))
}

func handoverOf(b *maps.Backend) handover {
	word := binary.LittleEndian.Uint64(b.Source.Bytes[:8])
	return handover{word >> 1, word&1 != 0, binary.LittleEndian.Uint32(b.Source.Bytes[8:])}
}

// IsLocalStack reports whether a record of a VIP stands for the local stack. No backend can:
// checkBackend refuses the VIP's own address, and mode dr another port.
func IsLocalStack(v maps.VIP, b *maps.Backend) bool {
	return b.Addr() == v.Addr && Mode(b.Mode) == ModeDR
}

// localStack is the VIP's record of it; nil unless the VIP is in handover.
func (c *change) localStack() *maps.Backend {
	local := localStackOf(c.service.VIP, c.backends)
	if local == nil || c.removed[local.Id] {
		return nil
	}
	return local
}

// localTakes is the id of the local stack if new flows are to go there; else 0.
func (c *change) localTakes(others bool) (uint32, error) {
	local := c.localStack()
	switch {
	case local == nil:
		return 0, nil
	case handoverOf(local).back:
		return local.Id, nil
	case others:
		return 0, nil
	}
	now, err := c.b.Now()
	if err != nil || !c.handsOver(now) {
		return 0, err
	}
	return local.Id, nil
}

func (c *change) givesBack() bool {
	local := c.localStack()
	return local != nil && handoverOf(local).back
}

// handsOver reports whether the time of a handover is not over.
func (c *change) handsOver(now uint64) bool {
	local := c.localStack()
	return local != nil && now <= handoverOf(local).until
}

// gaveBack reports whether a VIP that is being given back has no flow left but those of the
// local stack; named are the backends of live flows, those of other VIPs among them.
func (c *change) gaveBack(named map[uint32]bool) bool {
	local := c.localStack()
	return c.givesBack() &&
		!slices.ContainsFunc(c.slots, func(s maps.Slot) bool { return s.Moving || s.Backend != local.Id }) &&
		!slices.ContainsFunc(c.backends, func(b maps.Backend) bool { return b.Id != local.Id && named[b.Id] })
}

// release takes the local stack out of slots that go on moving for others, once it has no
// flow; named are the backends of live pins.
func (c *change) release(slots []maps.Slot, named map[uint32]bool) []maps.Slot {
	local := c.localStack()
	if local == nil || named[local.Id] || handoverOf(local).back {
		return slots
	}
	slots = slices.Clone(slots)
	for i := range slots {
		if s := &slots[i]; s.Old == local.Id {
			s.Old = s.Backend
		}
	}
	return slots
}

// hand begins a handover, or changes the one that is.
func (c *change) hand(d time.Duration, back bool) (*maps.Backend, error) {
	if err := CheckHandover(d); err != nil {
		return nil, err
	}
	now, err := c.b.Now()
	if err != nil {
		return nil, err
	}
	h := handover{now + c.b.Settings.Jiffies(d), back, c.service.Affinity}
	if local := c.localStack(); local != nil {
		h.writeTo(&local.XdplbBackend)
		c.dirty[local.Id] = true
		return local, nil
	}
	record := bpf.XdplbBackend{
		Address: maps.Address(c.service.Addr), Port: c.service.Port, Weight: 1, Mode: uint8(ModeDR),
		Flags: uint8(bpf.XdplbBackendFlagBackendUnlisted),
	}
	record.Link.Flags = uint32(bpf.XdplbHopFlagHopResolved | bpf.XdplbHopFlagHopLocal)
	h.writeTo(&record)
	if err := c.add(record); err != nil {
		return nil, err
	}
	return &c.backends[len(c.backends)-1], nil
}

// halfHanded reports whether the VIP does not do what the record of its local stack says,
// because a command was killed that had written the record.
func (c *change) halfHanded() bool {
	local := c.localStack()
	if local == nil {
		return false
	}
	h := handoverOf(local)
	if c.service.Affinity != h.stored() {
		return true
	}
	if !h.back && !slices.ContainsFunc(c.backends, func(b maps.Backend) bool { return b.TakesNew() }) {
		return false // who takes new flows is a matter of time
	}
	return slices.ContainsFunc(c.slots, func(s maps.Slot) bool { return (s.Backend == local.Id) != h.back })
}

// noteAffinity keeps the VIP's affinity in the record of the local stack, where it has one.
func (c *change) noteAffinity() {
	local := c.localStack()
	if local == nil {
		return
	}
	if h := handoverOf(local); h.affinity != c.service.Affinity {
		h.affinity = c.service.Affinity
		h.writeTo(&local.XdplbBackend)
		c.dirty[local.Id] = true
	}
}

// toStore is the VIP's record as `vips` is to have it.
func (c *change) toStore() *maps.Service {
	s := c.service
	if local := c.localStack(); local != nil {
		s.Affinity = handoverOf(local).stored()
	}
	return &s
}

// takeOver begins a new VIP's life with the flows that the local stack has.
func (c *change) takeOver(d time.Duration) error {
	local, err := c.hand(d, false)
	if err != nil {
		return err
	}
	c.slots = slices.Repeat([]maps.Slot{{Backend: local.Id, Old: local.Id, Moving: true}}, int(c.service.TableSize))
	return nil
}

// takeAgain ends giving back: what the local stack has begun meanwhile stays its. A VIP that
// is being taken over gets another time.
func (c *change) takeAgain(d time.Duration) error {
	if c.localStack() == nil {
		return fmt.Errorf("--handover %s: the VIP is not being handed over, and only of a new one it is known which connections are the local stack's; leave it out", d)
	}
	_, err := c.hand(d, false)
	return err
}

// giveBack lets new flows go to the local stack.
func (c *change) giveBack(d time.Duration) error {
	_, err := c.hand(d, true)
	return err
}

// GiveBack gives a VIP, or all, back to the local stack: new flows go there from now on, and
// those there are stay with their backends. The VIP is removed once d is over and no flow is
// left, by the next change to it or Refresh; DeleteVIP ends it at once.
func (b *Balancer) GiveBack(only *maps.VIP, d time.Duration) error {
	services, err := b.services(Selection{VIP: only})
	if err != nil {
		return err
	}
	return b.each(services, func(c *change) (bool, error) { return true, c.giveBack(d) })
}

// gone refuses a change to a VIP that was given back and has ended. The end is not the
// change's doing, and no half of it: whatever command looks at the VIP first finds that its
// time is over and nobody left, ends it, and then has nothing to change.
func gone(v maps.VIP) error {
	return fmt.Errorf("%s: was given back to the local stack, and is gone; add it with xdplb vip add", v)
}

// endHandover removes a VIP that was given back, with the pins that it leaves.
func (c *change) endHandover() error {
	c.discard()
	if err := c.b.DeleteVIP(c.service.VIP); err != nil {
		return err
	}
	var left []maps.Flow
	err := c.b.Maps.Flows(func(f maps.Flow) bool {
		if c.owns(f) {
			left = append(left, f)
		}
		return true
	})
	for _, f := range left {
		if err == nil {
			err = c.b.Maps.DeleteFlow(f, func(maps.Flow) bool { return true })
		}
	}
	return err
}

// localStackOf finds the record of a VIP's local stack among the VIP's; nil unless the VIP is
// in handover.
func localStackOf(v maps.VIP, records []maps.Backend) *maps.Backend {
	i := slices.IndexFunc(records, func(b maps.Backend) bool { return b.Up() && IsLocalStack(v, &b) })
	if i < 0 {
		return nil
	}
	return &records[i]
}

// GivenBack reports whether a VIP with these records is being given back.
func GivenBack(v maps.VIP, records []maps.Backend) bool {
	local := localStackOf(v, records)
	return local != nil && handoverOf(local).back
}

// TakeAgain is the command that ends giving a VIP back.
func TakeAgain(v maps.VIP) string { return fmt.Sprintf("xdplb vip set %s --handover 15m", v) }

// warnGivenBack names the VIPs that are wanted, and go all the same.
func (p *planner) warnGivenBack() {
	for i := range p.w.VIPs {
		w := &p.w.VIPs[i]
		if is := p.state.vips[w.VIP]; is != nil && is.givenBack && w.Handover == 0 {
			p.Warnings = append(p.Warnings, fmt.Sprintf("%s: is being given back to the local stack, and goes on; to keep it: %s", w.VIP, TakeAgain(w.VIP)))
		}
	}
}

// HandoverView is a handover as users see it.
type HandoverView struct {
	Back  bool          // to the local stack; else from it
	Left  time.Duration // 0: it ends when it settles
	Local BackendView   // what went to the local stack
}

// Handover is that of a VIP with these records, without what the local stack has; nil if there
// is none.
func (b *Balancer) Handover(v maps.VIP, records []maps.Backend) (*HandoverView, error) {
	local := localStackOf(v, records)
	if local == nil {
		return nil, nil
	}
	now, err := b.Now()
	return b.handoverView(local, now), err
}

func (b *Balancer) handoverView(record *maps.Backend, now uint64) *HandoverView {
	h := handoverOf(record)
	return &HandoverView{Back: h.back, Left: b.Settings.Duration(h.until - min(now, h.until))}
}
