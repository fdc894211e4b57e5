package maps_test

import (
	"encoding/binary"
	"iter"
	"slices"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"

	"github.com/xdplb/xdplb/bpf"
	"github.com/xdplb/xdplb/maps"
)

// program is the C program as a director: its maps are changed as package loader
// changes them, and packets are frames that run through it. One jiffy is a second.
type program struct {
	testing.TB
	*maps.Maps
	entry    *ebpf.Program
	settings maps.Settings
	service  maps.Service
	pool     pool
	slots    []maps.Slot
	records  map[uint32]*maps.Backend // by the history's id
	ids      map[uint32]uint32        // the history's id of every record there ever was
	frame    []byte
	out      []byte
}

// epoch is the clock when a history begins: it reaches back before that.
const epoch = 1 << 20

var programMAC = []byte{2, 0, 0, 0, 0, 1}

func newProgram(t testing.TB, key maps.HashKey, size, flows uint32, vip maps.VIP) *program {
	t.Helper()
	spec, err := bpf.LoadXdplb()
	must(t, err)
	for name, entries := range map[string]uint32{
		bpf.XdplbMapVips: 16, bpf.XdplbMapTables: 8, bpf.XdplbMapRetired: 8,
		bpf.XdplbMapBackends: 32, bpf.XdplbMapCounters: 32, // so few that places are used again
		bpf.XdplbMapFlows: flows, bpf.XdplbMapHalfOpen: flows,
	} {
		spec.Maps[name].MaxEntries = entries
	}
	must(t, spec.Variables[bpf.XdplbVarTestClock].Set(uint8(1)))
	var objects struct {
		bpf.XdplbMaps
		Program *ebpf.Program `ebpf:"xdplb"`
	}
	must(t, spec.LoadAndAssign(&objects, nil))
	t.Cleanup(func() { objects.Program.Close() })
	m, err := maps.Adopt(objects.XdplbMaps)
	must(t, err)
	t.Cleanup(func() { m.Close() })

	p := &program{
		TB: t, Maps: m, entry: objects.Program, pool: pool{}, slots: make([]maps.Slot, size),
		records: map[uint32]*maps.Backend{}, ids: map[uint32]uint32{}, out: make([]byte, 256),
	}
	must(t, m.PutInterface(maps.Interface{XdplbInterface: bpf.XdplbInterface{Mac: maps.MACWord(programMAC), Ifindex: 1}}))
	s := &p.settings
	s.HashKey, s.Hz, s.Clock = key.Words(), 1, epoch
	s.TcpIdle, s.UdpIdle, s.HalfOpen, s.UdpGrace = tcpIdle, udpIdle, halfOpenIdle, udpGrace
	must(t, m.PutSettings(*s))
	p.service.VIP = vip
	p.service.Id, p.service.TableSize, p.service.ChangedAt = 1, size, epoch-tcpIdle
	must(t, m.PutTable(1, p.slots))
	must(t, m.PutService(&p.service))
	p.frame = clientFrame(t, vip)
	return p
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatalf("%+v", err)
	}
}

// clientFrame is a frame to a VIP; client and flags are written into it later.
func clientFrame(t testing.TB, vip maps.VIP) []byte {
	t.Helper()
	ethernet := &layers.Ethernet{SrcMAC: []byte{2, 0, 0, 0, 0, 9}, DstMAC: programMAC, EthernetType: layers.EthernetTypeIPv4}
	var network gopacket.SerializableLayer = &layers.IPv4{
		Version: 4, TTL: 64, Protocol: layers.IPProtocol(vip.Proto), SrcIP: []byte{1, 2, 3, 4}, DstIP: vip.Addr.AsSlice(),
	}
	if vip.Addr.Is6() {
		ethernet.EthernetType = layers.EthernetTypeIPv6
		network = &layers.IPv6{
			Version: 6, HopLimit: 64, NextHeader: layers.IPProtocol(vip.Proto), SrcIP: make([]byte, 16), DstIP: vip.Addr.AsSlice(),
		}
	}
	var transport gopacket.SerializableLayer = &layers.TCP{DstPort: layers.TCPPort(vip.Port)}
	if vip.Proto == udp {
		transport = &layers.UDP{DstPort: layers.UDPPort(vip.Port)}
	}
	buffer := gopacket.NewSerializeBuffer()
	must(t, gopacket.SerializeLayers(buffer, gopacket.SerializeOptions{FixLengths: true}, ethernet, network, transport))
	return append([]byte(nil), buffer.Bytes()...)
}

func (p *program) clock(now int64) {
	if clock := uint64(epoch + now); p.settings.Clock != clock {
		p.settings.Clock = clock
		must(p, p.PutSettings(p.settings))
	}
}

func (p *program) up(id uint32) bool { return p.pool.up(p.ids[id]) }

func (p *program) apply(now int64, c change) {
	p.clock(now)
	p.pool.apply(c)
	p.service.ChangedAt = p.settings.Clock
	if c.function != nil {
		p.setFunction(*c.function)
		return
	}
	if !c.deleted {
		p.write(c.id, c.server)
	}
	var entries []maps.Entry
	for id := range p.pool {
		if b := p.records[id]; b.TakesNew() {
			entries = append(entries, b.Entry())
		}
	}
	want := maps.Maglev(&p.settings.HashKey, p.service.TableSize, entries)
	must(p, p.PutService(&p.service)) // before the table: its slots settle by this time
	p.put(maps.Rebuild(p.slots, want, p.up))
	if c.deleted {
		b := p.records[c.id]
		b.SetFlag(bpf.XdplbBackendFlagBackendGone, true)
		p.WriteBackend(b)
		must(p, p.FreeBackend(b))
		delete(p.records, c.id)
	}
}

func (p *program) put(slots []maps.Slot) {
	p.slots = slots
	must(p, p.PutTable(p.service.Id, slots))
}

func (p *program) setFunction(f maps.SlotFunction) {
	if !p.service.Has(bpf.XdplbVipFlagVipWas) {
		p.put(maps.MoveAll(p.slots))
		p.service.Was = p.service.Function
		p.service.SetFlag(bpf.XdplbVipFlagVipWas, true)
	}
	p.service.Function = bpf.XdplbSlotFunction{Scheduler: uint8(f.Scheduler), SourcePrefix: f.SourcePrefix}
	must(p, p.PutService(&p.service))
}

// write puts a server into its record, which is a new one for a new server. Its
// number is in the MAC address, by which a frame shows where it goes.
func (p *program) write(id uint32, s server) {
	b := p.records[id]
	if b == nil {
		b = new(maps.Backend)
		place, ok, err := p.NewBackendID()
		if must(p, err); !ok {
			p.Fatal("the map of backends is full")
		}
		b.Id, b.Vip, b.Mode = place, p.service.Id, uint8(bpf.XdplbModeModeDr)
		b.Address, b.Port = maps.Address(s.address.Addr()), s.address.Port()
		binary.BigEndian.PutUint32(b.Mac.Mac[2:], place)
		p.records[id], p.ids[place] = b, id
	}
	b.Weight = s.weight
	b.SetFlag(bpf.XdplbBackendFlagBackendDown, s.down)
	b.Link = bpf.XdplbHopLink{Mtu: 1500, Flags: uint32(bpf.XdplbHopFlagHopResolved)}
	if s.unresolved {
		b.Link.Flags = 0
	}
	p.WriteBackend(b)
}

func (p *program) settle(now int64) {
	p.clock(now)
	if p.settings.Clock-p.service.ChangedAt <= tcpIdle {
		return
	}
	next, dead := maps.Settle(p.slots, p.pins(), p.up, p.service.Has(bpf.XdplbVipFlagVipWas))
	for _, pin := range dead {
		must(p, p.DeleteFlow(pin.Flow(), func(f maps.Flow) bool { return !p.settings.Live(f, p.settings.Clock) }))
	}
	if maps.Moving(next) == 0 {
		p.service.SetFlag(bpf.XdplbVipFlagVipWas, false)
		must(p, p.PutService(&p.service))
	}
	if !slices.Equal(p.slots, next) {
		p.put(next)
	}
}

func (p *program) pins() iter.Seq[maps.Pin] {
	return func(yield func(maps.Pin) bool) {
		function := p.service.InUse()
		must(p, p.Flows(func(f maps.Flow) bool {
			slot := maps.SlotIndex(function.Hash(&p.settings.HashKey, f.Tuple), p.service.TableSize)
			return yield(f.Pin(slot, !p.settings.Live(f, p.settings.Clock)))
		}))
	}
}

// packet returns 0 for a frame that was dropped, also for want of a next hop.
func (p *program) packet(now int64, s segment) uint32 {
	p.clock(now)
	source, transport := 26, 34
	if s.tuple.Src.Is6() {
		source, transport = 22, 54
	}
	copy(p.frame[source:], s.tuple.Src.AsSlice())
	binary.BigEndian.PutUint16(p.frame[transport:], s.tuple.SrcPort)
	if s.tuple.Proto == tcp {
		const fin, syn, ack = 1, 2, 16
		flags := &p.frame[transport+13]
		switch {
		case s.syn:
			*flags = syn
		case s.closing:
			*flags = fin | ack
		default:
			*flags = ack
		}
	}
	o := ebpf.RunOptions{Data: p.frame, DataOut: p.out}
	verdict, err := p.entry.Run(&o)
	must(p, err)
	const xdpDrop, xdpTX = 1, 3
	switch verdict {
	case xdpTX:
		id, known := p.ids[binary.BigEndian.Uint32(o.DataOut[2:])]
		if !known {
			p.Errorf("second %d: %v goes to %x", now, s.tuple, o.DataOut[:6])
		}
		return id
	case xdpDrop:
		return 0
	}
	p.Fatalf("second %d: %v: verdict %d", now, s.tuple, verdict)
	return 0
}
