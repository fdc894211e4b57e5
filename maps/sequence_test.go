package maps_test

import (
	"math"
	"slices"
	"testing"

	"github.com/xdplb/xdplb/maps"
	"pgregory.net/rapid"
)

func TestSequenceDependsOnNeitherOrderNorIDs(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		size, entries := drawSize(t), drawEntries(t, 40)
		shuffled := rapid.Permutation(entries).Draw(t, "order")
		for i := range shuffled {
			shuffled[i].ID = uint32(1000 + i)
		}
		x, y := addressesOf(maps.Sequence(size, entries), entries), addressesOf(maps.Sequence(size, shuffled), shuffled)
		if !slices.Equal(x, y) {
			t.Fatalf("tables differ in %d slots", differences(x, y))
		}
	})
}

// In each round, and in whole ones alone, each entry has as many turns as its weight
// says. It is never a whole turn ahead of its share, and never behind by more than a
// logarithm of how many there are, as the cup game promises.
func TestSequenceIsSmooth(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.IntRange(1, 12).Draw(t, "entries")
		factor := rapid.IntRange(1, 50).Draw(t, "factor")
		entries := equal(n)
		sum := 0
		for i := range entries {
			weight := rapid.IntRange(0, 20).Draw(t, "weight")
			entries[i].Weight = uint16(weight * factor)
			sum += weight
		}
		size := drawSize(t)
		table := maps.Sequence(size, entries)
		if sum == 0 {
			if slices.Max(table) != 0 {
				t.Fatal("a turn without weights")
			}
			return
		}
		round := 0 // shortest that the weights allow
		for divisor := factor * 20; round == 0; divisor-- {
			if !slices.ContainsFunc(entries, func(e maps.Entry) bool { return int(e.Weight)%divisor != 0 }) {
				round = sum * factor / divisor
			}
		}
		lag := math.Log(float64(n)) + 2
		turns := map[uint32]int{}
		for i, id := range table {
			turns[id]++
			for _, e := range entries {
				share := float64(i+1) * float64(e.Weight) / float64(sum*factor)
				got := float64(turns[e.ID])
				if got >= share+1 || got <= share-lag {
					t.Fatalf("%v of weight %d has %v of %d turns; its share is %.2f", e.Addr, e.Weight, got, i+1, share)
				}
				if (i+1)%round == 0 && math.Abs(got-share) > 1e-6 {
					t.Fatalf("%v of weight %d has %v turns in %d of %d; its share is %.2f", e.Addr, e.Weight, got, i+1, round, share)
				}
			}
			if i >= round && id != table[i-round] {
				t.Fatalf("turn %d differs from that a round of %d before", i, round)
			}
		}
	})
}

func TestSequenceAlternates(t *testing.T) {
	a := equal(3)
	one, two, three := a[0].ID, a[1].ID, a[2].ID
	for _, c := range []struct {
		weights []uint16
		want    []uint32
	}{
		{[]uint16{1, 1}, []uint32{one, two, one, two, one, two}},
		{[]uint16{200, 200, 200}, []uint32{one, two, three, one, two, three}},
		{[]uint16{3, 1}, []uint32{one, one, two, one, one, one, two, one}},
		{[]uint16{5, 1, 1}, []uint32{one, one, two, one, three, one, one, one, one, two}}, // nginx's own example
		{[]uint16{1, 0, 1}, []uint32{one, three, one, three}},
	} {
		entries := slices.Clone(a[:len(c.weights)])
		for i := range entries {
			entries[i].Weight = c.weights[i]
		}
		if got := maps.Sequence(251, entries)[:len(c.want)]; !slices.Equal(got, c.want) {
			t.Errorf("weights %v: %v, want %v", c.weights, got, c.want)
		}
	}
}

// What is longer than the table is cut, and near the weights all the same.
func TestSequenceOfManyWeights(t *testing.T) {
	entries := equal(100)
	sum := 0
	for i := range entries {
		entries[i].Weight = uint16(601 + 7*i)
		sum += 601 + 7*i
	}
	turns := map[uint32]int{}
	for _, id := range maps.Sequence(16381, entries) {
		turns[id]++
	}
	for _, e := range entries {
		if share := 16381 * float64(e.Weight) / float64(sum); math.Abs(float64(turns[e.ID])-share) > 3 {
			t.Errorf("weight %d has %d turns, its share is %.1f", e.Weight, turns[e.ID], share)
		}
	}
}
