package main

import (
	"bytes"
	"io"
	"os/exec"
	"strings"
	"testing"

	"github.com/spf13/pflag"
)

// rendered is the man page as groff sets it, on lines that break nothing.
func rendered(t *testing.T) string {
	t.Helper()
	var page, complaints bytes.Buffer
	if status := run([]string{"man"}, &page, &complaints); status != exitDone || complaints.Len() > 0 {
		t.Fatalf("status %d: %s", status, &complaints)
	}
	cmd := exec.Command("groff", "-man", "-ww", "-Tascii", "-P-cbou", "-rLL=400n")
	cmd.Stdin, cmd.Stderr = &page, &complaints
	text, err := cmd.Output()
	if err != nil || complaints.Len() > 0 {
		t.Fatalf("%v: groff warns:\n%s", err, &complaints)
	}
	return string(text)
}

// section is what stands under a heading, up to the next that is indented as little.
func section(t *testing.T, text, heading string) string {
	t.Helper()
	_, rest, found := strings.Cut(text, "\n"+heading+"\n")
	if !found {
		t.Fatalf("no section %q", heading)
	}
	indent := len(heading) - len(strings.TrimLeft(heading, " "))
	var body strings.Builder
	for line := range strings.Lines(rest) {
		if trimmed := strings.TrimLeft(line, " "); trimmed != "\n" && len(line)-len(trimmed) <= indent {
			break
		}
		body.WriteString(line)
	}
	return body.String()
}

// TestManPage: no warning of groff, and nothing of the command table is missing.
func TestManPage(t *testing.T) {
	text := rendered(t)
	for _, heading := range []string{"NAME", "SYNOPSIS", "DESCRIPTION", "COMMANDS", "GLOBAL FLAGS", "FILES", "ENVIRONMENT", "EXIT STATUS", "EXAMPLES", "SEE ALSO"} {
		section(t, text, heading)
	}
	globals := pflag.NewFlagSet("", pflag.ContinueOnError)
	globalFlags(globals)
	globals.VisitAll(func(f *pflag.Flag) {
		if !strings.Contains(section(t, text, "GLOBAL FLAGS"), "--"+f.Name) {
			t.Errorf("no --%s", f.Name)
		}
	})
	for _, c := range commands() {
		if c.hidden {
			if strings.Contains(text, c.name) {
				t.Errorf("%s is there", c.name)
			}
			continue
		}
		body := section(t, text, "   xdplb "+strings.TrimSpace(c.name+" "+c.args))
		words := strings.Join(strings.Fields(body), " ")
		wants := append(strings.Split(strings.TrimSpace(c.more), "\n"), c.summary[1:])
		flags := pflag.NewFlagSet("", pflag.ContinueOnError)
		c.setup(flags)
		flags.VisitAll(func(f *pflag.Flag) {
			_, usage := pflag.UnquoteUsage(f)
			wants = append(wants, "--"+f.Name, usage)
		})
		for _, want := range wants {
			if !strings.Contains(words, strings.Join(strings.Fields(want), " ")) {
				t.Errorf("%s: no %q in\n%s", c.name, want, body)
			}
		}
	}
}

// TestManExamples: they name commands and flags that there are.
func TestManExamples(t *testing.T) {
	text := section(t, rendered(t), "EXAMPLES")
	for _, example := range manExamples {
		if !strings.Contains(text, example.line+"\n") {
			t.Errorf("no %s", example.line)
		}
		words := strings.Fields(example.line)
		if words[0] != "xdplb" {
			continue
		}
		c, err := find(leadingWords(words[1:]))
		if err != nil {
			t.Errorf("%s: %v", example.line, err)
			continue
		}
		flags := pflag.NewFlagSet(c.name, pflag.ContinueOnError)
		flags.SetOutput(io.Discard)
		c.setup(flags)
		globalFlags(flags)
		if err := flags.Parse(words[1:]); err != nil {
			t.Errorf("%s: %v", example.line, err)
			continue
		}
		e := &env{pins: "/", args: flags.Args()[len(strings.Fields(c.name)):]}
		if err := e.check(c, "text"); err != nil {
			t.Errorf("%s: %v", example.line, err)
		}
	}
}
