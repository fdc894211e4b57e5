package maps

import (
	"testing"

	"pgregory.net/rapid"
)

func TestGap(t *testing.T) {
	for _, c := range []struct {
		used  [][2]uint16
		n     int
		first uint16
		ok    bool
	}{
		{nil, 3, 0, true},
		{[][2]uint16{{0, 0}, {0, 0}}, 1, 0, true},
		{[][2]uint16{{0, 2}, {2, 3}}, 2, 5, true},
		{[][2]uint16{{2, 3}, {0, 0}}, 2, 0, true},
		{[][2]uint16{{2, 3}}, 3, 5, true},
		{[][2]uint16{{0, 1000}}, 24, 1000, true},
		{[][2]uint16{{0, 1000}}, 25, 1000, false},
		{[][2]uint16{{24, 1000}}, 24, 0, true},
	} {
		if first, ok := gap(c.used, c.n); ok != c.ok || ok && first != c.first {
			t.Errorf("%v, %d: at %d, %v, want %d, %v", c.used, c.n, first, ok, c.first, c.ok)
		}
	}
}

// A list that is placed never lies over another, however lists come and go.
func TestGapNeverOverlaps(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var lists [][2]uint16
		for range rapid.IntRange(1, 60).Draw(t, "steps") {
			if len(lists) > 0 && rapid.Bool().Draw(t, "remove") {
				i := rapid.IntRange(0, len(lists)-1).Draw(t, "which")
				lists = append(lists[:i], lists[i+1:]...)
				continue
			}
			n := rapid.IntRange(1, 300).Draw(t, "size")
			first, ok := gap(append([][2]uint16(nil), lists...), n)
			if !ok {
				continue
			}
			taken := make([]bool, MaxSNAT)
			lists = append(lists, [2]uint16{first, uint16(n)})
			for _, list := range lists {
				for i := range int(list[1]) {
					if at := int(list[0]) + i; taken[at] {
						t.Fatalf("place %d has two owners: %v", at, lists)
					} else {
						taken[at] = true
					}
				}
			}
		}
	})
}
