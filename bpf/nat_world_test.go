package bpf_test

import (
	"fmt"
	"net"
	"net/netip"
	"reflect"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/google/go-cmp/cmp"
	"github.com/gopacket/gopacket/layers"
	"golang.org/x/sys/unix"

	"github.com/xdplb/xdplb/bpf"
	"github.com/xdplb/xdplb/maps"
)

const (
	snatLow, snatHigh = 20000, 29999
	serverPort        = 8080
)

// Of either family: whether it is IPv6.
var (
	servers  = map[bool]string{false: "10.0.0.31", true: "2001:db8:a::31"}
	snatPool = map[bool]netip.Addr{false: netip.MustParseAddr("10.0.0.3"), true: netip.MustParseAddr("2001:db8:a::3")}
)

var translatingModes = []struct {
	name string
	mode bpf.XdplbMode
}{{"nat", bpf.XdplbModeModeNat}, {"fullnat", bpf.XdplbModeModeFullnat}}

// enterBy has frames come in by another interface from now on.
func (w *world) enterBy(number uint32) {
	w.Helper()
	if w.entries == nil {
		w.entries = map[uint32][2]*ebpf.Program{w.here: {w.entry, w.program}}
	}
	programs, loaded := w.entries[number]
	if !loaded {
		w.program = w.loadFor(number)
		w.entries[number] = [2]*ebpf.Program{w.poisoned(), w.program}
		programs = w.entries[number]
	}
	w.entry, w.program, w.here = programs[0], programs[1], number
}

// loadFor is the program of another interface, on the maps of the world.
func (w *world) loadFor(number uint32) *ebpf.Program {
	w.Helper()
	spec, err := bpf.LoadXdplb()
	must(w, err)
	must(w, spec.Variables[bpf.XdplbVarThisInterface].Set(number))
	must(w, spec.Variables[bpf.XdplbVarTestClock].Set(uint8(1)))
	all := map[string]*ebpf.Map{}
	fields := reflect.ValueOf(w.XdplbMaps)
	for i := range fields.NumField() {
		name, m := fields.Type().Field(i).Tag.Get("ebpf"), fields.Field(i).Interface().(*ebpf.Map)
		all[name], spec.Maps[name].MaxEntries = m, m.MaxEntries()
	}
	var objects struct {
		Program *ebpf.Program `ebpf:"xdplb"`
	}
	must(w, spec.LoadAndAssign(&objects, &ebpf.CollectionOptions{MapReplacements: all}))
	w.Cleanup(func() { objects.Program.Close() })
	return objects.Program
}

// translating is a world whose FULL-NAT has a pool of one address of each family.
func translating(t testing.TB, options ...worldOptions) *world {
	t.Helper()
	w := newWorld(t, options...)
	w.settings.SetFlag(bpf.XdplbSettingFlagSettingTranslates, true)
	w.settings.SnatLow, w.settings.SnatHigh = snatLow, snatHigh
	must(t, w.PutSNATPool(&w.settings, []netip.Addr{snatPool[false], snatPool[true]}))
	return w
}

// translatedVIP is a VIP with one backend, of NAT or FULL-NAT.
func (w *world) translatedVIP(name string, mode bpf.XdplbMode, edits ...func(*maps.Backend)) *service {
	w.Helper()
	s := w.vip(name)
	edits = append([]func(*maps.Backend){func(b *maps.Backend) {
		b.Mode = uint8(mode)
		if s.Port != 0 { // else the packet's own is the backend's too
			b.Port = serverPort
		}
	}}, edits...)
	s.backend(servers[s.Addr.Is6()], edits...)
	s.pinAll()
	return s.settle()
}

func (s *service) pinAll() {
	s.Helper()
	s.SetFlag(bpf.XdplbVipFlagVipPinAll, true)
	s.PinnedSince = s.settings.Clock
	s.put()
}

// dialogue is one flow through a translating VIP.
type dialogue struct {
	*service
	name   string
	b      *maps.Backend
	client packet         // as the client sends it
	source netip.AddrPort // whom the backend sees
	comes  uint32         // the interface that the client's frames come in by
	// The client's router, and its VLAN.
	hop bpf.XdplbHopMac
}

// untagged is the VLAN of a last hop without one.
const untagged = uint16(bpf.XdplbHopVlanHopUntagged)

func (s *service) fullNAT() bool { return s.backends[0].Mode == uint8(bpf.XdplbModeModeFullnat) }

func (d *dialogue) fullNAT() bool { return d.b.Mode == uint8(bpf.XdplbModeModeFullnat) }

// opens begins a flow with p: a SYN, or the first packet of UDP.
func (s *service) opens(what string, p packet) *dialogue {
	s.Helper()
	first := p
	first.tcp, first.payload = syn, nil
	return s.opensWith(what, first)
}

// opensWith begins a flow with this very packet.
func (s *service) opensWith(what string, first packet) *dialogue {
	s.Helper()
	p := first
	p.tcp, p.payload, p.part = ack, s.base().payload, nil
	d := &dialogue{service: s, name: fmt.Sprintf("%s: %s", s.VIP, what), b: s.backends[0], client: p, source: p.client}
	d.adopt("the first packet", first)
	return d
}

// adopt sends a packet that begins a flow, and learns what source it got.
func (d *dialogue) adopt(what string, p packet) {
	d.Helper()
	d.cameBy(p)
	if !d.fullNAT() {
		d.forth(what, p)
		return
	}
	got := d.send(p.bytes(d))
	verdict, reason := d.away(uint32(d.b.Link.Interface))
	if got.verdict != verdict || got.reason != reason {
		d.Fatalf("%s: %s: verdict %d under %q", d.name, what, got.verdict, names[got.reason])
	}
	d.source = sourceOf(got.frame, p.proto)
	if !d.mayBeSource() {
		d.Fatalf("%s: %s has source %v", d.name, what, d.source)
	}
	if diff := cmp.Diff(d.atBackend(p).bytes(d), got.frame); diff != "" {
		d.Errorf("%s: %s: the frame that came out (-want +got):\n%s", d.name, what, diff)
	}
}

// mayBeSource reports whether FULL-NAT may send from the flow's source.
func (d *dialogue) mayBeSource() bool {
	address := snatPool[d.client.ipv6()]
	if d.settings.Snat.Count4+d.settings.Snat.Count6 == 0 {
		address = d.Addr
	}
	return d.source.Addr() == address && d.source.Port() >= d.settings.SnatLow && d.source.Port() <= d.settings.SnatHigh
}

// sourceOf is the source of a frame.
func sourceOf(frame []byte, proto uint8) netip.AddrPort {
	_, l3 := linkOf(frame)
	ip := frame[l3:]
	if ip[0]>>4 == 4 {
		l4 := ip[int(ip[0]&15)*4:]
		return netip.AddrPortFrom(netip.AddrFrom4([4]byte(ip[12:16])), uint16(l4[0])<<8|uint16(l4[1]))
	}
	at, next := 40, ip[6]
	for next != proto {
		size := 8
		if next != unix.IPPROTO_FRAGMENT {
			size += 8 * int(ip[at+1])
		}
		next, at = ip[at], at+size
	}
	return netip.AddrPortFrom(netip.AddrFrom16([16]byte(ip[8:24])), uint16(ip[at])<<8|uint16(ip[at+1]))
}

// cameBy notes the way of the client's last frame.
func (d *dialogue) cameBy(p packet) {
	d.comes, d.hop = d.here, bpf.XdplbHopMac{Mac: [6]uint8(p.from), Vlan: untagged}
	if len(p.tags) > 0 {
		d.hop.Vlan = p.tags[0].id
	}
}

// leaving is p on its way to a next hop.
func (p packet) leaving(to bpf.XdplbHopMac, by uint32) packet {
	p.to, p.from = append(net.HardwareAddr(nil), to.Mac[:]...), interfaceMAC(by)
	switch {
	case to.Vlan == untagged:
		p.tags = nil
	case to.Vlan == 0:
	case len(p.tags) == 0:
		p.tags = []tag{{tpid: layers.EthernetTypeDot1Q, id: to.Vlan}}
	default:
		p.tags = append([]tag(nil), p.tags...)
		p.tags[0].id = to.Vlan
	}
	p.ttl--
	return p
}

// atBackend is what the backend gets of p.
func (d *dialogue) atBackend(p packet) packet {
	p.client, p.vip = d.source, d.b.AddrPort()
	return p.leaving(d.b.Mac, uint32(d.b.Link.Interface))
}

// reply is p as the backend would send it.
func (d *dialogue) reply(p packet) packet {
	p.to, p.from = interfaceMAC(d.here), net.HardwareAddr{2, 0, 0, 0, 7, 7}
	p.client, p.vip = d.b.AddrPort(), d.source
	return p
}

// atClient is what the client gets of the reply r.
func (d *dialogue) atClient(r packet) packet {
	r.client, r.vip = d.AddrPort(), d.client.client
	if d.Port == 0 {
		r.client = d.client.vip
	}
	return r.leaving(d.hop, d.comes)
}

// away is the verdict on a frame that leaves by an interface.
func (w *world) away(by uint32) (verdict uint32, reason bpf.XdplbReason) {
	if by == w.here {
		return xdpTX, bpf.XdplbReasonTransmitted
	}
	return xdpRedirect, bpf.XdplbReasonRedirected
}

// forth sends a packet of the client, and demands that the backend gets it.
func (d *dialogue) forth(what string, p packet) {
	d.Helper()
	d.cameBy(p)
	verdict, reason := d.away(uint32(d.b.Link.Interface))
	d.demand(d.name+": "+what, p.bytes(d), verdict, reason, d.atBackend(p).bytes(d))
}

// back sends a packet of the backend, and demands that the client gets it.
func (d *dialogue) back(what string, r packet) {
	d.Helper()
	verdict, reason := d.away(d.comes)
	d.demand(d.name+": "+what, r.bytes(d), verdict, reason, d.atClient(r).bytes(d))
}

// segment is a packet of the client with these flags.
func (d *dialogue) segment(flags layers.TCP) packet {
	p := d.client
	p.tcp, p.payload = flags, nil
	return p
}

// says sends a segment without data from either end.
func (d *dialogue) says(client bool, flags layers.TCP) {
	d.Helper()
	if client {
		d.forth("the client's "+flagsText(flags), d.segment(flags))
	} else {
		d.back("the backend's "+flagsText(flags), d.reply(d.segment(flags)))
	}
}

func flagsText(f layers.TCP) (text string) {
	for _, each := range []struct {
		name string
		set  bool
	}{{"SYN ", f.SYN}, {"FIN ", f.FIN}, {"RST ", f.RST}, {"ACK ", f.ACK}} {
		if each.set {
			text += each.name
		}
	}
	return text
}

var synAck = layers.TCP{SYN: true, ACK: true}

// establish is a three-way handshake, or a packet of UDP each way.
func (s *service) establish(what string, p packet) *dialogue {
	s.Helper()
	d := s.opens(what, p)
	d.says(false, synAck)
	d.says(true, ack)
	return d
}

// numbered is p from another port of the client.
func (p packet) numbered(port int) packet {
	p.client = withPort(p.client, uint16(port))
	return p
}
