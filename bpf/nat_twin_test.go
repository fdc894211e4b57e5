package bpf_test

import (
	"testing"

	"github.com/cilium/ebpf"
	"github.com/gopacket/gopacket/layers"

	"github.com/xdplb/xdplb/bpf"
)

// remove deletes one entry of a flow, as an eviction does.
func (w *world) remove(key bpf.XdplbTuple) {
	w.Helper()
	found := false
	for _, m := range []*ebpf.Map{w.HalfOpen, w.XdplbMaps.Flows} {
		if m.Delete(key) == nil {
			found = true
		}
	}
	if !found {
		w.Fatalf("%+v is in no flow table", key)
	}
}

// One of the two entries is evicted: the flow goes on, and soon has both.
func TestTwinIsMended(t *testing.T) {
	eachTranslation(t, func(t *testing.T, s *service) {
		port := 9000
		for _, lost := range []string{"forth", "back"} {
			for _, half := range []bool{false, true} {
				port++
				d := s.opens("lost "+lost, s.base().numbered(port))
				if !half {
					d.says(false, synAck)
					d.says(true, ack)
				}
				id := d.id()
				forth, back := d.keys()
				key := map[string]bpf.XdplbTuple{"forth": forth, "back": back}[lost]
				s.remove(key)
				s.wait(twinLag)
				if lost == "back" { // the entry that is left is the client's; its packets mend the other
					d.forth("the client's next packet", d.segment(map[bool]layers.TCP{false: ack, true: syn}[half]))
				} else {
					d.back("the backend's next packet", d.reply(d.segment(map[bool]layers.TCP{false: ack, true: synAck}[half])))
				}
				d.forth("and the client", d.segment(ack))
				d.back("and the backend", d.reply(d.segment(ack)))
				all := s.entriesNow()
				one, ok := all[forth]
				two, ok2 := all[back]
				if !ok || !ok2 || one.Id != id || two.Id != id {
					t.Errorf("%s: entries %v (%x) and %v (%x), want id %x", d.name, ok, one.Id, ok2, two.Id, id)
				}
			}
		}
	})
}

// The other direction's packets come first: without their entry they are of no flow
// until the entry that is left mends it.
func TestTwinIsMissed(t *testing.T) {
	eachTranslation(t, func(t *testing.T, s *service) {
		d := s.establish("evicted", s.base())
		_, back := d.keys()
		s.remove(back)
		s.passes(d.name+": a reply whose entry is gone", d.reply(d.segment(ack)).bytes(t))
		s.wait(twinLag)
		d.forth("the client", d.segment(ack))
		d.back("a reply once it is mended", d.reply(d.segment(ack)))
	})
}

// The twin is another flow's by now: the flow has lost its way, and says so once.
func TestTwinIsLost(t *testing.T) {
	for _, client := range []bool{true, false} {
		eachTranslation(t, func(t *testing.T, s *service) {
			d := s.establish("a twin of another flow", s.base())
			forth, back := d.keys()
			other := map[bool]bpf.XdplbTuple{true: back, false: forth}[client]
			var flow bpf.XdplbFlow
			must(t, s.XdplbMaps.Flows.Lookup(other, &flow))
			flow.Id++
			must(t, s.XdplbMaps.Flows.Put(other, flow))
			s.wait(twinLag)
			p := d.segment(ack)
			if !client {
				p = d.reply(p)
			}
			s.drops(d.name, p.bytes(t), bpf.XdplbReasonTwinLost)
			own := map[bool]bpf.XdplbTuple{true: forth, false: back}[client]
			if _, there := s.entriesNow()[own]; there == client { // the backend may hold its tuple still
				t.Errorf("%s: the entry that lost its twin: there %v", d.name, there)
			}
			if e, there := s.entriesNow()[other]; !there || e.Id != flow.Id {
				t.Errorf("%s: the other flow's entry is not as it was", d.name)
			}
		})
	}
}
