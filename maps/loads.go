package maps

import "sync/atomic"

// Recount makes what SchedulerLC compares, how many flows each backend has, what
// the flow tables say. live tells the flows that have not timed out: packets count
// up and down where flows begin and close, and cannot see one that just ends.
//
// each, if not nil, is called with every live flow, so that who counts something
// else needs no second walk.
//
// What packets count meanwhile is kept; a flow that they count while it is counted
// here counts twice until the next time. Two must not recount at once.
func (m *Maps) Recount(live func(Flow) bool, each func(Flow)) error {
	before := make([]uint64, m.loads.len())
	for i := range before {
		before[i] = atomic.LoadUint64(m.loads.word(uint32(i), 0))
	}
	found := make([]uint64, len(before))
	err := m.LiveFlows(live, func(f Flow) bool {
		if each != nil {
			each(f)
		}
		if f.Open && m.isBackend(f.Backend) {
			found[Index(f.Backend)]++
		}
		return true
	})
	if err != nil {
		return err
	}
	for i := range before {
		if found[i] != before[i] {
			atomic.AddUint64(m.loads.word(uint32(i), 0), found[i]-before[i])
		}
	}
	return nil
}

// isBackend: a pin may outlive its backend, whose place is another's then.
func (m *Maps) isBackend(id uint32) bool {
	i := Index(id)
	return int(i) < min(m.backends.len(), m.loads.len()) && uint32(atomic.LoadUint64(m.backends.word(i, 0))) == id
}
