package main

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// kindOfFrame is one kind of the mixed frames, and the name under which each of them must be counted.
type kindOfFrame struct {
	name   string
	counts string // forwarded, passed, a reason, or limited: an answer or rate_limited
	shot   shot
}

// TestEveryFrameIsCounted: of a million mixed frames on the wire each is counted once, under the right name, and
// as many are counted as the device took from the wire.
func TestEveryFrameIsCounted(t *testing.T) {
	const frames, burst = 1_000_000, 8192
	n := buildLive(t, 2, "--snat", mixedSNAT, "--snat-ports", fmt.Sprintf("%d-%d", mixedLow, mixedLow+99))
	n.must("vip", "add", n.VIP4.String()+":80")
	n.must("backend", "add", n.VIP4.String()+":80", n.backend(0), n.backend(1))
	n.must("vip", "add", n.VIP4.String()+":81", "--mode", "tun")
	n.must("backend", "add", n.VIP4.String()+":81", n.backend(0))
	n.must("vip", "add", n.VIP4.String()+":82")
	kinds := append(mixedFrames(n), translatedFrames(n)...)

	rng := rand.New(rand.NewPCG(seed(t), 0))
	var arrivedBefore uint64
	var before liveStats
	n.eventually("no frame arrives between the two readings", func() bool {
		arrivedBefore, before = n.arrived(), n.stats()
		return n.arrived() == arrivedBefore
	})
	sent := make(map[string]uint64) // by name of the kind
	for i := 0; n.arrived()-arrivedBefore < frames; i++ {
		k := kinds[i%len(kinds)]
		if i >= len(kinds) {
			k = kinds[rng.IntN(len(kinds))]
		}
		start := n.arrived()
		n.check(n.fire(k.shot, burst))
		sent[k.name] += n.arrived() - start
	}
	// Last some that the other end of the cable does not take: without an XDP program it has no ring for them.
	n.check(n.Switches[0].Do(func() error {
		port, err := netlink.LinkByName("balancer-eth0")
		if err != nil {
			return err
		}
		return netlink.LinkSetXdpFdWithFlags(port, -1, nl.XDP_FLAGS_DRV_MODE)
	}))
	lost := n.arrived()
	n.check(n.fire(kinds[0].shot, burst))
	lost = n.arrived() - lost
	sent[kinds[0].name] += lost
	// What was in the ring comes within moments, and frames of the kernel's own, such as neighbour discovery.
	var after liveStats
	n.eventually("as many frames are counted as arrived", func() bool {
		arrived := n.arrived()
		after = n.stats()
		return after.Received-before.Received == arrived-arrivedBefore && arrived == n.arrived()
	})
	sum := after.Forwarded + after.Passed
	for _, count := range after.Reasons {
		sum += count
	}
	if sum != after.Received {
		t.Errorf("received %d, but forwarded, passed and all reasons are %d: %+v", after.Received, sum, after)
	}
	t.Logf("%d frames arrived: %v", after.Received-before.Received, sent)
	judgeCounts(t, before, after, kinds, sent)
	if failed := after.Reasons["tx_failed"]; lost == 0 || failed < lost-few {
		t.Errorf("tx_failed: %d were counted of %d frames", failed, lost)
	}
}

// few is more than the frames that the kernel sends on its own.
const few = 200

// judgeCounts compares with what was sent.
func judgeCounts(t *testing.T, before, after liveStats, kinds []kindOfFrame, sent map[string]uint64) {
	t.Helper()
	want := make(map[string]uint64)
	for _, k := range kinds {
		want[k.counts] += sent[k.name]
	}
	r := make(map[string]uint64)
	for name, count := range after.Reasons {
		r[name] = count - before.Reasons[name]
	}
	got := map[string]uint64{
		"forwarded":      after.Forwarded - before.Forwarded + r["tx_failed"] + r["redirect_failed"],
		"passed":         after.Passed - before.Passed,
		"no_backend":     r["no_backend"],
		"snat_exhausted": r["snat_exhausted"],
		"limited":        r["ttl_exceeded"] + r["too_big"] + r["echo_answered"] + r["flow_unknown"] + r["nat_clash"] + r["rate_limited"],
	}
	for name, have := range got {
		if have+few < want[name] || have > want[name]+few {
			t.Errorf("%s: %d were counted of %d frames", name, have, want[name])
		}
	}
	for _, name := range []string{"ttl_exceeded", "too_big", "echo_answered", "rate_limited", "no_backend", "flow_unknown", "nat_clash", "snat_exhausted"} {
		if r[name] == 0 {
			t.Errorf("no frame was counted under %s", name)
		}
	}
}

// mixedFrames are ours and foreign, well-formed and not.
func mixedFrames(n *liveNet) (kinds []kindOfFrame) {
	add := func(name, counts string, port uint16, edit func(frame []byte) []byte) {
		frame, source, sport := tcpFrame(n, netip.AddrPortFrom(n.VIP4, port), flagACK)
		if edit != nil {
			frame = edit(frame)
		}
		parts := []part{source, sport}
		if len(frame) < frameTCP4+4 || frame[frameIP+9] == unix.IPPROTO_ICMP {
			parts = parts[:1]
		}
		kinds = append(kinds, kindOfFrame{name, counts, newShot(n, frame, parts...)})
	}
	set := func(offset int, value ...byte) func([]byte) []byte {
		return func(frame []byte) []byte { return slices.Replace(frame, offset, offset+len(value), value...) }
	}
	size := func(frame []byte, bytes int) []byte { // of the IP packet
		frame = append(frame, make([]byte, max(0, frameIP+bytes-len(frame)))...)[:frameIP+bytes]
		binary.BigEndian.PutUint16(frame[frameIP+2:], uint16(bytes))
		return frame
	}
	add("ACK", "forwarded", 80, nil)
	add("SYN", "forwarded", 80, set(frameTCP4+13, flagSYN))
	add("tunnelled", "forwarded", 81, nil)
	add("no backend", "no_backend", 82, nil)
	add("TTL 1", "limited", 80, set(frameIP+8, 1))
	add("too big", "limited", 81, func(f []byte) []byte { return size(f, 1500) })
	add("echo", "limited", 80, func(f []byte) []byte {
		f[frameIP+9] = unix.IPPROTO_ICMP
		return slices.Replace(f, frameTCP4, frameTCP4+4, 8, 0, 0, 0)
	})
	add("another port", "passed", 83, nil)
	add("another address", "passed", 80, set(frameIP+16+3, 200))
	add("another MAC", "passed", 80, set(5, 0xee))
	add("ARP", "passed", 80, set(12, 0x08, 0x06))
	add("unknown ethertype", "passed", 80, set(12, 0x88, 0xb5))
	add("IP version 5", "passed", 80, set(frameIP, 0x55))
	add("IP header of 12 bytes", "passed", 80, set(frameIP, 0x43))
	add("IP header longer than the packet", "passed", 80, set(frameIP, 0x4f))
	add("longer than the frame", "passed", 80, set(frameIP+2, 0x40, 0))
	add("TCP header of 16 bytes", "passed", 80, set(frameTCP4+12, 0x40))
	add("TCP header longer than the packet", "passed", 80, set(frameTCP4+12, 0xf0))
	add("half a TCP header", "passed", 80, func(f []byte) []byte { return size(f, 30) })
	add("half an IP header", "passed", 80, func(f []byte) []byte { return f[:frameIP+18] })
	add("later fragment of nothing", "passed", 80, set(frameIP+6, 0x00, 0x64))
	return kinds
}

// What FULL-NAT sends from: 100 ports with one high byte, which established flows have all the time.
const (
	mixedSNAT = "192.0.2.2" // the balancer's
	mixedLow  = 0x2800
)

// translatedFrames are of NAT and FULL-NAT, both directions: of flows that are established here, and of none.
func translatedFrames(n *liveNet) (kinds []kindOfFrame) {
	n.t.Helper()
	const nat, clashes, fullnat = 84, 85, 86 // the VIPs' ports; they share a backend
	const high = 0x10                        // of the client ports that have flows
	server := netip.AddrPortFrom(n.Servers4[0], natServerPort)
	for port, mode := range map[uint16]string{nat: "nat", clashes: "nat", fullnat: "fullnat"} {
		vip := netip.AddrPortFrom(n.VIP4, port).String()
		n.must("vip", "add", vip, "--mode", mode)
		n.must("backend", "add", vip, server.String())
	}
	anybody := func(port uint16, flags byte) shot {
		frame, source, sport := tcpFrame(n, netip.AddrPortFrom(n.VIP4, port), flags)
		return newShot(n, frame, source, sport)
	}
	known := func(port uint16, flags byte) shot {
		frame, _, sport := tcpFrame(n, netip.AddrPortFrom(n.VIP4, port), flags)
		frame[sport.offset] = high
		return newShot(n, frame, random{sport.offset + 1, 1})
	}
	reply := func(to netip.Addr, flags byte, port part, high byte) shot {
		frame, source, sport := tcpFrame(n, netip.AddrPortFrom(to, uint16(high)<<8), flags)
		copy(frame[source.offset:], server.Addr().AsSlice())
		binary.BigEndian.PutUint16(frame[sport.offset:], server.Port())
		return newShot(n, frame, port)
	}
	low := random{frameTCP4 + 3, 1}
	client, snat := netip.MustParseAddr("203.0.113.1"), netip.MustParseAddr(mixedSNAT)
	for _, s := range []shot{ // each has all ports, for there are 256
		known(nat, flagSYN), reply(client, flagSYN|flagACK, low, high), known(nat, flagACK),
		known(fullnat, flagSYN), reply(snat, flagSYN|flagACK, low, mixedLow>>8), known(fullnat, flagACK),
	} {
		n.check(n.fire(s, 8192))
	}
	taken := choice{low.offset, [8]byte{0, 1, 2, 3, 50, 97, 98, 99}}
	return []kindOfFrame{
		{"NAT SYN", "forwarded", anybody(nat, flagSYN)},
		{"NAT adopted", "forwarded", anybody(nat, flagACK)},
		{"NAT established", "forwarded", known(nat, flagACK)},
		{"NAT reply", "forwarded", reply(client, flagACK, low, high)},
		{"NAT clash", "limited", known(clashes, flagSYN)},
		{"FULL-NAT reply", "forwarded", reply(snat, flagACK, taken, mixedLow>>8)},
		{"FULL-NAT of no flow", "limited", anybody(fullnat, flagACK)},
		{"FULL-NAT exhausted", "snat_exhausted", anybody(fullnat, flagSYN)},
	}
}
