package maps

import (
	"errors"
	"fmt"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// bpf.h: BPF_F_INNER_MAP lets tables of different sizes stand in one outer map.
const innerMap = 1 << 12

// PutTable makes slots the table of the VIP with this id. Packets see the old
// table or the new one; when it returns, no packet sees the old one any more.
func (m *Maps) PutTable(vip uint32, slots []Slot) error {
	return m.PutTables([]uint32{vip}, [][]Slot{slots})
}

// Table reads the table of the VIP with this id.
func (m *Maps) Table(vip uint32) ([]Slot, error) {
	var table *ebpf.Map
	if err := m.Tables.Lookup(vip, &table); err != nil {
		return nil, fmt.Errorf("table %d: %w", vip, err)
	}
	defer table.Close()
	n := table.MaxEntries()
	keys, values := make([]uint32, n), make([]uint64, n)
	var cursor ebpf.MapBatchCursor
	if _, err := table.BatchLookup(&cursor, keys, values, nil); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
		return nil, fmt.Errorf("reading table %d: %w", vip, err)
	}
	slots := make([]Slot, n)
	for i, key := range keys {
		slots[key] = DecodeSlot(values[i])
	}
	return slots, nil
}

// DeleteTable drops the table of a VIP that is no more.
func (m *Maps) DeleteTable(vip uint32) error {
	if err := m.Tables.Delete(vip); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) && !errors.Is(err, unix.ENOENT) {
		return err
	}
	return nil
}
