package main

import (
	"encoding/json"
	"io"
	"strings"
	"text/tabwriter"
)

// table prints aligned columns.
type table struct{ w *tabwriter.Writer }

func newTable(w io.Writer) table { return table{tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)} }

func (t table) row(cells ...string) {
	io.WriteString(t.w, strings.Join(cells, "\t")+"\n")
}

func (t table) flush() { t.w.Flush() }

// printJSON prints one object on one line.
func (e *env) printJSON(v any) error {
	encoder := json.NewEncoder(e.stdout)
	encoder.SetEscapeHTML(false)
	return encoder.Encode(v)
}
