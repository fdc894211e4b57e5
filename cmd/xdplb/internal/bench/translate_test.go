package main

import (
	"encoding/binary"
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"golang.org/x/sys/unix"

	"github.com/xdplb/xdplb/bpf"
	"github.com/xdplb/xdplb/maps"
)

// TestFramesAreOfFlows: what the driver sends in either direction are the tuples that are put into the table.
func TestFramesAreOfFlows(t *testing.T) {
	for _, v := range translatedVIPs {
		var there, back frame
		for _, p := range translationPaths(v.mode) {
			switch p.name {
			case "to-backend/flows=1024":
				there = p.frame
			case "to-client/flows=1024":
				back = p.frame
			}
		}
		for i := range uint32(1024) {
			f := flowNumber(int(i), vip4, v.mode, translateSpread)
			keys, values := f.add(nil, nil)
			want := []bpf.XdplbTuple{sent(there, i), sent(back, i)}
			if diff := cmp.Diff(want, keys, cmpopts.IgnoreFields(bpf.XdplbTuple{}, "_")); diff != "" {
				t.Fatalf("%s, flow %d (-sent +filled):\n%s", v.name, i, diff)
			}
			if values[0].Id != values[1].Id || values[0].Far != keys[1].Dst || values[1].Far != keys[0].Src || values[1].Vip != keys[0].Dst {
				t.Fatalf("%s, flow %d: %+v are no twins", v.name, i, values)
			}
		}
	}
}

// sent is the tuple of the frame that the driver (drive in bpf/bench.c) makes when it counts to i.
func sent(f frame, i uint32) bpf.XdplbTuple {
	t := f.template()
	for offset, add := range map[uint32]uint32{t.Source: i & (t.Flows - 1), t.Vip: i >> 3 & (t.Vips - 1)} {
		b := t.Bytes[offset:]
		binary.BigEndian.PutUint32(b, binary.BigEndian.Uint32(b)+add)
	}
	b := t.Bytes[:]
	return bpf.XdplbTuple{
		Src: maps.Address(netip.AddrFrom4([4]byte(b[26:]))), Dst: maps.Address(netip.AddrFrom4([4]byte(b[30:]))),
		Sport: binary.BigEndian.Uint16(b[34:]), Dport: binary.BigEndian.Uint16(b[36:]), Proto: unix.IPPROTO_TCP,
	}
}
