package config

import (
	"bufio"
	"encoding/json"
	"errors"
	"io"
	"reflect"
	"regexp"
	"strconv"
	"strings"
)

// head warns of the secret.
const head = `# What this balancer should be; xdplb apply FILE and xdplb restore FILE make it so.
# The hash key is a secret: who has it can aim connections at one server. Keep the file's mode 0600.
`

// Write writes the file. What has its default is left out.
func (f *File) Write(w io.Writer) error {
	out := bufio.NewWriter(w)
	out.WriteString(head)
	writeObject(out, reflect.ValueOf(f).Elem(), "", "")
	return out.Flush()
}

// writeObject writes the fields; the first line begins with first, the others with indent.
func writeObject(w *bufio.Writer, v reflect.Value, first, indent string) {
	names := fieldsOf(v.Type())
	for _, name := range names.names {
		value := v.Field(names.at[name].index)
		if value.IsZero() && !names.at[name].required {
			continue
		}
		if value.Kind() == reflect.Pointer {
			value = value.Elem()
		}
		w.WriteString(first + name + ":")
		first = indent
		switch s, isScalar := scalars[value.Type()]; {
		case isScalar:
			w.WriteString(" " + s.yaml(value) + "\n")
		case value.Kind() == reflect.Slice:
			writeList(w, value, indent)
		default:
			w.WriteString("\n")
			writeObject(w, value, indent+"  ", indent+"  ")
		}
	}
}

func writeList(w *bufio.Writer, v reflect.Value, indent string) {
	if v.Len() == 0 {
		w.WriteString(" []\n")
		return
	}
	w.WriteString("\n")
	for i := range v.Len() {
		item := v.Index(i)
		if s, ok := scalars[item.Type()]; ok {
			w.WriteString(indent + "- " + s.yaml(item) + "\n")
		} else if short, ok := inShort(item); ok {
			w.WriteString(indent + "- " + short + "\n")
		} else {
			writeObject(w, item, indent+"- ", indent+"  ")
		}
	}
}

// inShort is the one value that stands for an object with nothing else.
func inShort(v reflect.Value) (string, bool) {
	names := fieldsOf(v.Type())
	for _, name := range names.names {
		if name != names.short && !v.Field(names.at[name].index).IsZero() {
			return "", false
		}
	}
	if names.short == "" {
		return "", false
	}
	value := v.Field(names.at[names.short].index)
	return scalars[value.Type()].yaml(value), true
}

var (
	bare = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._:/-]*$`)
	// sexagesimal is a number to readers of YAML 1.1, and so are MACs and IPv6 addresses of digits.
	sexagesimal = regexp.MustCompile(`^[0-9]+(:[0-5]?[0-9])+$`)
	// literal are words that are no text in some version of YAML.
	literal = regexp.MustCompile(`(?i)^(true|false|yes|no|on|off|y|n|null)$`)
)

// yaml quotes what another reader of YAML might not take as text.
func (s scalar) yaml(v reflect.Value) string {
	text := s.write(v.Interface())
	if kind := s.schema["type"]; kind == "integer" || kind == "boolean" {
		return text
	}
	_, err := strconv.ParseFloat(text, 64)
	number := err == nil || errors.Is(err, strconv.ErrRange)
	if bare.MatchString(text) && !strings.HasSuffix(text, ":") && !number && !sexagesimal.MatchString(text) && !literal.MatchString(text) {
		return text
	}
	quoted, _ := json.Marshal(text) // YAML 1.2, 1.3: JSON is YAML
	return string(quoted)
}
