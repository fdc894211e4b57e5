// Package loader loads, pins, attaches and upgrades the programs, resolves next
// hops, and makes every change to VIPs and backends. It prints nothing.
//
// Every change is: take the lock, read the maps, compute, write in an order that
// keeps each state between two writes valid, release.
package loader

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/xdplb/xdplb/maps"
)

// ErrOtherNamespace says that the pins belong to another network namespace.
var ErrOtherNamespace = errors.New("these pins belong to another network namespace")

// Balancer is an open balancer: its maps, and for changes the lock.
type Balancer struct {
	Maps     *maps.Maps
	Settings maps.Settings
	dir      string
	clock    *maps.Clock
	unlock   func()
	// attaching are the numbers that interfaces will have once Apply has attached them.
	attaching map[uint32]uint32
}

// Open opens the balancer pinned in dir for reading.
func Open(dir string) (*Balancer, error) {
	if err := checkPrivilege(); err != nil {
		return nil, err
	}
	m, err := maps.Open(dir)
	if errors.Is(err, maps.ErrNotAttached) {
		return nil, notAttached(dir)
	}
	if err != nil {
		return nil, err
	}
	b := &Balancer{Maps: m, dir: dir}
	if b.Settings, err = m.ReadSettings(); err == nil {
		b.clock, err = maps.NewClock()
	}
	if err != nil {
		b.Close()
		return nil, err
	}
	return b, nil
}

// OpenLocked opens the balancer pinned in dir for a change; until Close every
// other change waits.
func OpenLocked(dir string) (*Balancer, error) {
	if err := checkPrivilege(); err != nil {
		return nil, err
	}
	if _, err := os.Stat(dir); err != nil {
		return nil, notAttached(dir)
	}
	unlock, err := lockPins(dir)
	if err != nil {
		return nil, err
	}
	b, err := Open(dir)
	if err != nil {
		unlock()
		return nil, err
	}
	b.unlock = unlock
	if err = b.checkNamespace(); err == nil {
		err = b.recount()
	}
	if err != nil {
		b.Close()
		return nil, err
	}
	return b, nil
}

// Close releases the lock, if it is held, and the maps.
func (b *Balancer) Close() error {
	if b.unlock != nil {
		defer b.unlock()
	}
	if b.clock != nil {
		b.clock.Close()
	}
	return b.Maps.Close()
}

// Now is the time in jiffies.
func (b *Balancer) Now() (uint64, error) { return b.clock.Jiffies() }

// checkNamespace: an interface index of another namespace names another device.
func (b *Balancer) checkNamespace() error {
	cookie, err := netnsCookie()
	if err != nil {
		return err
	}
	if cookie != b.Settings.NetnsCookie {
		return fmt.Errorf("%s: %w; run in it: nsenter --net=/run/netns/NAME xdplb ..., or keep pins of your own with --pins", b.dir, ErrOtherNamespace)
	}
	return nil
}

func notAttached(dir string) error {
	err := fmt.Errorf("%s: %w to any interface; begin with: xdplb attach IFACE", dir, maps.ErrNotAttached)
	if parent := filepath.Dir(dir); checkBPFFS(dir) != nil && parent != filepath.Dir(DefaultPins) {
		err = fmt.Errorf("%s: %w to any interface, and no BPF file system at %s; let --pins name a directory in one, such as %s", dir, maps.ErrNotAttached, parent, DefaultPins)
	} else if checkBPFFS(dir) != nil {
		err = fmt.Errorf("%s: %w to any interface, and no BPF file system at %s; under ip netns exec, which hides it, use nsenter --net=/run/netns/NAME instead; else mount one: mount -t bpf bpf %[3]s", dir, maps.ErrNotAttached, filepath.Dir(dir))
	}
	return err
}

func checkPrivilege() error {
	if os.Geteuid() != 0 {
		return errors.New("not permitted: run it as root, such as with sudo")
	}
	return nil
}
