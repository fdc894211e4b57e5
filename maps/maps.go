// Package maps gives typed access to the pinned maps, which are xdplb's only
// database, and builds the lookup tables.
//
// What changes the maps must hold the lock that package loader takes. Reading
// needs none: every value is either written at once or valid in every state
// between two words.
package maps

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/xdplb/xdplb/bpf"
)

// ErrNotAttached says that there are no pins: nothing was attached yet.
var ErrNotAttached = errors.New("not attached")

// Maps are the open maps of one balancer.
type Maps struct {
	bpf.XdplbMaps
	backends   words // mapped memory of the `backends` map
	interfaces words
	loads      words
}

// Each calls f with the name and the field of every map.
func each(m *bpf.XdplbMaps, f func(name string, field **ebpf.Map) error) error {
	v := reflect.ValueOf(m).Elem()
	for i := range v.NumField() {
		if err := f(v.Type().Field(i).Tag.Get("ebpf"), v.Field(i).Addr().Interface().(**ebpf.Map)); err != nil {
			return err
		}
	}
	return nil
}

// Open opens the maps pinned in dir. ErrNotAttached if dir does not exist.
func Open(dir string) (*Maps, error) {
	m := new(Maps)
	if _, err := os.Stat(dir); errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%s: %w", dir, ErrNotAttached)
	}
	err := each(&m.XdplbMaps, func(name string, field **ebpf.Map) (err error) {
		if *field, err = ebpf.LoadPinnedMap(filepath.Join(dir, name), nil); err != nil {
			return fmt.Errorf("%s: map %s: %w", dir, name, err)
		}
		return nil
	})
	if err == nil {
		err = m.mmap()
	}
	if err != nil {
		m.Close()
		return nil, err
	}
	return m, nil
}

// Adopt makes Maps of maps that were just created; they are m's from then on.
func Adopt(created bpf.XdplbMaps) (*Maps, error) {
	m := &Maps{XdplbMaps: created}
	if err := m.mmap(); err != nil {
		return nil, err
	}
	return m, nil
}

// Pin pins every map by its name in dir.
func (m *Maps) Pin(dir string) error {
	return each(&m.XdplbMaps, func(name string, field **ebpf.Map) error {
		if err := (*field).Pin(filepath.Join(dir, name)); err != nil {
			return fmt.Errorf("%s: pinning map %s: %w", dir, name, err)
		}
		return nil
	})
}

// Replacements are the maps by name, for loading another program on them.
func (m *Maps) Replacements() map[string]*ebpf.Map {
	all := make(map[string]*ebpf.Map)
	_ = each(&m.XdplbMaps, func(name string, field **ebpf.Map) error { all[name] = *field; return nil })
	return all
}

func (m *Maps) mmap() (err error) {
	if m.backends, err = mapWords(m.Backends); err != nil {
		return err
	}
	if m.interfaces, err = mapWords(m.Interfaces); err != nil {
		return err
	}
	m.loads, err = mapWords(m.Loads)
	return err
}

// Close unmaps and closes the maps; their pins stay.
func (m *Maps) Close() error {
	m.backends.unmap()
	m.interfaces.unmap()
	m.loads.unmap()
	return each(&m.XdplbMaps, func(_ string, field **ebpf.Map) error {
		if *field != nil {
			return (*field).Close()
		}
		return nil
	})
}

// IsFull reports whether an error of a map update says that it has no room.
func IsFull(err error) bool {
	return errors.Is(err, unix.E2BIG) || errors.Is(err, unix.ENOSPC)
}
