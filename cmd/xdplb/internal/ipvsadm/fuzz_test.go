package ipvsadm

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// FuzzRead: whatever a file says, it is refused in one line, or the table that it makes saves to a file that makes
// the same table.
func FuzzRead(f *testing.F) {
	text, err := os.ReadFile(filepath.Join(golden, "S-n.txt"))
	if err != nil {
		f.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		f.Add(line)
	}
	f.Add(withoutMarks(string(text)))
	f.Add("-A -t [::1]:0 -p -M 1\r\n# x\n/usr/sbin/ipvsadm -a -t [::1]:0 -r [::2]:0 --fullnat -w65535")
	f.Add("-At1.1.1.1:1 -snq\n-at1.1.1.1:1 -r1.1.1.1 -m\n-et1.1.1.1:1 -r1.1.1.1 -w0\n-Et1.1.1.1:1 -smh -bflag-2\n-dt1.1.1.1:1 -r1.1.1.1\n-C\n--set 1 2 3")
	f.Fuzz(func(t *testing.T, text string) {
		lines, err := Read(strings.NewReader(text), Resolver{})
		if err != nil {
			if strings.Contains(err.Error(), "\n") {
				t.Fatalf("not one line: %q", err)
			}
			return
		}
		var table Table
		if _, err := table.Restore(lines); err != nil {
			if table != nil {
				t.Fatalf("%v, and the table has changed", err)
			}
			return
		}
		table.Sort()
		saved := save(table)
		again, err := Read(strings.NewReader(saved), Resolver{})
		if err != nil {
			t.Fatalf("what was saved cannot be read: %v\n%s", err, saved)
		}
		var restored Table
		if _, err := restored.Restore(again); err != nil {
			t.Fatalf("what was saved cannot be restored: %v\n%s", err, saved)
		}
		if got := save(restored); got != saved {
			t.Fatalf("saved\n%s\nrestored and saved again\n%s", saved, got)
		}
		for i := range table {
			if !table[i].Equal(&restored[i]) {
				t.Fatalf("%+v is restored as %+v", table[i], restored[i])
			}
		}
	})
}
