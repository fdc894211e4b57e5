package main

import (
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/xdplb/xdplb/cmd/xdplb/internal/shell"
	"github.com/xdplb/xdplb/loader"
	"github.com/xdplb/xdplb/maps"
)

// again is the command line with another value of a flag.
func (e *env) again(flag, value string) string {
	return shell.Quote(append([]string{"xdplb"}, withFlag(e.typed, flag, value)...)...)
}

func withFlag(words []string, flag, value string) (all []string) {
	for i := 0; i < len(words); i++ {
		switch {
		case words[i] == flag:
			i++
		case !strings.HasPrefix(words[i], flag+"="):
			all = append(all, words[i])
		}
	}
	return append(all, flag, value)
}

// here makes commands of the library those of a shell, and of the pins that this
// one was told of.
func (e *env) here(commands string) string {
	all := strings.Split(commands, " && ")
	for i, command := range all {
		if !strings.HasPrefix(command, "xdplb ") {
			continue
		}
		if !strings.Contains(command, "'") { // else it is a shell's already
			all[i] = shell.Quote(strings.Fields(command)...)
		}
		if e.toldPins() && !strings.Contains(command, " --pins") {
			all[i] += " " + shell.Quote("--pins", e.pins)
		}
	}
	return strings.Join(all, " && ")
}

func (e *env) toldPins() bool {
	return slices.ContainsFunc(e.typed, func(w string) bool { return w == "--pins" || strings.HasPrefix(w, "--pins=") })
}

// saidCommand is a command that a text tells people to give: up to where the text goes on.
var saidCommand = regexp.MustCompile(`(^|: |\(|, or |; then |&& )xdplb( [^\s,;()&]+)+`)

// said is a text for people whose commands are as here makes them.
func (e *env) said(text string) string {
	return saidCommand.ReplaceAllStringFunc(text, func(found string) string {
		start := strings.Index(found, "xdplb ")
		if strings.HasSuffix(found, " --help") {
			return found
		}
		return found[:start] + e.here(found[start:])
	})
}

// mended is an error that ends with the command that mends it, where one does.
func (e *env) mended(cmd command, err error) error {
	m := new(loader.Misuse)
	if !errors.As(err, &m) {
		return writable(err, e.pins)
	}
	with := m.Command
	switch {
	case cmd.name == "backend add" && m.Use != 0:
		with = e.refit(m)
	case cmd.name == "backend set" && m.Use != 0 && len(e.args) > 2:
		with = e.refit(m)
	case cmd.name == "attach" && m.Ports != nil:
		with = e.again("--snat-ports", m.Ports.String())
	default:
		with = e.here(with)
	}
	return remade(err, m, m.Advice, with)
}

// writable says how pins become writable.
func writable(err error, pins string) error {
	if !errors.Is(err, unix.EROFS) || !strings.HasPrefix(err.Error(), pins) {
		return err
	}
	return fmt.Errorf("%w; mount it so that it can be written: mount -o remount,rw %s", err, shell.Quote(filepath.Dir(pins)))
}

// remade replaces what an error says about the mend.
func remade(err error, m *loader.Misuse, advice, command string) error {
	made := *m
	made.Advice, made.Command = advice, command
	return errors.New(strings.Replace(err.Error(), m.Error(), made.Error(), 1))
}

// refit is the command line with what suits the backend that did not fit. `set`
// leaves it out, which keeps its mode.
func (e *env) refit(m *loader.Misuse) string {
	v, err := maps.ParseVIP(e.args[0])
	if err != nil {
		return ""
	}
	set := slices.Contains(e.typed, "set")
	var words []string
	for _, w := range e.typed {
		at, err := loader.ParseBackend(w)
		if !slices.Contains(e.args[1:], w) || err != nil {
			words = append(words, w)
			continue
		}
		if at.Port() == 0 {
			at = netip.AddrPortFrom(at.Addr(), v.Port)
		}
		switch fits := at != m.Backend; {
		case !set && fits && m.Alone, set && !fits:
			continue
		case !fits && m.NoPort:
			w = at.Addr().String()
		}
		words = append(words, w)
	}
	if !set {
		words = withFlag(words, "--mode", m.Use.String())
	}
	return shell.Quote(append([]string{"xdplb"}, words...)...)
}
