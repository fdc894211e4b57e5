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

// consoleBlocks are what stands in ```console fences: lines that begin with a host and #.
var (
	consoleBlocks = regexp.MustCompile("(?s)```console\n(.*?)```")
	consoleLine   = regexp.MustCompile(`^(client|balancer|server\d)# (.+)$`)
)

// TestReadme runs every command of the README's tour, as written, on the hosts that it names.
func TestReadme(t *testing.T) {
	text, err := os.ReadFile("../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	network, err := lab.BuildNetwork(lab.Plan{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := network.Close(); err != nil {
			t.Error(err)
		}
	})
	nodes := map[string]*lab.Node{"client": network.Client, "balancer": network.Balancer}
	for _, server := range network.Servers {
		nodes[server.Name] = server
		if err := server.ServeHTTP(80); err != nil {
			t.Fatal(err)
		}
	}
	ran := 0
	for _, block := range consoleBlocks.FindAllStringSubmatch(string(text), -1) {
		for line := range strings.Lines(block[1]) {
			match := consoleLine.FindStringSubmatch(strings.TrimSpace(line))
			if match == nil {
				t.Fatalf("not a command: %q", line)
			}
			runOn(t, nodes[match[1]], match[2])
			ran++
		}
	}
	if ran < 20 {
		t.Errorf("found %d commands", ran)
	}
}

func runOn(t *testing.T, n *lab.Node, line string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	args := strings.Fields(line)
	cmd := n.Command(ctx, args[0], args[1:]...)
	if args[0] == "xdplb" { // this binary: see TestMain
		cmd = n.Command(ctx, "/proc/self/exe", args[1:]...)
		cmd.Args[0] = "xdplb"
	}
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s# %s: %v\n%s", n.Name, line, err, out)
	}
	if len(out) == 0 && args[0] == "curl" {
		t.Fatalf("%s# %s: no answer", n.Name, line)
	}
}
