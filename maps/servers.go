package maps

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/cilium/ebpf"

	"github.com/xdplb/xdplb/bpf"
)

func serverKey(vip uint32, addr netip.Addr) bpf.XdplbServerKey {
	return bpf.XdplbServerKey{Address: Address(addr), Vip: vip}
}

// Server is the backend that a VIP, by its id, has at an address; 0 if none is
// known. VIPs with --affinity find there a server that a client has under another id.
func (m *Maps) Server(vip uint32, addr netip.Addr) (id uint32, err error) {
	err = m.Servers.Lookup(serverKey(vip, addr), &id)
	if errors.Is(err, ebpf.ErrKeyNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, fmt.Errorf("server %s of VIP %d: %w", addr, vip, err)
	}
	return id, nil
}

// PutServer makes id the backend of a VIP at an address.
func (m *Maps) PutServer(vip uint32, addr netip.Addr, id uint32) error {
	if err := m.Servers.Put(serverKey(vip, addr), id); err != nil {
		return fmt.Errorf("server %s of VIP %d: %w", addr, vip, err)
	}
	return nil
}

// DeleteServer is the reverse; it is no error if there is none.
func (m *Maps) DeleteServer(vip uint32, addr netip.Addr) error {
	err := m.Servers.Delete(serverKey(vip, addr))
	if err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
		return fmt.Errorf("server %s of VIP %d: %w", addr, vip, err)
	}
	return nil
}
