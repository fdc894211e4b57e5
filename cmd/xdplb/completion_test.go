package main

import (
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/spf13/pflag"
)

func wordsFor(line string) []string {
	return slices.Sorted(maps.Keys(newCompleter("/nowhere", line).words()))
}

// TestCompleteEverything types each command and each of its flags, and finds it at every length.
func TestCompleteEverything(t *testing.T) {
	expect := func(line, word string) {
		t.Helper()
		for i := range len(word) + 1 {
			if words := wordsFor(line + word[:i]); !slices.Contains(words, word) && (i > 0 || !strings.HasPrefix(word, "-")) {
				t.Errorf("%q completes to %q, not to %s", line+word[:i], words, word)
			}
		}
	}
	for _, c := range commands() {
		if c.hidden {
			if words := wordsFor("xdplb " + c.name); len(words) > 0 {
				t.Errorf("%s is offered", words)
			}
			continue
		}
		line := "xdplb "
		for _, word := range strings.Fields(c.name) {
			expect(line, word)
			line += word + " "
		}
		if c.name == ipvsadmName {
			continue
		}
		flags := pflag.NewFlagSet("", pflag.ContinueOnError)
		c.setup(flags)
		globalFlags(flags)
		flags.VisitAll(func(f *pflag.Flag) {
			expect(line, "--"+f.Name)
			if words := wordsFor(line + "--" + f.Name + " -"); f.NoOptDefVal == "" && len(words) > 0 {
				t.Errorf("the value of --%s may be %s", f.Name, words)
			}
		})
	}
}

// TestCompleteValues: the values that are offered are those that the help names.
func TestCompleteValues(t *testing.T) {
	seen := map[string]bool{}
	for _, c := range commands() {
		flags := pflag.NewFlagSet("", pflag.ContinueOnError)
		c.setup(flags)
		globalFlags(flags)
		flags.VisitAll(func(f *pflag.Flag) {
			if flagWordsOf[f.Name] == nil {
				return
			}
			seen[f.Name] = true
			_, usage := pflag.UnquoteUsage(f)
			values := new(completer).flagValues(c, f)
			for _, value := range values {
				if !strings.Contains(usage+c.args, value) {
					t.Errorf("%s --%s: %s is not of its help: %s", c.name, f.Name, value, usage)
				}
			}
		})
	}
	for name := range flagWordsOf {
		if !seen[name] {
			t.Errorf("--%s: no command has it", name)
		}
	}
}

func TestShellWords(t *testing.T) {
	for _, c := range []struct {
		line string
		want []string
	}{
		{"", []string{""}},
		{"xdplb", []string{"xdplb"}},
		{" xdplb\t vip ", []string{"xdplb", "vip", ""}},
		{`a 'b c' "d\"e" f\ g`, []string{"a", "b c", `d"e`, "f g"}},
		{`a '[::1`, []string{"a", "[::1"}},
		{`a '' b`, []string{"a", "", "b"}},
		{`a 'b\'c`, []string{"a", `b\c`}},
	} {
		if diff := cmp.Diff(c.want, shellWords(c.line)); diff != "" {
			t.Errorf("%q: %s", c.line, diff)
		}
	}
}
