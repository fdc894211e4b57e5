package config

import (
	"errors"
	"fmt"
	"reflect"
	"strings"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/parser"
)

// Parse reads a file; name is what errors call it.
func Parse(name string, text []byte) (*File, error) { return ParseAt(name, name, text) }

// ParseAt is Parse of a file that has another name for commands that mend it; with
// none there are no such commands.
func ParseAt(name, path string, text []byte) (*File, error) {
	s := &source{path, strings.Split(strings.ReplaceAll(string(text), "\r\n", "\n"), "\n")}
	f := &File{Place: Place{file: name, line: 1, source: s}}
	tree, err := parser.ParseBytes(text, 0, parser.AllowDuplicateMapKey()) // we name both lines
	if err != nil {
		return nil, syntaxError(name, err)
	}
	d := decoder{file: name, source: s, anchors: make(map[string]ast.Node)}
	empty := true
	for _, doc := range tree.Docs {
		if doc.Body == nil || doc.Body.Type() == ast.CommentType || doc.Body.Type() == ast.NullType {
			continue
		}
		if !empty {
			return nil, d.errorf(doc.Body, "", "a second document; a file has one")
		}
		empty = false
		if err := d.object(doc.Body, "", reflect.ValueOf(f).Elem()); err != nil {
			return nil, err
		}
	}
	return f, f.check()
}

func syntaxError(file string, err error) error {
	if e := yaml.Error(nil); errors.As(err, &e) && e.GetToken() != nil && e.GetToken().Position != nil {
		return fmt.Errorf("%s: not YAML: %s", at(file, e.GetToken().Position.Line, ""), e.GetMessage())
	}
	return fmt.Errorf("%s: not YAML: %w", file, err)
}

type decoder struct {
	file    string
	source  *source
	anchors map[string]ast.Node
}

func line(n ast.Node) int {
	if m, ok := n.(*ast.MappingNode); ok && len(m.Values) > 0 && !m.IsFlowStyle {
		n = m.Values[0].Key // its own token is a colon
	} else if m, ok := n.(*ast.MappingValueNode); ok {
		n = m.Key
	}
	if t := n.GetToken(); t != nil && t.Position != nil {
		return t.Position.Line
	}
	return 1
}

func (d *decoder) errorf(n ast.Node, path, format string, a ...any) error {
	return fmt.Errorf("%s: %w", at(d.file, line(n), path), fmt.Errorf(format, a...))
}

// plain follows aliases, and takes off anchors and tags.
func (d *decoder) plain(n ast.Node, path string) (ast.Node, error) {
	for {
		switch v := n.(type) {
		case *ast.AnchorNode:
			d.anchors[v.Name.GetToken().Value] = v.Value
			n = v.Value
		case *ast.AliasNode:
			name := v.Value.GetToken().Value
			target, known := d.anchors[name]
			if !known {
				return nil, d.errorf(n, path, "*%s: no such anchor before it", name)
			}
			n = target
		case *ast.TagNode:
			n = v.Value
		default:
			return n, nil
		}
	}
}

// value decodes a node of whatever kind v is.
func (d *decoder) value(n ast.Node, path string, v reflect.Value) error {
	n, err := d.plain(n, path)
	if err != nil {
		return err
	}
	if v.Kind() == reflect.Pointer {
		v.Set(reflect.New(v.Type().Elem()))
		v = v.Elem()
	}
	if n == nil || n.Type() == ast.NullType {
		return d.errorf(n, path, "nothing there; leave the field out, or write [] for none")
	}
	if s, ok := scalars[v.Type()]; ok {
		return d.scalar(n, path, v, s)
	}
	if v.Kind() == reflect.Slice {
		return d.list(n, path, v)
	}
	return d.object(n, path, v)
}

func (d *decoder) scalar(n ast.Node, path string, v reflect.Value, s scalar) error {
	text, ok := scalarText(n)
	if !ok {
		return d.errorf(n, path, "%s; write one value, such as %s", kind(n), s.example)
	}
	value, err := s.parse(text)
	if err != nil {
		if near, ok := s.nearest(text); ok {
			err = errors.New(with(err.Error(), d.source.replace(scalarSpot(n), near)))
		}
		return d.errorf(n, path, "%w", err)
	}
	v.Set(reflect.ValueOf(value).Convert(v.Type()))
	return nil
}

func scalarText(n ast.Node) (string, bool) {
	switch n := n.(type) {
	case *ast.LiteralNode:
		return strings.TrimSpace(n.Value.Value), true
	case *ast.StringNode, *ast.IntegerNode, *ast.FloatNode, *ast.BoolNode, *ast.InfinityNode, *ast.NanNode:
		return n.GetToken().Value, true
	}
	return "", false
}

func kind(n ast.Node) string {
	switch n.(type) {
	case *ast.SequenceNode:
		return "a list"
	case *ast.MappingNode, *ast.MappingValueNode:
		return "an object"
	}
	return "a single value"
}

func (d *decoder) list(n ast.Node, path string, v reflect.Value) error {
	sequence, ok := n.(*ast.SequenceNode)
	if !ok {
		return d.errorf(n, path, "%s; write a list: each item on a line that begins with -", kind(n))
	}
	v.Set(reflect.MakeSlice(v.Type(), len(sequence.Values), len(sequence.Values)))
	for i, item := range sequence.Values {
		if err := d.value(item, fmt.Sprintf("%s[%d]", path, i), v.Index(i)); err != nil {
			return err
		}
	}
	return nil
}

func (d *decoder) object(n ast.Node, path string, v reflect.Value) error {
	n, err := d.plain(n, path)
	if err != nil {
		return err
	}
	place := v.Addr().Interface().(interface{ place() *Place }).place()
	*place = Place{file: d.file, path: path, line: line(n), lines: make(map[string]int), source: d.source, spots: make(map[string]spot)}
	place.first, place.last = extent(n)
	place.item, place.cut = d.source.flow(first(n), last(n))
	fields := fieldsOf(v.Type())
	var pairs []*ast.MappingValueNode
	switch m := n.(type) {
	case *ast.MappingNode:
		if pairs = m.Values; m.IsFlowStyle {
			place.start = spotOf(m.Start)
		} else if len(pairs) > 0 {
			place.start = spotOf(pairs[0].Key.GetToken())
		}
	case *ast.MappingValueNode:
		pairs = []*ast.MappingValueNode{m}
		place.start = spotOf(m.Key.GetToken())
	default:
		if _, ok := scalarText(n); ok && fields.short != "" {
			place.lines[fields.short], place.spots[fields.short], place.short = place.line, scalarSpot(n), true
			return d.value(n, join(path, fields.short), v.Field(fields.at[fields.short].index))
		}
		return d.errorf(n, path, "%s; write an object with %s", kind(n), strings.Join(fields.names, ", "))
	}
	for _, pair := range pairs {
		if err := d.field(pair, path, place, fields, v); err != nil {
			return err
		}
	}
	for _, name := range fields.names {
		if fields.at[name].required && !place.Has(name) {
			return d.errorf(n, path, "%s: missing; add a line %s: %s", name, name, scalars[v.Field(fields.at[name].index).Type()].example)
		}
	}
	return nil
}

func (d *decoder) field(pair *ast.MappingValueNode, path string, place *Place, fields fields, v reflect.Value) error {
	if pair.Key.IsMergeKey() {
		return d.errorf(pair, path, "<<: objects are not merged; write the fields out")
	}
	name, ok := scalarText(pair.Key)
	if k, is := pair.Key.(*ast.MappingKeyNode); is {
		name, ok = scalarText(k.Value)
	}
	field, known := fields.at[name]
	if !ok || !known {
		return d.errorf(pair, join(path, name), "unknown field; known are %s", strings.Join(fields.names, ", "))
	}
	if first, twice := place.lines[name]; twice {
		return d.errorf(pair, join(path, name), "%s", with(fmt.Sprintf("there twice, first in line %d; delete one of them", first), d.source.removeField(pair)))
	}
	place.lines[name] = line(pair)
	if pair.Value == nil || pair.Value.Type() == ast.NullType {
		return d.errorf(pair, join(path, name), "nothing there; leave the field out, or write [] for none")
	}
	place.spots[name] = scalarSpot(pair.Value)
	return d.value(pair.Value, join(path, name), v.Field(field.index))
}

// fields are those of an object.
type fields struct {
	names []string
	at    map[string]field
	short string
}

type field struct {
	index    int
	required bool
	doc      string
}

func fieldsOf(t reflect.Type) fields {
	f := fields{at: make(map[string]field)}
	for i := range t.NumField() {
		tag, ok := t.Field(i).Tag.Lookup("yaml")
		if !ok {
			continue
		}
		name, options, _ := strings.Cut(tag, ",")
		f.names = append(f.names, name)
		f.at[name] = field{i, strings.Contains(options, "required"), t.Field(i).Tag.Get("doc")}
		if strings.Contains(options, "short") {
			f.short = name
		}
	}
	return f
}
