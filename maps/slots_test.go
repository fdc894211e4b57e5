package maps_test

import (
	"encoding/binary"
	"fmt"
	"slices"
	"testing"

	"github.com/xdplb/xdplb/maps"
	"pgregory.net/rapid"
)

func TestSlotIsEightBytes(t *testing.T) {
	slot := maps.Slot{Backend: 0x04030201, Old: 0x7a0b0c0d, Moving: true}
	got := binary.LittleEndian.AppendUint64(nil, slot.Encode())
	if want := []byte{1, 2, 3, 4, 0x0d, 0x0c, 0x0b, 0xfa}; !slices.Equal(got, want) {
		t.Errorf("% x, want % x", got, want)
	}
	rapid.Check(t, func(t *rapid.T) {
		slot := maps.Slot{
			Backend: rapid.Uint32().Draw(t, "backend"),
			Old:     rapid.Uint32Max(1<<31-1).Draw(t, "old"),
			Moving:  rapid.Bool().Draw(t, "moving"),
		}
		if got := maps.DecodeSlot(slot.Encode()); got != slot {
			t.Fatalf("%v came back as %v", slot, got)
		}
	})
}

// Backends of the table tests: 1 and 2 are up, 8 and 9 are gone or down.
func isUp(id uint32) bool { return id == 1 || id == 2 }

// The rules of DESIGN, "building the next table", one by one.
func TestRebuild(t *testing.T) {
	for _, test := range []struct {
		rule    string
		current maps.Slot
		want    uint32
		next    maps.Slot
	}{
		{"new VIP", maps.Slot{}, 1, settled(1)},
		{"none before, none now", maps.Slot{}, 0, settled(0)},
		{"settled, wanted again", settled(1), 1, settled(1)},
		{"settled, wanted again though down", settled(9), 9, settled(9)},
		{"settled, another wanted", settled(1), 2, moving(2, 1)},
		{"settled, none wanted: all drain", settled(1), 0, moving(0, 1)},
		{"settled, its backend is down", settled(9), 2, moving(2, 2)},
		{"settled, its backend is down, none wanted", settled(9), 0, moving(0, 0)},
		{"moving, the same wanted", moving(2, 1), 2, moving(2, 1)},
		{"moving, another wanted", moving(9, 1), 2, moving(2, 1)},
		{"moving, none wanted", moving(2, 1), 0, moving(0, 1)},
		{"moving, old wanted again", moving(2, 1), 1, moving(1, 1)},
		{"moving, old is down", moving(1, 9), 2, moving(2, 2)},
		{"moving, old is down, none wanted", moving(1, 9), 0, moving(0, 0)},
		{"moving, no old", moving(0, 0), 2, moving(2, 2)},
	} {
		got := maps.Rebuild([]maps.Slot{test.current}, []uint32{test.want}, isUp)
		if got[0] != test.next {
			t.Errorf("%s: %v wants %d: %v, want %v", test.rule, test.current, test.want, got[0], test.next)
		}
	}
}

func TestRebuildAsksForNoBackendButReal(t *testing.T) {
	maps.Rebuild([]maps.Slot{{}, moving(1, 0)}, []uint32{1, 1}, func(id uint32) bool {
		if id == 0 {
			t.Error("asked whether no backend is up")
		}
		return true
	})
}

func TestMoveAll(t *testing.T) {
	current := []maps.Slot{settled(1), moving(2, 1), settled(0), moving(2, 0)}
	want := []maps.Slot{moving(1, 1), moving(2, 1), moving(0, 0), moving(2, 0)}
	if got := maps.MoveAll(current); !slices.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
	if got := maps.MoveAll(want); !slices.Equal(got, want) {
		t.Errorf("twice: %v, want %v", got, want)
	}
}

func TestSettle(t *testing.T) {
	pin := func(slot, backend uint32) maps.Pin { return maps.Pin{Slot: slot, Backend: backend} }
	dead := func(slot, backend uint32) maps.Pin { return maps.Pin{Slot: slot, Backend: backend, Dead: true} }
	slots := []maps.Slot{moving(2, 1), moving(2, 1), settled(1)}
	all := []maps.Slot{settled(2), settled(2), settled(1)}
	for _, test := range []struct {
		name  string
		pins  []maps.Pin
		whole bool
		next  []maps.Slot
		dead  []maps.Pin
	}{
		{"no pins", nil, false, all, nil},
		{"a pin of another that is up", []maps.Pin{pin(0, 1)}, false, []maps.Slot{slots[0], settled(2), settled(1)}, nil},
		{"a pin of another that is down", []maps.Pin{pin(0, 9)}, false, all, nil},
		{"a pin of the slot's own", []maps.Pin{pin(0, 2)}, false, all, nil},
		{"dead pins", []maps.Pin{dead(0, 1), dead(1, 2), dead(2, 9)}, false, all, []maps.Pin{dead(0, 1), dead(1, 2), dead(2, 9)}},
		{"a dead pin before a live one", []maps.Pin{dead(0, 1), dead(1, 1), pin(0, 1)}, false, []maps.Slot{slots[0], settled(2), settled(1)}, []maps.Pin{dead(1, 1)}},
		{"whole, one held back", []maps.Pin{dead(1, 1), pin(0, 1)}, true, slots, nil},
		{"whole, none held back", []maps.Pin{dead(1, 1), pin(0, 2)}, true, all, []maps.Pin{dead(1, 1)}},
	} {
		next, dead := maps.Settle(slots, slices.Values(test.pins), isUp, test.whole)
		if !slices.Equal(next, test.next) || !slices.Equal(dead, test.dead) {
			t.Errorf("%s: %v, dead %v; want %v, dead %v", test.name, next, dead, test.next, test.dead)
		}
	}
	if got := maps.Moving(slots); got != 2 {
		t.Errorf("%d of %v move, want 2", got, slots)
	}
}

// New flows follow the table at once, and what a slot remembers is never a backend that is gone.
func TestRebuildInvariants(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		id := rapid.Uint32Max(5)
		n := rapid.IntRange(1, 50).Draw(t, "slots")
		slots := make([]maps.Slot, n)
		for range rapid.IntRange(1, 10).Draw(t, "changes") {
			want := rapid.SliceOfN(id, n, n).Draw(t, "want")
			serving := rapid.SliceOfN(rapid.Bool(), 6, 6).Draw(t, "up")
			up := func(id uint32) bool { return serving[id] }
			next := maps.Rebuild(slots, want, up)
			for i, s := range next {
				was := slots[i]
				if s.Backend != want[i] {
					t.Fatalf("%v → %v: %d is wanted", was, s, want[i])
				}
				if was.Moving && !s.Moving || !s.Moving && s.Backend != was.Backend && was.Backend != 0 {
					t.Fatalf("%v → %v: settled by a rebuild", was, s)
				}
				if s.Moving && s.Old != s.Backend && !serving[s.Old] {
					t.Fatalf("%v → %v: remembers a backend that is gone", was, s)
				}
			}
			if again := maps.Rebuild(next, want, up); !slices.Equal(again, next) {
				t.Fatalf("rebuilt twice: %v, then %v", next, again)
			}
			slots = next
		}
	})
}

func settled(backend uint32) maps.Slot { return maps.Slot{Backend: backend} }
func moving(backend, old uint32) maps.Slot {
	return maps.Slot{Backend: backend, Old: old, Moving: true}
}

func ExampleRebuild() {
	up := func(uint32) bool { return true }
	slots := maps.Rebuild(make([]maps.Slot, 4), []uint32{1, 1, 2, 2}, up)
	slots = maps.Rebuild(slots, []uint32{1, 3, 2, 3}, up)
	fmt.Println(slots, maps.Moving(slots))
	// Output: [{1 0 false} {3 1 true} {2 0 false} {3 2 true}] 2
}
