package maps

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"net/netip"
	"slices"
)

// Sizes of a lookup table, in slots. A size is a prime, so that every step walks
// through all slots. 100 slots a backend balance to 1 %.
const (
	MinTableSize     = 251
	DefaultTableSize = 16381
	MaxTableSize     = 131071
)

// ValidTableSize returns an error that names a size to use instead when size is
// not a prime from MinTableSize to MaxTableSize.
func ValidTableSize(size uint32) error {
	if size < MinTableSize || size > MaxTableSize {
		return fmt.Errorf("table size %d: not in %d to %d; use %d, or the prime next to 100 times the number of backends",
			size, MinTableSize, MaxTableSize, DefaultTableSize)
	}
	if !prime(size) {
		next := size
		for !prime(next) { // ends: MaxTableSize is a prime
			next++
		}
		return fmt.Errorf("table size %d: not a prime; use %d", size, next)
	}
	return nil
}

func prime(n uint32) bool {
	for d := uint32(2); d*d <= n; d++ {
		if n%d == 0 {
			return false
		}
	}
	return n > 1
}

// Entry is a backend that may get new flows. ID is not 0. A weight of 0 gets none.
type Entry struct {
	ID     uint32
	Addr   netip.Addr
	Port   uint16
	Weight uint16
}

func compareEntries(a, b Entry) int {
	x, y := a.Addr.As16(), b.Addr.As16()
	return cmp.Or(bytes.Compare(x[:], y[:]), cmp.Compare(a.Port, b.Port), cmp.Compare(a.Weight, b.Weight))
}

// turn is an entry while slots are handed out: the place it asks for next and
// its step (instead of a permutation for each, which would not fit the cache).
type turn struct {
	id, at, step   uint32
	credit, weight uint32
}

// Maglev returns the table of size slots that names the ID of an entry in each,
// or 0 everywhere if no entry has a weight. Which entry a slot names is a pure
// function of the key and of each entry's address, port and weight: neither IDs
// nor the order of entries count. Slots are in proportion to weights; an entry
// whose share is less than a slot may get none. size must be valid and key is
// what HashKey.Words returned.
//
// It is the algorithm of Eisenbud et al., "Maglev: A Fast and Reliable Software
// Network Load Balancer", NSDI 2016, 3.4, with turns by weight: an entry takes a
// slot whenever its credit, which grows by its weight, reaches the highest weight.
func Maglev(key *[10]uint32, size uint32, entries []Entry) []uint32 {
	table := make([]uint32, size)
	turns, most := turnsOf(key, size, entries)
	if len(turns) == 0 {
		return table
	}
	taken := make([]uint64, size/64+1) // bits: small enough for the L1 cache
	for left := size; ; {
		for i := range turns {
			t := &turns[i]
			if t.credit += t.weight; t.credit < most {
				continue
			}
			t.credit -= most
			at := t.at
			for taken[at/64]>>(at%64)&1 != 0 {
				if at += t.step; at >= size {
					at -= size
				}
			}
			taken[at/64] |= 1 << (at % 64)
			table[at], t.at = t.id, at
			if left--; left == 0 {
				return table
			}
		}
	}
}

// turnsOf returns the entries that have a weight, in the order of their address
// and port, and the highest weight.
func turnsOf(key *[10]uint32, size uint32, entries []Entry) (turns []turn, most uint32) {
	entries = slices.Clone(entries)
	slices.SortFunc(entries, compareEntries)
	turns = make([]turn, 0, len(entries))
	for _, e := range entries {
		if e.Weight == 0 {
			continue
		}
		addr := e.Addr.As16()
		h := hash(key, &addr, new([16]byte), uint64(e.Port))
		turns = append(turns, turn{
			id:     e.ID,
			at:     SlotIndex(h, size),
			step:   SlotIndex(h<<32, size-1) + 1,
			weight: uint32(e.Weight),
		})
		most = max(most, uint32(e.Weight))
	}
	return turns, most
}

// Digest is a short fingerprint of the table that new flows see. It is the same
// on two balancers whose slots name the same addresses and ports, whatever the
// backends' ids; address returns those of a backend, and is not asked for 0.
func Digest(slots []Slot, address func(id uint32) netip.AddrPort) string {
	// Backends are renamed to the order in which they appear, and written once.
	names := map[uint32]uint32{}
	indices := make([]byte, 0, 4*len(slots))
	var addresses []byte
	for _, s := range slots {
		name, known := names[s.Backend]
		if !known {
			name = uint32(len(names))
			names[s.Backend] = name
			var ap netip.AddrPort
			if s.Backend != 0 {
				ap = address(s.Backend)
			}
			addr := ap.Addr().As16()
			addresses = binary.BigEndian.AppendUint16(append(addresses, addr[:]...), ap.Port())
		}
		indices = binary.BigEndian.AppendUint32(indices, name)
	}
	sum := sha256.Sum256(append(indices, addresses...))
	return hex.EncodeToString(sum[:6])
}
