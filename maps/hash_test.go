package maps_test

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/xdplb/xdplb/maps"
	"pgregory.net/rapid"
)

// Computed from the definition by a program of another language: a change of any
// of them would split balancers of two versions that share VIPs.
func TestHashIsWhatItAlwaysWas(t *testing.T) {
	key, err := maps.ParseHashKey("000102030405060708090a0b0c0d0e0f")
	if err != nil {
		t.Fatal(err)
	}
	words := key.Words()
	if want := [10]uint32{
		0xb7fc982b, 0xa4a02b47, 0x26696dcf, 0xb0696621, 0x1b445fd8,
		0x32a8c8f3, 0x275d9ecf, 0xbacd8589, 0x8f91766d, 0xf278d469,
	}; words != want {
		t.Fatalf("words %#x, want %#x", words, want)
	}
	if got, want := key.Fingerprint(), uint64(0x91913e6d1e8e8a49); got != want {
		t.Errorf("fingerprint %#x, want %#x", got, want)
	}
	v4 := tuple("203.0.113.7", "192.0.2.10", 40000, 80, 6)
	v4udp := tuple("203.0.113.7", "192.0.2.10", 40000, 80, 17)
	v6 := tuple("2001:db8::7", "2001:db8:1::10", 65535, 443, 6)
	for _, test := range []struct {
		tuple    maps.Tuple
		function maps.SlotFunction
		hash     uint64
	}{
		{v4, maglev, 0xb72c906649d75207},
		{v4udp, maglev, 0x374ffc3412bdbce8},
		{v6, maglev, 0xd92cfc1f376ab3d3},
		{v4, source(128), 0xda2db53ca1c7d1ed},
		{v4, source(120), 0x4d8a72c7f9d0c706},
		{v6, source(128), 0x353803cfa91373f4},
		{v6, source(61), 0x7786c000021f0ea8},
	} {
		if got := test.function.Hash(&words, test.tuple); got != test.hash {
			t.Errorf("%v of %v: %#x, want %#x", test.function, test.tuple, got, test.hash)
		}
	}
	if got := maps.SlotIndex(0xb72c906649d75207, 16381); got != 11720 {
		t.Errorf("slot %d, want 11720", got)
	}
}

func TestSourceHashSeesTheMaskedClientOnly(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		words := drawKey(t)
		prefix := rapid.Uint8Range(0, 128).Draw(t, "prefix")
		a, b := drawTuple(t), drawTuple(t)
		x, err := a.Src.Prefix(int(prefix))
		if err != nil {
			t.Fatal(err)
		}
		y, err := b.Src.Prefix(int(prefix))
		if err != nil {
			t.Fatal(err)
		}
		same := source(prefix).Hash(&words, a) == source(prefix).Hash(&words, b)
		if want := x == y; same != want {
			t.Fatalf("equal hashes: %v, equal prefixes %v and %v: %v", same, x, y, want)
		}
	})
}

func TestHashSeesEveryBitOfTheTuple(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		words := drawKey(t)
		a := drawTuple(t)
		b := a
		bit := rapid.IntRange(0, 127).Draw(t, "bit")
		flip := func(addr netip.Addr) netip.Addr {
			bytes := addr.As16()
			bytes[bit/8] ^= 0x80 >> (bit % 8)
			return netip.AddrFrom16(bytes)
		}
		switch rapid.IntRange(0, 4).Draw(t, "field") {
		case 0:
			b.Src = flip(a.Src)
		case 1:
			b.Dst = flip(a.Dst)
		case 2:
			b.SrcPort ^= 1 << (bit % 16)
		case 3:
			b.DstPort ^= 1 << (bit % 16)
		case 4:
			b.Proto ^= 1 << (bit % 8)
		}
		if maglev.Hash(&words, a) == maglev.Hash(&words, b) {
			t.Fatalf("%v and %v have one hash", a, b)
		}
	})
}

// Neighbouring clients and ports, as real ones are, must spread like random ones:
// chi-squared over 251 slots has mean 250 and deviation 22.
func TestHashSpreadsNeighbours(t *testing.T) {
	const slots, addresses, ports = 251, 256, 256
	for seed := range byte(20) {
		words := maps.HashKey{seed}.Words()
		var count [slots]int
		for a := range addresses {
			for p := range ports {
				src := netip.AddrFrom4([4]byte{198, 51, 100, byte(a)})
				tuple := maps.Tuple{Src: src, Dst: netip.MustParseAddr("192.0.2.10"), SrcPort: uint16(32768 + p), DstPort: 80, Proto: 6}
				count[maps.SlotIndex(maglev.Hash(&words, tuple), slots)]++
			}
		}
		mean, chi := float64(addresses*ports)/slots, 0.0
		for _, n := range count {
			chi += (float64(n) - mean) * (float64(n) - mean) / mean
		}
		if chi > 250+8*22 {
			t.Errorf("key %d: chi-squared %.0f of %d slots", seed, chi, slots)
		}
	}
}

func TestParseHashKey(t *testing.T) {
	for _, bad := range []string{"", "00", strings.Repeat("0", 31), strings.Repeat("0", 34), strings.Repeat("g", 32)} {
		if _, err := maps.ParseHashKey(bad); err == nil || !strings.Contains(err.Error(), "openssl rand -hex 16") {
			t.Errorf("%q: error %v names no mend", bad, err)
		}
	}
}

func TestHashKeysDiffer(t *testing.T) {
	a, b := maps.NewHashKey(), maps.NewHashKey()
	if a == b || a.Words() == b.Words() || a.Fingerprint() == b.Fingerprint() {
		t.Errorf("keys %x and %x, words %x and %x", a, b, a.Words(), b.Words())
	}
}

var maglev = maps.SlotFunction{Scheduler: maps.SchedulerMaglev}

func source(prefix uint8) maps.SlotFunction {
	return maps.SlotFunction{Scheduler: maps.SchedulerSource, SourcePrefix: prefix}
}

func tuple(src, dst string, sport, dport uint16, proto uint8) maps.Tuple {
	return maps.Tuple{Src: netip.MustParseAddr(src), Dst: netip.MustParseAddr(dst), SrcPort: sport, DstPort: dport, Proto: proto}
}

func drawKey(t *rapid.T) [10]uint32 {
	return maps.HashKey(rapid.SliceOfN(rapid.Byte(), 16, 16).Draw(t, "key")).Words()
}

// drawTuple draws 16-byte addresses: the hash knows no families.
func drawTuple(t *rapid.T) maps.Tuple {
	address := rapid.Custom(func(t *rapid.T) netip.Addr {
		return netip.AddrFrom16([16]byte(rapid.SliceOfN(rapid.Byte(), 16, 16).Draw(t, "address")))
	})
	return maps.Tuple{
		Src: address.Draw(t, "src"), Dst: address.Draw(t, "dst"),
		SrcPort: rapid.Uint16().Draw(t, "sport"), DstPort: rapid.Uint16().Draw(t, "dport"),
		Proto: rapid.Byte().Draw(t, "proto"),
	}
}
