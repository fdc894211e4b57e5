package main

import "testing"

// TestPaths drives every path once: it fails if a packet of one is not forwarded.
func TestPaths(t *testing.T) {
	for name, measure := range map[string]func(*report, int) error{"program": measurePaths, "nat": measureTranslation} {
		t.Run(name, func(t *testing.T) {
			rep := new(report)
			if err := measure(rep, 1); err != nil {
				t.Fatal(err)
			}
			for _, r := range rep.rows {
				if len(r.values) != 1 || r.values[0] <= 0 {
					t.Errorf("%s: %v", r.name, r.values)
				}
			}
		})
	}
}
