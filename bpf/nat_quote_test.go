package bpf_test

import (
	"fmt"
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/xdplb/xdplb/bpf"
)

// messenger is who sends an ICMP error about a flow.
type messenger struct {
	name string
	addr map[bool]string // nil: the end of the flow that got the packet
}

var messengers = []messenger{
	{"the other end", nil},
	{"a router", map[bool]string{false: "203.0.113.1", true: "2001:db8:d::1"}},
}

// errorsAbout calls f with every kind of error to p's receiver, about a packet of the
// same flow that the receiver sent; out is the same error about q's flow.
func errorsAbout(t testing.TB, p, q packet, f func(name string, in, out packet)) {
	t.Helper()
	kinds := []icmp{{3, 4, 1400}, {3, 3, 0}, {11, 0, 0}, {12, 0, 0x08000000}}
	if p.ipv6() {
		kinds = []icmp{{2, 0, 1300}, {1, 4, 0}, {3, 0, 0}, {4, 1, 6}}
	}
	sizes := []int{4, 8, 18, 20, len(p.transport(t))}
	if p.proto == unix.IPPROTO_UDP {
		sizes = []int{4, 8, len(p.transport(t))}
	}
	for _, size := range sizes {
		for i, kind := range kinds {
			if i > 1 && size != 8 {
				continue
			}
			in, out := p.quoting(t, size), q.quoting(t, size)
			in.icmp, out.icmp = kind, kind
			f(fmt.Sprintf("type %d quoting %d bytes", kind.kind, size), in, out)
		}
	}
}

// Errors in both directions follow the flow that they quote; what they quote is
// what the receiver sent.
func TestErrorsAboutTranslated(t *testing.T) {
	eachTranslation(t, func(t *testing.T, s *service) {
		for _, tags := range tagStacks {
			p := s.base().numbered(7000 + len(tags))
			p.tags = tags
			d := s.establish(fmt.Sprintf("%d tags", len(tags)), p)
			for _, options := range []bool{false, true} {
				p := p
				if options {
					p.options = []byte{148, 4, 0, 0}
					p.extensions = []extension{paddedExtension(unix.IPPROTO_HOPOPTS, 8)}
				}
				r := d.reply(p)
				for _, from := range messengers {
					errorsAbout(t, p, d.atBackend(p), func(name string, in, out packet) {
						d.tells(from, "error to the backend, "+name, in, out, p, d.atBackend(p), uint32(d.b.Link.Interface), d.fullNAT())
					})
					errorsAbout(t, r, d.atClient(r), func(name string, in, out packet) {
						d.tells(from, "error to the client, "+name, in, out, r, d.atClient(r), d.comes, true)
					})
				}
			}
			d.forth("data afterwards", p)
			d.back("a reply afterwards", d.reply(p))
		}
	})
}

// tells sends an error about `about`, and demands that it becomes one about `becomes`.
func (d *dialogue) tells(from messenger, what string, in, out, about, becomes packet, by uint32, hidden bool) {
	d.Helper()
	if from.addr == nil {
		in.client = withPort(about.client, 0)
	} else {
		in.client = netip.AddrPortFrom(netip.MustParseAddr(from.addr[about.ipv6()]), 0)
	}
	out.client = in.client
	if hidden {
		out.client = withPort(becomes.client, 0)
	}
	out.to, out.from, out.tags, out.ttl = becomes.to, becomes.from, becomes.tags, in.ttl-1
	verdict, reason := d.away(by)
	d.demand(fmt.Sprintf("%s: %s, from %s", d.name, what, from.name), in.bytes(d), verdict, reason, out.bytes(d))
}

// Errors leave the flow tables alone, and are never answered.
func TestErrorsAboutTranslatedChangeNothing(t *testing.T) {
	eachTranslation(t, func(t *testing.T, s *service) {
		p := s.base()
		d := s.establish("errors", p)
		before := s.entriesNow()
		s.wait(3)
		r := d.reply(p)
		for _, q := range []packet{p.quoting(t, 8), r.quoting(t, 8)} {
			if got := s.send(q.bytes(t)); got.verdict == xdpDrop || got.verdict == xdpPass {
				t.Errorf("%s: an error: verdict %d under %q", d.name, got.verdict, names[got.reason])
			}
			q.ttl = 1
			s.drops(d.name+": an error whose TTL runs out", q.bytes(t), bpf.XdplbReasonTtlExceeded)
			q.ttl, q.payload = 60, append(q.payload, bytesOf(2000)...)
			s.drops(d.name+": an error that is too big", q.bytes(t), bpf.XdplbReasonTooBig)
		}
		for key, flow := range s.entriesNow() {
			if before[key] != flow {
				t.Errorf("%s: an error changed %+v from %+v to %+v", d.name, key, before[key], flow)
			}
		}
		before = s.entriesNow()
		unknown := p.numbered(1).quoting(t, 8)
		s.drops(d.name+": an error of no flow", unknown.bytes(t), bpf.XdplbReasonFlowUnknown)
		if after := s.entriesNow(); len(after) != len(before) {
			t.Errorf("%s: an error began a flow: %d entries after %d", d.name, len(after), len(before))
		}
	})
}

// entry is an entry of the flow tables.
type entry struct {
	bpf.XdplbFlow
	halfOpen bool
}

// entriesNow are the entries of both flow tables. A tuple in both is an error.
func (w *world) entriesNow() map[bpf.XdplbTuple]entry {
	w.Helper()
	all := map[bpf.XdplbTuple]entry{}
	var key bpf.XdplbTuple
	var flow bpf.XdplbFlow
	for each := w.HalfOpen.Iterate(); each.Next(&key, &flow); {
		all[key] = entry{flow, true}
	}
	for each := w.XdplbMaps.Flows.Iterate(); each.Next(&key, &flow); {
		if _, twice := all[key]; twice {
			w.Errorf("%+v is in both flow tables", key)
		}
		all[key] = entry{flow, false}
	}
	return all
}

// Pings of VIPs and of backends.
func TestEchoOfTranslated(t *testing.T) {
	eachTranslation(t, func(t *testing.T, s *service) {
		p := s.base()
		d := s.establish("echo", p)
		echo := p.echo()
		s.demand(d.name+": echo", echo.bytes(t), xdpTX, bpf.XdplbReasonEchoAnswered, echo.echoed().bytes(t))
		reply := d.reply(p).echo()
		s.passes(d.name+": echo of the backend", reply.bytes(t))
	})
}
