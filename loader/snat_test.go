package loader

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"

	"github.com/cilium/ebpf"

	"github.com/xdplb/xdplb/bpf"
	"github.com/xdplb/xdplb/maps"
)

// claim writes one entry of a flow, as the data path does: that of the replies, or that of the client's packets.
func (b *bench) claim(to *ebpf.Map, backend uint32, from, dst string, direction bpf.XdplbFlowDirection, seen uint64, more ...bpf.XdplbFlowState) {
	b.Helper()
	src, far := netip.MustParseAddrPort(from), netip.MustParseAddrPort(dst)
	key := bpf.XdplbTuple{Src: maps.Address(src.Addr()), Dst: maps.Address(far.Addr()), Sport: src.Port(), Dport: far.Port(), Proto: 6}
	states := uint64(bpf.XdplbFlowStateFlowSpoken | bpf.XdplbFlowStateFlowAnswered)
	for _, state := range more {
		states |= uint64(state)
	}
	must(b.T, to.Put(key, bpf.XdplbFlow{
		Stamp: seen<<uint64(bpf.XdplbFlowStampFlowStampShift) | states, Backend: backend, Direction: uint8(direction), Id: 7,
	}))
}

func TestSNATFlows(t *testing.T) {
	b := newBench(t, AttachOptions{SNAT: ips("10.0.0.2", "10.9.9.9"), AnySNAT: true, SNATPorts: &PortRange{20000, 20019}})
	v := b.vip("192.0.2.10:80", VIPOptions{})
	b.add(v, ModeFullNAT, "10.0.0.11", "10.0.0.12")
	b.add(v, ModeNAT, "10.0.0.11:81")
	id := make(map[string]uint32)
	for _, r := range b.Maps.ReadBackends(func(uint32) bool { return true }) {
		id[r.AddrPort().String()] = r.Id
	}
	now, err := b.Now()
	must(t, err)
	const one, two, nat = "10.0.0.11:80", "10.0.0.12:80", "10.0.0.11:81"
	flows, half := b.Maps.XdplbMaps.Flows, b.Maps.HalfOpen
	reply, request := bpf.XdplbFlowDirectionFlowToClient, bpf.XdplbFlowDirectionFlowToBackend
	for i := range 5 {
		b.claim(flows, id[one], one, fmt.Sprintf("10.0.0.2:%d", 20000+i), reply, now)
	}
	for i := range 3 { // the other backend has the same ports
		b.claim(flows, id[two], two, fmt.Sprintf("10.0.0.2:%d", 20000+i), reply, now)
	}
	b.claim(half, id[one], one, "10.0.0.2:20004", reply, now)                                                  // is being promoted
	b.claim(half, id[two], two, "10.0.0.2:20010", reply, now)                                                  // a handshake
	b.claim(flows, id[one], one, "10.0.0.2:20011", reply, now-b.Settings.TcpIdle-5*uint64(b.Settings.Hz))      // expired
	b.claim(flows, id[one], "198.51.100.1:7777", "192.0.2.10:80", request, now)                                // the other direction
	b.claim(flows, id[nat], nat, "10.0.0.2:20012", reply, now)                                                 // NAT, to a client there
	b.claim(flows, id[two], two, "10.9.9.9:20000", reply, now)                                                 // another address
	b.claim(flows, id[two], "10.0.0.12:80", "203.0.113.1:20000", reply, now)                                   // of an address that is gone
	b.claim(flows, id[two]+1<<uint(bpf.XdplbBackendIdPartBackendIndexBits), two, "10.0.0.2:20013", reply, now) // of a backend that is gone
	// Both sides closed these some seconds ago. A server that was first still holds the tuple.
	ago, closing, finished := now-2*uint64(b.Settings.Hz), bpf.XdplbFlowStateFlowClosing, bpf.XdplbFlowStateFlowFinished
	b.claim(flows, id[two], two, "10.9.9.9:20001", reply, ago, closing, finished)
	b.claim(flows, id[two], two, "10.9.9.9:20002", reply, ago, closing, finished, bpf.XdplbFlowStateFlowBackendFirst)
	b.claim(flows, id[two], two, "10.9.9.9:20003", reply, ago, bpf.XdplbFlowStateFlowReset)

	s, err := b.SNAT()
	must(t, err)
	for addr, want := range map[string]int{"10.0.0.2": 9, "10.9.9.9": 2, "203.0.113.1": 1, "192.0.2.10": 0} {
		if got := s.Flows[ip(addr)]; got != want {
			t.Errorf("%s: %d flows, want %d", addr, got, want)
		}
	}
	full := s.Fullest[ip("10.0.0.2")]
	if want := (SNATLoad{netip.MustParseAddrPort(one), 5}); full != want || s.Percent(full) != 25 {
		t.Errorf("the fullest is %+v, %v %%; want %+v, 25 %%", full, s.Percent(full), want)
	}
	must(t, b.SetSNATPorts(PortRange{20002, 20005}))
	if s, err = b.SNAT(); err != nil || s.Flows[ip("10.0.0.2")] != 9 || s.Percent(s.Fullest[ip("10.0.0.2")]) != 75 {
		t.Errorf("of fewer ports: %+v (%v), want 9 flows, and 3 of 4 ports in use", s, err)
	}
	must(t, b.DeleteSNAT(ips("10.0.0.2")))
	if s, err = b.SNAT(); err != nil || s.Flows[ip("10.0.0.2")] != 9 {
		t.Errorf("taken away: %d flows use it, want 9 (%v)", s.Flows[ip("10.0.0.2")], err)
	}
}

// However lists come and go, each is what was last asked for, and no change touches
// an array place that a list has: packets read it until the list is another.
func TestSNATListsAreReplacedWhole(t *testing.T) {
	b := newBench(t, AttachOptions{})
	random := rand.New(rand.NewPCG(1, 2))
	pool := []netip.Addr{}
	own := make(map[maps.VIP][]netip.Addr)
	vips := []maps.VIP{b.vip("192.0.2.10:80", VIPOptions{}), b.vip("192.0.2.11:80", VIPOptions{}), b.vip("[2001:db8:9::10]:80", VIPOptions{})}
	for step := range 60 {
		before, used := b.snatArray(), b.snatPlaces()
		switch v := vips[random.IntN(len(vips))]; random.IntN(3) {
		case 0:
			addr := fresh(random, random.IntN(2) == 0, pool)
			must(t, b.AddSNAT([]netip.Addr{addr}, true))
			pool = append(pool, addr)
		case 1:
			if len(pool) == 0 {
				continue
			}
			i := random.IntN(len(pool))
			must(t, b.DeleteSNAT(pool[i:i+1]))
			pool = slices.Delete(pool, i, i+1)
		default:
			list := []netip.Addr{}
			for range random.IntN(4) {
				list = append(list, fresh(random, v.Addr.Is4(), list))
			}
			must(t, b.SetVIP(v, VIPOptions{SNAT: &list, AnySNAT: true}))
			own[v] = list
		}
		after := b.snatArray()
		for place := range used {
			if after[place] != before[place] {
				t.Fatalf("step %d: place %d of a list in use became %v", step, place, after[place])
			}
		}
		b.compareSNAT(step, pool, own)
	}
}

func (b *bench) compareSNAT(step int, pool []netip.Addr, own map[maps.VIP][]netip.Addr) {
	b.Helper()
	settings, err := b.Maps.ReadSettings()
	must(b.T, err)
	got, err := b.Maps.SNATPool(&settings)
	must(b.T, err)
	slices.SortFunc(got, netip.Addr.Compare)
	want := slices.SortedFunc(slices.Values(pool), netip.Addr.Compare)
	if !slices.Equal(got, want) {
		b.Fatalf("step %d: the pool is %v, want %v", step, got, want)
	}
	for v, want := range own {
		s := b.service(v)
		if got, err := b.Maps.SNATOf(&s); err != nil || !slices.Equal(got, want) {
			b.Fatalf("step %d: %s has %v, want %v (%v)", step, v, got, want, err)
		}
	}
}

func fresh(random *rand.Rand, v4 bool, but []netip.Addr) (addr netip.Addr) {
	for !addr.IsValid() || slices.Contains(but, addr) {
		if addr = netip.AddrFrom4([4]byte{10, 7, byte(random.Uint32()), 7}); !v4 {
			addr = netip.AddrFrom16([16]byte{0x20, 1, 0xd, 0xb8, 15: byte(random.Uint32())})
		}
	}
	return addr
}

func (b *bench) snatArray() []bpf.XdplbAddress {
	b.Helper()
	all := make([]bpf.XdplbAddress, maps.MaxSNAT)
	for i := range all {
		must(b.T, b.Maps.Snat.Lookup(uint32(i), &all[i]))
	}
	return all
}

// snatPlaces are the places of the lists in use.
func (b *bench) snatPlaces() map[uint16]bool {
	b.Helper()
	settings, err := b.Maps.ReadSettings()
	must(b.T, err)
	pool := settings.Snat
	lists := [][2]uint16{{pool.First4, pool.Count4}, {pool.First6, pool.Count6}}
	services, err := b.Maps.Services()
	must(b.T, err)
	for _, s := range services {
		lists = append(lists, [2]uint16{s.SnatFirst, s.SnatCount})
	}
	used := make(map[uint16]bool)
	for _, list := range lists {
		for i := range list[1] {
			used[list[0]+i] = true
		}
	}
	return used
}

// A change that does not fit is refused and changes nothing.
func TestSNATIsFull(t *testing.T) {
	b := newBench(t, AttachOptions{})
	many := make([]netip.Addr, maps.MaxSNAT)
	for i := range many {
		many[i] = netip.AddrFrom4([4]byte{10, 7, byte(i >> 8), byte(i)})
	}
	must(t, b.AddSNAT(many[:600], true))
	if err := b.AddSNAT(many[600:601], true); err == nil {
		t.Error("601 addresses beside 600")
	}
	b.compareSNAT(0, many[:600], nil)
	v := b.vip("192.0.2.10:80", VIPOptions{})
	list := many[600:]
	must(t, b.SetVIP(v, VIPOptions{SNAT: &list, AnySNAT: true}))
	if other, err := maps.ParseVIP("192.0.2.11:80"); err != nil || b.AddVIP(other, VIPOptions{SNAT: &list, AnySNAT: true}) == nil || b.hasVIP(other) {
		t.Error("a VIP was added whose addresses have no room")
	}
	b.compareSNAT(1, many[:600], map[maps.VIP][]netip.Addr{v: list})
}
