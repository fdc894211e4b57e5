package maps

import "slices"

// Sequence returns the table of size slots for SchedulerRR, whose new flows take
// one slot after the other: the smooth weighted round-robin sequence, again and
// again. In each round an entry stands as often as its weight says, by the greatest
// common divisor of all, and its places are spread over the round. A round longer
// than the table is cut, and what stands in the table is still near the weights.
// All slots are 0 if no entry has a weight. As with Maglev neither IDs nor the
// order of entries count.
//
// The rule is nginx's (src/http/ngx_http_upstream_round_robin.c): each turn every
// entry gains its weight, and the richest one, the first of them, is taken and pays
// the sum of all weights.
func Sequence(size uint32, entries []Entry) []uint32 {
	table := make([]uint32, size)
	entries = slices.DeleteFunc(slices.Clone(entries), func(e Entry) bool { return e.Weight == 0 })
	if len(entries) == 0 {
		return table
	}
	slices.SortFunc(entries, compareEntries)
	divisor, sum := 0, 0
	for _, e := range entries {
		divisor, sum = gcd(divisor, int(e.Weight)), sum+int(e.Weight)
	}
	round := min(sum/divisor, len(table))
	credits := make([]int, len(entries))
	for turn := range round {
		richest := 0
		for i := range entries {
			credits[i] += int(entries[i].Weight)
			if credits[i] > credits[richest] {
				richest = i
			}
		}
		credits[richest] -= sum
		table[turn] = entries[richest].ID
	}
	for filled := round; filled < len(table); filled *= 2 { // the first part has whole rounds
		copy(table[filled:], table[:filled])
	}
	return table
}

func gcd(a, b int) int {
	for b != 0 {
		a, b = b, a%b
	}
	return a
}
