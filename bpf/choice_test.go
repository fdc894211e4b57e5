package bpf_test

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"

	"github.com/xdplb/xdplb/bpf"
	"github.com/xdplb/xdplb/maps"
)

// The program and package maps agree on every tuple: on the backend, which shows
// in the frame's destination, and on the lower half of the hash, which is all of
// the outer source when --tun-spread leaves it every bit.
func TestChoice(t *testing.T) {
	const tuples, rounds, perRound = 100000, 40, 2500
	w := newWorld(t)
	w.settings.SpreadMask = 0xffffffff
	r := rand.New(rand.NewPCG(1, 2))
	primes := []uint32{251, 257, 997, 1009, 4099, 16381, 65537, 131071}
	chosen := map[uint32]bool{}
	n := 0
	for round := range rounds {
		w.settings.HashKey = maps.HashKey{byte(round), byte(round >> 8), 9}.Words()
		w.putSettings()
		name := vipNames[round%len(vipNames)]
		s := w.vip(fmt.Sprintf(name, 10+round))
		s.TableSize = primes[r.IntN(len(primes))]
		if round%3 > 0 {
			prefixes := []uint8{0, 1, 31, 32, 33, 63, 64, 65, 96, 100, 112, 120, 127, 128, uint8(r.IntN(129))}
			s.Function = bpf.XdplbSlotFunction{Scheduler: uint8(maps.SchedulerSource), SourcePrefix: prefixes[r.IntN(len(prefixes))]}
		}
		s.put()
		for i := range 8 {
			s.backend(netip.AddrFrom4([4]byte{10, 0, byte(round), byte(i + 1)}).String(), tunnel, func(b *maps.Backend) {
				b.Weight = uint16(1 + r.IntN(9))
			})
		}
		s.settle()
		n += s.choose(r, perRound, chosen)
		for _, b := range s.backends {
			must(t, s.FreeBackend(b))
		}
		must(t, s.DeleteService(s.VIP))
	}
	if n != tuples || len(chosen) < 8*len(vipNames) {
		t.Errorf("%d tuples went to %d backends", n, len(chosen))
	}
}

// choose sends n packets of random clients and compares where they go.
func (s *service) choose(r *rand.Rand, n int, chosen map[uint32]bool) int {
	s.Helper()
	p := s.base()
	p.payload = nil
	frame := p.bytes(s)
	wrong := 0
	for range n {
		p = p.randomClient(r)
		p.writeClient(frame)
		hash := s.InUse().Hash(&s.settings.HashKey, p.tuple())
		id := s.slots[maps.SlotIndex(hash, s.TableSize)].Backend
		at := slices.IndexFunc(s.backends, func(b *maps.Backend) bool { return b.Id == id })
		verdict, out := s.run(frame)
		if verdict != xdpTX {
			s.Fatalf("%v: verdict %d", p.tuple(), verdict)
		}
		source := binary.BigEndian.Uint32(out[26:])
		if [6]byte(out) != s.backends[at].Mac.Mac || source != uint32(hash) {
			if wrong++; wrong < 3 {
				s.Errorf("%v by %v in %d slots: to %x by hash %08x, want %x by %08x",
					p.tuple(), s.InUse(), s.TableSize, out[:6], source, s.backends[at].Mac.Mac, uint32(hash))
			}
		}
		chosen[id] = true
	}
	return n
}

// writeClient writes p's client into a frame made of it; checksums are wrong then.
func (p packet) writeClient(frame []byte) {
	at, port := p.l3()+12, p.l3()+20
	if p.ipv6() {
		at, port = p.l3()+8, p.l3()+40
	}
	copy(frame[at:], p.client.Addr().AsSlice())
	binary.BigEndian.PutUint16(frame[port:], p.client.Port())
}

// The source scheduler sends all of a client's flows to one backend, and all
// clients of a prefix.
func TestSourceScheduler(t *testing.T) {
	w := newWorld(t)
	s := w.vip("192.0.2.10:80")
	s.Function = bpf.XdplbSlotFunction{Scheduler: uint8(maps.SchedulerSource), SourcePrefix: 96 + 24}
	s.put()
	for i := range 20 {
		s.backend(fmt.Sprintf("10.0.1.%d", i+1))
	}
	s.settle()
	seen := map[[6]byte]bool{}
	for network := range 50 {
		var to [6]byte
		for host := range 20 {
			p := s.base()
			p.client = netip.AddrPortFrom(netip.AddrFrom4([4]byte{198, 18, byte(network), byte(host * 13)}), uint16(1024+host))
			got := w.send(p.bytes(t))
			if got.reason != bpf.XdplbReasonTransmitted {
				t.Fatalf("%v: %s", p.client, names[got.reason])
			}
			if host > 0 && to != [6]byte(got.frame) {
				t.Errorf("%v goes to %x, others of its network to %x", p.client, got.frame[:6], to)
			}
			to = [6]byte(got.frame)
		}
		seen[to] = true
	}
	if len(seen) < 10 {
		t.Errorf("50 networks go to %d backends", len(seen))
	}
}
