package bpf_test

import (
	"fmt"
	"net/netip"
	"runtime"
	"testing"

	"github.com/gopacket/gopacket/layers"
	"golang.org/x/sys/unix"

	"github.com/xdplb/xdplb/bpf"
)

var clientOf4 = netip.MustParseAddrPort(clients[false]).Addr()

// quoteMost is how many bytes of a packet our messages quote at most: an IPv4
// message of 576 bytes (RFC 1812, 4.3.2.3).
const quoteMost = 576 - 20 - 8

// quoted is what a message of ours quotes of p, in whole words.
func (p packet) quoted(t testing.TB) []byte {
	ip := p.ip(t)
	return ip[:min(quoteMost, len(ip)&^3)]
}

// exceeded is the answer to p, whose TTL ran out.
func (p packet) exceeded(t testing.TB) packet {
	if p.ipv6() {
		return p.answer(icmp{3, 0, 0}, p.quoted(t)) // RFC 4443, 3.3
	}
	return p.answer(icmp{11, 0, 0}, p.quoted(t)) // RFC 792
}

// tooBig is the answer to p, which does not fit mtu.
func (p packet) tooBig(t testing.TB, mtu int) packet {
	if p.ipv6() {
		return p.answer(icmp{2, 0, uint32(mtu)}, p.quoted(t)) // RFC 4443, 3.2
	}
	return p.answer(icmp{3, 4, uint32(mtu)}, p.quoted(t)) // RFC 1191, 4
}

// echo is an echo request to p's VIP.
func (p packet) echo() packet {
	p.client, p.vip = withPort(p.client, 0), withPort(p.vip, 0)
	p.proto, p.icmp = unix.IPPROTO_ICMP, icmp{8, 0, 0x00070001}
	if p.ipv6() {
		p.proto, p.icmp = unix.IPPROTO_ICMPV6, icmp{128, 0, 0x00070001}
	}
	return p
}

// echoed is the answer to an echo request: the same packet, turned around.
func (p packet) echoed() packet {
	p.to, p.from = p.from, p.to
	p.client, p.vip = p.vip, p.client
	p.ttl = 64
	p.icmp.kind = 0
	if p.ipv6() {
		p.icmp.kind = 129
	}
	return p
}

func TestTTLExceeded(t *testing.T) {
	w := newWorld(t)
	for _, pattern := range vipNames {
		for i, way := range ways(pattern[0] == '[') {
			s := w.vip(fmt.Sprintf(pattern, 10+i))
			s.backend(way.backend, way.edits...)
			s.settle()
			for _, tags := range tagStacks {
				for ttl := range uint8(2) {
					p := s.base()
					p.tags = tags
					mutate(p, func(name string, p packet) {
						p.ttl = ttl
						what := fmt.Sprintf("%s, %s, %d tags, %s, TTL %d", s.VIP, way.name, len(tags), name, ttl)
						w.demand(what, p.bytes(t), xdpTX, bpf.XdplbReasonTtlExceeded, p.exceeded(t).bytes(t))
					})
				}
			}
			w.wait(testHz) // the limit is not at issue here
		}
	}
}

func TestTooBig(t *testing.T) {
	w := newWorld(t)
	for _, pattern := range vipNames {
		for i, way := range ways(pattern[0] == '[') {
			s := w.vip(fmt.Sprintf(pattern, 10+i))
			b := s.backend(way.backend, way.edits...)
			s.settle()
			room := linkMTU
			if b.Mode == uint8(bpf.XdplbModeModeTun) {
				if room -= 20; b.Addr().Is6() {
					room -= 20
				}
			}
			for _, tags := range tagStacks {
				p := s.base()
				p.tags, p.payload = tags, nil
				headers := len(p.ip(t))
				for _, size := range []int{room - 1, room, room + 1, 2000, 9000} {
					p.payload = bytesOf(size - headers)
					what := fmt.Sprintf("%s, %s, %d tags, %d bytes", s.VIP, way.name, len(tags), size)
					if size <= room {
						w.goes(what, p, b)
						continue
					}
					w.demand(what, p.bytes(t), xdpTX, bpf.XdplbReasonTooBig, p.tooBig(t, room).bytes(t))
				}
			}
		}
	}
}

// No message is sent about an ICMP error, a later fragment, or to nobody in
// particular (RFC 1122, 3.2.2; RFC 4443, 2.4).
func TestNoMessageAboutIt(t *testing.T) {
	w := newWorld(t)
	for _, s := range w.fourVIPs() {
		q := s.base().quoting(t, 8)
		q.ttl = 1
		w.drops("an ICMP error whose TTL runs out", q.bytes(t), bpf.XdplbReasonTtlExceeded)
		q = s.base().quoting(t, 8)
		q.payload = append(q.payload, bytesOf(2000)...)
		w.drops("an ICMP error that is too big", q.bytes(t), bpf.XdplbReasonTooBig)

		p := s.base()
		p.payload = bytesOf(400)
		p.part = &part{id: 99, size: 64}
		w.goes("the first fragment", p, s.backends[0])
		p.part = &part{id: 99, offset: 64, size: 64}
		p.ttl = 1
		w.drops("a later fragment whose TTL runs out", p.bytes(t), bpf.XdplbReasonTtlExceeded)

		nobody := []string{"0.0.0.0", "127.0.0.1", "224.0.0.1", "255.255.255.255"}
		if s.Addr.Is6() {
			nobody = []string{"::", "ff02::1"}
		}
		for _, from := range nobody {
			p := s.base()
			p.client, p.ttl = withAddr(p.client, from), 1
			w.drops("TTL runs out of a packet from "+from, p.bytes(t), bpf.XdplbReasonTtlExceeded)
		}
	}
}

func TestEcho(t *testing.T) {
	w := newWorld(t)
	for _, s := range w.fourVIPs() {
		for _, tags := range tagStacks {
			for _, size := range []int{0, 1, 56, 1400, 8000} {
				p := s.base().echo()
				p.tags, p.payload = tags, bytesOf(size)
				what := fmt.Sprintf("%s, %d tags, %d bytes", s.Addr, len(tags), size)
				w.demand(what, p.bytes(t), xdpTX, bpf.XdplbReasonEchoAnswered, p.echoed().bytes(t))
			}
		}
		p := s.base().echo()
		p.options = []byte{148, 4, 0, 0}
		if p.ipv6() {
			p.extensions = []extension{paddedExtension(unix.IPPROTO_HOPOPTS, 8)}
		}
		w.demand("echo with options", p.bytes(t), xdpTX, bpf.XdplbReasonEchoAnswered, p.echoed().bytes(t))
		p = s.base().echo()
		p.ttl = 1
		w.demand("echo with TTL 1", p.bytes(t), xdpTX, bpf.XdplbReasonEchoAnswered, p.echoed().bytes(t))
		w.foreignEchoes(s)
	}
}

func (w *world) foreignEchoes(s *service) {
	w.Helper()
	other := "192.0.2.11"
	if s.Addr.Is6() {
		other = "2001:db8::11"
	}
	for what, change := range map[string]func(*packet){
		"another code":    func(p *packet) { p.icmp.code = 1 },
		"another address": func(p *packet) { p.vip = withAddr(p.vip, other) },
		"a reply":         func(p *packet) { *p = p.echoed(); p.client, p.vip = p.vip, p.client; p.to, p.from = p.from, p.to },
		"a timestamp":     func(p *packet) { p.icmp.kind = 13 },
		"a fragment":      func(p *packet) { p.part = &part{id: 1, size: 48} },
		"a later fragment": func(p *packet) {
			p.part = &part{id: 1, offset: 48}
		},
		"ICMP that is no part of the packet": func(p *packet) {
			p.proto, p.padding, p.payload = unix.IPPROTO_NONE, 46, nil
		},
	} {
		p := s.base().echo()
		change(&p)
		frame := p.bytes(w)
		if p.proto == unix.IPPROTO_NONE { // an empty ICMP packet, and a request in the padding
			request := s.base().echo()
			copy(frame[len(frame)-p.padding:], request.transport(w))
			if p.ipv6() {
				frame[p.l3()+6] = unix.IPPROTO_ICMPV6
			} else {
				p.proto = unix.IPPROTO_ICMP
				p.payload = nil
				copy(frame, emptyICMP(w, p))
			}
		}
		w.passes(fmt.Sprintf("echo to %s: %s", s.Addr, what), frame)
	}
}

// emptyICMP is the link and IP header of a packet of protocol ICMP without a byte
// of ICMP in it.
func emptyICMP(t testing.TB, p packet) []byte {
	ip := p.network(p.proto).(*layers.IPv4)
	return p.framed(t, serialize(t, ip))[:p.l3()+20]
}

// onOneCPU keeps the test on one CPU: limits are per CPU.
func onOneCPU(t testing.TB) {
	t.Helper()
	runtime.LockOSThread()
	var all, one unix.CPUSet
	must(t, unix.SchedGetaffinity(0, &all))
	for cpu := 0; ; cpu++ {
		if all.IsSet(cpu) {
			one.Set(cpu)
			break
		}
	}
	must(t, unix.SchedSetaffinity(0, &one))
	t.Cleanup(func() {
		must(t, unix.SchedSetaffinity(0, &all))
		runtime.UnlockOSThread()
	})
}

// 1,000 messages a second and CPU, and each kind by itself.
func TestMessageLimit(t *testing.T) {
	onOneCPU(t)
	w := newWorld(t)
	s := w.fourVIPs()[0]
	short, long := s.base(), s.base()
	short.ttl = 1
	long.payload = bytesOf(2000)
	kinds := []struct {
		name   string
		frame  []byte
		reason bpf.XdplbReason
	}{
		{"echo", s.base().echo().bytes(t), bpf.XdplbReasonEchoAnswered},
		{"time exceeded", short.bytes(t), bpf.XdplbReasonTtlExceeded},
		{"too big", long.bytes(t), bpf.XdplbReasonTooBig},
	}
	for round, step := range []struct{ wait, sent uint64 }{
		{0, 1000}, {0, 0}, {testHz / 10, 100}, {1, 10}, {testHz, 1000}, {1000 * testHz, 1000}, {testHz / 2, 500},
	} {
		w.wait(step.wait)
		for _, kind := range kinds {
			for n := range step.sent {
				if got := w.send(kind.frame); got.reason != kind.reason || got.verdict != xdpTX {
					t.Fatalf("round %d: %s: message %d: %q", round, kind.name, n+1, names[got.reason])
				}
			}
			for range 3 {
				w.drops(fmt.Sprintf("round %d: %s beyond the limit", round, kind.name), kind.frame, bpf.XdplbReasonRateLimited)
			}
		}
	}
}
