package maps

import (
	"fmt"

	"github.com/xdplb/xdplb/bpf"
)

// Interface is the record of an attached interface; Ifindex 0 is a free one.
type Interface struct {
	Number uint32 // its key
	bpf.XdplbInterface
}

// MACWord is a MAC address as the data path compares it.
func MACWord(mac []byte) (word uint64) {
	for i, b := range mac {
		word |= uint64(b) << (8 * i)
	}
	return word
}

// ReadInterfaces returns the records in use.
func (m *Maps) ReadInterfaces() []Interface {
	var all []Interface
	for i := range uint32(m.interfaces.len()) {
		r := Interface{Number: i}
		if m.interfaces.read(i, &r.XdplbInterface); r.Ifindex != 0 {
			all = append(all, r)
		}
	}
	return all
}

// PutInterface writes a record, and makes the interface a target of redirects.
func (m *Maps) PutInterface(r Interface) error {
	if err := m.Devices.Put(r.Number, r.Ifindex); err != nil {
		return fmt.Errorf("interface %d: device map: %w", r.Ifindex, err)
	}
	m.interfaces.write(r.Number, &r.XdplbInterface)
	return nil
}

// DeleteInterface frees a record.
func (m *Maps) DeleteInterface(number uint32) error {
	m.interfaces.write(number, &bpf.XdplbInterface{})
	return m.Devices.Delete(number)
}

// MaxInterfaces is how many can be attached.
func (m *Maps) MaxInterfaces() uint32 { return uint32(m.interfaces.len()) }
