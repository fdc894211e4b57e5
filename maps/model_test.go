package maps_test

import (
	"iter"
	"net/netip"

	"github.com/xdplb/xdplb/maps"
)

// Times in seconds, as `xdplb timeout` has them at first.
const (
	tcpIdle      = 900
	udpIdle      = 300
	halfOpenIdle = 60
	udpGrace     = 10
)

const (
	tcp = 6
	udp = 17
)

// server is a backend as commands and health checks see it.
type server struct {
	address          netip.AddrPort
	weight           uint16
	down, unresolved bool
}

// pool is the backends of a VIP by id.
type pool map[uint32]server

// up: it serves the flows it has. Draining and unresolved servers do.
func (p pool) up(id uint32) bool {
	s, present := p[id]
	return present && !s.down
}

// entries are the servers that may get new flows.
func (p pool) entries() []maps.Entry {
	var entries []maps.Entry
	for id, s := range p {
		if !s.down && !s.unresolved {
			entries = append(entries, maps.Entry{ID: id, Addr: s.address.Addr(), Port: s.address.Port(), Weight: s.weight})
		}
	}
	return entries
}

// change is one step of a history: server id becomes what it says, or is deleted;
// or, where function is set, the VIP gets another slot function.
type change struct {
	id       uint32
	server   server
	deleted  bool
	function *maps.SlotFunction
}

func (p pool) apply(c change) {
	switch {
	case c.function != nil:
	case c.deleted:
		delete(p, c.id)
	default:
		p[c.id] = c.server
	}
}

// segment is what selection sees of a packet.
type segment struct {
	tuple   maps.Tuple
	syn     bool // opens: SYN without ACK
	closing bool // FIN or RST
}

// director is a load balancer with one VIP that a history is played against: the
// model below, or the program itself. Every call says what time it is.
type director interface {
	apply(now int64, c change)
	settle(now int64)
	packet(now int64, s segment) (backend uint32) // 0: dropped for want of a backend
}

// model is just-enough tracking as DESIGN has it. The tables are those of the
// package; selection and the flow tables are what the C program does.
type model struct {
	key             [10]uint32
	pool            pool
	slots           []maps.Slot
	function        maps.SlotFunction
	was             *maps.SlotFunction // last settled; nil: function is
	changed         int64
	flows, halfOpen map[maps.Tuple]*pin
}

type pin struct {
	backend         uint32
	seen            int64
	spoken, closing bool
}

func newModel(key [10]uint32, size int) *model {
	return &model{
		key: key, pool: pool{}, slots: make([]maps.Slot, size), changed: -tcpIdle,
		flows: map[maps.Tuple]*pin{}, halfOpen: map[maps.Tuple]*pin{},
	}
}

func (m *model) apply(now int64, c change) {
	m.pool.apply(c)
	if c.function == nil {
		want := maps.Maglev(&m.key, uint32(len(m.slots)), m.pool.entries())
		m.slots = maps.Rebuild(m.slots, want, m.pool.up)
	} else {
		if m.was == nil {
			was := m.function
			m.was, m.slots = &was, maps.MoveAll(m.slots)
		}
		m.function = *c.function
	}
	m.changed = now
}

func (m *model) settle(now int64) {
	if now-m.changed <= tcpIdle {
		return
	}
	next, dead := maps.Settle(m.slots, m.pins(now), m.pool.up, m.was != nil)
	for _, p := range dead {
		if p.HalfOpen {
			delete(m.halfOpen, p.Tuple)
		} else {
			delete(m.flows, p.Tuple)
		}
	}
	m.slots = next
	if maps.Moving(next) == 0 {
		m.was = nil
	}
}

func (m *model) pins(now int64) iter.Seq[maps.Pin] {
	return func(yield func(maps.Pin) bool) {
		for _, table := range []map[maps.Tuple]*pin{m.halfOpen, m.flows} {
			for t, p := range table {
				found := maps.Pin{
					Tuple: t, Slot: m.slotOf(m.function, t), Backend: p.backend,
					HalfOpen: m.halfOpen[t] == p, Dead: !p.live(now, t),
				}
				if !yield(found) {
					return
				}
			}
		}
	}
}

func (m *model) packet(now int64, s segment) uint32 {
	slot := m.slots[m.slotOf(m.function, s.tuple)]
	if !slot.Moving {
		return slot.Backend
	}
	p, promoted := m.flows[s.tuple]
	if !promoted {
		p = m.halfOpen[s.tuple]
	}
	pinned := p != nil && m.pool.up(p.backend)

	if s.syn {
		if pinned && p.live(now, s.tuple) && !p.closing {
			p.seen = now
			return p.backend
		}
		delete(m.flows, s.tuple)
		m.halfOpen[s.tuple] = &pin{backend: slot.Backend, seen: now}
		return slot.Backend
	}
	if pinned { // of any age
		p.seen, p.spoken, p.closing = now, true, p.closing || s.closing
		m.flows[s.tuple] = p
		delete(m.halfOpen, s.tuple)
		return p.backend
	}
	backend := slot.Backend
	if s.tuple.Proto == tcp || now-m.changed < udpGrace {
		if old := m.old(s.tuple); m.pool.up(old) {
			backend = old
		}
	}
	p = &pin{backend: backend, seen: now, spoken: true, closing: s.closing}
	if promoted {
		m.flows[s.tuple] = p
	} else {
		m.halfOpen[s.tuple] = p
	}
	return backend
}

func (m *model) old(t maps.Tuple) uint32 {
	function := m.function
	if m.was != nil {
		function = *m.was
	}
	return m.slots[m.slotOf(function, t)].Old
}

func (m *model) slotOf(f maps.SlotFunction, t maps.Tuple) uint32 {
	return maps.SlotIndex(f.Hash(&m.key, t), uint32(len(m.slots)))
}

func (p *pin) live(now int64, t maps.Tuple) bool {
	switch {
	case !p.spoken:
		return now-p.seen <= halfOpenIdle
	case t.Proto == udp:
		return now-p.seen <= udpIdle
	default:
		return now-p.seen <= tcpIdle
	}
}
