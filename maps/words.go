package maps

import (
	"encoding/binary"
	"fmt"
	"sync/atomic"
	"unsafe"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// words is the memory of a mmapable array map. Packets read it while Go writes,
// so it is written in aligned words of 8 bytes, each at once.
type words struct {
	memory []byte
	size   int // bytes of an element
}

func mapWords(m *ebpf.Map) (words, error) {
	memory, err := unix.Mmap(m.FD(), 0, int(m.MaxEntries()*m.ValueSize()), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return words{}, fmt.Errorf("map %v: mmap: %w", m, err)
	}
	return words{memory, int(m.ValueSize())}, nil
}

func (w words) unmap() {
	if w.memory != nil {
		_ = unix.Munmap(w.memory)
	}
}

func (w words) len() int { return len(w.memory) / max(w.size, 1) }

func (w words) word(element uint32, offset uintptr) *uint64 {
	at := int(element)*w.size + int(offset)
	return (*uint64)(unsafe.Pointer(&w.memory[at : at+8][0]))
}

// read decodes an element into value, whose layout is that of the map's values.
func (w words) read(element uint32, value any) {
	at := int(element) * w.size
	if _, err := binary.Decode(w.memory[at:at+w.size], binary.LittleEndian, value); err != nil {
		panic(err) // a layout that bpf2go did not make
	}
}

// write stores the words of value that differ, from the last to the first: the
// first holds what says whether the others count.
func (w words) write(element uint32, value any) {
	buffer := make([]byte, w.size)
	if _, err := binary.Encode(buffer, binary.LittleEndian, value); err != nil {
		panic(err)
	}
	for offset := w.size - 8; offset >= 0; offset -= 8 {
		word, next := w.word(element, uintptr(offset)), binary.LittleEndian.Uint64(buffer[offset:])
		if atomic.LoadUint64(word) != next {
			atomic.StoreUint64(word, next)
		}
	}
}
