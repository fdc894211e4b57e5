package config

import (
	"fmt"
	"strings"

	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/token"

	"github.com/xdplb/xdplb/cmd/xdplb/internal/shell"
	"github.com/xdplb/xdplb/loader"
)

// source is the text that was read, and the file that has it; no file: nothing
// can be edited, and no command is given.
type source struct {
	path  string
	lines []string
}

// spot is a piece of the text. The zero spot is none.
type spot struct {
	line, column int // from 1, in characters
	raw          string
}

func spotOf(t *token.Token) spot {
	if t == nil || t.Position == nil {
		return spot{}
	}
	raw := t.Value
	if t.Type == token.DoubleQuoteType || t.Type == token.SingleQuoteType {
		raw = strings.TrimSpace(t.Origin)
	}
	return spot{t.Position.Line, t.Position.Column, raw}
}

// scalarSpot is the spot of a value that stands there itself, and is no alias.
func scalarSpot(n ast.Node) spot {
	if _, ok := scalarText(n); !ok || n.Type() == ast.LiteralType {
		return spot{}
	}
	return spotOf(n.GetToken())
}

// first is the first token of a node.
func first(n ast.Node) *token.Token {
	if m, ok := n.(*ast.MappingNode); ok && !m.IsFlowStyle && len(m.Values) > 0 {
		return m.Values[0].Key.GetToken()
	}
	if m, ok := n.(*ast.MappingValueNode); ok {
		return m.Key.GetToken()
	}
	return n.GetToken()
}

// last is the last token of a node that is in one line in most files; nil of others.
func last(n ast.Node) *token.Token {
	switch n := n.(type) {
	case *ast.MappingNode:
		return n.End
	case *ast.SequenceNode:
		return n.End
	case *ast.MappingValueNode:
		return last(n.Value)
	case *ast.AnchorNode:
		return last(n.Value)
	case *ast.TagNode:
		return last(n.Value)
	}
	return n.GetToken()
}

// flow finds what stands from one token to another in flow style, and what to cut so
// that it is gone: with a comma. Both are none in block style, and of several lines.
func (s *source) flow(from, to *token.Token) (item, cut spot) {
	if from == nil || to == nil || from.Prev == nil {
		return spot{}, spot{}
	}
	switch from.Prev.Type {
	case token.SequenceStartType, token.MappingStartType, token.CollectEntryType:
	default:
		return spot{}, spot{}
	}
	start, end := spotOf(from), spotOf(to)
	if item = s.between(start, end); item.raw == "" {
		return spot{}, spot{}
	}
	if comma := spotOf(from.Prev); from.Prev.Type == token.CollectEntryType && comma.line == start.line {
		return item, s.between(comma, end)
	}
	if to.Next != nil && to.Next.Type == token.CollectEntryType {
		if cut = s.between(start, spotOf(to.Next)); cut.raw != "" {
			return item, cut
		}
	}
	return item, item
}

// between is a part of one line; none of several.
func (s *source) between(first, last spot) spot {
	if first.line != last.line || first.line < 1 || first.line > len(s.lines) {
		return spot{}
	}
	line, end := []rune(s.lines[first.line-1]), last.column-1+len([]rune(last.raw))
	if first.column < 1 || end > len(line) || end < first.column {
		return spot{}
	}
	return spot{first.line, first.column, string(line[first.column-1 : end])}
}

// extent is the lines of an item of a list in block style; 0 if it is none.
func extent(n ast.Node) (from, to int) {
	t := first(n)
	for t = t.Prev; t != nil && t.Type == token.CommentType; {
		t = t.Prev
	}
	if t == nil || t.Type != token.SequenceEntryType {
		return 0, 0
	}
	end := ends{line: t.Position.Line}
	ast.Walk(&end, n)
	return t.Position.Line, end.line
}

// ends finds the last line of a node.
type ends struct{ line int }

func (e *ends) Visit(n ast.Node) ast.Visitor {
	if t := n.GetToken(); t != nil && t.Position != nil {
		e.line = max(e.line, t.Position.Line)
	}
	if m, ok := n.(*ast.MappingNode); ok && m.End != nil {
		e.line = max(e.line, m.End.Position.Line)
	}
	if s, ok := n.(*ast.SequenceNode); ok && s.End != nil {
		e.line = max(e.line, s.End.Position.Line)
	}
	return e
}

func (s *source) sed(script string) string {
	if s == nil || s.path == "" {
		return ""
	}
	return shell.Quote("sed", "-i", script, s.path)
}

var (
	sedPattern = strings.NewReplacer(`\`, `\\`, `.`, `\.`, `[`, `\[`, `]`, `\]`, `*`, `\*`, `^`, `\^`, `$`, `\$`, `/`, `\/`)
	sedText    = strings.NewReplacer(`\`, `\\`, `&`, `\&`, `/`, `\/`, "\n", `\n`)
)

// replace is the command that writes something else in a spot; empty if it cannot be said.
func (s *source) replace(at spot, text string) string {
	if s == nil || at.raw == "" || at.line < 1 || at.line > len(s.lines) {
		return ""
	}
	line := []rune(s.lines[at.line-1])
	if at.column < 1 || at.column > len(line) {
		return ""
	}
	start := len(string(line[:at.column-1]))
	rest, position, nth := string(line), 0, ""
	for n := 1; ; n++ {
		i := strings.Index(rest, at.raw)
		if i < 0 || position+i > start {
			return ""
		}
		if n > 1 {
			nth = fmt.Sprint(n)
		}
		if position+i == start {
			break
		}
		position += i + len(at.raw)
		rest = rest[i+len(at.raw):]
	}
	return s.sed(fmt.Sprintf("%ds/%s/%s/%s", at.line, sedPattern.Replace(at.raw), sedText.Replace(text), nth))
}

// indent is what stands before the fields of an object, of which one is in this line.
func (s *source) indent(line int) string {
	if s == nil || line < 1 || line > len(s.lines) {
		return ""
	}
	text := s.lines[line-1]
	return strings.Repeat(" ", len(text)-len(strings.TrimLeft(text, " -")))
}

// remove is the command that deletes an item of a list.
func (p *Place) remove() string {
	if p.first == 0 {
		return p.source.replace(p.cut, "")
	}
	return p.source.delete(p.first, p.last)
}

// delete is the command that deletes lines.
func (s *source) delete(first, last int) string {
	if first == last {
		return s.sed(fmt.Sprintf("%dd", first))
	}
	return s.sed(fmt.Sprintf("%d,%dd", first, last))
}

// removeField is the command that deletes a field of an object.
func (s *source) removeField(pair *ast.MappingValueNode) string {
	key := pair.Key.GetToken()
	if key.Prev != nil && (key.Prev.Type == token.MappingStartType || key.Prev.Type == token.CollectEntryType) {
		_, cut := s.flow(key, last(pair))
		return s.replace(cut, "")
	}
	end := ends{line: key.Position.Line}
	ast.Walk(&end, pair)
	return s.delete(key.Position.Line, end.line)
}

// add is the command that gives an object a field that it does not have.
func (p *Place) add(text string) string {
	if p.start.raw == "{" {
		return p.source.replace(p.start, "{"+text+", ")
	}
	if p.start.line == 0 {
		return ""
	}
	return p.source.sed(fmt.Sprintf(`%di\%s%s`, p.start.line, p.source.indent(p.start.line), text))
}

// both is one command after the other; none if either cannot be given.
func both(first, second string) string {
	if first == "" || second == "" {
		return ""
	}
	return first + " && " + second
}

func with(text, command string) string {
	if command == "" {
		return text
	}
	return text + ": " + command
}

// Mend is what to write instead, and the command that writes it; empty if none can
// be given. pinned says that there is a balancer already.
func (f *File) Mend(m *loader.Misuse, pinned bool) (advice, command string) {
	if m.Ports != nil {
		return f.mendPorts(m, pinned)
	}
	for i := range f.VIPs {
		v := &f.VIPs[i]
		for j := range v.Backends {
			b := &v.Backends[j]
			if v.VIP != m.VIP || b.Address != m.Backend {
				continue
			}
			if m.Loop != nil {
				return f.mendLoop(m, v, b)
			}
			return b.mend(m)
		}
	}
	return m.Advice, m.Command
}

func (f *File) mendPorts(m *loader.Misuse, pinned bool) (advice, command string) {
	text := "ports: " + m.Ports.String()
	advice = "leave its port out of them, such as with " + text
	switch {
	case f.SNAT != nil && f.SNAT.Has("ports"):
		return advice, f.source.replace(f.SNAT.spots["ports"], m.Ports.String())
	case f.SNAT != nil:
		return advice, f.SNAT.add(text)
	case pinned:
		return m.Advice, m.Command
	}
	return advice, f.add("snat: {" + text + "}")
}

// mend gives the backend the mode that suits it.
func (b *Backend) mend(m *loader.Misuse) (advice, command string) {
	mode := "mode: " + m.Use.String()
	at := b.spots["address"]
	address := at.raw
	switch {
	case m.NoPort:
		advice, address = "leave the port out, and write "+mode, fmt.Sprintf("%q", m.Backend.Addr())
	case m.Use == loader.ModeFullNAT:
		advice = "write " + mode + ", or leave the port out"
	default:
		advice = "write " + mode
	}
	switch {
	case b.short:
		return advice, b.source.replace(at, fmt.Sprintf("{address: %s, %s}", strings.Trim(address, " "), mode))
	case b.Has("mode") && m.NoPort:
		return advice, both(b.source.replace(at, address), b.source.replace(b.spots["mode"], m.Use.String()))
	case b.Has("mode"):
		return advice, b.source.replace(b.spots["mode"], m.Use.String())
	case b.start.raw == "{":
		return advice, b.source.replace(at, address+", "+mode)
	}
	return advice, b.source.replace(at, address+"\n"+b.source.indent(at.line)+mode)
}

// mendLoop names the servers of the other VIP in the place of the VIP.
func (f *File) mendLoop(m *loader.Misuse, v *VIP, b *Backend) (advice, command string) {
	var items []string
	for _, s := range m.Servers {
		item := fmt.Sprintf("%q", s.At)
		if own := v.Mode; s.Weight != 1 || s.Mode != own && (own != 0 || s.Mode != loader.ModeDR) {
			item = fmt.Sprintf("{address: %s, mode: %s, weight: %d}", item, s.Mode, s.Weight)
		}
		items = append(items, item)
	}
	for i := range f.VIPs {
		if other := &f.VIPs[i]; len(items) == 0 && other.VIP == *m.Loop && len(other.Backends) == 0 && other != v {
			return m.Advice, other.remove()
		}
	}
	switch {
	case len(items) == 0:
		return m.Advice, b.remove()
	case b.first == 0:
		return m.Advice, b.source.replace(b.item, strings.Join(items, ", "))
	}
	indent := b.source.lines[b.first-1]
	indent = "\\n" + indent[:strings.Index(indent, "-")] + "- "
	return m.Advice, b.source.sed(fmt.Sprintf(`%d,%dc\%s`, b.first, b.last, strings.Join(append([]string{""}, items...), indent)[len("\\n"):]))
}
