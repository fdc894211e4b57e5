package main

import (
	"bytes"
	"os"
	"os/exec"
	"regexp"
	"strings"
)

// pasteable is the command at the end of an error.
var pasteable = regexp.MustCompile(`: ((xdplb|ip|sed|sysctl|ethtool|mount|nsenter) [^;]*)$`)

// mendedMain pastes the command that an error names, and then what was refused must
// be done: mended COMMAND...
func mendedMain() {
	paste()
	var complaint bytes.Buffer
	c := exec.Command(os.Args[1], os.Args[2:]...)
	c.Stdout, c.Stderr = os.Stdout, &complaint
	if err := c.Run(); err != nil {
		die("mended: still refused: %s", complaint.String())
	}
}

// insteadMain pastes the command that an error names, which does what was meant: instead COMMAND...
func insteadMain() { paste() }

// paste runs what must be refused, with one line, nothing changed, and a command at
// its end that does not fail.
func paste() {
	if len(os.Args) < 2 {
		die("usage: mended|instead COMMAND...")
	}
	before := state()
	var complaint bytes.Buffer
	c := exec.Command(os.Args[1], os.Args[2:]...)
	c.Stdout, c.Stderr = &complaint, &complaint
	err := c.Run()
	os.Stderr.Write(complaint.Bytes())
	text := strings.TrimSuffix(complaint.String(), "\n")
	status := c.ProcessState.ExitCode()
	if err == nil || status != 1 && status != 2 || strings.Contains(text, "\n") {
		die("not refused with one line: %v, status %d", err, status)
	}
	if after := state(); after != before {
		die("refused, and changed something; before:\n%safter:\n%s", before, after)
	}
	found := pasteable.FindStringSubmatch(text)
	if found == nil {
		die("no command at the end of: %s", text)
	}
	if out, err := exec.Command("sh", "-c", found[1]).CombinedOutput(); err != nil {
		die("pasting %s: %v: %s", found[1], err, out)
	}
}
