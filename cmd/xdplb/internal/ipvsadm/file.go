package ipvsadm

import (
	"bufio"
	"fmt"
	"io"
	"path"
	"slices"
	"strings"
)

// Line is a command of a save file.
type Line struct {
	Number int // from 1
	Command
}

// Read reads a save file. Blank lines and what follows a # mean nothing, a program's
// name in front is left out, and lines may end as they do elsewhere. The error names
// the first line that is wrong.
func Read(r io.Reader, names Resolver) (lines []Line, err error) {
	scanner := bufio.NewScanner(r)
	for number := 1; scanner.Scan(); number++ {
		words := strings.Fields(strings.TrimPrefix(scanner.Text(), "\ufeff"))
		if i := slices.IndexFunc(words, func(w string) bool { return w[0] == '#' }); i >= 0 {
			words = words[:i]
		}
		if len(words) > 0 && path.Base(words[0]) == "ipvsadm" {
			words = words[1:]
		}
		if len(words) == 0 {
			continue
		}
		c, err := Parse(words, names)
		if err != nil {
			return nil, fmt.Errorf("line %d: %w", number, err)
		}
		if c.Action == Restore || c.Action == Zero || !c.Action.Changes() {
			return nil, fmt.Errorf("line %d: %s: not in a file; leave the line out", number, c.Action.Name())
		}
		lines = append(lines, Line{number, c})
	}
	if err := scanner.Err(); err != nil {
		return nil, fmt.Errorf("reading: %w", err)
	}
	return lines, nil
}

// Restore does what the lines say, all or nothing, and changes nothing else. What
// is there already, and the same, stays.
func (t *Table) Restore(lines []Line) (notes []string, err error) {
	next := t.Clone()
	for _, l := range lines {
		if l.Action == SetTimeouts {
			continue
		}
		said, err := next.Again(l.Command)
		if err != nil {
			return nil, fmt.Errorf("line %d: %w", l.Number, err)
		}
		for _, note := range said {
			if !slices.Contains(notes, note) {
				notes = append(notes, note)
			}
		}
	}
	*t = next
	return notes, nil
}

// Save writes a table as -S -n does. Connection limits and timeouts are not in it.
func (t Table) Save(w io.Writer) {
	for i := range t {
		s := &t[i]
		fmt.Fprintf(w, "-A %s -s %s", s.rule(), s.Name)
		if s.Persistent != 0 {
			fmt.Fprintf(w, " -p %d", s.Persistent)
			if s.maskBits() != s.At.Addr().BitLen() {
				fmt.Fprintf(w, " -M %s", dotted(s.At.Addr(), s.maskBits()))
			}
		}
		if s.OnePacket {
			fmt.Fprint(w, " -o")
		}
		if flags := s.flags(); flags != "" {
			fmt.Fprintf(w, " -b %s", flags)
		}
		fmt.Fprintln(w)
		for _, r := range s.Servers {
			fmt.Fprintf(w, "-a %s -r %s %s -w %d", s.rule(), r.At, r.Forward.option(), r.Weight)
			if r.Forward == Tunnel {
				fmt.Fprint(w, " --tun-type ipip")
			}
			fmt.Fprintln(w)
		}
	}
}

// rule is how options name the service.
func (k Key) rule() string {
	switch k.Proto {
	case TCP:
		return "-t " + k.At.String()
	case UDP:
		return "-u " + k.At.String()
	}
	return fmt.Sprintf("-f %d", k.mark)
}
