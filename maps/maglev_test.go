package maps_test

import (
	"fmt"
	"math"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/xdplb/xdplb/maps"
	"pgregory.net/rapid"
)

func TestTableDependsOnNeitherOrderNorIDs(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		key, size := drawKey(t), drawSize(t)
		entries := drawEntries(t, 40)
		shuffled := rapid.Permutation(entries).Draw(t, "order")
		for i := range shuffled {
			shuffled[i].ID = uint32(1000 + i)
		}
		a, b := maps.Maglev(&key, size, entries), maps.Maglev(&key, size, shuffled)
		x, y := addressesOf(a, entries), addressesOf(b, shuffled)
		if !slices.Equal(x, y) {
			t.Fatalf("tables differ in %d slots", differences(x, y))
		}
		if x, y := digest(a, entries), digest(b, shuffled); x != y {
			t.Fatalf("digests %s and %s of one table", x, y)
		}
	})
}

func TestTableDependsOnTheKey(t *testing.T) {
	entries := equal(10)
	a, b := maps.HashKey{1}.Words(), maps.HashKey{2}.Words()
	if n := differences(maps.Maglev(&a, 1009, entries), maps.Maglev(&b, 1009, entries)); n < 1009/2 {
		t.Errorf("another key changes %d slots of 1009", n)
	}
}

func TestTableIsEmptyWithoutWeights(t *testing.T) {
	key := maps.HashKey{}.Words()
	drained := equal(3)
	for i := range drained {
		drained[i].Weight = 0
	}
	for _, entries := range [][]maps.Entry{nil, drained} {
		table := maps.Maglev(&key, 251, entries)
		if len(table) != 251 || slices.Max(table) != 0 {
			t.Errorf("table of %d entries: %v", len(entries), table)
		}
	}
}

// Each entry has had floor(rounds × weight / highest weight) turns. The rounds
// that fill the table exceed its share by at most one turn an entry.
func TestSlotsAreInProportionToWeights(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		key, size := drawKey(t), drawSize(t)
		entries := drawEntries(t, 100)
		sum := 0.0
		for _, e := range entries {
			sum += float64(e.Weight)
		}
		if sum == 0 {
			t.Skip("no weights")
		}
		count := countOf(maps.Maglev(&key, size, entries))
		for _, e := range entries {
			part := float64(e.Weight) / sum
			got, share, tolerance := float64(count[e.ID]), part*float64(size), 1+part*float64(len(entries))
			if e.Weight == 0 {
				tolerance = 0
			}
			if math.Abs(got-share) > tolerance {
				t.Errorf("weight %d of %.0f: %.0f slots of %d, want %.1f ± %.1f", e.Weight, sum, got, size, share, tolerance)
			}
		}
		if count[0] != 0 {
			t.Errorf("%d slots are empty", count[0])
		}
	})
}

// DESIGN: max/min is at most 1.02 at 100 backends with the default size.
func TestHundredBackendsAreBalanced(t *testing.T) {
	entries := equal(100)
	rapid.Check(t, func(t *rapid.T) {
		key := drawKey(t)
		count := countOf(maps.Maglev(&key, maps.DefaultTableSize, entries))
		least, most := maps.DefaultTableSize, 0
		for _, e := range entries {
			least, most = min(least, count[e.ID]), max(most, count[e.ID])
		}
		if float64(most) > 1.02*float64(least) {
			t.Fatalf("%d to %d slots a backend", least, most)
		}
	})
}

// To take a backend out must move its slots, and to put it back the same ones. At
// 100 backends 65537 slots keep that below twice the minimum (measured: 1.6 times
// on average). With the default size it is 2.3 times, and as much with permutations
// drawn at random: that is Maglev's, not the hash's.
func TestChangeMovesFewSlots(t *testing.T) {
	for _, test := range []struct {
		size       uint32
		mean, most float64
	}{{65537, 1.7, 2}, {maps.DefaultTableSize, 2.6, 4}} {
		entries := equal(100)
		sum, most, n := 0.0, 0.0, 0.0
		for seed := range byte(20) {
			key := maps.HashKey{seed}.Words()
			before := maps.Maglev(&key, test.size, entries)
			count := countOf(before)
			for gone := 0; gone < len(entries); gone += 11 {
				after := maps.Maglev(&key, test.size, slices.Delete(slices.Clone(entries), gone, gone+1))
				ratio := float64(differences(before, after)) / float64(count[entries[gone].ID])
				sum, most, n = sum+ratio, max(most, ratio), n+1
			}
		}
		if sum/n > test.mean || most > test.most {
			t.Errorf("%d slots: a change moves %.2f times the minimum, at worst %.2f times", test.size, sum/n, most)
		}
	}
}

func TestDigestNamesTheTable(t *testing.T) {
	entries := equal(3)
	seen := map[string]string{}
	for name, table := range map[string][]uint32{
		"empty": {0, 0, 0}, "one": {1, 1, 1}, "other": {2, 2, 2}, "both": {1, 2, 2}, "reversed": {2, 1, 1}, "hole": {1, 0, 0}, "longer": {1, 1, 1, 1},
	} {
		d := digest(table, entries)
		if other, taken := seen[d]; taken || len(d) != 12 {
			t.Errorf("digest %q of %s is also that of %q", d, name, other)
		}
		seen[d] = name
	}
}

func TestValidTableSize(t *testing.T) {
	for _, size := range []uint32{251, 16381, 65537, 131071} {
		if err := maps.ValidTableSize(size); err != nil {
			t.Errorf("%d: %v", size, err)
		}
	}
	for size, mend := range map[uint32]string{0: "16381", 241: "16381", 252: "use 257", 16384: "use 16411", 131070: "use 131071", 131072: "16381", 1<<32 - 5: "16381"} {
		if err := maps.ValidTableSize(size); err == nil || !strings.Contains(err.Error(), mend) {
			t.Errorf("%d: error %v, want one with %q", size, err, mend)
		}
	}
}

func BenchmarkMaglev(b *testing.B) {
	key := maps.HashKey{}.Words()
	skewed := equal(1000)
	skewed[500].Weight = math.MaxUint16
	mixed := equal(1000)
	for i := range mixed {
		mixed[i].Weight = uint16(1 + i%10)
	}
	for _, bench := range []struct {
		name    string
		size    uint32
		entries []maps.Entry
	}{
		{"equal", maps.DefaultTableSize, equal(100)},
		{"equal", 65537, equal(1000)},
		{"mixed", 65537, mixed},
		{"skewed", 65537, skewed},
	} {
		b.Run(fmt.Sprintf("%s/slots=%d/backends=%d", bench.name, bench.size, len(bench.entries)), func(b *testing.B) {
			for b.Loop() {
				maps.Maglev(&key, bench.size, bench.entries)
			}
		})
	}
}

// equal returns n entries of weight 1 with ids from 1.
func equal(n int) []maps.Entry {
	entries := make([]maps.Entry, n)
	for i := range entries {
		addr := netip.AddrFrom4([4]byte{198, 51, byte(i >> 8), byte(i)})
		entries[i] = maps.Entry{ID: uint32(i + 1), Addr: addr, Port: 80, Weight: 1}
	}
	return entries
}

func drawSize(t *rapid.T) uint32 {
	return rapid.SampledFrom([]uint32{251, 1009, 4093, 16381}).Draw(t, "size")
}

// drawEntries draws entries of both families, of which no two share address and port.
func drawEntries(t *rapid.T, most int) []maps.Entry {
	entry := rapid.Custom(func(t *rapid.T) maps.Entry {
		addr := netip.AddrFrom4([4]byte{10, 0, 0, rapid.Byte().Draw(t, "host")})
		if rapid.Bool().Draw(t, "v6") {
			addr = netip.AddrFrom16([16]byte{0: 0x20, 1: 1, 15: rapid.Byte().Draw(t, "host")})
		}
		return maps.Entry{Addr: addr, Port: rapid.Uint16Range(80, 83).Draw(t, "port"), Weight: drawWeight(t)}
	})
	entries := rapid.SliceOfNDistinct(entry, 0, most, func(e maps.Entry) netip.AddrPort { return netip.AddrPortFrom(e.Addr, e.Port) }).Draw(t, "entries")
	for i := range entries {
		entries[i].ID = uint32(i + 1)
	}
	return entries
}

func drawWeight(t *rapid.T) uint16 {
	return rapid.OneOf(rapid.Just[uint16](1), rapid.Uint16Range(0, 5), rapid.Uint16()).Draw(t, "weight")
}

func lookup(entries []maps.Entry) func(id uint32) netip.AddrPort {
	addresses := map[uint32]netip.AddrPort{}
	for _, e := range entries {
		addresses[e.ID] = netip.AddrPortFrom(e.Addr, e.Port)
	}
	return func(id uint32) netip.AddrPort { return addresses[id] }
}

func addressesOf(table []uint32, entries []maps.Entry) []netip.AddrPort {
	address := lookup(entries)
	addresses := make([]netip.AddrPort, len(table))
	for i, id := range table {
		addresses[i] = address(id)
	}
	return addresses
}

func digest(table []uint32, entries []maps.Entry) string {
	none := func(uint32) bool { return false }
	return maps.Digest(maps.Rebuild(make([]maps.Slot, len(table)), table, none), lookup(entries))
}

func countOf(table []uint32) map[uint32]int {
	count := map[uint32]int{}
	for _, id := range table {
		count[id]++
	}
	return count
}

func differences[T comparable](a, b []T) int {
	n := 0
	for i := range a {
		if a[i] != b[i] {
			n++
		}
	}
	return n
}
