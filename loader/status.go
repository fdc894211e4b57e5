package loader

import (
	"fmt"
	"net"
	"net/netip"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"

	"github.com/xdplb/xdplb/bpf"
	"github.com/xdplb/xdplb/maps"
)

// InterfaceStatus is an attached interface.
type InterfaceStatus struct {
	Name    string
	Mode    XDPMode
	Program string // the tag of the program, or why there is none
	MAC     string
	Accepts []string // further MACs that are ours
}

// Places says how full a map is.
type Places struct{ Used, Max int }

// Status is the state of a balancer as a whole.
type Status struct {
	Interfaces                                           []InterfaceStatus
	HashKey                                              string // its fingerprint
	VIPs                                                 []VIPView
	SNAT                                                 SNATView
	VIPPlaces, BackendPlaces, FlowPlaces, HalfOpenPlaces Places
}

// Status reads it.
func (b *Balancer) Status() (s Status, err error) {
	for _, r := range b.Maps.ReadInterfaces() {
		s.Interfaces = append(s.Interfaces, b.interfaceStatus(r))
	}
	s.HashKey = fmt.Sprintf("%016x", b.Settings.KeyFingerprint)
	if s.VIPs, err = b.Views(nil, false); err != nil {
		return s, err
	}
	if s.SNAT, err = b.SNAT(); err != nil {
		return s, err
	}
	s.VIPPlaces = Places{len(s.VIPs), int(b.Maps.MaxVIPs())}
	records := b.Maps.ReadBackends(func(uint32) bool { return true })
	s.BackendPlaces = Places{len(records), int(b.Maps.Backends.MaxEntries()) - 1}
	s.FlowPlaces.Max, s.HalfOpenPlaces.Max = int(b.Maps.XdplbMaps.Flows.MaxEntries()), int(b.Maps.HalfOpen.MaxEntries())
	return s, b.Maps.Flows(func(f maps.Flow) bool {
		if f.HalfOpen {
			s.HalfOpenPlaces.Used++
		} else {
			s.FlowPlaces.Used++
		}
		return true
	})
}

func (b *Balancer) interfaceStatus(r maps.Interface) InterfaceStatus {
	s := InterfaceStatus{Name: interfaceName(r.Ifindex), Mode: XDPNative, MAC: MAC(r.Mac).String()}
	if r.Flags&uint16(bpf.XdplbInterfaceFlagInterfaceGeneric) != 0 {
		s.Mode = XDPGeneric
	}
	for _, word := range r.Accept {
		if word != 0 {
			s.Accepts = append(s.Accepts, MAC(word).String())
		}
	}
	s.Program = "not attached"
	l, err := link.LoadPinnedLink(linkPin(b.dir, r.Ifindex), nil)
	if err != nil {
		return s
	}
	defer l.Close()
	if info, err := l.Info(); err == nil {
		if p, err := ebpf.NewProgramFromID(info.Program); err == nil {
			s.Program = programTag(p)
			p.Close()
		}
	}
	return s
}

// MAC converts from the form that the data path compares.
func MAC(word uint64) net.HardwareAddr {
	mac := make(net.HardwareAddr, 6)
	for i := range mac {
		mac[i] = byte(word >> (8 * i))
	}
	return mac
}

// Timeouts of flows; nil leaves one as it is.
type Timeouts struct{ TCP, Closing, UDP *time.Duration }

// Timeouts reads them.
func (b *Balancer) Timeouts() Timeouts {
	s := &b.Settings
	tcp, closing, udp := s.Duration(s.TcpIdle), s.Duration(s.Closing), s.Duration(s.UdpIdle)
	return Timeouts{&tcp, &closing, &udp}
}

// SetTimeouts changes those that are given. A shorter one ends flows that are
// past it at once.
func (b *Balancer) SetTimeouts(t Timeouts) error {
	for _, f := range []struct {
		value *time.Duration
		to    *uint64
	}{{t.TCP, &b.Settings.TcpIdle}, {t.Closing, &b.Settings.Closing}, {t.UDP, &b.Settings.UdpIdle}} {
		if f.value != nil {
			*f.to = b.Settings.Jiffies(*f.value)
		}
	}
	return b.Maps.PutSettings(b.Settings)
}

// FlowView is a flow as users see it.
type FlowView struct {
	maps.Flow
	At            netip.AddrPort // its backend; invalid if that is gone
	Mode          Mode           // 0 if its backend is gone
	Local         bool           // the local stack has it: --handover
	SNAT          netip.AddrPort // the source that the backend sees, with FULL-NAT; else invalid
	Idle, Expires time.Duration
}

// LiveFlows calls f once for each live flow of the selected VIP and backend, in no order.
func (b *Balancer) LiveFlows(s Selection, f func(FlowView)) error {
	if _, err := b.services(s); err != nil {
		return err
	}
	now, err := b.Now()
	if err != nil {
		return err
	}
	records := make(map[uint32]maps.Backend)
	for _, record := range b.Maps.ReadBackends(func(uint32) bool { return true }) {
		records[record.Id] = record
	}
	own, err := b.ownPorts(s.VIP)
	if err != nil {
		return err
	}
	live := func(flow maps.Flow) bool {
		return b.Settings.Live(flow, now) && (s.VIP == nil || flow.Of(*s.VIP) && !own[flow.DstPort])
	}
	return b.Maps.LiveFlows(live, func(flow maps.Flow) bool {
		v := FlowView{Flow: flow}
		if record, exists := records[flow.Backend]; exists {
			v.At, v.Mode = record.AddrPort(), Mode(record.Mode)
			v.Local = !record.Listed() && IsLocalStack(maps.VIP{Addr: flow.Dst}, &record)
		}
		if s.At.IsValid() && !s.Matches(v.At) {
			return true
		}
		if v.Mode == ModeFullNAT && flow.Translated() {
			v.SNAT = flow.Far()
		}
		idle, limit := now-min(flow.Seen, now), b.Settings.Lifetime(flow)
		v.Idle, v.Expires = b.Settings.Duration(idle), b.Settings.Duration(limit-min(idle, limit))
		f(v)
		return true
	})
}

// ownPorts are the ports that a VIP of every port leaves to others on its address.
func (b *Balancer) ownPorts(v *maps.VIP) (map[uint16]bool, error) {
	if v == nil || v.Port != 0 {
		return nil, nil
	}
	services, err := b.Maps.Services()
	own := make(map[uint16]bool)
	for _, s := range services {
		if s.Addr == v.Addr && s.Proto == v.Proto && s.Port != 0 {
			own[s.Port] = true
		}
	}
	return own, err
}

// DryReport is what Attach would find.
type DryReport struct {
	DeviceReport
	Mode  XDPMode
	Modes []string // forwarding modes that will work
}

// DryRun checks everything that Attach does before it changes anything, loads the
// program, and reports what stands in the way.
func DryRun(dir string, ifaces []string, o AttachOptions) (reports []DryReport, err error) {
	if err := checkPrivilege(); err != nil {
		return nil, err
	}
	if err := checkBPFFS(dir); err != nil {
		return nil, err
	}
	links, err := attachable(ifaces)
	if err != nil {
		return nil, err
	}
	o.MaxFlows, o.MaxBackends, o.MaxVIPs = 1, 1, 1 // nothing is kept
	m, err := createMaps(o)
	if err != nil {
		return nil, err
	}
	defer m.Close()
	if err := (&Balancer{Maps: m}).checkSNAT(o, ifaces[0]); err != nil {
		return nil, err
	}
	program, err := loadProgram(m, 0)
	if err != nil {
		return nil, err
	}
	defer program.Close()
	for _, l := range links {
		attrs := l.Attrs()
		if err := checkForeign(dir, attrs); err != nil {
			return nil, fmt.Errorf("%s: %w", attrs.Name, err)
		}
		device, err := InspectDevice(attrs.Name)
		if err != nil {
			return nil, err
		}
		reports = append(reports, dryReport(device, o.Mode))
	}
	return reports, nil
}

func dryReport(device DeviceReport, mode XDPMode) DryReport {
	r := DryReport{DeviceReport: device, Mode: mode, Modes: []string{ModeDR.String(), ModeTUN.String(), ModeNAT.String(), ModeFullNAT.String()}}
	if mode == XDPAuto || mode == "" {
		r.Mode = XDPGeneric
		if device.XDP.Native || !device.XDP.Known {
			r.Mode = XDPNative
		}
	}
	r.Findings = nil
	for _, f := range device.Findings {
		if f.Mode == "" || f.Mode == string(r.Mode) {
			r.Findings = append(r.Findings, f)
		}
	}
	return r
}

func checkForeign(dir string, attrs *netlink.LinkAttrs) error {
	if attrs.Xdp == nil || !attrs.Xdp.Attached {
		return nil
	}
	if l, err := link.LoadPinnedLink(linkPin(dir, uint32(attrs.Index)), nil); err == nil {
		l.Close()
		return nil
	}
	return foreignProgram(attrs)
}
