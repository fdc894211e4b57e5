package loader

import (
	"math/rand/v2"
	"net/netip"
	"testing"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/xdplb/xdplb/bpf"
	"github.com/xdplb/xdplb/maps"
)

// Numbers of the two interfaces of a world.
const (
	worldInside = iota + 1
	worldOutside
)

const worldHz = 100

// explainWorld is the C program on maps of its own, and VIPs of every kind that
// change at random. Its clock is a setting.
type explainWorld struct {
	*testing.T
	*maps.Maps
	r        *rand.Rand
	settings maps.Settings
	programs map[uint32]*ebpf.Program
	services []*explainService
	flows    []maps.Tuple    // as clients sent them
	replies  []maps.Tuple    // as backends may answer them
	recent   [][2]maps.Tuple // a few flows with their replies
	again    *maps.Tuple     // the next packet is of this flow
	tally    map[string]int
	compared int
	names    []string // of reasons
}

type explainService struct {
	maps.Service
	slots    []maps.Slot
	backends []*maps.Backend // with those that are unlisted
	mode     Mode            // 0: any
	careless bool            // it pins nothing, whatever its backends
}

func newExplainWorld(t *testing.T, seed uint64) *explainWorld {
	t.Helper()
	spec, err := bpf.LoadXdplb()
	must(t, err)
	for name, size := range map[string]uint32{
		bpf.XdplbMapVips: 128, bpf.XdplbMapTables: 96, bpf.XdplbMapRetired: 96, bpf.XdplbMapCursors: 96,
		bpf.XdplbMapBackends: 2048, bpf.XdplbMapCounters: 2048, bpf.XdplbMapLoads: 2048,
		bpf.XdplbMapFragments: 64, bpf.XdplbMapFlows: 4096, bpf.XdplbMapHalfOpen: 4096, bpf.XdplbMapAffinities: 1024,
	} {
		spec.Maps[name].MaxEntries = size
	}
	w := &explainWorld{T: t, r: rand.New(rand.NewPCG(seed, 0)), programs: map[uint32]*ebpf.Program{}, tally: map[string]int{}}
	must(t, spec.Variables[bpf.XdplbVarTestClock].Set(uint8(1)))
	must(t, spec.Variables[bpf.XdplbVarThisInterface].Set(uint32(worldInside)))
	var first struct {
		bpf.XdplbMaps
		Program *ebpf.Program `ebpf:"xdplb"`
	}
	must(t, spec.LoadAndAssign(&first, nil))
	t.Cleanup(func() { first.Program.Close() })
	w.Maps, err = maps.Adopt(first.XdplbMaps)
	must(t, err)
	t.Cleanup(func() { w.Close() })
	var second struct {
		Program *ebpf.Program `ebpf:"xdplb"`
	}
	must(t, spec.Variables[bpf.XdplbVarThisInterface].Set(uint32(worldOutside)))
	must(t, spec.LoadAndAssign(&second, &ebpf.CollectionOptions{MapReplacements: w.Replacements()}))
	t.Cleanup(func() { second.Program.Close() })
	w.programs[worldInside], w.programs[worldOutside] = first.Program, second.Program

	w.names, err = maps.ReasonNames()
	must(t, err)
	s := &w.settings
	s.Hz, s.Clock, s.HashKey = worldHz, 1<<33, maps.HashKey{byte(seed), 7}.Words()
	s.TcpIdle, s.UdpIdle, s.Closing = s.Jiffies(maps.DefaultTCPIdle), s.Jiffies(maps.DefaultUDPIdle), s.Jiffies(maps.DefaultClosing)
	s.HalfOpen, s.UdpGrace = s.Jiffies(maps.DefaultHalfOpen), s.Jiffies(maps.DefaultUDPGrace)
	s.SetFlag(bpf.XdplbSettingFlagSettingAnyPort, true)
	s.SetFlag(bpf.XdplbSettingFlagSettingTranslates, true)
	s.SnatLow, s.SnatHigh = 20000, 29999
	must(t, w.PutSettings(w.settings))
	for _, number := range []uint32{worldInside, worldOutside} {
		must(t, w.PutInterface(maps.Interface{Number: number, XdplbInterface: bpf.XdplbInterface{
			Mac: maps.MACWord(worldMAC(number)), Mtu: 1500, Ifindex: 1, // any will do: a redirect ends with the verdict
		}}))
	}
	w.changeSNAT()
	for _, proto := range []uint8{unix.IPPROTO_TCP, unix.IPPROTO_TCP, unix.IPPROTO_UDP} {
		for _, v6 := range []bool{false, true} {
			for mode := Mode(0); mode <= ModeFullNAT; mode++ {
				w.addService(mode, v6, proto)
			}
		}
	}
	return w
}

func worldMAC(number uint32) []byte { return []byte{2, 0, 0, 0, 1, byte(number)} }

func (w *explainWorld) chance(one int) bool { return w.r.IntN(one) == 0 }

func pick[T any](w *explainWorld, from ...T) T { return from[w.r.IntN(len(from))] }

func worldAddr(v6 bool, net byte, host int) netip.Addr {
	if v6 {
		return netip.AddrFrom16([16]byte{0x20, 1, 0xd, 0xb8, 0, net, 14: byte(host >> 8), 15: byte(host)})
	}
	return netip.AddrFrom4([4]byte{10, net, byte(host >> 8), byte(host)})
}

// addService adds a VIP with three backends. One in five has every port.
func (w *explainWorld) addService(mode Mode, v6 bool, proto uint8) {
	n := len(w.services) + 1
	s := &explainService{mode: mode}
	s.VIP = maps.VIP{Addr: worldAddr(v6, 1, n), Port: uint16(80 + n%2*363), Proto: proto}
	if n%5 == 0 {
		s.Port = 0
	}
	s.Id, s.TableSize, s.ChangedAt = uint32(n), maps.MinTableSize, w.settings.Clock
	s.slots = make([]maps.Slot, s.TableSize)
	s.Function.SourcePrefix = 128
	w.services = append(w.services, s)
	for range 3 {
		w.addBackend(s)
	}
	w.schedule(s)
	w.settle(s)
}

func (w *explainWorld) addBackend(s *explainService) *maps.Backend {
	id, ok, err := w.NewBackendID()
	must(w.T, err)
	if !ok {
		w.Fatal("the map of backends is full")
	}
	mode := s.mode
	if mode == 0 {
		mode = pick(w, ModeDR, ModeTUN, ModeNAT, ModeFullNAT)
	}
	v6 := s.Addr.Is6()
	if mode == ModeTUN {
		v6 = w.chance(2)
	}
	b := &maps.Backend{}
	b.Id, b.Vip, b.Mode, b.Weight, b.Port = id, s.Id, uint8(mode), uint16(1+w.r.IntN(3)), s.Port
	if s.Port != 0 && (mode == ModeNAT || mode == ModeFullNAT) {
		b.Port = 8080
	}
	b.Address, b.Source = maps.Address(worldAddr(v6, 2, w.r.IntN(8))), maps.Address(worldAddr(v6, 3, 1))
	b.Mac = bpf.XdplbHopMac{Mac: [6]uint8{2, 0, 0, 2, byte(id >> 8), byte(id)}, Vlan: pick(w, 0, uint16(bpf.XdplbHopVlanHopUntagged), 9)}
	b.Link = bpf.XdplbHopLink{Interface: pick[uint16](w, worldInside, worldOutside), Mtu: 1500, Flags: uint32(bpf.XdplbHopFlagHopResolved)}
	w.WriteBackend(b)
	s.backends = append(s.backends, b)
	return b
}

// schedule gives the VIP another scheduler or affinity.
func (w *explainWorld) schedule(s *explainService) {
	if !s.Has(bpf.XdplbVipFlagVipWas) {
		s.slots = maps.MoveAll(s.slots)
		s.Was = s.Function
		s.SetFlag(bpf.XdplbVipFlagVipWas, true)
	}
	s.Function.Scheduler = uint8(w.r.IntN(4))
	s.Function.SourcePrefix = pick[uint8](w, 128, 124, 120)
	s.Affinity, s.AffinityGroup = 0, 0
	if w.chance(3) {
		s.Affinity, s.AffinityGroup = 60*worldHz, uint32(w.r.IntN(3))
	}
	s.careless = w.chance(8)
	s.SetFlag(bpf.XdplbVipFlagVipTrackAll, w.chance(4))
}

// put writes the VIP as a command would.
func (w *explainWorld) put(s *explainService) {
	all := s.Has(bpf.XdplbVipFlagVipTrackAll) || !s.InUse().Scheduler.Pure() || s.Affinity != 0
	for _, b := range s.backends {
		all = all || translates(b)
	}
	s.SetFlag(bpf.XdplbVipFlagVipPinAll, all && !s.careless)
	must(w.T, w.PutTable(s.Id, s.slots))
	must(w.T, w.PutService(&s.Service))
	for _, b := range s.backends {
		if b.Listed() && s.Affinity != 0 {
			must(w.T, w.PutServer(s.Id, b.Addr(), b.Id))
		}
	}
}

func (s *explainService) wanted(key *[10]uint32) []uint32 {
	var entries []maps.Entry
	for _, b := range s.backends {
		if b.TakesNew() {
			entries = append(entries, b.Entry())
		}
	}
	if s.InUse().Scheduler == maps.SchedulerRR {
		return maps.Sequence(s.TableSize, entries)
	}
	return maps.Maglev(key, s.TableSize, entries)
}

func (w *explainWorld) settle(s *explainService) {
	for i, id := range s.wanted(&w.settings.HashKey) {
		s.slots[i] = maps.Slot{Backend: id}
	}
	s.SetFlag(bpf.XdplbVipFlagVipWas, false)
	w.put(s)
}

func (s *explainService) up(id uint32) bool {
	for _, b := range s.backends {
		if b.Id == id {
			return b.Up()
		}
	}
	return false
}

// change has something befall a VIP.
func (w *explainWorld) change(s *explainService) {
	b := s.backends[w.r.IntN(len(s.backends))]
	switch w.r.IntN(15) {
	case 0:
		b.SetFlag(bpf.XdplbBackendFlagBackendDrain, !b.Has(bpf.XdplbBackendFlagBackendDrain))
	case 1:
		b.SetFlag(bpf.XdplbBackendFlagBackendDown, !b.Has(bpf.XdplbBackendFlagBackendDown))
	case 2:
		b.Link.Flags ^= uint32(bpf.XdplbHopFlagHopResolved)
	case 3: // a mode that is set: another record, and the old one keeps what it has
		b.SetFlag(bpf.XdplbBackendFlagBackendUnlisted, true)
		w.addBackend(s)
	case 4, 5:
		w.addBackend(s)
	case 6:
		w.remove(s, b)
	case 7:
		w.schedule(s)
	case 8:
		w.settle(s)
		return
	case 9:
		w.handOver(s)
		return
	case 10: // health and neighbours are well again
		for _, b := range s.backends {
			b.Flags &= uint8(bpf.XdplbBackendFlagBackendUnlisted)
			b.Link.Flags |= uint32(bpf.XdplbHopFlagHopResolved)
			w.WriteBackend(b)
		}
	case 11, 13: // a command that was killed, or is half-way: the table does not show it
		b.SetFlag(pick(w, bpf.XdplbBackendFlagBackendDown, bpf.XdplbBackendFlagBackendGone), true)
		w.WriteBackend(b)
		return
	case 14:
		must(w.T, w.DeleteTable(s.Id)) // until its next change
		return
	case 12:
		b.Link.Interface = pick[uint16](w, worldInside, worldOutside, 7) // the last is not attached
	}
	if b.Id != 0 {
		w.WriteBackend(b)
	}
	for len(s.backends) > 6 {
		w.remove(s, s.backends[0])
	}
	s.ChangedAt = w.settings.Clock
	s.slots = maps.Rebuild(s.slots, s.wanted(&w.settings.HashKey), s.up)
	w.put(s)
}

func (w *explainWorld) remove(s *explainService, b *maps.Backend) {
	if len(s.backends) < 2 {
		return
	}
	for i := range s.backends {
		if s.backends[i] == b {
			s.backends = append(s.backends[:i:i], s.backends[i+1:]...)
			break
		}
	}
	must(w.T, w.DeleteServer(s.Id, b.Addr()))
	must(w.T, w.FreeBackend(b))
	b.Id = 0
}

// handOver has the local stack keep what it has, or all.
func (w *explainWorld) handOver(s *explainService) {
	b := w.addBackend(s)
	b.Mode, b.Weight = uint8(ModeDR), 0
	b.SetFlag(bpf.XdplbBackendFlagBackendUnlisted, w.chance(2))
	b.Link.Flags = uint32(bpf.XdplbHopFlagHopResolved | bpf.XdplbHopFlagHopLocal)
	w.WriteBackend(b)
	for i, id := range s.wanted(&w.settings.HashKey) {
		s.slots[i] = maps.Slot{Backend: id, Old: b.Id, Moving: true}
	}
	s.SetFlag(bpf.XdplbVipFlagVipWas, false)
	w.put(s)
}

// changeSNAT changes what FULL-NAT sends from.
func (w *explainWorld) changeSNAT() {
	s := &w.settings
	s.SnatLow = 20000
	s.SnatHigh = pick[uint16](w, 29999, 29999, 20000, 20001, 20200)
	if w.chance(10) {
		s.SnatLow = 0
	}
	s.SpreadPrefix, s.SpreadMask = 0, 0
	if w.chance(2) {
		s.SpreadPrefix, s.SpreadMask = 0x00000a64, 0xffff0000 // 100.10.0.0/16 in memory
	}
	var pool []netip.Addr
	for i := range w.r.IntN(3) {
		pool = append(pool, worldAddr(false, 4, i), worldAddr(true, 4, i))
	}
	must(w.T, w.PutSNATPool(s, pool))
	if len(w.services) > 0 && w.chance(2) {
		one := w.services[w.r.IntN(len(w.services))]
		must(w.T, w.PlaceSNAT(s, &one.Service, []netip.Addr{worldAddr(one.Addr.Is6(), 5, 1), worldAddr(one.Addr.Is6(), 5, 2)}))
		must(w.T, w.PutService(&one.Service))
	}
}

// tamper does to an entry what evictions and other CPUs do.
func (w *explainWorld) tamper() {
	if len(w.flows) == 0 || len(w.replies) == 0 {
		return
	}
	t := pick(w, w.flows[w.r.IntN(len(w.flows))], w.replies[w.r.IntN(len(w.replies))])
	if len(w.recent) > 0 && w.chance(2) {
		t = w.recent[w.r.IntN(len(w.recent))][w.r.IntN(2)]
	}
	switch w.r.IntN(4) {
	case 0:
		_, _ = w.XdplbMaps.Flows.Delete(keyOf(t)), w.HalfOpen.Delete(keyOf(t)) // it is in one of the two, or none
	case 1:
		w.edit(t, func(value *bpf.XdplbFlow) { value.Id += value.Id & 1 * 2 })
	case 2:
		w.edit(t, func(value *bpf.XdplbFlow) { value.Stamp |= uint64(bpf.XdplbFlowStateFlowClaimed) })
	case 3:
		ago := uint64(w.r.IntN(2000) * worldHz)
		w.edit(t, func(value *bpf.XdplbFlow) { value.Stamp -= ago << uint64(bpf.XdplbFlowStampFlowStampShift) })
	}
}

// edit changes an entry, if there is one.
func (w *explainWorld) edit(t maps.Tuple, f func(*bpf.XdplbFlow)) {
	for _, in := range []*ebpf.Map{w.XdplbMaps.Flows, w.HalfOpen} {
		var value bpf.XdplbFlow
		if in.Lookup(keyOf(t), &value) == nil {
			f(&value)
			must(w.T, in.Put(keyOf(t), value))
		}
	}
}
