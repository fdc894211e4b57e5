package main

import (
	"fmt"
	"os"
	"slices"
	"text/tabwriter"
)

// row is what was measured of one path, one figure a run.
type row struct {
	name   string
	unit   string
	values []float64
	over   []float64 // ns over the floor measured in the same round; nil where there is none
	budget string
}

type report struct{ rows []*row }

// add prints the lines that benchstat reads, and keeps the row for the table.
func (r *report) add(rows ...*row) {
	for _, row := range rows {
		for i, v := range row.values {
			fmt.Printf("Benchmark%s 1 %.2f %s", row.name, v, row.unit)
			if row.over != nil {
				fmt.Printf(" %.2f over-floor-ns/op", row.over[i])
			}
			fmt.Println()
		}
	}
	r.rows = append(r.rows, rows...)
}

// print prints the table for people: medians, and in brackets least and most.
func (r *report) print() {
	fmt.Println()
	w := tabwriter.NewWriter(os.Stdout, 0, 8, 2, ' ', 0)
	fmt.Fprintln(w, "what\tmedian\t[min, max]\tover the floor\tbudget")
	for _, row := range r.rows {
		fmt.Fprintf(w, "%s\t%s %s\t[%s, %s]\t%s\t%s\n", row.name, number(median(row.values)), row.unit,
			number(slices.Min(row.values)), number(slices.Max(row.values)), overText(row), row.budget)
	}
	w.Flush()
}

func overText(row *row) string {
	if row.over == nil {
		return ""
	}
	return fmt.Sprintf("%.1f ns", median(row.over))
}

func number(v float64) string {
	switch {
	case v >= 1000:
		return fmt.Sprintf("%.0f", v)
	case v >= 10:
		return fmt.Sprintf("%.1f", v)
	}
	return fmt.Sprintf("%.2f", v)
}

func median(values []float64) float64 {
	sorted := slices.Sorted(slices.Values(values))
	if len(sorted) == 0 {
		return 0
	}
	return (sorted[len(sorted)/2] + sorted[(len(sorted)-1)/2]) / 2
}
