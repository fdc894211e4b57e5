package loader

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"

	"github.com/xdplb/xdplb/bpf"
)

// States of an accepted address.
const (
	StateOK            = "ok"
	StateInterfaceGone = "interface gone" // accept it again on one that exists
	StateAddressGone   = "address gone"   // somebody took it off lo
	StateDetached      = "detached"       // the XDP program is not on the interface
)

// AcceptedVIP is an address that this host receives packets for.
type AcceptedVIP struct {
	Address   netip.Addr
	Mode      Mode
	Interface string  // empty if it is gone
	XDPMode   XDPMode // empty if no program is needed, or none is there
	State     string
}

// Realserver is what ListAccepted found.
type Realserver struct {
	Addresses []AcceptedVIP
	From      []netip.Prefix // empty: tunnels may come from everywhere
	Outcomes  map[string]uint64
}

// ListAccepted returns what is accepted in this network namespace, in the
// order of addresses, and what became of the frames that the XDP program saw
// (by the names of `enum outcome`; frames of all interfaces together). If
// nothing is accepted the lists are empty and all counts 0.
func ListAccepted(dir string) (*Realserver, error) {
	if err := checkPrivilege(); err != nil {
		return nil, err
	}
	unlock, err := lockPins(dir)
	if err != nil {
		return nil, err
	}
	defer unlock()
	names, err := outcomeNames()
	if err != nil {
		return nil, err
	}
	found := &Realserver{Addresses: []AcceptedVIP{}, From: []netip.Prefix{}, Outcomes: map[string]uint64{}}
	for _, name := range names {
		found.Outcomes[name] = 0
	}
	server, err := openRealserver(dir, false)
	if err != nil || server == nil {
		return found, err
	}
	defer server.close()
	records, err := server.records()
	if err != nil {
		return nil, err
	}
	present, err := hostAddresses()
	if err != nil {
		return nil, err
	}
	for addr, record := range records {
		vip, err := server.describe(addr, record, present)
		if err != nil {
			return nil, err
		}
		found.Addresses = append(found.Addresses, vip)
	}
	slices.SortFunc(found.Addresses, func(a, b AcceptedVIP) int { return a.Address.Compare(b.Address) })
	sources, err := server.sources()
	if err != nil {
		return nil, err
	}
	if !slices.Equal(sources, everywhere) {
		found.From = sources
	}
	for outcome, name := range names {
		var perCPU []uint64
		if err := server.maps.Outcomes.Lookup(bpf.RealserverOutcome(outcome), &perCPU); err != nil {
			return nil, fmt.Errorf("counter %s: %w", name, err)
		}
		for _, n := range perCPU {
			found.Outcomes[name] += n
		}
	}
	return found, nil
}

func (server *realserver) describe(addr netip.Addr, record bpf.RealserverAccepted, present map[netip.Addr][]int) (AcceptedVIP, error) {
	vip := AcceptedVIP{Address: addr, Mode: Mode(record.Mode)}
	state, err := server.state(addr, record, present)
	if err != nil {
		return vip, err
	}
	vip.State = state
	dev, err := netlink.LinkByIndex(int(record.Ifindex))
	if err != nil {
		return vip, nil // its state says so
	}
	vip.Interface = dev.Attrs().Name
	if vip.Mode == ModeTUN && state != StateDetached {
		vip.XDPMode = attachedMode(dev.Attrs())
	}
	return vip, nil
}

// state tells whether all that makes an accepted address work is still there.
func (server *realserver) state(addr netip.Addr, record bpf.RealserverAccepted, present map[netip.Addr][]int) (string, error) {
	if _, err := netlink.LinkByIndex(int(record.Ifindex)); err != nil {
		return StateInterfaceGone, nil
	}
	if len(present[addr]) == 0 {
		return StateAddressGone, nil
	}
	if record.Mode != bpf.RealserverModeModeTun {
		return StateOK, nil
	}
	attached, err := server.attachment(record.Ifindex)
	if err != nil {
		return "", err
	}
	if attached == nil {
		return StateDetached, nil
	}
	return StateOK, attached.Close()
}

// hostAddresses returns the interfaces on which each address of this host is.
func hostAddresses() (map[netip.Addr][]int, error) {
	all, err := netlink.AddrList(nil, netlink.FAMILY_ALL)
	if err != nil {
		return nil, fmt.Errorf("listing the interfaces' addresses: %w", err)
	}
	present := map[netip.Addr][]int{}
	for _, one := range all {
		if addr, ok := netip.AddrFromSlice(one.IP); ok {
			addr = addr.Unmap()
			present[addr] = append(present[addr], one.LinkIndex)
		}
	}
	return present, nil
}

// setHosts makes the host's addresses, without those it accepts or is about to
// accept, the destinations of tunnels. New ones come before old ones go.
func (server *realserver) setHosts(present map[netip.Addr][]int, vips []netip.Addr) error {
	records, err := server.records()
	if err != nil {
		return err
	}
	hosts := map[bpf.RealserverAddress]bool{}
	for addr := range present {
		if _, accepted := records[addr]; accepted || addr.IsLoopback() || slices.Contains(vips, addr) {
			continue
		}
		hosts[mapKey(addr)] = true
		if err := server.maps.Hosts.Put(mapKey(addr), uint32(1)); err != nil {
			return fmt.Errorf("%s: cannot be recorded as an address of this host: %w; at most %d can be", addr, err, server.maps.Hosts.MaxEntries())
		}
	}
	var key bpf.RealserverAddress
	var value uint32
	var gone []bpf.RealserverAddress
	all := server.maps.Hosts.Iterate()
	for all.Next(&key, &value) {
		if !hosts[key] {
			gone = append(gone, key)
		}
	}
	if err := all.Err(); err != nil {
		return fmt.Errorf("reading this host's addresses: %w", err)
	}
	for _, key := range gone {
		if err := server.maps.Hosts.Delete(key); err != nil {
			return fmt.Errorf("%s: %w", netip.AddrFrom16(key.Bytes).Unmap(), err)
		}
	}
	return nil
}

// everywhere is what is in the trie if the user named no source; sorted.
var everywhere = []netip.Prefix{netip.MustParsePrefix("0.0.0.0/0"), netip.MustParsePrefix("::/0")}

// setSources replaces the prefixes that tunnels may come from, new ones first.
func (server *realserver) setSources(from []netip.Prefix, undo *undoList) error {
	before, err := server.sources()
	if err != nil {
		return err
	}
	if len(from) == 0 {
		if len(before) > 0 {
			return nil
		}
		from = everywhere
	}
	if len(before) > 0 {
		undo.add(func() error { return server.replaceSources(before) })
	}
	return server.replaceSources(from)
}

func (server *realserver) replaceSources(from []netip.Prefix) error {
	before, err := server.sources()
	if err != nil {
		return err
	}
	var wanted []netip.Prefix
	for _, prefix := range from {
		if !prefix.IsValid() || prefix.Addr().Is4In6() {
			return fmt.Errorf("%s: no prefix that tunnels could come from", prefix)
		}
		prefix = prefix.Masked()
		wanted = append(wanted, prefix)
		if err := server.maps.Sources.Put(tunnelSourceKey(prefix), uint32(1)); err != nil {
			return fmt.Errorf("%s: cannot be recorded: %w; at most %d prefixes can be", prefix, err, server.maps.Sources.MaxEntries())
		}
	}
	for _, prefix := range before {
		if slices.Contains(wanted, prefix) {
			continue
		}
		if err := server.maps.Sources.Delete(tunnelSourceKey(prefix)); err != nil {
			return fmt.Errorf("%s: %w", prefix, err)
		}
	}
	return nil
}

// sources returns the prefixes that tunnels may come from, sorted.
func (server *realserver) sources() (prefixes []netip.Prefix, err error) {
	var key bpf.RealserverSourceKey
	var value uint32
	all := server.maps.Sources.Iterate()
	for all.Next(&key, &value) {
		prefixes = append(prefixes, tunnelSource(key))
	}
	if err := all.Err(); err != nil {
		return nil, fmt.Errorf("reading the sources of tunnels: %w", err)
	}
	slices.SortFunc(prefixes, func(a, b netip.Prefix) int {
		if order := a.Addr().Compare(b.Addr()); order != 0 {
			return order
		}
		return strings.Compare(a.String(), b.String())
	})
	return prefixes, nil
}

// The trie counts the bits of the family first, then those of the address, IPv4 mapped.
const (
	familyBits = 32
	mappedBits = 96
)

func tunnelSourceKey(prefix netip.Prefix) bpf.RealserverSourceKey {
	key := bpf.RealserverSourceKey{Prefix: uint32(familyBits + prefix.Bits()), Family: 6, Address: mapKey(prefix.Addr())}
	if prefix.Addr().Is4() {
		key.Prefix += mappedBits
		key.Family = 4
	}
	return key
}

func tunnelSource(key bpf.RealserverSourceKey) netip.Prefix {
	addr, bits := netip.AddrFrom16(key.Address.Bytes), int(key.Prefix)-familyBits
	if key.Family == 4 {
		addr, bits = addr.Unmap(), bits-mappedBits
	}
	return netip.PrefixFrom(addr, bits)
}
