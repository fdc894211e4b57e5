package maps

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/xdplb/xdplb/bpf"
)

// Lists of SNAT addresses are parts of the array `snat`. What names one, the word
// settings.snat or a VIP's record, is swung as a whole; a list itself is never
// edited: packets read it.

// MaxSNAT is how many SNAT addresses there can be, of all lists together.
const MaxSNAT = int(bpf.XdplbSnatLimitSnatMax)

// membarrierGlobal is MEMBARRIER_CMD_GLOBAL of include/uapi/linux/membarrier.h: it
// waits for every CPU's RCU readers, packets among them.
const membarrierGlobal = 1

// SNATPool reads the addresses of the pool, IPv4 first.
func (m *Maps) SNATPool(s *Settings) ([]netip.Addr, error) {
	v4, err := m.readSNAT(s.Snat.First4, s.Snat.Count4)
	if err != nil {
		return nil, err
	}
	v6, err := m.readSNAT(s.Snat.First6, s.Snat.Count6)
	return append(v4, v6...), err
}

// SNATOf reads a VIP's own addresses; none: it uses the pool.
func (m *Maps) SNATOf(s *Service) ([]netip.Addr, error) { return m.readSNAT(s.SnatFirst, s.SnatCount) }

func (m *Maps) readSNAT(first, count uint16) ([]netip.Addr, error) {
	addrs := make([]netip.Addr, count)
	for i := range addrs {
		var a bpf.XdplbAddress
		if err := m.Snat.Lookup(uint32(first)+uint32(i), &a); err != nil {
			return nil, fmt.Errorf("SNAT addresses: %w", err)
		}
		addrs[i] = Addr(a)
	}
	return addrs, nil
}

// PutSNATPool makes addrs the pool, in the settings s as well.
func (m *Maps) PutSNATPool(s *Settings, addrs []netip.Addr) error {
	var v4, v6 []netip.Addr
	for _, a := range addrs {
		if a.Is4() {
			v4 = append(v4, a)
		} else {
			v6 = append(v6, a)
		}
	}
	// Side by side: one list to place, two parts of it.
	first, err := m.placeSNAT(s, append(v4, v6...))
	if err != nil {
		return err
	}
	s.Snat = bpf.XdplbSnatPool{
		First4: first, Count4: uint16(len(v4)),
		First6: first + uint16(len(v4)), Count6: uint16(len(v6)),
	}
	return m.PutSettings(*s)
}

// PlaceSNAT writes a VIP's own addresses into its record; without any it uses the
// pool. Packets see them when the record is put.
func (m *Maps) PlaceSNAT(settings *Settings, s *Service, addrs []netip.Addr) error {
	first, err := m.placeSNAT(settings, addrs)
	s.SnatFirst, s.SnatCount = first, uint16(len(addrs))
	return err
}

// placeSNAT writes a list where none is.
func (m *Maps) placeSNAT(settings *Settings, addrs []netip.Addr) (first uint16, err error) {
	if len(addrs) == 0 {
		return 0, nil
	}
	services, err := m.Services()
	if err != nil {
		return 0, err
	}
	pool := settings.Snat
	used := [][2]uint16{{pool.First4, pool.Count4}, {pool.First6, pool.Count6}}
	for _, s := range services {
		used = append(used, [2]uint16{s.SnatFirst, s.SnatCount})
	}
	first, ok := gap(used, len(addrs))
	if !ok {
		return 0, fmt.Errorf("no room for %d SNAT addresses beside those in use: at most %d of all VIPs together, and a list that changes needs room twice", len(addrs), MaxSNAT)
	}
	// Packets may still read a list that was here until lately. Kernels with nohz_full
	// refuse to wait for them; a command takes longer than a packet all the same.
	_, _, _ = unix.Syscall(unix.SYS_MEMBARRIER, membarrierGlobal, 0, 0)
	for i, a := range addrs {
		if err := m.Snat.Put(uint32(first)+uint32(i), Address(a)); err != nil {
			return 0, fmt.Errorf("SNAT addresses: %w", err)
		}
	}
	return first, nil
}

// gap finds the first place for n entries beside the lists in use, each given by
// its first place and its length.
func gap(used [][2]uint16, n int) (first uint16, ok bool) {
	slices.SortFunc(used, func(a, b [2]uint16) int { return int(a[0]) - int(b[0]) })
	end := 0
	for _, list := range used {
		if list[1] == 0 {
			continue
		}
		if int(list[0])-end >= n {
			break
		}
		end = max(end, int(list[0])+int(list[1]))
	}
	return uint16(end), end+n <= MaxSNAT
}

// Replies calls f for each entry that knows a flow as its backend sends it, first
// those of `half_open` and then those of `flows`. A claim of an SNAT address and
// port is such an entry, and they are its destination.
func (m *Maps) Replies(f func(Flow)) error {
	for _, from := range []*ebpf.Map{m.HalfOpen, m.XdplbMaps.Flows} {
		size := min(flowBatch, int(from.MaxEntries()))
		keys, values := make([]bpf.XdplbTuple, size), make([]bpf.XdplbFlow, size)
		for cursor, end := new(ebpf.MapBatchCursor), false; !end; {
			n, err := from.BatchLookup(cursor, keys, values, nil)
			if end = errors.Is(err, ebpf.ErrKeyNotExist); err != nil && !end {
				return fmt.Errorf("reading %v: %w", from, err)
			}
			for i := range n {
				if values[i].Direction == uint8(bpf.XdplbFlowDirectionFlowToClient) {
					f(decodeFlow(keys[i], values[i], from == m.HalfOpen))
				}
			}
		}
	}
	return nil
}
