package main

import (
	_ "embed"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"

	"github.com/spf13/pflag"
)

const completionHelp = `
make install puts it where bash-completion finds it. To try it: source <(xdplb completion bash)
`

// exitWantsFile is the status of __complete where bash knows better: names of files.
const exitWantsFile = 3

//go:embed install/xdplb.bash
var bashCompletion string

func completionCommands() []command {
	return []command{
		{name: "completion", args: "bash", min: 1, max: 1, summary: "print the completion for bash", more: completionHelp, setup: noFlags(completion)},
		{name: "__complete", args: "LINE", min: 1, max: 1, hidden: true, summary: "list the words that may end a command line", setup: noFlags(complete)},
	}
}

func completion(e *env) error {
	if e.args[0] != "bash" {
		return usagef("%s: no completion for it; there is one for bash", e.args[0])
	}
	_, err := io.WriteString(e.stdout, bashCompletion)
	return err
}

func complete(e *env) error {
	c := newCompleter(e.pins, e.args[0])
	words := slices.Sorted(maps.Keys(c.words()))
	if len(words) == 0 && c.files {
		return exitStatus(exitWantsFile)
	}
	for _, word := range words {
		fmt.Fprintln(e.stdout, word)
	}
	return nil
}

// completer knows what may stand at the end of a command line.
type completer struct {
	pins  string
	given []string // the words before, without the program's name
	last  string   // what there is of the last word
	files bool     // a file's name may stand there
}

func newCompleter(pins, line string) *completer {
	words := shellWords(line)
	n := len(words) - 1
	c := &completer{pins: pins, given: words[min(1, n):n], last: words[n]}
	for i, word := range c.given {
		if word == "--pins" && i+1 < len(c.given) {
			c.pins = c.given[i+1]
		} else if dir, ok := strings.CutPrefix(word, "--pins="); ok {
			c.pins = dir
		}
	}
	return c
}

// shellWords splits a line as a shell does, except that nothing is expanded. The
// last word is the one that the line ends in; it may be empty.
func shellWords(line string) []string {
	var words []string
	var word strings.Builder
	inWord, quote, escaped := false, rune(0), false
	for _, r := range line {
		switch {
		case escaped:
			word.WriteRune(r)
			escaped = false
		case r == '\\' && quote != '\'':
			inWord, escaped = true, true
		case quote != 0 && r == quote:
			quote = 0
		case quote == 0 && (r == '\'' || r == '"'):
			inWord, quote = true, r
		case quote == 0 && (r == ' ' || r == '\t' || r == '\n'):
			if inWord {
				words = append(words, word.String())
				word.Reset()
			}
			inWord = false
		default:
			inWord = true
			word.WriteRune(r)
		}
	}
	return append(words, word.String())
}

// words are those that begin with what there is.
func (c *completer) words() map[string]bool {
	all := map[string]bool{}
	for _, word := range c.candidates() {
		if strings.HasPrefix(word, c.last) {
			all[word] = true
		}
	}
	return all
}

func (c *completer) candidates() []string {
	names := leadingWords(c.given)
	if len(names) > 0 && names[0] == ipvsadmName { // its options are not ours
		return nil
	}
	var cmd command
	complete := false
	if len(names) > 0 {
		one, err := find(names)
		cmd, complete = one, err == nil
	}
	flags := pflag.NewFlagSet("", pflag.ContinueOnError)
	if complete {
		cmd.setup(flags)
	}
	globalFlags(flags)
	if len(c.given) > 0 {
		if f := takesValue(flags, c.given[len(c.given)-1]); f != nil {
			return c.flagValues(cmd, f)
		}
	}
	if name, _, ok := strings.Cut(c.last, "="); ok && strings.HasPrefix(name, "-") {
		if f := takesValue(flags, name); f != nil {
			return prefixed(name+"=", c.flagValues(cmd, f))
		}
	}
	if strings.HasPrefix(c.last, "-") {
		return flagWords(flags)
	}
	if !complete {
		return nextWords(names)
	}
	return c.arguments(cmd, flags)
}

// takesValue returns the flag that a word is, if the next word is its value.
func takesValue(flags *pflag.FlagSet, word string) (f *pflag.Flag) {
	if name, ok := strings.CutPrefix(word, "--"); ok {
		f = flags.Lookup(name)
	} else if len(word) == 2 && word[0] == '-' && word[1] != '-' {
		f = flags.ShorthandLookup(word[1:])
	}
	if f == nil || f.NoOptDefVal != "" {
		return nil
	}
	return f
}

func flagWords(flags *pflag.FlagSet) []string {
	words := []string{"--help"}
	flags.VisitAll(func(f *pflag.Flag) { words = append(words, "--"+f.Name) })
	return words
}

// nextWords are those that make a command, or more of one, of the words so far.
func nextWords(names []string) (words []string) {
	for _, c := range commands() {
		name := strings.Fields(c.name)
		if !c.hidden && len(name) > len(names) && slices.Equal(name[:len(names)], names) {
			words = append(words, name[len(names)])
		}
	}
	if len(names) == 0 {
		words = append(words, "help")
	}
	return words
}

func prefixed(prefix string, words []string) (all []string) {
	for _, word := range words {
		all = append(all, prefix+word)
	}
	return all
}

// arguments completes the next argument: its kind stands in the usage line.
func (c *completer) arguments(cmd command, flags *pflag.FlagSet) (words []string) {
	var given []string
	for i := 0; i < len(c.given); i++ {
		switch word := c.given[i]; {
		case takesValue(flags, word) != nil:
			i++
		case !strings.HasPrefix(word, "-") || word == "-":
			given = append(given, word)
		}
	}
	given = given[min(len(strings.Fields(cmd.name)), len(given)):]
	kind := ""
	for i, word := range strings.Fields(cmd.args) {
		word, repeated := strings.CutSuffix(strings.Trim(word, "[]"), "...")
		if word == "|" || strings.HasPrefix(word, "-") {
			break
		}
		if i == len(given) || repeated {
			kind = strings.Trim(word, "[]")
			break
		}
	}
	for _, one := range strings.Split(kind, "|") {
		if one == strings.ToLower(one) { // it stands for itself
			words = append(words, one)
		}
		words = append(words, c.values(cmd, one, given)...)
	}
	return slices.DeleteFunc(words, func(word string) bool {
		return word == "" || word == "-" || slices.Contains(given, word)
	})
}
