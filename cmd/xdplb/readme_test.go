package main

import (
	"context"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/xdplb/xdplb/cmd/xdplb/internal/lab"
)

// TestReadme runs every command of the README's tour, as written, on the hosts that it names.
func TestReadme(t *testing.T) {
	commands := commandsOf(t, "README.md", "console")
	if len(commands) < 20 {
		t.Fatalf("found %d commands", len(commands))
	}
	runTour(t, commands)
}

// readmeCommand is a line of a fence. A ```console fence is of the tour, or of an example; for ```console ipvs
// see readme_migration_test.go.
type readmeCommand struct {
	heading    string // the one that it stands under
	host, line string
}

var consoleLine = regexp.MustCompile(`^(client|balancer|server\d)# (.+)$`)

// commandsOf returns what stands in a text's fences of one kind: lines that begin with a host and #.
func commandsOf(t *testing.T, name, kind string) (found []readmeCommand) {
	t.Helper()
	text, err := os.ReadFile("../../" + name)
	if err != nil {
		t.Fatal(err)
	}
	var heading, fence string
	for line := range strings.Lines(string(text)) {
		line = strings.TrimSpace(line)
		info, isFence := strings.CutPrefix(line, "```")
		switch {
		case isFence && fence != "":
			fence = ""
		case isFence:
			fence = info + " "
		case fence == "" && strings.HasPrefix(line, "#"):
			heading = strings.TrimLeft(line, "# ")
		case fence == kind+" ":
			match := consoleLine.FindStringSubmatch(line)
			if match == nil {
				t.Fatalf("%s: not a command: %q", name, line)
			}
			found = append(found, readmeCommand{heading, match[1], match[2]})
		}
	}
	if fence != "" {
		t.Fatalf("%s: a fence has no end", name)
	}
	return found
}

// runTour runs commands where the tour takes place: three servers on the client's network.
func runTour(t *testing.T, commands []readmeCommand) {
	network := readmeLab(t, lab.Plan{})
	for _, server := range network.Servers {
		if err := server.ServeHTTP(80); err != nil {
			t.Fatal(err)
		}
	}
	directory := t.TempDir()
	for _, c := range commands {
		out := c.run(t, network, directory)
		if strings.HasPrefix(c.line, "curl ") && out == "" {
			t.Fatalf("%s# %s: no answer", c.host, c.line)
		}
	}
}

func readmeLab(t *testing.T, plan lab.Plan) *lab.Network {
	t.Helper()
	network, err := lab.BuildNetwork(plan)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := network.Close(); err != nil {
			t.Error(err)
		}
	})
	return network
}

// run gives the line to a shell of its host, as a reader would, and returns what it prints.
func (c readmeCommand) run(t *testing.T, network *lab.Network, directory string) string {
	t.Helper()
	for _, n := range network.Nodes() {
		if n.Name == c.host {
			return runIn(t, n, directory, c.line)
		}
	}
	t.Fatalf("%s# %s: there is no such host", c.host, c.line)
	return ""
}

func runOn(t *testing.T, n *lab.Node, line string) {
	t.Helper()
	runIn(t, n, "", line)
}

// runIn runs a line in a directory of a node, where xdplb and ipvsadm are this binary: see TestMain.
func runIn(t *testing.T, n *lab.Node, directory, line string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cmd := n.Command(ctx, "sh", "-c", line)
	cmd.Dir = directory
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s# %s: %v\n%s", n.Name, line, err, out)
	}
	return string(out)
}
