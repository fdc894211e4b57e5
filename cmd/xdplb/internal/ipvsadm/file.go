package ipvsadm

import (
	"bufio"
	"errors"
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
			fmt.Fprint(w, r.Rule(AddServer, s.Key))
			if r.Forward == Tunnel {
				fmt.Fprint(w, " --tun-type ipip")
			}
			fmt.Fprintln(w)
		}
	}
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
		return []string{strings.TrimSpace("-E " + l.Service.rule() + " " + l.schedule())}
	}
	return nil
}

// schedule is what the command says of a service.
func (c *Command) schedule() string {
	var words []string
	if c.Scheduler != nil {
		words = append(words, "-s", *c.Scheduler)
	}
	if c.Flags != nil {
		words = append(words, "-b", *c.Flags)
	}
	if c.Persistent != nil {
		words = append(words, "-p", fmt.Sprint(*c.Persistent))
	}
	if c.MaskBits != nil {
		words = append(words, "-M", dotted(c.Service.At.Addr(), *c.MaskBits))
	}
	if c.OnePacket {
		words = append(words, "-o")
	}
	return strings.Join(words, " ")
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
