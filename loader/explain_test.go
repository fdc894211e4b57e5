package loader

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"testing"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/xdplb/xdplb/bpf"
	"github.com/xdplb/xdplb/maps"
)

func (w *explainWorld) reasonCounts() (sums [bpf.XdplbReasonReasonMax]uint64) {
	cpus := ebpf.MustPossibleCPU()
	keys, values := make([]uint32, len(sums)), make([]uint64, len(sums)*cpus)
	if n, err := w.Reasons.BatchLookup(new(ebpf.MapBatchCursor), keys, values, nil); n != len(sums) {
		w.Fatalf("reading reasons: %d, %v", n, err)
	}
	for i, n := range values {
		sums[keys[i/cpus]] += n
	}
	return sums
}

// next is a packet of a client, new or known, or of a backend.
func (w *explainWorld) next() frameOf {
	f := frameOf{mac: [6]uint8{2, 0, 0, 0, 9, byte(w.r.IntN(2))}, vlan: pick[uint16](w, 0, 0, 5), flags: pick[byte](w, syn, ack, ack, ack|fin, ack|rst)}
	switch n := w.r.IntN(14); {
	case n >= 10 && len(w.recent) > 0: // a dialogue
		one := w.recent[w.r.IntN(len(w.recent))]
		if f.Tuple = one[0]; w.chance(2) {
			f.Tuple = one[1]
			f.flags = pick[byte](w, syn|ack, ack, ack, ack|fin, rst)
		} else if s := w.sharing(one[1]); s != nil && w.chance(4) {
			f.Dst, f.DstPort = s.Addr, s.Port // one client port through two VIPs to one server
		}
	case n < 3 && len(w.replies) > 0:
		f.Tuple = w.replies[w.r.IntN(len(w.replies))]
		f.flags = pick[byte](w, syn|ack, ack, ack, ack, ack|fin, rst)
	case n < 7 && len(w.flows) > 0:
		f.Tuple = w.flows[w.r.IntN(len(w.flows))]
		if s := w.services[w.r.IntN(len(w.services))]; w.chance(3) && s.Addr.Is6() == f.Dst.Is6() && s.Port != 0 {
			f.Dst, f.DstPort, f.Proto = s.Addr, s.Port, s.Proto // one client port to several VIPs
		}
	default:
		s := w.services[w.r.IntN(len(w.services))]
		f.Tuple = maps.Tuple{Src: worldAddr(s.Addr.Is6(), 9, w.r.IntN(60)), Dst: s.Addr, SrcPort: uint16(1000 + w.r.IntN(10)), DstPort: s.Port, Proto: s.Proto}
		if s.Port == 0 {
			f.DstPort = uint16(1 + w.r.IntN(3))
		}
		if w.chance(20) {
			f.DstPort = 9 // nobody's
		}
		if w.chance(50) && f.Src.Is4() {
			f.Src = netip.MustParseAddr("127.0.0.1") // gets no RST
		}
	}
	if w.again != nil {
		f.Tuple, f.flags, w.again = *w.again, syn, nil
	}
	f.Number = pick[uint32](w, worldInside, worldInside, worldInside, worldOutside)
	f.to = worldMAC(f.Number)
	f.SYN = f.Proto == unix.IPPROTO_TCP && f.flags == syn
	f.LastHop = &bpf.XdplbHopMac{Mac: f.mac, Vlan: f.vlan}
	if f.vlan == 0 {
		f.LastHop.Vlan = uint16(bpf.XdplbHopVlanHopUntagged)
	}
	return f
}

// sharing is a VIP that has the server of a reply as a backend, too.
func (w *explainWorld) sharing(reply maps.Tuple) *explainService {
	first := w.r.IntN(len(w.services))
	for _, s := range append(w.services[first:len(w.services):len(w.services)], w.services[:first]...) {
		if s.mode == ModeNAT && s.Port != 0 && s.Proto == reply.Proto && s.Addr.Is6() == reply.Src.Is6() &&
			slices.ContainsFunc(s.backends, func(b *maps.Backend) bool { return b.Addr() == reply.Src }) {
			return s
		}
	}
	return nil
}

// step sends one packet, and compares what becomes of it with what was foretold.
func (w *explainWorld) step() {
	f := w.next()
	var x *Explanation
	explain := func() {
		var err error
		x, err = explainAt(w.Maps, &w.settings, w.settings.Clock, f.Packet)
		must(w.T, err)
	}
	if w.chance(400) {
		w.unchanged(explain)
	} else {
		explain()
	}
	before := w.reasonCounts()
	in := f.bytes()
	options := ebpf.RunOptions{Data: in, DataOut: make([]byte, 256)}
	verdict, err := w.programs[f.Number].Run(&options)
	must(w.T, err)
	after := w.reasonCounts()
	w.learn(f, verdict, options.DataOut)
	if f.Proto == unix.IPPROTO_TCP && f.flags&(fin|rst) != 0 {
		return // not foretold
	}
	w.compared++
	what := fmt.Sprintf("packet %d, %+v (SYN %t) by %d: %s", w.compared, f.Tuple, f.SYN, f.Number, x.Detail)
	for i := range after {
		if counted := after[i] - before[i]; (counted == 1) != (bpf.XdplbReason(i) == x.Reason) {
			w.Errorf("%s: reason %d counted %d times, foretold was %d", what, i, counted, x.Reason)
		}
	}
	if want := verdictOf(x); verdict != want {
		w.Errorf("%s: verdict %d, foretold was %d", what, verdict, want)
		return
	}
	w.count(x)
	switch {
	case x.Forwarded():
		w.compare(what, x, see(in), see(options.DataOut))
	case x.Reset:
		if out := see(options.DataOut); out.src != destination(f.Tuple) || out.dst != source(f.Tuple) || out.flags&rst == 0 {
			w.Errorf("%s: no RST: %+v", what, out)
		}
	case x.Reason == bpf.XdplbReasonPassed && string(in) != string(options.DataOut):
		w.Errorf("%s: passed, and changed", what)
	}
}

// Verdicts of an XDP program (linux/bpf.h).
func verdictOf(x *Explanation) uint32 {
	const drop, pass, tx, redirect = 1, 2, 3, 4
	switch {
	case x.Reason == bpf.XdplbReasonPassed:
		return pass
	case x.Reason == bpf.XdplbReasonRedirected:
		return redirect
	case x.Reason == bpf.XdplbReasonTransmitted || x.Reset:
		return tx
	}
	return drop
}

func (w *explainWorld) compare(what string, x *Explanation, in, out seenFrame) {
	h := x.After
	want := seenFrame{
		to: h.To.Mac, from: [6]uint8(MAC(h.From)), vlan: in.vlan, outerSrc: h.OuterSrc, outerDst: h.OuterDst,
		src: h.Src, dst: h.Dst, ttl: in.ttl - 1, flags: in.flags,
	}
	switch h.To.Vlan {
	case 0:
	case uint16(bpf.XdplbHopVlanHopUntagged):
		want.vlan = 0
	default:
		want.vlan = h.To.Vlan
	}
	if !h.Src.IsValid() {
		if !slices.Contains(x.Claim.Addresses, out.src.Addr()) || !x.Claim.Ports.Contains(out.src.Port()) || out.src == x.Claim.First {
			w.Errorf("%s: source %s is not one of %v, ports %s, beside %s", what, out.src, x.Claim.Addresses, x.Claim.Ports, x.Claim.First)
		}
		want.src = out.src
	}
	if out != want {
		w.Errorf("%s:\nframe     %+v\nforetold  %+v", what, out, want)
	}
}

// learn notes the flow and what its backend may answer.
func (w *explainWorld) learn(f frameOf, verdict uint32, out []byte) {
	const kept = 1500
	if len(w.flows) > kept {
		w.flows = w.flows[kept/2:]
	}
	if len(w.replies) > kept {
		w.replies = w.replies[kept/2:]
	}
	if f.Src == netip.MustParseAddr("127.0.0.1") {
		return
	}
	for _, one := range w.recent {
		if one[0] == f.Tuple || one[1] == f.Tuple {
			w.followUp(f, one)
		}
	}
	w.flows = append(w.flows, f.Tuple)
	if verdict < 3 {
		return
	}
	seen := see(out)
	back := maps.Tuple{Src: seen.dst.Addr(), SrcPort: seen.dst.Port(), Dst: seen.src.Addr(), DstPort: seen.src.Port(), Proto: f.Proto}
	if back != reversed(f.Tuple) && back.Src != f.Src { // rewritten, and no RST
		w.replies = append(w.replies, back)
		w.recent = append(w.recent, [2]maps.Tuple{f.Tuple, back})
		if len(w.recent) > 6 {
			w.recent = w.recent[1:]
		}
	}
}

// followUp has a client that was cut off come again from the same port, and a flow that was just answered lose its twin.
func (w *explainWorld) followUp(f frameOf, dialogue [2]maps.Tuple) {
	tcp := f.Proto == unix.IPPROTO_TCP
	switch {
	case tcp && f.flags&(fin|rst) != 0 && w.chance(3):
		w.settings.Clock += uint64(w.r.IntN(14 * worldHz))
	case !tcp && f.Tuple == dialogue[1] && w.chance(3):
		w.edit(f.Tuple, func(value *bpf.XdplbFlow) { value.Id += 2 })
	default:
		return
	}
	w.again = &dialogue[0]
}

func (w *explainWorld) count(x *Explanation) {
	kind := "no VIP"
	if x.VIP != nil {
		kind = "scheduler " + x.VIP.InUse().Scheduler.String()
	} else if x.Reply {
		kind = "reply"
	}
	tallied := []string{kind, "reason " + w.names[x.Reason]}
	if x.Backend != nil && !x.Reply {
		tallied = append(tallied, "mode "+Mode(x.Backend.Mode).String())
		if x.Backend.Has(bpf.XdplbBackendFlagBackendDrain) {
			tallied = append(tallied, "draining")
		}
		if x.Backend.Has(bpf.XdplbBackendFlagBackendUnlisted) {
			tallied = append(tallied, "unlisted")
		}
	}
	if x.Choice != nil {
		tallied = append(tallied, "by "+string(x.Choice.By))
	}
	if x.Backend != nil && x.Slot != nil && x.Slot.Moving && x.Choice != nil {
		tallied = append(tallied, fmt.Sprintf("moving, %s, pinned %t", Mode(x.Backend.Mode), x.Choice.By == ByPin))
	}
	if x.Reason == bpf.XdplbReasonNoNextHop && x.Hop != nil && x.Backend != nil {
		tallied = append(tallied, fmt.Sprintf("no way: resolved %t attached %t", x.Hop.Resolved, x.Hop.Interface != ""))
	}
	if x.Slot != nil {
		tallied = append(tallied, fmt.Sprintf("slot moving %t looked %t", x.Slot.Moving, x.Slot.Looked))
	}
	if p := x.Pin; p != nil {
		tallied = append(tallied, fmt.Sprintf("pin twins %t followed %t", p.Twins, p.Followed), "twin "+string(p.Twin), fmt.Sprintf("pin expired %t", p.Expired()))
	}
	if c := x.Claim; c != nil {
		tallied = append(tallied, fmt.Sprintf("claim known %t adopted %t", c.Source.IsValid(), c.Adopted))
	}
	if x.Hop != nil && x.Hop.Local {
		tallied = append(tallied, "the local stack")
	}
	if x.VIP != nil && x.Slot == nil {
		tallied = append(tallied, "no table")
	}
	if x.AnyPort {
		tallied = append(tallied, "a VIP of every port")
	}
	if x.Reset {
		tallied = append(tallied, "RST")
	}
	if h := x.After; h != nil && h.OuterDst.IsValid() {
		tallied = append(tallied, fmt.Sprintf("tunnel IPv6 %t in IPv6 %t", x.Src.Is6(), h.OuterDst.Is6()))
	}
	for _, name := range tallied {
		w.tally[name]++
	}
}

// met is what a run must have met, or it shows less than it says.
var met = []string{
	"reply", "no VIP", "scheduler maglev", "scheduler source", "scheduler rr", "scheduler lc", "a VIP of every port",
	"mode dr", "mode tun", "mode nat", "mode fullnat", "draining", "unlisted", "the local stack", "RST", "no table", "maps compared",
	"reason passed", "reason transmitted", "reason redirected", "reason no_backend", "reason no_next_hop",
	"reason snat_exhausted", "reason nat_clash", "reason flow_unknown", "reason twin_lost",
	"no way: resolved false attached true", "no way: resolved true attached false",
	"moving, dr, pinned false", "moving, tun, pinned false", "moving, nat, pinned false", "moving, fullnat, pinned false",
	"moving, dr, pinned true", "moving, tun, pinned true", "moving, nat, pinned true", "moving, fullnat, pinned true",
	"by slot", "by pin", "by old", "by next", "by turn", "by load", "by affinity",
	"slot moving true looked true", "slot moving false looked false", "slot moving false looked true",
	"pin twins true followed true", "pin twins true followed false", "pin twins false followed true", "pin twins false followed false",
	"twin there", "twin gone", "twin other", "pin expired true",
	"claim known true adopted false", "claim known true adopted true", "claim known false adopted false",
	"tunnel IPv6 false in IPv6 false", "tunnel IPv6 true in IPv6 false", "tunnel IPv6 false in IPv6 true", "tunnel IPv6 true in IPv6 true",
}

func (w *explainWorld) missing() (names []string) {
	for _, name := range met {
		if w.tally[name] == 0 {
			names = append(names, name)
		}
	}
	return names
}

// A backend may be freed between two reads of its record: the flow is dead then.
func TestExplainWithoutItsBackend(t *testing.T) {
	m := newExplainWorld(t, 1)
	w := &walk{reader: reader{Maps: m.Maps, settings: &m.settings, now: m.settings.Clock}, Explanation: &Explanation{Pin: new(ExplainedPin)}}
	e := &entry{XdplbFlow: bpf.XdplbFlow{Backend: 2000, Id: 2, Stamp: m.settings.Clock << uint64(bpf.XdplbFlowStampFlowStampShift)}}
	if id := w.followFlow(e); id != 0 || w.Pin.Why != "its backend is gone or down" || w.err != nil {
		t.Errorf("backend %d, %q, %v", id, w.Pin.Why, w.err)
	}
}

// What Explain foretells is what the program then does, whatever the state: packets of clients and replies to every
// kind of VIP, while these change, clocks jump and entries are lost.
func TestExplainAgrees(t *testing.T) {
	seed := rand.Uint64()
	if s := os.Getenv("XDPLB_EXPLAIN_SEED"); s != "" {
		var err error
		seed, err = strconv.ParseUint(s, 10, 64)
		must(t, err)
	}
	t.Logf("again: XDPLB_EXPLAIN_SEED=%d", seed)
	w := newExplainWorld(t, seed)
	const packets, most = 15000, 60000
	for !t.Failed() && (w.compared < packets || len(w.missing()) > 0 && w.compared < most) {
		switch n := w.r.IntN(200); {
		case n < 8:
			w.change(w.services[w.r.IntN(len(w.services))])
		case n < 18:
			w.tamper()
		case n == 18:
			w.changeSNAT()
		case n < 23:
			w.settings.Clock += uint64(pick(w, 1, 3, 10, 60, 120, 300, 900)*worldHz + w.r.IntN(2*worldHz))
		case n < 40:
			w.settings.Clock += uint64(w.r.IntN(3 * worldHz))
		}
		w.settings.Clock++ // RSTs are not scarce
		must(t, w.PutSettings(w.settings))
		w.step()
	}
	if !t.Failed() && len(w.missing()) > 0 {
		t.Errorf("not one was met of: %q", w.missing())
	}
	t.Logf("%d packets: %v", w.compared, w.tally)
}
