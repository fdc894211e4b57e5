package main

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/xdplb/xdplb/cmd/xdplb/internal/shell"
)

// screen prints for people: with colours and block characters on a terminal, plain in a pipe.
type screen struct {
	w      io.Writer
	colour bool
	blocks bool
}

func newScreen(w io.Writer) *screen {
	s := &screen{w: w}
	if f, ok := w.(*os.File); ok {
		_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
		terminal := err == nil && os.Getenv("TERM") != "dumb"
		s.colour = terminal && os.Getenv("NO_COLOR") == ""
		s.blocks = terminal && utf8Locale()
	}
	return s
}

// utf8Locale looks at the variables in the order that POSIX gives them.
func utf8Locale() bool {
	for _, name := range []string{"LC_ALL", "LC_CTYPE", "LANG"} {
		if value := os.Getenv(name); value != "" {
			value = strings.ToLower(value)
			return strings.Contains(value, "utf-8") || strings.Contains(value, "utf8")
		}
	}
	return false
}

// Colours of ECMA-48.
const (
	bold  = "1"
	dim   = "2"
	red   = "31"
	green = "32"
	cyan  = "36"
)

func (s *screen) paint(colour, text string) string {
	if !s.colour || text == "" {
		return text
	}
	return "\x1b[" + colour + "m" + text + "\x1b[0m"
}

func (s *screen) heading(text string) {
	fmt.Fprintf(s.w, "\n%s\n\n", s.paint(bold, text))
}

func (s *screen) blank() { fmt.Fprintln(s.w) }

func (s *screen) say(format string, args ...any) {
	fmt.Fprintf(s.w, "  "+format+"\n", args...)
}

// command prints a command line as a user of that host would type it.
func (s *screen) command(host string, args []string) {
	fmt.Fprintf(s.w, "  %s %s\n", s.paint(cyan, host+"#"), s.paint(bold, shell.Quote(args...)))
}

// output prints what a command said.
func (s *screen) output(out []byte) {
	for line := range bytes.Lines(out) {
		text := bytes.TrimRight(line, " \r\n")
		if len(text) == 0 {
			s.blank()
			continue
		}
		fmt.Fprintf(s.w, "    %s\n", text)
	}
}

// mark says that something is as it should be, or not.
func (s *screen) mark(good bool) string {
	switch {
	case good && s.blocks:
		return s.paint(green, "✔")
	case good:
		return s.paint(green, "ok")
	default:
		return s.paint(red, "FAILED")
	}
}

// barWidth is the length of the longest bar, in characters.
const barWidth = 32

// bars prints how many of the connections each server answered, and how many failed.
func (s *screen) bars(names []string, a answers) {
	longest := 1
	for _, name := range names {
		longest = max(longest, a.Answers[name])
	}
	for _, name := range names {
		count := a.Answers[name]
		s.say("  %-8s %s %4d", name, s.paint(green, s.bar(count, longest)), count)
	}
	failed := fmt.Sprintf("%4d", a.Failed)
	if a.Failed > 0 {
		failed = s.paint(red, failed) + "  " + a.FirstFailure
	}
	s.say("  %-8s %s %s", "failed", strings.Repeat(" ", barWidth), failed)
}

// bar is padded to barWidth. A count above zero shows at least a trace.
func (s *screen) bar(count, longest int) string {
	if !s.blocks {
		full := (count*barWidth + longest - 1) / longest
		return fmt.Sprintf("%-*s", barWidth, strings.Repeat("#", full))
	}
	eighths := (count*barWidth*8 + longest - 1) / longest
	bar := strings.Repeat("█", eighths/8)
	if part := eighths % 8; part > 0 {
		bar += string(rune('█' + 8 - part)) // the blocks of 7/8 to 1/8 follow the full one
	}
	return fmt.Sprintf("%-*s", barWidth, bar) // counts characters, not bytes
}
