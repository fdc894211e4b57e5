package bpf_test

import (
	"math/rand/v2"
	"sync"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/gopacket/gopacket/layers"
	"golang.org/x/sys/unix"

	"github.com/xdplb/xdplb/bpf"
	"github.com/xdplb/xdplb/maps"
)

// kind is a frame and what is counted for it.
type kind struct {
	frame  []byte
	reason bpf.XdplbReason
	b      *maps.Backend
	bytes  uint64
	opens  uint64
}

// flood sends n frames from several CPUs at once; it returns how many of each kind
// each sender has sent.
func (w *world) flood(kinds []kind, n int) (sent [4][]uint64) {
	var senders sync.WaitGroup
	for i := range sent {
		sent[i] = make([]uint64, len(kinds))
		senders.Go(func() {
			r := rand.New(rand.NewPCG(3, uint64(i)))
			o := ebpf.RunOptions{}
			for range n / len(sent) {
				k := r.IntN(len(kinds))
				o.Data = kinds[k].frame
				if _, err := w.entry.Run(&o); err != nil {
					w.Error(err)
					return
				}
				sent[i][k]++
			}
		})
	}
	senders.Wait()
	return sent
}

// Of a great many frames of every kind each is counted once, and what backends
// count is exact.
func TestEveryFrameIsCounted(t *testing.T) {
	const frames = 50000
	w := newWorld(t)
	services := w.fourVIPs()
	services[1].backends[0].Link.Interface = outside
	w.WriteBackend(services[1].backends[0])
	lost := w.vip("192.0.2.20:80")
	unresolved := lost.backend("10.0.0.20")
	lost.settle()
	unresolved.Link.Flags = 0
	w.WriteBackend(unresolved)
	empty := w.vip("192.0.2.21:80")
	all := w.vip("192.0.2.22:0")
	all.backend("10.0.0.22", tunnel)
	all.settle()

	var kinds []kind
	add := func(p packet, reason bpf.XdplbReason, b *maps.Backend) {
		k := kind{frame: p.bytes(t), reason: reason, b: b, bytes: uint64(len(p.ip(t)))}
		if p.proto == unix.IPPROTO_TCP && p.tcp.SYN && !p.tcp.ACK {
			k.opens = 1
		}
		kinds = append(kinds, k)
	}
	for i, s := range services {
		b, reason := s.backends[0], bpf.XdplbReasonTransmitted
		if i == 1 {
			reason = bpf.XdplbReasonRedirected
		}
		p := s.base()
		p.padding = 3
		add(p, reason, b)
		p.payload, p.padding = nil, 0
		p.tcp = layers.TCP{SYN: true}
		add(p, reason, b)
		p.tcp = layers.TCP{SYN: true, ACK: true}
		add(p, reason, b)
		add(p.quoting(t, 8), reason, b)
		add(p.fragments(uint32(i))[0], reason, b)
		add(p.fragments(uint32(i))[2], reason, b)
		w.run(p.fragments(uint32(i))[0].bytes(t)) // lest the order matter
		p.vip = withPort(p.vip, 81)
		add(p, bpf.XdplbReasonPassed, nil)
		q := s.base()
		q.client, q.ttl = withAddr(q.client, map[bool]string{false: "127.0.0.1", true: "::"}[q.ipv6()]), 0
		add(q, bpf.XdplbReasonTtlExceeded, nil) // without a message, which has a limit
		q.ttl, q.payload = 9, bytesOf(3000)
		add(q, bpf.XdplbReasonTooBig, nil)
	}
	add(lost.base(), bpf.XdplbReasonNoNextHop, nil)
	add(empty.base(), bpf.XdplbReasonNoBackend, nil)
	add(all.base(), bpf.XdplbReasonTransmitted, all.backends[0])
	add(all.base().fragments(99)[1], bpf.XdplbReasonFragmentUnknown, nil)

	before := *w.reasons()
	want, counted := before, map[*maps.Backend]maps.Counters{}
	for _, s := range append(services, all) {
		c, err := w.BackendCounters(s.backends[0].Id)
		must(t, err)
		counted[s.backends[0]] = c
	}
	for _, n := range w.flood(kinds, frames) {
		for i, n := range n {
			k := kinds[i]
			want[k.reason] += n
			if k.b != nil {
				c := counted[k.b]
				c.Add(maps.Counters{Packets: n, Bytes: n * k.bytes, Connections: n * k.opens})
				counted[k.b] = c
			}
		}
	}
	if got := *w.reasons(); got != want {
		t.Errorf("reasons %v, want %v (%v)", got, want, names)
	}
	for b, want := range counted {
		if got, err := w.BackendCounters(b.Id); err != nil || got != want {
			t.Errorf("%v counted %+v, want %+v (%v)", b.AddrPort(), got, want, err)
		}
	}
	w.balanced(frames + sum(before[:]))
}

func sum(all []uint64) (n uint64) {
	for _, each := range all {
		n += each
	}
	return n
}

// balanced demands that as many frames are accounted for as were sent.
func (w *world) balanced(sent uint64) {
	w.Helper()
	p, err := w.ReadPackets()
	must(w, err)
	total := p.Forwarded + p.Passed
	for _, n := range p.Reasons {
		total += n
	}
	if p.Received != sent || total != sent {
		w.Errorf("%d frames were sent, %d received, and %d accounted for: %+v", sent, p.Received, total, p)
	}
}
