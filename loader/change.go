package loader

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/cilium/ebpf"

	"github.com/xdplb/xdplb/bpf"
	"github.com/xdplb/xdplb/maps"
)

// What can be wrong with an object of a change.
var (
	ErrNoVIP     = errors.New("no such VIP; xdplb vip list shows them")
	ErrNoBackend = errors.New("no such backend; xdplb backend list shows them")
)

// change is a change to one VIP: what there is, edited in memory, and then
// committed in an order that keeps every state between two writes valid.
type change struct {
	b        *Balancer
	service  maps.Service
	stored   maps.Service   // as it is in the map
	backends []maps.Backend // all records, with those that are unlisted
	fresh    map[uint32]bool
	removed  map[uint32]bool
	dirty    map[uint32]bool
	slots    []maps.Slot // the table in place
	function maps.SlotFunction
	moveAll  bool
	added    bool          // the VIP is not stored as yet
	snat     *[]netip.Addr // the VIP's own SNAT addresses to be
	ended    bool          // it was given back, and nobody is left
}

// begin reads a VIP.
func (b *Balancer) begin(v maps.VIP) (*change, error) {
	services, err := b.Maps.Services()
	if err != nil {
		return nil, err
	}
	for _, s := range services {
		if s.VIP == v {
			return b.beginService(s)
		}
	}
	return nil, fmt.Errorf("%s: %w", v, ErrNoVIP)
}

func (b *Balancer) beginService(s maps.Service) (*change, error) {
	slots, err := b.Maps.Table(s.Id)
	if err != nil {
		return nil, err
	}
	c := &change{
		b: b, service: s, stored: s, slots: slots, function: s.InUse(),
		fresh: make(map[uint32]bool), removed: make(map[uint32]bool), dirty: make(map[uint32]bool),
	}
	for _, backend := range b.Maps.ReadBackends(func(vip uint32) bool { return vip == s.Id }) {
		if backend.Has(bpf.XdplbBackendFlagBackendGone) { // a command was killed after its deletion
			c.removed[backend.Id] = true
		}
		c.backends = append(c.backends, backend)
	}
	c.service.Affinity = affinityOf(&s, c.backends)
	c.mend()
	for i := range c.backends {
		if b := &c.backends[i]; b.Has(bpf.XdplbBackendFlagBackendChanging) { // killed before the table was swapped
			b.SetFlag(bpf.XdplbBackendFlagBackendChanging, false)
			c.dirty[b.Id] = true
		}
	}
	return c, nil
}

// mend makes whole what a command left that was killed: until the table is swapped
// nothing of it counts, from then on all. What counts is who the table names: a
// record that it names is listed, and no other of that address and port.
func (c *change) mend() {
	for _, b := range c.toMend() {
		c.b.Maps.WriteBackend(b)
	}
}

// toMend edits the records that mend writes.
func (c *change) toMend() (mended []*maps.Backend) {
	named := make(map[uint32]bool)
	for _, s := range c.slots {
		named[s.Backend] = true
	}
	listed := make(map[netip.AddrPort]*maps.Backend)
	for i := range c.backends {
		b := &c.backends[i]
		if first := listed[b.AddrPort()]; b.Up() && (named[b.Id] || b.Listed() && first == nil) {
			listed[b.AddrPort()] = b
		}
	}
	for i := range c.backends {
		b := &c.backends[i]
		if IsLocalStack(c.service.VIP, b) { // never listed, also where the table names it
			continue
		}
		if is := listed[b.AddrPort()] == b; is != b.Listed() && b.Up() {
			b.SetFlag(bpf.XdplbBackendFlagBackendUnlisted, !is)
			mended = append(mended, b)
		}
	}
	return mended
}

// listed finds a backend that the user knows.
func (c *change) listed(match func(*maps.Backend) bool) *maps.Backend {
	for i := range c.backends {
		if b := &c.backends[i]; b.Listed() && !c.removed[b.Id] && match(b) {
			return b
		}
	}
	return nil
}

// add appends a record with a new id. Its place is taken at once, as a record that
// is gone, so that the next command sweeps it up if this one is killed.
func (c *change) add(record bpf.XdplbBackend) error {
	id, ok, err := c.b.Maps.NewBackendID()
	if err != nil {
		return err
	}
	if !ok {
		return fmt.Errorf("all %d places for backends are taken; more: xdplb detach --all --purge, then attach with --max-backends", c.b.Maps.Backends.MaxEntries()-1)
	}
	record.Id, record.Vip = id, c.service.Id
	backend := maps.Backend{XdplbBackend: record}
	taken := backend
	taken.SetFlag(bpf.XdplbBackendFlagBackendGone, true)
	c.b.Maps.WriteBackend(&taken)
	c.fresh[id], c.dirty[id] = true, true
	c.backends = append(c.backends, backend)
	return nil
}

// discard takes back what add wrote, if the change is not committed.
func (c *change) discard() {
	for i := range c.backends {
		if c.fresh[c.backends[i].Id] {
			_ = c.b.Maps.FreeBackend(&c.backends[i])
		}
	}
}

// up tells which backends serve the flows they have. It is asked for every slot.
func (c *change) up() func(id uint32) bool {
	serving := make(map[uint32]bool, len(c.backends))
	for i := range c.backends {
		b := &c.backends[i]
		serving[b.Id] = b.Up() && !c.removed[b.Id]
	}
	return func(id uint32) bool { return serving[id] }
}

// commit writes the change, once it has ended the moving of slots that can settle.
func (c *change) commit() error {
	if err := c.settle(); err != nil {
		return err
	}
	if c.ended {
		return c.endHandover()
	}
	return c.b.commitAll([]*change{c})
}

// writeBefore writes what the next table needs: new records, unlisted as yet.
// Removed ones are no longer listed, and serve on.
func (c *change) writeBefore() {
	for i := range c.backends {
		b := c.backends[i]
		if c.fresh[b.Id] || c.removed[b.Id] && b.Listed() {
			b.SetFlag(bpf.XdplbBackendFlagBackendUnlisted, true)
		} else if !c.dirty[b.Id] {
			continue
		} else if IsLocalStack(c.service.VIP, &b) { // what it says decides: the next command would finish it
		} else if !b.Listed() {
			continue
		} else {
			b.SetFlag(bpf.XdplbBackendFlagBackendChanging, true)
		}
		c.b.Maps.WriteBackend(&b)
	}
}

// writeAfter lists the new records, and then no longer those that they replace.
func (c *change) writeAfter() {
	for _, fresh := range []bool{true, false} {
		for i := range c.backends {
			if id := c.backends[i].Id; c.dirty[id] && c.fresh[id] == fresh && !c.removed[id] {
				c.b.Maps.WriteBackend(&c.backends[i])
			}
		}
	}
	c.fresh = nil
}

// stamp makes now the time of the VIP's last change.
func (c *change) stamp() error {
	now, err := c.b.Now()
	c.service.ChangedAt, c.stored.ChangedAt = now, now
	return err
}

// dropRemoved gives the records of removed backends back; no slot names them.
func (c *change) dropRemoved() error {
	for i := range c.backends {
		b := &c.backends[i]
		if !c.removed[b.Id] {
			continue
		}
		// First no pin leads to it any more, then its place may be used again.
		b.SetFlag(bpf.XdplbBackendFlagBackendGone, true)
		c.b.Maps.WriteBackend(b)
		if err := c.b.Maps.FreeBackend(b); err != nil {
			return err
		}
	}
	if len(c.removed) > 0 {
		return c.b.tidyReplies()
	}
	return nil
}

func changed(a, b []maps.Slot) bool {
	for i := range a {
		if a[i] != b[i] {
			return true
		}
	}
	return false
}

// each runs a change on every VIP: all are begun and edited before any is
// committed, so that what can be refused is refused before anything is written.
// One that ended meanwhile is not changed: see gone.
func (b *Balancer) each(services []maps.Service, edit func(*change) (touched bool, err error)) (err error) {
	var changes []*change
	defer func() {
		if err != nil {
			for _, c := range changes {
				c.discard()
			}
		}
	}()
	for _, s := range services {
		c, err := b.beginService(s)
		if err != nil {
			return err
		}
		changes = append(changes, c)
		touched, err := edit(c)
		if err != nil {
			return fmt.Errorf("%s: %w", s.VIP, err)
		}
		if !touched {
			changes = changes[:len(changes)-1]
		}
	}
	for len(changes) > 0 {
		c := changes[0]
		changes = changes[1:] // no longer to be discarded: packets may use what it adds
		if err := c.commit(); err != nil {
			return err
		}
	}
	return nil
}

// edit runs a change on one VIP.
func (b *Balancer) edit(v maps.VIP, f func(*change) error) error {
	c, err := b.begin(v)
	if err != nil {
		return err
	}
	if err = f(c); err == nil {
		err = c.checkSource()
	}
	if err != nil {
		c.discard()
		return err
	}
	if err := c.commit(); err != nil || !c.ended {
		return err
	}
	return gone(v)
}

func fullVIPs(m *maps.Maps, err error) error {
	if maps.IsFull(err) || errors.Is(err, ebpf.ErrKeyNotExist) {
		return fmt.Errorf("all %d places for VIPs are taken; more: xdplb detach --all --purge, then attach with --max-vips", m.MaxVIPs())
	}
	return err
}
