package bpf

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func realserverAddress(s string) RealserverAddress {
	return RealserverAddress{Bytes: netip.MustParseAddr(s).As16()}
}

// realserverSource is the key of a prefix, lengths counted as in realserver.c.
func realserverSource(s string) RealserverSourceKey {
	prefix := netip.MustParsePrefix(s)
	key := RealserverSourceKey{Prefix: 32 + uint32(prefix.Bits()), Family: 6, Address: RealserverAddress{Bytes: prefix.Addr().As16()}}
	if prefix.Addr().Is4() {
		key.Prefix += 96
		key.Family = 4
	}
	return key
}

func loadRealserver(t testing.TB) *RealserverObjects {
	t.Helper()
	var objects RealserverObjects
	if err := LoadRealserverObjects(&objects, nil); err != nil {
		t.Fatalf("%+v", err)
	}
	t.Cleanup(func() { objects.Close() })
	for _, version := range []int{4, 6} {
		must(t, objects.Accepted.Put(realserverAddress(realserverVIP[version]), RealserverAccepted{Mode: RealserverModeModeTun}))
		must(t, objects.Accepted.Put(realserverAddress(realserverDR[version]), RealserverAccepted{Mode: RealserverModeModeDr}))
		must(t, objects.Hosts.Put(realserverAddress(realserverHost[version]), uint32(1)))
	}
	for _, source := range []string{"10.0.0.0/30", "2001:db8::/126"} {
		must(t, objects.Sources.Put(realserverSource(source), uint32(1)))
	}
	return &objects
}

func realserverOutcomes(t testing.TB, objects *RealserverObjects) (sums [RealserverOutcomeOutcomeMax]uint64) {
	t.Helper()
	for outcome := range RealserverOutcomeOutcomeMax {
		var perCPU []uint64
		must(t, objects.Outcomes.Lookup(outcome, &perCPU))
		for _, n := range perCPU {
			sums[outcome] += n
		}
	}
	return sums
}

// runRealserver sends one frame through the program and says which outcome was counted for it.
func runRealserver(t testing.TB, objects *RealserverObjects, frame []byte) ([]byte, RealserverOutcome) {
	t.Helper()
	before := realserverOutcomes(t, objects)
	verdict, out, err := objects.Realserver.Test(frame)
	must(t, err)
	if verdict != 2 { // XDP_PASS
		t.Fatalf("verdict %d for %x", verdict, frame)
	}
	after := realserverOutcomes(t, objects)
	counted := RealserverOutcomeOutcomeMax
	for outcome := range RealserverOutcomeOutcomeMax {
		switch after[outcome] - before[outcome] {
		case 0:
		case 1:
			if counted != RealserverOutcomeOutcomeMax {
				t.Fatalf("outcomes %d and %d for one frame", counted, outcome)
			}
			counted = outcome
		default:
			t.Fatalf("outcome %d counted %d times for one frame", outcome, after[outcome]-before[outcome])
		}
	}
	return out, counted
}

func TestRealserverDecapsulates(t *testing.T) {
	objects := loadRealserver(t)
	check := func(f realserverFrame, tos uint8) {
		t.Run(f.name(), func(t *testing.T) {
			out, outcome := runRealserver(t, objects, f.write(t, false, f.innerTOS))
			if outcome != RealserverOutcomeOutcomeDecapsulated {
				t.Errorf("outcome %d", outcome)
			}
			if diff := cmp.Diff(f.write(t, true, tos), out); diff != "" {
				t.Error(diff)
			}
		})
	}
	for _, outer := range []int{4, 6} {
		for _, inner := range []int{4, 6} {
			for tags := range 3 {
				for _, tcp := range []bool{false, true} {
					for _, options := range []bool{false, true} {
						f := newRealserverFrame(outer, inner)
						f.tags, f.tcp, f.options = tags, tcp, options
						check(f, 0)
					}
				}
			}
			f := newRealserverFrame(outer, inner)
			f.padding = 6 // of Ethernet; the kernel trims it by the inner length
			check(f, 0)
			f = newRealserverFrame(outer, inner)
			f.payload = 8000 // more than the linear part of a frame
			check(f, 0)
			f = newRealserverFrame(outer, inner)
			f.innerTOS = 0xb8
			check(f, 0xb8)
		}
	}
}

// RFC 6040, figure 4.
func TestRealserverECN(t *testing.T) {
	objects := loadRealserver(t)
	want := [4][4]uint8{ // inner, outer
		ecnNone: {ecnNone, ecnNone, ecnNone, 0xff},
		ecnECT1: {ecnECT1, ecnECT1, ecnECT1, ecnCE},
		ecnECT0: {ecnECT0, ecnECT1, ecnECT0, ecnCE},
		ecnCE:   {ecnCE, ecnCE, ecnCE, ecnCE},
	}
	for _, outerVersion := range []int{4, 6} {
		for _, innerVersion := range []int{4, 6} {
			for inner, row := range want {
				for outer, ecn := range row {
					f := newRealserverFrame(outerVersion, innerVersion)
					f.outerTOS, f.innerTOS = 0x28|uint8(outer), 0xb8|uint8(inner)
					in := f.write(t, false, f.innerTOS)
					expected, outcome := in, RealserverOutcomeOutcomeMalformed
					if ecn != 0xff {
						expected, outcome = f.write(t, true, 0xb8|ecn), RealserverOutcomeOutcomeDecapsulated
					}
					out, got := runRealserver(t, objects, in)
					if diff := cmp.Diff(expected, out); diff != "" || got != outcome {
						t.Errorf("%d in %d, ECN inner %d outer %d: outcome %d, want %d\n%s", innerVersion, outerVersion, inner, outer, got, outcome, diff)
					}
				}
			}
		}
	}
}

func TestRealserverPasses(t *testing.T) {
	objects := loadRealserver(t)
	type change struct {
		name    string
		outcome RealserverOutcome
		frame   func(*realserverFrame)
		bytes   func(realserverFrame, []byte) []byte
		only4   bool // outer
	}
	changes := []change{
		{name: "inner destination not accepted", outcome: RealserverOutcomeOutcomeNotAccepted,
			frame: func(f *realserverFrame) { f.vip = map[int]string{4: "192.0.2.9", 6: "2001:db8:f::9"}[f.inner] }},
		{name: "inner destination accepted for dr", outcome: RealserverOutcomeOutcomeNotAccepted,
			frame: func(f *realserverFrame) { f.vip = realserverDR[f.inner] }},
		{name: "outer destination another host", outcome: RealserverOutcomeOutcomePassed,
			frame: func(f *realserverFrame) { f.host = map[int]string{4: "10.0.0.3", 6: "2001:db8::3"}[f.outer] }},
		{name: "bad source", outcome: RealserverOutcomeOutcomeBadSource,
			frame: func(f *realserverFrame) { f.source = map[int]string{4: "10.0.0.4", 6: "2001:db8::4"}[f.outer] }},
		{name: "first fragment", outcome: RealserverOutcomeOutcomePassed, only4: true,
			frame: func(f *realserverFrame) { f.moreFragments = true }},
		{name: "last fragment", outcome: RealserverOutcomeOutcomePassed, only4: true,
			frame: func(f *realserverFrame) { f.fragmentOffset = 8 }},
		{name: "inner longer than outer", outcome: RealserverOutcomeOutcomeMalformed,
			frame: func(f *realserverFrame) { f.innerLengthDelta = 1; f.padding = 8 }},
		{name: "inner shorter than its header", outcome: RealserverOutcomeOutcomeMalformed,
			frame: func(f *realserverFrame) {
				f.innerLengthDelta = map[int]int{4: -109, 6: 0x7000}[f.inner]
			}},
		{name: "frame cut by one byte", outcome: RealserverOutcomeOutcomeMalformed,
			bytes: func(_ realserverFrame, b []byte) []byte { return b[:len(b)-1] }},
		{name: "frame cut in the inner header", outcome: RealserverOutcomeOutcomeMalformed,
			bytes: func(f realserverFrame, b []byte) []byte { return b[:f.innerAt()+19] }},
		{name: "frame cut behind the outer header", outcome: RealserverOutcomeOutcomeMalformed,
			bytes: func(f realserverFrame, b []byte) []byte { return b[:f.innerAt()] }},
		{name: "frame cut in the outer header", outcome: RealserverOutcomeOutcomePassed,
			bytes: func(f realserverFrame, b []byte) []byte { return b[:14+4*f.tags+19] }},
		{name: "inner version wrong", outcome: RealserverOutcomeOutcomeMalformed,
			bytes: func(f realserverFrame, b []byte) []byte { b[f.innerAt()] ^= 0x20; return b }},
		{name: "not a tunnel", outcome: RealserverOutcomeOutcomePassed,
			bytes: func(f realserverFrame, b []byte) []byte {
				b[14+4*f.tags+map[int]int{4: 9, 6: 6}[f.outer]] = 47 // GRE
				return b
			}},
		{name: "not tunnelled", outcome: RealserverOutcomeOutcomePassed,
			bytes: func(f realserverFrame, _ []byte) []byte { return f.write(t, true, 0) }},
		{name: "outer version wrong", outcome: RealserverOutcomeOutcomeMalformed,
			bytes: func(f realserverFrame, b []byte) []byte { b[14+4*f.tags] ^= 0x20; return b }},
		{name: "outer IPv4 header too short", outcome: RealserverOutcomeOutcomeMalformed, only4: true,
			bytes: func(f realserverFrame, b []byte) []byte { b[14+4*f.tags] = 0x44; return b }},
		{name: "outer IPv4 length too short", outcome: RealserverOutcomeOutcomeMalformed, only4: true,
			bytes: func(f realserverFrame, b []byte) []byte {
				binary.BigEndian.PutUint16(b[14+4*f.tags+2:], 19)
				return b
			}},
	}
	for _, c := range changes {
		for _, outer := range []int{4, 6} {
			if c.only4 && outer == 6 {
				continue
			}
			for _, inner := range []int{4, 6} {
				for tags := range 3 {
					f := newRealserverFrame(outer, inner)
					f.tags = tags
					if c.frame != nil {
						c.frame(&f)
					}
					frame := f.write(t, false, 0)
					if c.bytes != nil {
						frame = c.bytes(f, frame)
					}
					t.Run(c.name+"/"+f.name(), func(t *testing.T) {
						out, outcome := runRealserver(t, objects, frame)
						if !bytes.Equal(frame, out) {
							t.Error(cmp.Diff(frame, out))
						}
						if outcome != c.outcome {
							t.Errorf("outcome %d, want %d", outcome, c.outcome)
						}
					})
				}
			}
		}
	}
}

// A third VLAN tag hides what follows; ARP and frames without an IP header are nothing to us.
func TestRealserverPassesOtherTypes(t *testing.T) {
	objects := loadRealserver(t)
	f := newRealserverFrame(4, 4)
	f.tags = 2
	tagged := f.write(t, false, 0)
	frames := map[string][]byte{
		"three tags":     append(append(bytes.Clone(tagged[:12]), 0x81, 0, 0, 1), tagged[12:]...),
		"arp":            append([]byte{255, 255, 255, 255, 255, 255, 2, 0, 0, 0, 0, 1, 8, 6}, make([]byte, 46)...),
		"ends after MAC": {2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, 8, 0},
		"ends in tag":    {2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, 0x81, 0, 0},
	}
	for name, frame := range frames {
		out, outcome := runRealserver(t, objects, frame)
		if !bytes.Equal(frame, out) || outcome != RealserverOutcomeOutcomePassed {
			t.Errorf("%s: outcome %d, %x became %x", name, outcome, frame, out)
		}
	}
}

// Without --from both /0 prefixes are in the trie; each holds its own family only.
func TestRealserverSourceFamilies(t *testing.T) {
	for _, any := range []string{"0.0.0.0/0", "::/0"} {
		objects := loadRealserver(t)
		must(t, objects.Sources.Put(realserverSource(any), uint32(1)))
		for _, outer := range []int{4, 6} {
			f := newRealserverFrame(outer, 4)
			f.source = map[int]string{4: "203.0.113.1", 6: "2001:db8:9::1"}[outer]
			want := RealserverOutcomeOutcomeBadSource
			if netip.MustParsePrefix(any).Addr().Is4() == (outer == 4) {
				want = RealserverOutcomeOutcomeDecapsulated
			}
			if _, outcome := runRealserver(t, objects, f.write(t, false, 0)); outcome != want {
				t.Errorf("%s, outer IPv%d: outcome %d, want %d", any, outer, outcome, want)
			}
		}
	}
}

func TestRealserverRandomFramesPass(t *testing.T) {
	objects := loadRealserver(t)
	seed := rand.Uint64()
	random := rand.New(rand.NewPCG(seed, 0))
	for range 20000 {
		outer, inner := 4+2*random.IntN(2), 4+2*random.IntN(2)
		f := newRealserverFrame(outer, inner)
		f.tags = random.IntN(3)
		f.options = random.IntN(2) == 0
		f.vip = map[int]string{4: "192.0.2.200", 6: "2001:db8:f::200"}[inner]
		frame := f.write(t, false, uint8(random.UintN(256)))
		if random.IntN(2) == 0 {
			frame = frame[:14+random.IntN(len(frame)-14)]
		}
		// At most three bytes: fewer than would make an accepted address of this one.
		for range random.IntN(4) {
			at := random.IntN(len(frame))
			if lastOfVIP := f.innerAt() + map[int]int{4: 19, 6: 39}[inner]; at != lastOfVIP {
				frame[at] = byte(random.UintN(256))
			}
		}
		verdict, out, err := objects.Realserver.Test(frame)
		must(t, err)
		if verdict != 2 || !bytes.Equal(frame, out) {
			t.Fatalf("seed %d: verdict %d, %x became %x", seed, verdict, frame, out)
		}
	}
	if sums := realserverOutcomes(t, objects); sums[RealserverOutcomeOutcomeDecapsulated] != 0 || sums[RealserverOutcomeOutcomeNotAccepted] == 0 {
		t.Errorf("seed %d: outcomes %v", seed, sums)
	}
}
