package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/netip"
	"os"
	"testing"

	"github.com/xdplb/xdplb/cmd/xdplb/internal/lab"
)

const (
	secretConnections = 20_000
	secretClients     = 4 // processes, for one may have too few open files; each with addresses of its own
	secretAddresses   = 2
)

// TestNoConnectionIsMixedUp: 20,000 connections at the same time through FULL-NAT with two SNAT addresses, each
// with a secret of its own that its server remembers.
func TestNoConnectionIsMixedUp(t *testing.T) {
	n := buildNAT(t, fullnatCase6, 2, 2)
	n.giveSources(secretClients*secretAddresses, true)
	var keepers, clients []*keeper
	for _, server := range n.Servers {
		keepers = append(keepers, n.startKeeper(server, "keep", fmt.Sprint(natServerPort)))
	}
	n.tell(keepers, "") // they listen
	n.addVIP()
	for i := range secretClients {
		args := []string{"ask", n.name, fmt.Sprint(secretConnections / secretClients)}
		for _, source := range n.sources[i*secretAddresses : (i+1)*secretAddresses] {
			args = append(args, source.String())
		}
		clients = append(clients, n.startKeeper(n.Client, args...))
	}
	n.tell(clients, "") // all connections are open
	n.tell(clients, "first")
	n.tell(clients, "again")

	peers := make(map[netip.Addr]int)
	for _, k := range keepers {
		for addr, count := range k.peers(n) {
			peers[addr] += count
		}
	}
	if sum := peers[n.snat[0]] + peers[n.snat[1]]; len(peers) != 2 || sum != secretConnections || min(peers[n.snat[0]], peers[n.snat[1]]) < sum/3 {
		t.Errorf("the servers have connections from %v, want %d, half of them from each of %v", peers, secretConnections, n.snat)
	}
	var flows struct{ Count int }
	n.ask(&flows, "flows", "--count")
	if flows.Count != secretConnections {
		t.Errorf("%d flows are followed of %d connections", flows.Count, secretConnections)
	}
	n.demandNone("snat_exhausted", "twin_lost", "flow_unknown", "nat_clash")
}

// keeper is a process that keeps connections: a server or a client of script_secrets_test.go.
type keeper struct {
	*lab.Cmd
	in  io.WriteCloser
	out *bufio.Reader
}

// startKeeper starts one, which says when it is ready.
func (n *natNet) startKeeper(node *lab.Node, args ...string) *keeper {
	n.t.Helper()
	k := &keeper{Cmd: node.Command(context.Background(), "/proc/self/exe", args...)}
	k.Args[0] = "secrets"
	k.Stderr = os.Stderr
	in, err := k.StdinPipe()
	n.check(err)
	out, err := k.StdoutPipe()
	n.check(err)
	k.in, k.out = in, bufio.NewReader(out)
	n.check(k.Start())
	n.t.Cleanup(func() {
		k.in.Close() // it ends
		if err := k.Wait(); err != nil {
			n.t.Errorf("%s: %v", node.Name, err)
		}
	})
	return k
}

// line tells the process something and returns what it says then.
func (k *keeper) line(words string) (string, error) {
	if words != "" {
		if _, err := io.WriteString(k.in, words+"\n"); err != nil {
			return "", err
		}
	}
	return k.out.ReadString('\n')
}

// tell tells all of them something at once, and waits until they have done it.
func (n *natNet) tell(keepers []*keeper, words string) {
	n.t.Helper()
	errs := make(chan error, len(keepers))
	for _, k := range keepers {
		go func() {
			answer, err := k.line(words)
			if err == nil && answer != "done\n" {
				err = fmt.Errorf("%q", answer)
			}
			errs <- err
		}()
	}
	for range keepers {
		if err := <-errs; err != nil {
			n.t.Fatalf("%s: %v", words, err)
		}
	}
}

// peers is how many connections a server has from each address.
func (k *keeper) peers(n *natNet) (peers map[netip.Addr]int) {
	n.t.Helper()
	answer, err := k.line("peers")
	n.check(err)
	n.check(json.Unmarshal([]byte(answer), &peers))
	return peers
}
