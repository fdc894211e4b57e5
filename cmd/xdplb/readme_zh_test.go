package main

import (
	"context"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/xdplb/xdplb/cmd/xdplb/internal/lab"
)

// workedExamples are the headings of the Chinese README under which one mode is gone through, from the servers'
// configuration to the client's requests, and the networks that they are about. All have two servers.
var workedExamples = map[string]struct {
	shape   lab.Shape
	prepare func(*testing.T, *lab.Network)
}{
	"NAT": {lab.TwoArmed, nil},
	"DR":  {lab.Flat, nil},
	// The servers are behind a router, and the balancer has one interface.
	"TUN": {lab.TwoArmed, func(t *testing.T, n *lab.Network) {
		arrange(t, n, "balancer", "ip link set eth1 down", "ip route add 198.51.100.0/24 via 192.0.2.1")
	}},
	// The servers know nothing but their own network.
	"FULL-NAT": {lab.TwoArmed, func(t *testing.T, n *lab.Network) {
		arrange(t, n, "server1", "ip route del default")
		arrange(t, n, "server2", "ip route del default")
	}},
}

// TestReadmeChinese runs every command of README.zh-CN.md: the tour, which is that of README.md, and the examples.
func TestReadmeChinese(t *testing.T) {
	var tour []readmeCommand
	examples := map[string][]readmeCommand{}
	for _, c := range commandsOf(t, "README.zh-CN.md", "console") {
		if _, known := workedExamples[c.heading]; known {
			examples[c.heading] = append(examples[c.heading], c)
		} else {
			tour = append(tour, c)
		}
	}
	t.Run("tour", func(t *testing.T) {
		if difference := cmp.Diff(written(commandsOf(t, "README.md", "console")), written(tour)); difference != "" {
			t.Fatalf("README.md (-) and README.zh-CN.md (+) differ:\n%s", difference)
		}
		runTour(t, tour)
	})
	for _, heading := range slices.Sorted(maps.Keys(workedExamples)) {
		t.Run(heading, func(t *testing.T) { runExample(t, heading, examples[heading]) })
	}
}

// runExample runs a worked example with nginx as the servers. Where the client makes many requests each server
// answers a part, and with round robin the same.
func runExample(t *testing.T, heading string, commands []readmeCommand) {
	example := workedExamples[heading]
	network := readmeLab(t, lab.Plan{Shape: example.shape, Servers: 2})
	if example.prepare != nil {
		example.prepare(t, network)
	}
	directory := t.TempDir()
	startNginx(t, directory, network.Servers)
	inTurn, rounds := false, 0
	for _, c := range commands {
		out := c.run(t, network, directory)
		switch {
		case strings.Contains(c.line, "ipvsadm -A "), strings.Contains(c.line, "xdplb vip add "):
			inTurn = strings.Contains(c.line, " rr")
		case strings.Contains(c.line, "seq "):
			rounds++
			checkShares(t, c.line, out, inTurn)
		}
	}
	if rounds < 2 {
		t.Errorf("%s: the client asks %d times; want it once in each language", heading, rounds)
	}
}

// checkShares reads who answered how often, as uniq -c prints it, behind `for i in $(seq N)`.
func checkShares(t *testing.T, line, out string, inTurn bool) {
	t.Helper()
	var requests int
	if _, err := fmt.Sscanf(line[strings.Index(line, "seq "):], "seq %d", &requests); err != nil || requests%2 != 0 {
		t.Fatalf("%s: wants an even number of requests (%v)", line, err)
	}
	answers, sum := map[string]int{}, 0
	for row := range strings.Lines(out) {
		var name string
		var count int
		if _, err := fmt.Sscan(row, &count, &name); err != nil {
			t.Fatalf("%s: printed %q", line, row)
		}
		answers[name] = count
		sum += count
	}
	half := map[string]int{"server1": requests / 2, "server2": requests / 2}
	switch {
	case inTurn && !maps.Equal(answers, half):
		t.Errorf("%s: answers %v, want %v", line, answers, half)
	case sum != requests || len(answers) != 2 || answers["server1"] == 0 || answers["server2"] == 0:
		t.Errorf("%s: answers %v, want %d from both servers", line, answers, requests)
	}
}

// arrange runs commands that make the network what an example says that it is.
func arrange(t *testing.T, network *lab.Network, host string, lines ...string) {
	t.Helper()
	for _, line := range lines {
		readmeCommand{host: host, line: line}.run(t, network, "/")
	}
}

// startNginx starts it on nodes, as scripts do, and waits until it listens. The lab ends it.
func startNginx(t *testing.T, directory string, nodes []*lab.Node) {
	t.Helper()
	for _, n := range nodes {
		home := filepath.Join(directory, "nginx-"+n.Name)
		if err := os.Mkdir(home, 0o755); err != nil {
			t.Fatal(err)
		}
		config := filepath.Join(home, "conf")
		if err := os.WriteFile(config, fmt.Appendf(nil, nginxConfig, home, n.Name), 0o644); err != nil {
			t.Fatal(err)
		}
		server := n.Command(context.Background(), "nginx", "-e", "stderr", "-p", home, "-c", config)
		server.Stderr = os.Stderr
		if err := server.Start(); err != nil {
			t.Fatal(err)
		}
		go func() { _ = server.Wait() }()
	}
	for _, n := range nodes {
		if err := awaitWeb(n); err != nil {
			t.Fatal(err)
		}
	}
}
