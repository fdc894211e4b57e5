package maps

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/xdplb/xdplb/bpf"
)

// VIP names a virtual service. Port 0 is every port.
type VIP struct {
	Addr  netip.Addr
	Port  uint16
	Proto uint8 // unix.IPPROTO_TCP or unix.IPPROTO_UDP
}

// ParseVIP reads ADDR:PORT[/tcp|/udp]; an IPv6 address stands in brackets, and
// without a protocol it is TCP.
func ParseVIP(s string) (VIP, error) {
	hostport, proto, named := strings.Cut(s, "/")
	v := VIP{Proto: unix.IPPROTO_TCP}
	switch {
	case proto == "udp":
		v.Proto = unix.IPPROTO_UDP
	case named && proto != "tcp":
		return VIP{}, fmt.Errorf("%s: protocol %q; use /tcp or /udp", s, proto)
	}
	ap, err := netip.ParseAddrPort(hostport)
	if err != nil {
		return VIP{}, fmt.Errorf("%s: not a VIP; write ADDR:PORT[/tcp|/udp], IPv6 in brackets, such as 192.0.2.10:80 or [2001:db8::10]:53/udp", s)
	}
	v.Addr, v.Port = ap.Addr().Unmap(), ap.Port()
	if v.Addr.Zone() != "" || v.Addr.IsUnspecified() || v.Addr.IsMulticast() || v.Addr.IsLoopback() || v.Addr.IsLinkLocalUnicast() {
		return VIP{}, fmt.Errorf("%s: clients cannot reach it through a router; use a unicast address of the service", s)
	}
	return v, nil
}

func (v VIP) String() string {
	return v.AddrPort().String() + "/" + ProtoName(v.Proto)
}

// AddrPort is the VIP without its protocol.
func (v VIP) AddrPort() netip.AddrPort { return netip.AddrPortFrom(v.Addr, v.Port) }

// Compare orders VIPs for listings.
func (v VIP) Compare(w VIP) int {
	return cmp.Or(v.Addr.Compare(w.Addr), cmp.Compare(v.Port, w.Port), cmp.Compare(v.Proto, w.Proto))
}

// ProtoName is tcp, udp, or the number.
func ProtoName(proto uint8) string {
	switch proto {
	case unix.IPPROTO_TCP:
		return "tcp"
	case unix.IPPROTO_UDP:
		return "udp"
	}
	return strconv.Itoa(int(proto))
}

func (v VIP) key() bpf.XdplbVipKey {
	return bpf.XdplbVipKey{Address: Address(v.Addr), Port: v.Port, Proto: v.Proto}
}

// Address is the form that addresses have in maps: 16 bytes, IPv4 mapped.
func Address(a netip.Addr) bpf.XdplbAddress {
	if !a.IsValid() {
		return bpf.XdplbAddress{}
	}
	return bpf.XdplbAddress{Bytes: a.As16()}
}

// Addr is the reverse of Address. All zeros is the zero Addr.
func Addr(a bpf.XdplbAddress) netip.Addr {
	if a.Bytes == [16]byte{} {
		return netip.Addr{}
	}
	return netip.AddrFrom16(a.Bytes).Unmap()
}

// Service is a VIP with its record.
type Service struct {
	VIP
	bpf.XdplbVip
}

// Has reports whether a flag of enum vip_flag is set.
func (s *Service) Has(flag bpf.XdplbVipFlag) bool { return s.Flags&uint8(flag) != 0 }

// SetFlag sets or clears a flag of enum vip_flag.
func (s *Service) SetFlag(flag bpf.XdplbVipFlag, on bool) {
	s.Flags &^= uint8(flag)
	if on {
		s.Flags |= uint8(flag)
	}
}

// InUse is the function that picks the slot of new flows.
func (s *Service) InUse() SlotFunction {
	return SlotFunction{Scheduler(s.Function.Scheduler), s.Function.SourcePrefix}
}

// Group is the name of the group of VIPs that share their clients'
// backends; empty if the VIP is in none.
func (s *Service) Group() string {
	return string(bytes.TrimRight(s.AffinityName[:], "\x00"))
}

// SetGroup puts the VIP in the group with this name, of at most
// len(s.AffinityName) bytes, and number. Name "" and number 0 are no group.
func (s *Service) SetGroup(name string, number uint32) {
	s.AffinityName = [len(s.AffinityName)]uint8{}
	copy(s.AffinityName[:], name)
	s.AffinityGroup = number
}

// Services reads all VIPs, in order.
func (m *Maps) Services() ([]Service, error) {
	all, _, err := m.readVIPs()
	return all, err
}

// readVIPs also returns the addresses that are marked as those of VIPs.
func (m *Maps) readVIPs() (services []Service, addresses []netip.Addr, err error) {
	var key bpf.XdplbVipKey
	var value bpf.XdplbVip
	for it := m.Vips.Iterate(); ; {
		if !it.Next(&key, &value) {
			if err := it.Err(); err != nil {
				return nil, nil, fmt.Errorf("reading VIPs: %w", err)
			}
			break
		}
		if value.Flags&uint8(bpf.XdplbVipFlagVipAddress) != 0 {
			addresses = append(addresses, Addr(key.Address))
			continue
		}
		services = append(services, Service{VIP{Addr(key.Address), key.Port, key.Proto}, value})
	}
	slices.SortFunc(services, func(a, b Service) int { return a.Compare(b.VIP) })
	return services, addresses, nil
}

// PutService writes a VIP's record; packets see the old or the new one.
func (m *Maps) PutService(s *Service) error {
	key := s.key()
	return m.Vips.Put(key, s.XdplbVip)
}

// DeleteService removes a VIP; its packets pass from then on.
func (m *Maps) DeleteService(v VIP) error { return m.Vips.Delete(v.key()) }

// MarkAddress marks an address as that of a VIP. ifindex is the interface that it
// is put on for that; 0: on none.
func (m *Maps) MarkAddress(a netip.Addr, ifindex uint32) error {
	return m.Vips.Put(addressKey(a), bpf.XdplbVip{Flags: uint8(bpf.XdplbVipFlagVipAddress), Assigned: ifindex})
}

// AddressMark reads the mark of an address; false if it has none.
func (m *Maps) AddressMark(a netip.Addr) (ifindex uint32, marked bool) {
	var mark bpf.XdplbVip
	err := m.Vips.Lookup(addressKey(a), &mark)
	return mark.Assigned, err == nil
}

// StaleAddresses are those that are marked and have no VIP.
func (m *Maps) StaleAddresses() ([]netip.Addr, error) {
	services, marked, err := m.readVIPs()
	return slices.DeleteFunc(marked, func(a netip.Addr) bool {
		return slices.ContainsFunc(services, func(s Service) bool { return s.Addr == a })
	}), err
}

// MarkAddresses makes the marks of addresses, by which an echo request is ours,
// those of the VIPs there are.
func (m *Maps) MarkAddresses() error {
	stale, err := m.StaleAddresses()
	if err != nil {
		return err
	}
	for _, a := range stale {
		if err := m.Vips.Delete(addressKey(a)); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return err
		}
	}
	services, err := m.Services()
	if err != nil {
		return err
	}
	for _, s := range services {
		if _, marked := m.AddressMark(s.Addr); marked {
			continue
		}
		if err := m.MarkAddress(s.Addr, 0); err != nil {
			return err
		}
	}
	return nil
}

func addressKey(a netip.Addr) bpf.XdplbVipKey {
	proto := uint8(unix.IPPROTO_ICMP)
	if a.Is6() {
		proto = unix.IPPROTO_ICMPV6
	}
	return bpf.XdplbVipKey{Address: Address(a), Proto: proto}
}

// MaxVIPs is how many VIPs fit: `vips` also holds a mark for each address.
func (m *Maps) MaxVIPs() uint32 { return m.Tables.MaxEntries() }

// LookupVIP reads the record of a VIP; false if there is none.
func (m *Maps) LookupVIP(v VIP, value *bpf.XdplbVip) bool {
	return m.Vips.Lookup(v.key(), value) == nil
}
