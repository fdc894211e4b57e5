package maps

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"net/netip"
)

// HashKey keys the flow hash and with it every lookup table. Balancers that
// share VIPs share the key, so that a router may send a flow to any of them.
type HashKey [16]byte

// NewHashKey returns a random key.
func NewHashKey() HashKey {
	var k HashKey
	rand.Read(k[:]) // never fails: crypto/rand ends the program instead
	return k
}

// ParseHashKey reads a key from 32 hexadecimal digits. Its error does not repeat
// the digits, because the key is a secret.
func ParseHashKey(s string) (HashKey, error) {
	var k HashKey
	b, err := hex.DecodeString(s)
	if err != nil || len(b) != len(k) {
		return k, fmt.Errorf("hash key of %d characters: not 32 hexadecimal digits; give what `openssl rand -hex 16` prints", len(s))
	}
	return HashKey(b), nil
}

// Words expands the key to the words that the hash multiplies with. None is 0.
func (k HashKey) Words() [10]uint32 {
	var words [10]uint32
	for n, counter := 0, byte(0); n < len(words); counter++ {
		block := k.digest("words", counter)
		for b := block[:]; len(b) > 0 && n < len(words); b = b[4:] {
			if w := binary.LittleEndian.Uint32(b); w != 0 {
				words[n] = w
				n++
			}
		}
	}
	return words
}

// Fingerprint names the key without giving it away: equal on two balancers when
// their keys are.
func (k HashKey) Fingerprint() uint64 {
	block := k.digest("fingerprint", 0)
	return binary.BigEndian.Uint64(block[:])
}

func (k HashKey) digest(purpose string, counter byte) [sha256.Size]byte {
	return sha256.Sum256(append(append(k[:], purpose...), counter))
}

// Tuple is a flow as its client sends it. Ports are in host order.
type Tuple struct {
	Src, Dst         netip.Addr
	SrcPort, DstPort uint16
	Proto            uint8
}

// Scheduler says who gets a new flow. The numbers are those of `enum scheduler`
// in bpf/types.h.
type Scheduler uint8

const (
	SchedulerMaglev Scheduler = iota // the slot that the whole tuple picks
	SchedulerSource                  // the slot that the client's address, masked, picks
	SchedulerRR                      // the next slot in turn; the table is a Sequence
	SchedulerLC                      // the less loaded of two slots
)

var schedulerNames = [...]string{
	SchedulerMaglev: "maglev", SchedulerSource: "source", SchedulerRR: "rr", SchedulerLC: "lc",
}

func (s Scheduler) String() string {
	if int(s) < len(schedulerNames) {
		return schedulerNames[s]
	}
	return fmt.Sprintf("scheduler %d", uint8(s))
}

// Pure reports whether a tuple and the table alone say who gets a flow. With any
// other scheduler every flow is pinned, and only its pin knows its backend.
func (s Scheduler) Pure() bool { return s == SchedulerMaglev || s == SchedulerSource }

// SlotFunction maps tuples to slots. SourcePrefix counts from the first of 128
// bits, so an IPv4 /24 is 120 and 128 is the whole address of either family. Only
// SchedulerSource hashes by it; --affinity masks clients with it. SchedulerRR and
// SchedulerLC have the slot of SchedulerMaglev: of flows that came before, and as
// the first of the two.
type SlotFunction struct {
	Scheduler    Scheduler
	SourcePrefix uint8
}

// Hash is the keyed hash of the part of t that f looks at, bit for bit what
// bpf/select.h computes. key is what HashKey.Words returned.
func (f SlotFunction) Hash(key *[10]uint32, t Tuple) uint64 {
	src := t.Src.As16()
	if f.Scheduler == SchedulerSource {
		mask(&src, f.SourcePrefix)
		return hash(key, &src, new([16]byte), 0)
	}
	dst := t.Dst.As16()
	return hash(key, &src, &dst, uint64(t.SrcPort)|uint64(t.DstPort)<<16|uint64(t.Proto)<<32)
}

// SlotIndex is the slot that a hash picks in a table of size slots.
func SlotIndex(hash uint64, size uint32) uint32 {
	return uint32((hash >> 32) * uint64(size) >> 32)
}

// mask clears all but the first prefix bits.
func mask(address *[16]byte, prefix uint8) {
	for i := int(prefix) / 8; i < len(address); i++ {
		keep := max(int(prefix)-8*i, 0)
		address[i] &= ^byte(0xff >> keep)
	}
}

// hash is NH, the first layer of UMAC (RFC 4418, 5.2.2): one multiplication a
// word, and two inputs collide for one key in 2^32. Its high bits alone are not
// even, hence the two further multiplications (the constants are those of
// MurmurHash3's finalizer).
func hash(key *[10]uint32, src, dst *[16]byte, ports uint64) uint64 {
	words := [5]uint64{
		binary.LittleEndian.Uint64(src[:8]), binary.LittleEndian.Uint64(src[8:]),
		binary.LittleEndian.Uint64(dst[:8]), binary.LittleEndian.Uint64(dst[8:]),
		ports,
	}
	var x uint64
	for i, w := range words {
		x += uint64(uint32(w)+key[2*i]) * uint64(uint32(w>>32)+key[2*i+1])
	}
	x ^= x >> 32
	x *= 0xff51afd7ed558ccd
	x ^= x >> 29
	x *= 0xc4ceb9fe1a85ec53
	x ^= x >> 32
	return x
}
