package bpf_test

import (
	"net"
	"net/netip"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/google/go-cmp/cmp"

	"github.com/xdplb/xdplb/bpf"
	"github.com/xdplb/xdplb/maps"
)

// Verdicts of an XDP program (linux/bpf.h).
const (
	xdpDrop     = 1
	xdpPass     = 2
	xdpTX       = 3
	xdpRedirect = 4
)

// Numbers of the interfaces of every world: frames come in by the first.
const (
	inside = iota + 1
	outside
)

const (
	testHz    = 100
	twinLag   = 4*testHz + 1 // within which a flow's other entry is touched
	testTable = maps.MinTableSize
	linkMTU   = 1500
)

// world is a balancer whose program runs by BPF_PROG_RUN, on a clock that stands
// still unless the test moves it.
type world struct {
	testing.TB
	*maps.Maps
	settings   maps.Settings
	entry      *ebpf.Program // goes on as program
	program    *ebpf.Program
	metadata   int // bytes that entry puts before the frame
	out        []byte
	counted    *[bpf.XdplbReasonReasonMax]uint64 // nil: to be read
	vips       uint32
	translates bool                        // its VIPs are of NAT or FULL-NAT
	here       uint32                      // the interface that frames come in by
	entries    map[uint32][2]*ebpf.Program // entry and program of each interface that they came in by
}

type worldOptions struct {
	flows     uint32 // places in each flow table
	realClock bool
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatalf("%+v", err)
	}
}

func newWorld(t testing.TB, options ...worldOptions) *world {
	t.Helper()
	if t, ok := t.(*testing.T); ok {
		t.Parallel() // much of the time is the kernel's, which waits when tables are swapped
	}
	o := worldOptions{flows: 1024}
	if len(options) > 0 {
		o = options[0]
	}
	spec, err := bpf.LoadXdplb()
	must(t, err)
	for name, size := range map[string]uint32{
		bpf.XdplbMapVips: 256, bpf.XdplbMapTables: 128, bpf.XdplbMapRetired: 128,
		bpf.XdplbMapBackends: 512, bpf.XdplbMapCounters: 512, bpf.XdplbMapFragments: 256,
		bpf.XdplbMapFlows: o.flows, bpf.XdplbMapHalfOpen: o.flows,
	} {
		spec.Maps[name].MaxEntries = size
	}
	must(t, spec.Variables[bpf.XdplbVarThisInterface].Set(uint32(inside)))
	if !o.realClock {
		must(t, spec.Variables[bpf.XdplbVarTestClock].Set(uint8(1)))
	}
	var objects struct {
		bpf.XdplbMaps
		Program *ebpf.Program `ebpf:"xdplb"`
	}
	must(t, spec.LoadAndAssign(&objects, nil))
	t.Cleanup(func() { objects.Program.Close() })
	m, err := maps.Adopt(objects.XdplbMaps)
	must(t, err)
	t.Cleanup(func() { m.Close() })
	w := &world{TB: t, Maps: m, program: objects.Program, out: make([]byte, 1<<16+1<<10), here: inside}

	w.entry = w.poisoned()

	s := &w.settings
	s.Hz, s.Clock = testHz, 1<<32
	s.HashKey = maps.HashKey{1, 2, 3}.Words()
	s.TcpIdle, s.UdpIdle = s.Jiffies(maps.DefaultTCPIdle), s.Jiffies(maps.DefaultUDPIdle)
	s.Closing, s.HalfOpen = s.Jiffies(maps.DefaultClosing), s.Jiffies(maps.DefaultHalfOpen)
	s.UdpGrace = s.Jiffies(maps.DefaultUDPGrace)
	w.putSettings()
	for _, number := range []uint32{inside, outside} {
		must(t, w.PutInterface(maps.Interface{Number: number, XdplbInterface: bpf.XdplbInterface{
			Mac: maps.MACWord(interfaceMAC(number)), Mtu: linkMTU, Ifindex: 1, // any device will do: the redirect ends with the verdict
		}}))
	}
	return w
}

func interfaceMAC(number uint32) net.HardwareAddr {
	return net.HardwareAddr{2, 0, 0, 0, 1, byte(number)}
}

func (w *world) putSettings() { w.Helper(); must(w, w.PutSettings(w.settings)) }

// wait moves the clock.
func (w *world) wait(jiffies uint64) {
	w.Helper()
	w.settings.Clock += jiffies
	w.putSettings()
}

// fate is what became of a frame.
type fate struct {
	verdict uint32
	reason  bpf.XdplbReason
	frame   []byte
}

// send runs the program once, and demands that it counts one reason.
func (w *world) send(frame []byte) fate {
	w.Helper()
	if w.counted == nil {
		w.counted = w.reasons()
	}
	before := w.counted
	verdict, out := w.run(frame)
	after := w.reasons()
	w.counted = after
	counted := bpf.XdplbReasonReasonMax
	for i := range after {
		switch after[i] - before[i] {
		case 0:
			continue
		case 1:
			if counted == bpf.XdplbReasonReasonMax {
				counted = bpf.XdplbReason(i)
				continue
			}
		}
		w.Fatalf("reasons go from %v to %v by one frame", before, after)
	}
	if counted == bpf.XdplbReasonReasonMax {
		w.Fatalf("no reason was counted for %x", frame)
	}
	return fate{verdict, counted, append([]byte(nil), out...)}
}

// run is send without looking at reasons; the frame is valid until the next call.
func (w *world) run(frame []byte) (verdict uint32, out []byte) {
	w.Helper()
	o := ebpf.RunOptions{Data: frame, DataOut: w.out}
	verdict, err := w.entry.Run(&o)
	must(w, err)
	w.counted = nil
	return verdict, o.DataOut[w.metadata:]
}

func (w *world) reasons() *[bpf.XdplbReasonReasonMax]uint64 {
	w.Helper()
	sums := new([bpf.XdplbReasonReasonMax]uint64)
	cpus := ebpf.MustPossibleCPU()
	keys, values := make([]uint32, len(sums)), make([]uint64, len(sums)*cpus)
	var cursor ebpf.MapBatchCursor
	if n, err := w.Reasons.BatchLookup(&cursor, keys, values, nil); n != len(sums) {
		w.Fatalf("reading reasons: %d, %v", n, err)
	}
	for i, n := range values {
		sums[keys[i/cpus]] += n
	}
	return sums
}

// demand sends a frame and compares everything that became of it.
func (w *world) demand(what string, in []byte, verdict uint32, reason bpf.XdplbReason, out []byte) {
	w.Helper()
	got := w.send(in)
	if got.verdict != verdict || got.reason != reason {
		w.Errorf("%s: verdict %d under %q, want %d under %q", what, got.verdict, names[got.reason], verdict, names[reason])
		return
	}
	if diff := cmp.Diff(out, got.frame); out != nil && diff != "" {
		w.Errorf("%s: the frame that came out (-want +got):\n%s", what, diff)
	}
}

// passes demands that a frame is left alone.
func (w *world) passes(what string, in []byte) {
	w.Helper()
	w.demand(what, in, xdpPass, bpf.XdplbReasonPassed, in)
}

// drops demands that a frame is dropped for a reason.
func (w *world) drops(what string, in []byte, reason bpf.XdplbReason) {
	w.Helper()
	w.demand(what, in, xdpDrop, reason, nil)
}

// goes demands that a frame leaves toward b, as p would.
func (w *world) goes(what string, p packet, b *maps.Backend) {
	w.Helper()
	verdict, reason := uint32(xdpTX), bpf.XdplbReasonTransmitted
	if uint32(b.Link.Interface) != w.here {
		verdict, reason = xdpRedirect, bpf.XdplbReasonRedirected
	}
	w.demand(what, p.bytes(w), verdict, reason, w.forwarded(p, b))
}

var names = func() []string {
	all, err := maps.ReasonNames()
	if err != nil {
		panic(err)
	}
	return all
}()

// service is a VIP of a world with its backends.
type service struct {
	*world
	maps.Service
	backends []*maps.Backend
	slots    []maps.Slot
}

// vip adds a VIP without backends; its table comes with settle or change.
func (w *world) vip(name string) *service {
	w.Helper()
	v, err := maps.ParseVIP(name)
	must(w, err)
	w.vips++
	s := &service{world: w, slots: make([]maps.Slot, testTable)}
	s.VIP = v
	s.Id, s.TableSize = w.vips, testTable
	s.ChangedAt = w.settings.Clock
	s.put()
	must(w, w.MarkAddresses())
	if v.Port == 0 {
		w.settings.SetFlag(bpf.XdplbSettingFlagSettingAnyPort, true)
		w.putSettings()
	}
	return s
}

func (s *service) put() { s.Helper(); must(s, s.PutService(&s.Service)) }

// backend adds a backend at address, which the table does not name before settle
// or move.
func (s *service) backend(address string, edits ...func(*maps.Backend)) *maps.Backend {
	s.Helper()
	id, ok, err := s.NewBackendID()
	must(s, err)
	if !ok {
		s.Fatal("the map of backends is full")
	}
	b := &maps.Backend{}
	b.Id, b.Vip, b.Weight, b.Mode, b.Port = id, s.Id, 1, uint8(bpf.XdplbModeModeDr), s.Port
	b.Address = maps.Address(netip.MustParseAddr(address))
	b.Mac.Mac = [6]uint8{2, 0, 0, 2, byte(id >> 8), byte(id)}
	b.Link = bpf.XdplbHopLink{Interface: inside, Mtu: linkMTU, Flags: uint32(bpf.XdplbHopFlagHopResolved)}
	b.Source = maps.Address(netip.MustParseAddr("10.0.0.1"))
	if b.Addr().Is6() {
		b.Source = maps.Address(netip.MustParseAddr("2001:db8:a::1"))
	}
	for _, edit := range edits {
		edit(b)
	}
	s.WriteBackend(b)
	s.backends = append(s.backends, b)
	return b
}

func tunnel(b *maps.Backend)  { b.Mode = uint8(bpf.XdplbModeModeTun) }
func farther(b *maps.Backend) { b.Link.Interface = outside }

// wanted is the table that Maglev asks for.
func (s *service) wanted() []uint32 {
	var entries []maps.Entry
	for _, b := range s.backends {
		if b.TakesNew() {
			entries = append(entries, b.Entry())
		}
	}
	return maps.Maglev(&s.settings.HashKey, s.TableSize, entries)
}

// settle writes a table all of whose slots are settled.
func (s *service) settle() *service {
	s.Helper()
	s.slots = make([]maps.Slot, s.TableSize)
	for i, id := range s.wanted() {
		s.slots[i].Backend = id
	}
	must(s, s.PutTable(s.Id, s.slots))
	return s
}

// change writes the table that a command would write now.
func (s *service) change() {
	s.Helper()
	s.ChangedAt = s.settings.Clock
	s.put()
	s.slots = maps.Rebuild(s.slots, s.wanted(), func(id uint32) bool {
		for _, b := range s.backends {
			if b.Id == id {
				return b.Up()
			}
		}
		return false
	})
	must(s, s.PutTable(s.Id, s.slots))
}

// drain has the backend get no new flows.
func (s *service) drain(b *maps.Backend) {
	s.Helper()
	b.Weight = 0
	b.SetFlag(bpf.XdplbBackendFlagBackendDrain, true)
	s.WriteBackend(b)
	s.change()
}

// enable ends that.
func (s *service) enable(b *maps.Backend) {
	s.Helper()
	b.Weight = 1
	b.SetFlag(bpf.XdplbBackendFlagBackendDrain, false)
	s.WriteBackend(b)
	s.change()
}
