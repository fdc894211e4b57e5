package maps

import (
	"fmt"
	"slices"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"

	"github.com/xdplb/xdplb/bpf"
)

// Counters are sums over all CPUs. Bytes are those of IP packets.
type Counters struct {
	Packets, Bytes, Connections                uint64
	ReplyPackets, ReplyBytes, ReplyConnections uint64
}

// Add adds b to c.
func (c *Counters) Add(b Counters) {
	c.Packets += b.Packets
	c.Bytes += b.Bytes
	c.Connections += b.Connections
	c.ReplyPackets += b.ReplyPackets
	c.ReplyBytes += b.ReplyBytes
	c.ReplyConnections += b.ReplyConnections
}

func fromRecord(r bpf.XdplbCounters) Counters {
	return Counters{r.Packets, r.Bytes, r.Connections, r.ReplyPackets, r.ReplyBytes, r.ReplyConnections}
}

// BackendCounters reads what a backend counted.
func (m *Maps) BackendCounters(id uint32) (sum Counters, err error) {
	var perCPU []bpf.XdplbCounters
	if err := m.Counters.Lookup(Index(id), &perCPU); err != nil {
		return sum, fmt.Errorf("counters of backend %d: %w", id, err)
	}
	for _, c := range perCPU {
		sum.Add(fromRecord(c))
	}
	return sum, nil
}

// RetiredCounters reads what former backends of a VIP counted.
func (m *Maps) RetiredCounters(vip uint32) (Counters, error) {
	var r bpf.XdplbCounters
	err := m.Retired.Lookup(vip, &r)
	return fromRecord(r), err
}

// ResetRetired starts a VIP's totals at zero.
func (m *Maps) ResetRetired(vip uint32) error { return m.Retired.Put(vip, bpf.XdplbCounters{}) }

func (m *Maps) retire(b *Backend) error {
	sum, err := m.RetiredCounters(b.Vip)
	if err != nil {
		return err
	}
	c, err := m.BackendCounters(b.Id)
	if err != nil {
		return err
	}
	sum.Add(c)
	return m.Retired.Put(b.Vip, bpf.XdplbCounters{
		Packets: sum.Packets, Bytes: sum.Bytes, Connections: sum.Connections,
		ReplyPackets: sum.ReplyPackets, ReplyBytes: sum.ReplyBytes, ReplyConnections: sum.ReplyConnections,
	})
}

func (m *Maps) zeroCounters(index uint32) error {
	cpus, err := ebpf.PossibleCPU()
	if err != nil {
		return err
	}
	if err := m.Loads.Put(index, uint64(0)); err != nil {
		return err
	}
	return m.Counters.Put(index, make([]bpf.XdplbCounters, cpus))
}

// Packets says what became of every packet since the maps were created.
// Received is Forwarded + Passed + the sum of Reasons.
type Packets struct {
	Received, Forwarded, Passed uint64
	Reasons                     map[string]uint64
}

// ReasonNames are the enumerators of enum reason that are no delivery, in order.
func ReasonNames() ([]string, error) {
	spec, err := bpf.LoadXdplb()
	if err != nil {
		return nil, err
	}
	var reason *btf.Enum
	if err := spec.Types.TypeByName("reason", &reason); err != nil {
		return nil, fmt.Errorf("enum reason: %w", err)
	}
	names := make([]string, bpf.XdplbReasonReasonMax)
	for _, v := range reason.Values {
		if v.Value < uint64(len(names)) {
			names[v.Value] = strings.ToLower(v.Name)
		}
	}
	return names, nil
}

// ReadPackets reads the `reasons` map. Frames that the kernel lost after the
// program's verdict are counted under their reasons and not as forwarded.
func (m *Maps) ReadPackets() (p Packets, err error) {
	names, err := ReasonNames()
	if err != nil {
		return p, err
	}
	p.Reasons = make(map[string]uint64)
	var perCPU []uint64
	for i, name := range names[:min(len(names), int(m.Reasons.MaxEntries()))] {
		if err := m.Reasons.Lookup(uint32(i), &perCPU); err != nil {
			return p, fmt.Errorf("reason %s: %w", name, err)
		}
		var sum uint64
		for _, n := range perCPU {
			sum += n
		}
		p.Received += sum
		switch bpf.XdplbReason(i) {
		case bpf.XdplbReasonPassed:
			p.Passed = sum
		case bpf.XdplbReasonTransmitted, bpf.XdplbReasonRedirected:
			p.Forwarded += sum
		case bpf.XdplbReasonRedirectFailed, bpf.XdplbReasonTxFailed:
			// Answers of ours may be lost too, and were never in Forwarded.
			lost := min(sum, p.Forwarded)
			p.Forwarded -= lost
			p.Received -= sum
			p.Reasons[name] = lost
		default:
			p.Reasons[name] = sum
		}
	}
	return p, nil
}

// SortedReasons are the names in p, sorted.
func (p Packets) SortedReasons() []string {
	names := make([]string, 0, len(p.Reasons))
	for name := range p.Reasons {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}
