package maps

import "iter"

// Slot is one slot of a VIP's lookup table. A settled slot sends every flow to
// Backend. A moving one sends new flows to Backend, flows that have a pin to
// the pin's backend, and established flows that have none to Old, if it is up.
// IDs have 31 bits; 0 is no backend.
type Slot struct {
	Backend, Old uint32
	Moving       bool
}

const movingBit = 1 << 63

// Encode returns s as `struct slot` of bpf/types.h, read as one number by a
// little-endian machine.
func (s Slot) Encode() uint64 {
	word := uint64(s.Backend) | uint64(s.Old)<<32&^movingBit
	if s.Moving {
		word |= movingBit
	}
	return word
}

// DecodeSlot is the reverse of Slot.Encode.
func DecodeSlot(word uint64) Slot {
	return Slot{Backend: uint32(word), Old: uint32(word &^ movingBit >> 32), Moving: word&movingBit != 0}
}

// Moving counts the slots that are moving.
func Moving(slots []Slot) int {
	n := 0
	for _, s := range slots {
		if s.Moving {
			n++
		}
	}
	return n
}

// Rebuild returns the table that follows current when want, of the same length,
// is what Maglev now asks for. up says whether a backend serves the flows it has:
// it is present and not down (draining and unresolved ones are up). A new VIP
// begins with slots of value 0.
func Rebuild(current []Slot, want []uint32, up func(id uint32) bool) []Slot {
	next := make([]Slot, len(current))
	for i, s := range current {
		next[i] = s.rebuild(want[i], func(id uint32) bool { return id != 0 && up(id) })
	}
	return next
}

func (s Slot) rebuild(want uint32, up func(id uint32) bool) Slot {
	switch {
	case s.Moving:
		old := s.Old
		if !up(old) {
			old = want
		}
		return Slot{want, old, true}
	case s.Backend == want || s.Backend == 0: // without a backend nothing was established
		return Slot{Backend: want}
	case !up(s.Backend): // its flows died with it; moving all the same, because stale pins must not come back
		return Slot{want, want, true}
	default:
		return Slot{want, s.Backend, true}
	}
}

// MoveAll returns the table that follows current when the VIP's slot function
// changes: every slot moves, and Old is to be read at the slot of the function
// last settled. Changing the function once more while they move is the same.
func MoveAll(current []Slot) []Slot {
	next := make([]Slot, len(current))
	for i, s := range current {
		if !s.Moving {
			s.Old = s.Backend
		}
		next[i] = Slot{s.Backend, s.Old, true}
	}
	return next
}

// Pin is an entry of `half_open` or `flows` that belongs to the VIP. Slot is what
// the VIP's slot function in use picks for Tuple. Dead pins are past their timeout.
type Pin struct {
	Tuple    Tuple
	Slot     uint32
	Backend  uint32
	HalfOpen bool
	Dead     bool
	flow     Flow
}

// Settle returns the table that follows slots once the VIP's last change is
// older than the idle timeout, and the dead pins to delete before it is put in
// place: later they would claim a tuple that was used again meanwhile. A slot
// stays moving while a live pin names another backend that is up.
//
// pins are all pins of the VIP, first those of `half_open` and then those of
// `flows`: a promotion inserts there before it deletes here, so none is missed.
// whole is set while the VIP keeps a slot function last settled: then all slots
// settle or none. Nothing of the result may be used if pins ended early.
func Settle(slots []Slot, pins iter.Seq[Pin], up func(id uint32) bool, whole bool) (next []Slot, dead []Pin) {
	next = make([]Slot, len(slots))
	for i, s := range slots {
		next[i] = Slot{Backend: s.Backend}
	}
	kept := 0
	for p := range pins {
		switch s := slots[p.Slot]; {
		case p.flow.ToClient: // a twin
		case p.Dead:
			dead = append(dead, p)
		case s.Moving && p.Backend != s.Backend && up(p.Backend):
			next[p.Slot] = s
			kept++
		}
	}
	if whole && kept > 0 {
		return slots, nil
	}
	n := 0
	for _, p := range dead {
		if !next[p.Slot].Moving {
			dead[n] = p
			n++
		}
	}
	return next, dead[:n]
}
