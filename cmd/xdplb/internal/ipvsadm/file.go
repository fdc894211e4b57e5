package ipvsadm

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"path"
	"slices"
	"strings"
)

// Line is a command of a save file.
type Line struct {
	Number int // from 1
	Command
}

// LineError is what is wrong with a line of a file.
type LineError struct {
	Number int
	Mended []string // the lines that are right in its place, if that is known
	err    error
}

func (e *LineError) Error() string { return fmt.Sprintf("line %d: %s", e.Number, e.err) }

func (e *LineError) Unwrap() error { return e.err }

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
			wrong := &LineError{Number: number, err: err}
			if mended, ok := Mended(words, err); ok {
				wrong.Mended = []string{strings.Join(mended, " ")}
			}
			return nil, wrong
		}
		if c.Action == Restore || c.Action == Zero || !c.Action.Changes() {
			return nil, fmt.Errorf("line %d: %s: not in a file; leave the line out", number, c.Action.Name())
		}
		if option := c.ofAll(); option != "" {
			return nil, fmt.Errorf("line %d: %s: not in a file, of which it would be for one line; give it to ipvsadm -R", number, option)
		}
		lines = append(lines, Line{number, c})
	}
	if err := scanner.Err(); err != nil {
		return nil, fmt.Errorf("reading: %w", err)
	}
	return lines, nil
}

// ofAll is an option that is for all that a run does; empty if there is none.
func (c *Command) ofAll() string {
	switch {
	case c.Handover != 0:
		return "--handover"
	case c.Pins != "":
		return "--pins"
	}
	return ""
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
			wrong := &LineError{Number: l.Number, err: err}
			if errors.As(err, new(existsError)) {
				wrong.Mended = l.edits()
			}
			return nil, wrong
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
		fmt.Fprintln(w, s.Rule(AddService))
		for _, r := range s.Servers {
			fmt.Fprint(w, r.Rule(AddServer, s.Key))
			if r.Forward == Tunnel {
				fmt.Fprint(w, " --tun-type ipip")
			}
			fmt.Fprintln(w)
		}
	}
}

// Rule is the command that adds the service, or edits another to be the same: then
// also what a new one has by itself is named.
func (s *Service) Rule(a Action) string {
	rule, edits := fmt.Sprintf("%s %s -s %s", a.Name(), s.rule(), s.Name), a == EditService
	if s.Persistent != 0 || edits {
		rule += fmt.Sprintf(" -p %d", s.Persistent)
	}
	if s.Persistent != 0 && (s.maskBits() != s.At.Addr().BitLen() || edits) {
		rule += " -M " + dotted(s.At.Addr(), s.maskBits())
	}
	if s.OnePacket {
		rule += " -o"
	}
	if flags := s.flags(); flags != "" {
		rule += " -b " + flags
	}
	return rule
}

// Forwarding is the command with another server or way of forwarding. What it does
// not name it still does not.
func (c *Command) Forwarding(at netip.AddrPort, way Forward) string {
	rule := fmt.Sprintf("%s %s -r %s %s", c.Action.Name(), c.Service.rule(), at, way.Option())
	if c.Weight != nil {
		rule += fmt.Sprintf(" -w %d", *c.Weight)
	}
	return rule
}

// Rule is the command that adds, edits or deletes the server.
func (r *Server) Rule(a Action, k Key) string {
	rule := fmt.Sprintf("%s %s -r %s", a.Name(), k.rule(), r.At)
	if a != DeleteServer {
		rule += fmt.Sprintf(" %s -w %d", r.Forward.Option(), r.Weight)
	}
	return rule
}

// edits is the line as one that changes what is there; none if it is another command.
func (l *Line) edits() []string {
	switch l.Action {
	case AddServer:
		r := Server{At: l.Server(l.Service.At), Weight: 1}
		if l.Weight != nil {
			r.Weight = *l.Weight
		}
		if l.Forward != nil {
			r.Forward = *l.Forward
		}
		return []string{r.Rule(EditServer, *l.Service)}
	case AddService:
		s := Service{Key: *l.Service}
		if err := s.edit(&l.Command); err == nil {
			return []string{s.Rule(EditService)}
		}
	}
	return nil
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
