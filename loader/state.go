package loader

import (
	"encoding/binary"
	"fmt"
	"math/bits"
	"net"
	"net/netip"

	"github.com/xdplb/xdplb/bpf"
	"github.com/xdplb/xdplb/maps"
)

// state is what a balancer is now. It is read without the tables: a thousand of
// them are 130 MB.
type state struct {
	vips    map[maps.VIP]*vipState
	order   []*vipState
	orphans []maps.Backend // of VIPs that are no more, or not yet: a command was killed
	used    int            // places of backends
	untidy  bool           // addresses are marked that have no VIP
}

type vipState struct {
	maps.Service
	records    []maps.Backend
	is         WantedVIP
	givenBack  bool // to the local stack
	unfinished bool // a command that changed it was killed
}

func (b *Balancer) readState() (*state, error) {
	services, err := b.Maps.Services()
	if err != nil {
		return nil, err
	}
	s := &state{vips: make(map[maps.VIP]*vipState, len(services))}
	byID := make(map[uint32]*vipState, len(services))
	for _, service := range services {
		v := &vipState{Service: service}
		s.vips[service.VIP], byID[service.Id] = v, v
		s.order = append(s.order, v)
	}
	for _, record := range b.Maps.ReadBackends(func(uint32) bool { return true }) {
		s.used++
		if v := byID[record.Vip]; v != nil {
			v.records = append(v.records, record)
		} else {
			s.orphans = append(s.orphans, record)
		}
	}
	for _, v := range s.order {
		if v.unfinished, err = b.unfinished(v); err != nil {
			return nil, err
		}
		v.givenBack = GivenBack(v.VIP, v.records)
		if v.is, err = b.wantedOf(v); err != nil {
			return nil, err
		}
		_, marked := b.Maps.AddressMark(v.Addr)
		v.unfinished = v.unfinished || !marked
	}
	stale, err := b.Maps.StaleAddresses()
	s.untidy = len(stale) > 0
	return s, err
}

// unfinished reports whether a command was killed while it changed the VIP, and
// mends its records in memory. Only where some are replaced the table is asked.
func (b *Balancer) unfinished(v *vipState) (bool, error) {
	replaced, stopped := false, false
	for i := range v.records {
		r := &v.records[i]
		stopped = stopped || r.Has(bpf.XdplbBackendFlagBackendGone) || r.Has(bpf.XdplbBackendFlagBackendChanging)
		replaced = replaced || !r.Listed() || i > 0 && v.records[i-1].AddrPort() == r.AddrPort()
	}
	if !replaced {
		return stopped, nil
	}
	slots, err := b.Maps.Table(v.Id)
	if err != nil {
		return false, err
	}
	mended := &change{b: b, service: v.Service, slots: slots, backends: v.records}
	return len(mended.toMend()) > 0 || stopped || mended.halfHanded(), nil
}

// wantedOf says of a VIP what a file would.
func (b *Balancer) wantedOf(v *vipState) (w WantedVIP, err error) {
	s := &v.Service
	w = WantedVIP{
		VIP: s.VIP, Mode: Mode(s.Mode), Scheduler: s.InUse().Scheduler, SourcePrefix: SourcePrefix(s),
		TrackAll: s.Has(bpf.XdplbVipFlagVipTrackAll), TableSize: s.TableSize, Alias: s.Alias,
	}
	w.Affinity, w.AffinityGroup = b.Affinity(s, v.records), s.Group()
	if !w.usesPrefix() {
		w.SourcePrefix = uint8(s.Addr.BitLen())
	}
	if ifindex, _ := b.Maps.AddressMark(s.Addr); ifindex != 0 {
		w.Assign = interfaceName(ifindex)
	}
	if s.SnatCount > 0 {
		if w.SNAT, err = b.Maps.SNATOf(s); err != nil {
			return w, err
		}
	}
	for i := range v.records {
		r := &v.records[i]
		if n := len(w.Backends); !r.Listed() || n > 0 && w.Backends[n-1].At == r.AddrPort() {
			continue
		}
		one := WantedBackend{At: r.AddrPort(), Mode: Mode(r.Mode), Weight: r.Weight, Drain: r.Has(bpf.XdplbBackendFlagBackendDrain)}
		if r.Has(bpf.XdplbBackendFlagBackendInherits) {
			one.Mode = 0
		}
		w.Backends = append(w.Backends, one)
	}
	return w, nil
}

// Wanted is what the balancer is, as something to be wanted.
func (b *Balancer) Wanted() (Wanted, error) {
	return b.wanted(func(*vipState) bool { return true })
}

// Lasting is that without the VIPs that are being given back: they are the local stack's
// from now on, and a reboot ends all connections.
func (b *Balancer) Lasting() (Wanted, error) {
	return b.wanted(func(v *vipState) bool { return !v.givenBack })
}

func (b *Balancer) wanted(is func(*vipState) bool) (w Wanted, err error) {
	for _, r := range b.Maps.ReadInterfaces() {
		one := b.wantedInterface(r)
		if one.Mode == XDPNative { // what auto tries first; a restore shall not fail for it
			one.Mode = XDPAuto
		}
		w.Interfaces = append(w.Interfaces, one)
	}
	key := maps.HashKey(b.Settings.GivenKey)
	if w.HashKey = &key; key.Fingerprint() != b.Settings.KeyFingerprint {
		return w, fmt.Errorf("%s: made by a version that did not keep the hash key; begin anew with: xdplb detach --all --purge", b.dir)
	}
	w.MaxVIPs, w.MaxBackends, w.MaxFlows = b.sizes()
	if spread := b.spread(); spread.Bits() > 0 {
		w.TunSpread = &spread
	}
	pool, err := b.Maps.SNATPool(&b.Settings)
	if err != nil {
		return w, err
	}
	ports := b.SNATPorts()
	w.SNAT = &WantedSNAT{Addresses: pool, Ports: &ports}
	w.Timeouts = b.Timeouts()
	s, err := b.readState()
	if err != nil {
		return w, err
	}
	w.VIPs = []WantedVIP{}
	for _, v := range s.order {
		if is(v) {
			w.VIPs = append(w.VIPs, v.is)
			pool = append(pool, v.is.SNAT...)
		}
	}
	for _, addr := range pool {
		ours, err := isAssigned(addr)
		if err != nil {
			return w, err
		}
		w.SNAT.Any = w.SNAT.Any || !ours
	}
	return w, nil
}

func (b *Balancer) wantedInterface(r maps.Interface) WantedInterface {
	w := WantedInterface{Name: interfaceName(r.Ifindex), Mode: XDPNative}
	if r.Flags&uint16(bpf.XdplbInterfaceFlagInterfaceGeneric) != 0 {
		w.Mode = XDPGeneric
	}
	for _, word := range r.Accept {
		if word != 0 {
			w.Accept = append(w.Accept, net.HardwareAddr(MAC(word)))
		}
	}
	return w
}

func (b *Balancer) sizes() (vips, backends, flows uint32) {
	return b.Maps.MaxVIPs(), b.Maps.Backends.MaxEntries() - 1, b.Maps.XdplbMaps.Flows.MaxEntries()
}

// spread is the reverse of spreadWords.
func (b *Balancer) spread() netip.Prefix {
	var addr, mask [4]byte
	binary.LittleEndian.PutUint32(addr[:], b.Settings.SpreadPrefix)
	binary.LittleEndian.PutUint32(mask[:], b.Settings.SpreadMask)
	hosts := bits.OnesCount32(b.Settings.SpreadMask)
	if hosts == 0 {
		return netip.PrefixFrom(netip.IPv4Unspecified(), 0)
	}
	return netip.PrefixFrom(netip.AddrFrom4(addr), 32-hosts)
}

// usesPrefix reports whether the source prefix says anything.
func (w *WantedVIP) usesPrefix() bool {
	return w.Scheduler == maps.SchedulerSource || w.Affinity != 0
}
