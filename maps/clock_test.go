package maps

import (
	"testing"
	"time"
)

// TestHz: whatever the rate, it is known exactly from when the kernel started.
func TestHz(t *testing.T) {
	for _, want := range []uint32{100, 250, 300, 1000} {
		start := uint64(1<<32) - 300*uint64(want) // INITIAL_JIFFIES
		for _, uptime := range []time.Duration{5 * time.Second, time.Minute, 270 * time.Second, 330 * time.Second, time.Hour, 5 * 365 * 24 * time.Hour} {
			for _, late := range []time.Duration{0, 500 * time.Millisecond, 1500 * time.Millisecond} { // ticks began, or come
				jiffies := start + uint64((uptime-late).Seconds()*float64(want))
				if hz, ok := hzOf(jiffies, uptime); !ok || hz != want {
					t.Errorf("%d jiffies after %s, %s late: %d, %v; want %d", jiffies, uptime, late, hz, ok, want)
				}
			}
		}
	}
}

// TestHzOfThisKernel measures for long enough that late ticks do not matter.
func TestHzOfThisKernel(t *testing.T) {
	clock, err := NewClock()
	if err != nil {
		t.Fatal(err)
	}
	defer clock.Close()
	hz, err := clock.Hz()
	if err != nil {
		t.Fatal(err)
	}
	start, began, err := clock.read()
	if err != nil {
		t.Fatal(err)
	}
	for {
		now, at, err := clock.read()
		if err != nil {
			t.Fatal(err)
		}
		if at-began < 2*time.Second {
			time.Sleep(10 * time.Millisecond)
			continue
		}
		measured := float64(now-start) / (at - began).Seconds()
		t.Logf("%d Hz, measured %.1f", hz, measured)
		if ratio := measured / float64(hz); ratio < 0.92 || ratio > 1.08 {
			t.Errorf("%d Hz, but measured %.1f", hz, measured)
		}
		return
	}
}
