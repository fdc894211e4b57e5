package loader

import (
	"encoding/binary"
	"fmt"
	"maps"
	"net/netip"
	"reflect"
	"slices"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// frameOf is a frame with this packet.
type frameOf struct {
	Packet
	flags byte // TCP
	to    []byte
	vlan  uint16 // 0: untagged
	mac   [6]uint8
}

const (
	fin = 1 << iota
	syn
	rst
	_
	ack
)

func (f frameOf) bytes() []byte {
	b := append(slices.Clone(f.to), f.mac[:]...)
	if f.vlan != 0 {
		b = binary.BigEndian.AppendUint16(b, unix.ETH_P_8021Q)
		b = binary.BigEndian.AppendUint16(b, 3<<13|f.vlan)
	}
	transport := binary.BigEndian.AppendUint16(nil, f.SrcPort)
	transport = binary.BigEndian.AppendUint16(transport, f.DstPort)
	if f.Proto == unix.IPPROTO_TCP {
		transport = append(transport, 0, 0, 0, 1, 0, 0, 0, 2, 5<<4, f.flags, 1, 0, 0, 0, 0, 0)
	} else {
		transport = append(transport, 0, 12, 0, 0, 1, 2, 3, 4)
	}
	size := uint16(len(transport))
	if f.Src.Is6() {
		b = binary.BigEndian.AppendUint16(b, unix.ETH_P_IPV6)
		b = binary.BigEndian.AppendUint16(append(b, 6<<4, 0, 0, 0), size)
		b = append(b, f.Proto, 57)
	} else {
		b = binary.BigEndian.AppendUint16(b, unix.ETH_P_IP)
		b = binary.BigEndian.AppendUint16(append(b, 4<<4|5, 0), 20+size)
		b = append(b, 0, 7, 0, 0, 57, f.Proto, 0, 0)
	}
	b = append(append(b, f.Src.AsSlice()...), f.Dst.AsSlice()...)
	return append(b, transport...)
}

// seenFrame is what a frame shows; outer is invalid without a tunnel.
type seenFrame struct {
	to, from           [6]uint8
	vlan               uint16
	outerSrc, outerDst netip.Addr
	src, dst           netip.AddrPort
	ttl, flags         uint8
}

func see(b []byte) (s seenFrame) {
	copy(s.to[:], b)
	copy(s.from[:], b[6:])
	kind, at := binary.BigEndian.Uint16(b[12:]), 14
	if kind == unix.ETH_P_8021Q {
		s.vlan, at = binary.BigEndian.Uint16(b[14:])&0xfff, 18
	}
	src, dst, proto, ip := seeIP(b[at:])
	if proto == unix.IPPROTO_IPIP || proto == unix.IPPROTO_IPV6 {
		s.outerSrc, s.outerDst = src, dst
		at += ip
		src, dst, proto, ip = seeIP(b[at:])
	}
	if s.ttl = b[at+8]; ip == 40 {
		s.ttl = b[at+7]
	}
	at += ip
	s.src = netip.AddrPortFrom(src, binary.BigEndian.Uint16(b[at:]))
	s.dst = netip.AddrPortFrom(dst, binary.BigEndian.Uint16(b[at+2:]))
	if proto == unix.IPPROTO_TCP {
		s.flags = b[at+13]
	}
	return s
}

func seeIP(b []byte) (src, dst netip.Addr, proto uint8, size int) {
	if b[0]>>4 == 4 {
		return netip.AddrFrom4([4]byte(b[12:])), netip.AddrFrom4([4]byte(b[16:])), b[9], 20
	}
	return netip.AddrFrom16([16]byte(b[8:])), netip.AddrFrom16([16]byte(b[24:])), b[6], 40
}

// contents are all elements of all maps, to be compared.
func (w *explainWorld) contents() map[string]string {
	all := map[string]string{}
	fields := reflect.ValueOf(w.XdplbMaps)
	for i := range fields.NumField() {
		name, m := fields.Type().Field(i).Tag.Get("ebpf"), fields.Field(i).Interface().(*ebpf.Map)
		if m.Type() == ebpf.ArrayOfMaps {
			for _, s := range w.services {
				slots, err := w.Table(s.Id)
				all[fmt.Sprintf("%s %d", name, s.Id)] = fmt.Sprint(slots, err)
			}
			continue
		}
		var key []byte
		var value []byte
		var perCPU [][]byte
		it := m.Iterate()
		for {
			if m.Type() == ebpf.PerCPUArray {
				if !it.Next(&key, &perCPU) {
					break
				}
				value = []byte(fmt.Sprint(perCPU))
			} else if !it.Next(&key, &value) {
				break
			}
			all[name+" "+string(key)] = string(value)
		}
		must(w.T, it.Err())
	}
	return all
}

// unchanged demands that f leaves every map as it is.
func (w *explainWorld) unchanged(f func()) {
	before := w.contents()
	f()
	if after := w.contents(); !maps.Equal(before, after) {
		w.Error("explaining changed a map")
	}
	w.tally["maps compared"]++
}
