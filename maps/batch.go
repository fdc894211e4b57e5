package maps

import (
	"errors"
	"fmt"
	"runtime"
	"sync"

	"github.com/cilium/ebpf"

	"github.com/xdplb/xdplb/bpf"
)

// Each update of an outer map waits until no packet reads what was there: an RCU
// grace period, of some 10 ms. Threads that wait at the same time wait for the same
// one. (Not by the kernel's own batches: older ones have none for maps of maps.)

// waitTogether is how many updates wait for one grace period.
const waitTogether = 64

// newTable makes a table that no VIP has as yet.
func newTable(slots []Slot) (*ebpf.Map, error) {
	table, err := ebpf.NewMap(&ebpf.MapSpec{
		Name: "table", Type: ebpf.Array, Flags: innerMap,
		KeySize: 4, ValueSize: 8, MaxEntries: uint32(len(slots)),
	})
	if err != nil {
		return nil, fmt.Errorf("creating a table of %d slots: %w", len(slots), err)
	}
	keys, values := make([]uint32, len(slots)), make([]uint64, len(slots))
	for i, s := range slots {
		keys[i], values[i] = uint32(i), s.Encode()
	}
	if _, err := table.BatchUpdate(keys, values, nil); err != nil {
		table.Close()
		return nil, fmt.Errorf("filling a table of %d slots: %w", len(slots), err)
	}
	return table, nil
}

// PutTables makes tables those of the VIPs with these ids, as PutTable does. All
// are made before the first is put in place.
func (m *Maps) PutTables(vips []uint32, tables [][]Slot) error {
	if len(vips) == 0 {
		return nil
	}
	made := make([]*ebpf.Map, len(vips))
	defer func() {
		for _, table := range made {
			if table != nil {
				table.Close()
			}
		}
	}()
	if err := Parallel(len(vips), func(i int) (err error) {
		made[i], err = newTable(tables[i])
		return err
	}); err != nil {
		return err
	}
	return parallel(waitTogether, len(vips), func(i int) error {
		if err := m.Tables.Put(vips[i], made[i]); err != nil {
			return fmt.Errorf("swapping table %d: %w", vips[i], err)
		}
		return nil
	})
}

// PutServices writes the records of VIPs; of each packets see the old or the new one.
func (m *Maps) PutServices(services []*Service) error {
	keys, values := make([]bpf.XdplbVipKey, len(services)), make([]bpf.XdplbVip, len(services))
	for i, s := range services {
		keys[i], values[i] = s.key(), s.XdplbVip
	}
	if len(services) == 0 {
		return nil
	}
	if len(services) == 1 {
		return m.Vips.Put(keys[0], values[0])
	}
	_, err := m.Vips.BatchUpdate(keys, values, nil)
	return err
}

// DeleteTables drops the tables of VIPs that are no more.
func (m *Maps) DeleteTables(vips []uint32) error {
	return parallel(waitTogether, len(vips), func(i int) error { return m.DeleteTable(vips[i]) })
}

// Parallel calls f for 0 to n-1 on all processors, and returns the first error.
// It is for work that does not depend on the calling thread, as netlink's does.
func Parallel(n int, f func(i int) error) error { return parallel(runtime.GOMAXPROCS(0), n, f) }

func parallel(workers, n int, f func(i int) error) error {
	var (
		wg    sync.WaitGroup
		mu    sync.Mutex
		next  int
		first error
	)
	take := func() (i int, ok bool) {
		mu.Lock()
		defer mu.Unlock()
		next++
		return next - 1, next <= n && first == nil
	}
	for range min(workers, n) {
		wg.Go(func() {
			for i, ok := take(); ok; i, ok = take() {
				if err := f(i); err != nil {
					mu.Lock()
					first = errors.Join(first, err)
					mu.Unlock()
				}
			}
		})
	}
	wg.Wait()
	return first
}
