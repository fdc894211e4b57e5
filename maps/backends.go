package maps

import (
	"cmp"
	"encoding/binary"
	"net/netip"
	"slices"
	"unsafe"

	"github.com/xdplb/xdplb/bpf"
)

// Backend is the record of a backend; Id 0 is a free one.
type Backend struct{ bpf.XdplbBackend }

// Index is the part of a backend id that is its place in the map.
func Index(id uint32) uint32 { return id & uint32(bpf.XdplbBackendIdPartBackendIndexMask) }

// Has reports whether a flag is set.
func (b *Backend) Has(flag bpf.XdplbBackendFlag) bool { return b.Flags&uint8(flag) != 0 }

// SetFlag sets or clears a flag.
func (b *Backend) SetFlag(flag bpf.XdplbBackendFlag, on bool) {
	b.Flags &^= uint8(flag)
	if on {
		b.Flags |= uint8(flag)
	}
}

// Up reports whether the backend serves the flows it has.
func (b *Backend) Up() bool {
	return b.Id != 0 && !b.Has(bpf.XdplbBackendFlagBackendGone) && !b.Has(bpf.XdplbBackendFlagBackendDown)
}

// Resolved reports whether the next hop is known.
func (b *Backend) Resolved() bool { return b.Link.Flags&uint32(bpf.XdplbHopFlagHopResolved) != 0 }

// TakesNew reports whether new flows may go to the backend.
func (b *Backend) TakesNew() bool {
	return b.Up() && b.Listed() && b.Resolved() && b.Weight > 0 && !b.Has(bpf.XdplbBackendFlagBackendDrain)
}

// Listed reports whether the backend is one that the user knows.
func (b *Backend) Listed() bool {
	return b.Id != 0 && !b.Has(bpf.XdplbBackendFlagBackendGone) && !b.Has(bpf.XdplbBackendFlagBackendUnlisted)
}

// Addr is the backend's address.
func (b *Backend) Addr() netip.Addr { return Addr(b.Address) }

// AddrPort is the backend's address and port.
func (b *Backend) AddrPort() netip.AddrPort { return netip.AddrPortFrom(b.Addr(), b.Port) }

// Entry is the backend as the Maglev builder sees it.
func (b *Backend) Entry() Entry { return Entry{b.Id, b.Addr(), b.Port, b.Weight} }

// ReadBackends returns the records in use, of VIP id vip or of all, ordered by
// address and port.
func (m *Maps) ReadBackends(belongs func(vip uint32) bool) []Backend {
	var all []Backend
	for i := uint32(1); i < uint32(m.backends.len()); i++ {
		// The first word is id and VIP: most records are free, and not worth decoding.
		if first := *m.backends.word(i, 0); uint32(first) == 0 || !belongs(uint32(first>>32)) {
			continue
		}
		var b Backend
		m.backends.read(i, &b.XdplbBackend)
		all = append(all, b)
	}
	slices.SortFunc(all, func(a, b Backend) int {
		return cmp.Or(a.AddrPort().Compare(b.AddrPort()), cmp.Compare(a.Id, b.Id))
	})
	return all
}

// BackendsAt returns the records in use that have an address, without decoding the others.
func (m *Maps) BackendsAt(addr netip.Addr) (all []Backend) {
	var b Backend
	bytes, offset := Address(addr).Bytes, unsafe.Offsetof(b.Address)
	low, high := binary.LittleEndian.Uint64(bytes[:8]), binary.LittleEndian.Uint64(bytes[8:])
	for i := uint32(1); i < uint32(m.backends.len()); i++ {
		if *m.backends.word(i, offset) == low && *m.backends.word(i, offset+8) == high {
			if m.backends.read(i, &b.XdplbBackend); b.Id != 0 {
				all = append(all, b)
			}
		}
	}
	return all
}

// AnyBackend reports whether a record in use has a mode that f accepts.
func (m *Maps) AnyBackend(f func(mode uint8) bool) bool {
	offset := unsafe.Offsetof(bpf.XdplbBackend{}.Mode)
	for i := uint32(1); i < uint32(m.backends.len()); i++ {
		word := *m.backends.word(i, offset&^7)
		if uint32(*m.backends.word(i, 0)) != 0 && f(uint8(word>>(8*(offset&7)))) {
			return true
		}
	}
	return false
}

// WriteBackend stores the words of a record that changed. A record whose
// address, port or mode would change gets a new id instead: packets read it.
func (m *Maps) WriteBackend(b *Backend) { m.backends.write(Index(b.Id), &b.XdplbBackend) }

// NewBackendID returns an id that no slot and no pin can name: a free place with
// the next generation, its counters zero. false: the map is full.
func (m *Maps) NewBackendID() (id uint32, ok bool, err error) {
	generations := uint32(1) << (31 - uint32(bpf.XdplbBackendIdPartBackendIndexBits))
	for i := uint32(1); i < uint32(m.backends.len()); i++ {
		first := *m.backends.word(i, 0)
		if uint32(first) != 0 {
			continue
		}
		last := uint32(first >> 32)
		generation := (last>>uint32(bpf.XdplbBackendIdPartBackendIndexBits) + 1) % generations
		return generation<<uint32(bpf.XdplbBackendIdPartBackendIndexBits) | i, true, m.zeroCounters(i)
	}
	return 0, false, nil
}

// FreeBackend gives the place of a record back. No slot names it any more; what
// it counted is added to its VIP's totals.
func (m *Maps) FreeBackend(b *Backend) error {
	if err := m.retire(b); err != nil {
		return err
	}
	free := b.XdplbBackend // one word differs: in no state between is the record another's
	free.Id, free.Vip = 0, b.Id
	m.backends.write(Index(b.Id), &free)
	return nil
}
