package main

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/rogpeppe/go-internal/testscript"
	"golang.org/x/sys/unix"

	"github.com/xdplb/xdplb/cmd/xdplb/internal/lab"
)

// patience bounds a wait for something that is going to happen.
const patience = 30 * time.Second

// The scripts run the real binary in networks made of namespaces. Beside testscript's own commands they have
//
//	lab flat|routed|two-armed [SERVERS]   build a network of package lab: client, balancer, server1 …
//	cable NODE:DEV NODE:DEV               join two nodes further; both ends carry a foreign XDP program
//	router NODE...                        make nodes that forward
//	web NODE...                           start nginx on ports 80 and 8080; it answers the node's name, and at /peer
//	                                      its port and the address that it sees as well
//	on NODE COMMAND...                    run a command in a node
//	until PATTERN COMMAND...              run a command until it succeeds and prints what matches
//	refused STATUS COMMAND...             run a command that must fail with one line and change nothing
//	halves                                connections ended by one side: see script_halves_test.go
//	mended, instead COMMAND...            paste what the error of a command names: see script_mend_test.go
//	json PATH VALUE...                    compare a part of the JSON printed last
//	sum A + B... = C + D...               the same, for numbers; also < and >
//	udp, hold, bulk, ttl                  traffic: see script_traffic_test.go
//	tag PORT TRUNK VLAN                   a switch whose port is in a VLAN: see script_tag_test.go
//	secrets                               connections that must not be mixed up: see script_secrets_test.go
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:                "../../testdata/script",
		RequireUniqueNames: true,
		Setup: func(e *testscript.Env) error {
			// A script runs xdplb as nobody, who must find it.
			bin, _, _ := strings.Cut(e.Getenv("PATH"), ":")
			return errors.Join(os.Chmod(filepath.Dir(bin), 0o755), os.Chmod(bin, 0o755))
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"lab": labCommand, "cable": cableCommand, "router": routerCommand, "web": webCommand, "json": jsonCommand, "sum": sumCommand,
		},
	})
}

// tidyRun runs the tests and then makes sure that nothing of theirs is left.
type tidyRun struct{ *testing.M }

func (r *tidyRun) Run() int {
	if os.Geteuid() != 0 {
		fmt.Fprintln(os.Stderr, "these tests make network namespaces: run them as root")
		return 1
	}
	if err := leftovers.begin(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	status := r.M.Run()
	if left := leftovers.end(); len(left) > 0 {
		fmt.Fprintf(os.Stderr, "FAIL: the tests left behind:\n\t%s\n", strings.Join(left, "\n\t"))
		return max(status, 1)
	}
	return status
}

// leftovers is what the scripts made, and what there was before.
var leftovers ledger

type ledger struct {
	lab     *lab.Lab
	witness *witness
	before  []string

	mu   sync.Mutex
	maps map[ebpf.MapID]string
	link map[link.ID]string
}

func (l *ledger) begin() (err error) {
	l.before = visible()
	l.maps, l.link = map[ebpf.MapID]string{}, map[link.ID]string{}
	if l.lab, err = lab.New(); err != nil {
		return err
	}
	node, err := l.lab.Node("witness")
	l.witness = &witness{node: node, names: map[int]string{}}
	return err
}

// end waits a while for what the kernel takes away later, and names what stays.
func (l *ledger) end() (left []string) {
	tick, deadline := time.NewTicker(20*time.Millisecond), time.After(patience)
	defer tick.Stop()
	for {
		if left = l.left(); len(left) == 0 {
			break
		}
		select {
		case <-tick.C:
			continue
		case <-deadline:
		}
		break
	}
	if err := l.lab.Close(); err != nil {
		left = append(left, err.Error())
	}
	return left
}

func (l *ledger) left() (left []string) {
	left = l.witness.remaining()
	for id, name := range l.maps {
		if m, err := ebpf.NewMapFromID(id); err == nil {
			left = append(left, "pinned map "+name)
			m.Close()
		}
	}
	for id, name := range l.link {
		if one, err := link.NewFromID(id); err == nil {
			left = append(left, "pinned link "+name)
			one.Close()
		}
	}
	for _, s := range visible() {
		if !slices.Contains(l.before, s) {
			left = append(left, s)
		}
	}
	return left
}

// visible is what this process sees from outside of all labs.
func visible() (all []string) {
	devices, _ := net.Interfaces()
	for _, d := range devices {
		all = append(all, "device "+d.Name)
	}
	for _, pattern := range []string{"/sys/fs/bpf/xdplb*", "/run/netns/*"} {
		names, _ := filepath.Glob(pattern)
		all = append(all, names...)
	}
	mounts, _ := os.ReadFile("/proc/thread-self/mounts")
	for line := range strings.Lines(string(mounts)) {
		all = append(all, "mount "+strings.TrimSpace(line))
	}
	return append(all, children()...)
}

// children are the processes that this one started and that still are.
func children() (all []string) {
	lists, _ := filepath.Glob("/proc/self/task/*/children")
	for _, list := range lists {
		pids, _ := os.ReadFile(list)
		for _, pid := range strings.Fields(string(pids)) {
			name, _ := os.ReadFile("/proc/" + pid + "/comm")
			all = append(all, "process "+pid+" "+strings.TrimSpace(string(name)))
		}
	}
	return all
}

// notePins remembers what is pinned in a node, to see later that it is gone.
func (l *ledger) notePins(script string, n *lab.Node) error {
	return n.Do(func() error {
		err := filepath.WalkDir("/sys/fs/bpf", func(path string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() {
				return err
			}
			l.notePin(script+" "+n.Name+" "+path, path)
			return nil
		})
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOENT) {
			return nil
		}
		return err
	})
}

func (l *ledger) notePin(name, path string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if m, err := ebpf.LoadPinnedMap(path, nil); err == nil {
		defer m.Close()
		if info, err := m.Info(); err == nil {
			if id, ok := info.ID(); ok {
				l.maps[id] = name
			}
		}
	}
	if one, err := link.LoadPinnedLink(path, nil); err == nil {
		defer one.Close()
		if info, err := one.Info(); err == nil {
			l.link[info.ID] = name
		}
	}
}
