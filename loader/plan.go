package loader

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"

	"github.com/xdplb/xdplb/maps"
)

// PlanAction is what becomes of an object.
type PlanAction string

// Actions.
const (
	PlanAdd    PlanAction = "add"
	PlanChange PlanAction = "change"
	PlanRemove PlanAction = "remove"
)

// PlanItem is one difference between what is and what is wanted.
type PlanItem struct {
	Action PlanAction
	Object string // "vip 192.0.2.10:80/tcp", "backend 10.0.0.11:80"
	Of     string // the VIP of a backend
	Detail string // what it has, or what changes
}

// Plan is what Apply will do.
type Plan struct {
	Items    []PlanItem
	Warnings []string
	Silent   []netip.AddrPort // backends that nobody answers for as yet

	attach     []*interfacePlan
	settings   []func() error
	vips       []*vipPlan // to add and to change
	removed    []*vipState
	orphans    []maps.Backend
	unassign   []netip.Addr
	untidy     bool // marks of addresses that have no VIP
	removeLast bool // there is room for old and new at once
	hops       map[netip.Addr]Resolution
}

func (p *Plan) note(action PlanAction, object, detail string) {
	p.Items = append(p.Items, PlanItem{Action: action, Object: object, Detail: detail})
}

// Empty reports whether everything is as wanted.
func (p *Plan) Empty() bool {
	return len(p.Items) == 0 && len(p.orphans) == 0 && !p.untidy
}

type interfacePlan struct {
	link netlink.Link
	want *WantedInterface
	is   *maps.Interface // nil: to be attached
}

// vipPlan is a VIP to add or to change.
type vipPlan struct {
	want   *WantedVIP
	is     *vipState    // nil: to be added
	adds   int          // places of backends that it takes
	frees  int          // and gives back
	assign netlink.Link // to put the address on
	reSNAT bool
}

// planner compares.
type planner struct {
	*Plan
	b     *Balancer
	w     *Wanted
	state *state
}

// plan finds the differences, and refuses what cannot be done. It writes nothing.
func (b *Balancer) plan(w *Wanted, fresh bool) (*Plan, error) {
	p := &planner{Plan: new(Plan), b: b, w: w}
	var err error
	if p.state, err = b.readState(); err != nil {
		return nil, err
	}
	p.orphans, p.untidy = p.state.orphans, p.state.untidy
	p.warnGivenBack()
	if w.Keep {
		w.keep(p.state)
	}
	if err := p.interfaces(); err != nil {
		return nil, err
	}
	if err := p.general(fresh); err != nil {
		return nil, err
	}
	if w.VIPs == nil {
		return p.Plan, p.sends()
	}
	if err := p.loops(); err != nil {
		return nil, err
	}
	if err := p.resolve(); err != nil {
		return nil, err
	}
	for i := range w.VIPs {
		if err := p.vip(&w.VIPs[i]); err != nil {
			return nil, err
		}
	}
	p.removals()
	if err := p.addresses(); err != nil {
		return nil, err
	}
	if err := p.sends(); err != nil {
		return nil, err
	}
	return p.Plan, p.places()
}

// fieldError is what is wrong with a field.
type fieldError struct {
	field string
	error
}

func (e *fieldError) Unwrap() error { return e.error }

func wrong(field, format string, a ...any) error {
	return &fieldError{field, fmt.Errorf(format, a...)}
}

// placed puts before an error where its field is, or if it names none, this one.
func placed(where Where, field string, err error) error {
	if err == nil || where == nil {
		return err
	}
	if of := (*fieldError)(nil); errors.As(err, &of) {
		field = of.field
	}
	return fmt.Errorf("%s: %w", where(field), err)
}

// keep adds the VIPs that are not named, as they are.
func (w *Wanted) keep(s *state) {
	named := make(map[maps.VIP]bool, len(w.VIPs))
	for i := range w.VIPs {
		named[w.VIPs[i].VIP] = true
	}
	for _, v := range s.order {
		if !named[v.VIP] && !slices.Contains(w.Remove, v.VIP) {
			w.VIPs = append(w.VIPs, v.is)
		}
	}
}

// removals are the VIPs that are not wanted.
func (p *planner) removals() {
	wanted := make(map[maps.VIP]bool, len(p.w.VIPs))
	for i := range p.w.VIPs {
		wanted[p.w.VIPs[i].VIP] = true
	}
	for _, v := range p.state.order {
		if wanted[v.VIP] {
			continue
		}
		if v.givenBack && !p.w.EndHandover && !slices.Contains(p.w.Remove, v.VIP) {
			if v.unfinished {
				p.finish(&vipPlan{want: &v.is, is: v})
			}
			continue
		}
		p.removed = append(p.removed, v)
		p.note(PlanRemove, "vip "+v.VIP.String(), fmt.Sprintf("with its %d backends", len(v.is.Backends)))
	}
}

// resolve asks for the next hops of what is new or was not resolved: all at once.
func (p *planner) resolve() error {
	var addrs []netip.Addr
	for i := range p.w.VIPs {
		w := &p.w.VIPs[i]
		is := p.state.vips[w.VIP]
		for j := range w.Backends {
			if b := &w.Backends[j]; is == nil || !is.stays(w, b) {
				addrs = append(addrs, b.At.Addr())
			}
		}
	}
	if len(addrs) == 0 {
		return nil
	}
	slices.SortFunc(addrs, netip.Addr.Compare)
	var err error
	p.hops, err = nextHops(slices.Compact(addrs))
	return err
}

// find is the listed record of a backend.
func (v *vipState) find(at netip.AddrPort) *maps.Backend {
	i, found := slices.BinarySearchFunc(v.records, at, func(r maps.Backend, at netip.AddrPort) int { return r.AddrPort().Compare(at) })
	for ; found && i < len(v.records) && v.records[i].AddrPort() == at; i++ {
		if v.records[i].Listed() {
			return &v.records[i]
		}
	}
	return nil
}

// stays reports whether a backend has the mode that is wanted, and its next hop.
func (v *vipState) stays(w *WantedVIP, b *WantedBackend) bool {
	record := v.find(w.at(b.At))
	return record != nil && Mode(record.Mode) == w.modeOf(b) && record.Resolved()
}

// at gives a backend that names no port the VIP's.
func (w *WantedVIP) at(a netip.AddrPort) netip.AddrPort {
	if a.Port() == 0 {
		return netip.AddrPortFrom(a.Addr(), w.Port)
	}
	return a
}

func (w *WantedVIP) modeOf(b *WantedBackend) Mode {
	if b.Mode == 0 {
		return w.Mode
	}
	return b.Mode
}

// places makes sure that all fits.
func (p *planner) places() error {
	vips, backends, _ := p.b.sizes()
	added := 0
	for _, v := range p.vips {
		if v.is == nil {
			added++
		}
	}
	before := len(p.state.order)
	if after := before - len(p.removed) + added; after > int(vips) {
		return placed(p.w.Where, "max_vips", fmt.Errorf("%d VIPs, and there is room for %d; more: max_vips, after xdplb detach --all --purge", after, vips))
	}
	freed := 0
	for _, v := range p.removed {
		freed += len(v.records)
	}
	used := p.state.used - len(p.orphans)
	p.removeLast = before+added <= int(vips) && p.fits(used, int(backends)) == nil
	if p.removeLast {
		return nil
	}
	return p.fits(used-freed, int(backends))
}

// fits takes places in the order in which Apply will.
func (p *planner) fits(used, room int) error {
	for _, v := range p.vips {
		if used += v.adds; used > room {
			return placed(v.want.Where, "backends", fmt.Errorf("%s: %d backends by then, and there is room for %d; more: max_backends, after xdplb detach --all --purge", v.want.VIP, used, room))
		}
		used -= v.frees
	}
	return nil
}

// addresses finds what --assign put on interfaces and nobody wants any more.
func (p *planner) addresses() error {
	wanted := make(map[netip.Addr]*WantedVIP)
	for i := range p.w.VIPs {
		w := &p.w.VIPs[i]
		if other := wanted[w.Addr]; w.Assign != "" && other != nil && other.Assign != w.Assign {
			return placed(w.Where, "assign", fmt.Errorf("%s: assigned to %s, and to %s by %s; an address is on one interface", w.VIP, w.Assign, other.Assign, other.VIP))
		}
		if w.Assign != "" {
			wanted[w.Addr] = w
		}
	}
	gone, left := make(map[netip.Addr]bool), make(map[netip.Addr]bool)
	for _, v := range p.state.order {
		left[v.Addr] = left[v.Addr] || v.givenBack // to the local stack
	}
	for _, v := range p.state.order {
		if v.is.Assign == "" || gone[v.Addr] || left[v.Addr] {
			continue
		}
		if w := wanted[v.Addr]; w == nil || w.Assign != v.is.Assign {
			gone[v.Addr] = true
			p.unassign = append(p.unassign, v.Addr)
			p.note(PlanRemove, "address "+v.Addr.String(), "from "+v.is.Assign)
		}
	}
	own, err := ownAddresses()
	if err != nil {
		return err
	}
	for _, addr := range sortedKeys(wanted) {
		w := wanted[addr]
		link, err := linkByName(w.Assign)
		if err == nil {
			err = checkUnicast(addr)
		}
		if err != nil {
			return placed(w.Where, "assign", err)
		}
		if own[addr] && !gone[addr] {
			continue
		}
		p.note(PlanAdd, "address "+addr.String(), "to "+w.Assign)
		p.assignWith(w, link)
	}
	return nil
}

func sortedKeys[V any](m map[netip.Addr]V) []netip.Addr {
	keys := make([]netip.Addr, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.SortFunc(keys, netip.Addr.Compare)
	return keys
}

// assignWith puts an address on its interface when the VIP is written.
func (p *planner) assignWith(w *WantedVIP, link netlink.Link) {
	for _, v := range p.vips {
		if v.want == w {
			v.assign = link
			return
		}
	}
	p.vips = append(p.vips, &vipPlan{want: w, is: p.state.vips[w.VIP], assign: link})
}

// ownAddresses are those of all interfaces.
func ownAddresses() (map[netip.Addr]bool, error) {
	all, err := netlink.AddrList(nil, netlink.FAMILY_ALL)
	if err != nil {
		return nil, fmt.Errorf("listing the interfaces' addresses: %w", err)
	}
	own := make(map[netip.Addr]bool, len(all))
	for _, one := range all {
		if addr, ok := netip.AddrFromSlice(one.IP); ok {
			own[addr.Unmap()] = true
		}
	}
	return own, nil
}

// listing is for plans: "a, b", or "none".
func listing[T fmt.Stringer](all []T) string {
	if len(all) == 0 {
		return "none"
	}
	words := make([]string, len(all))
	for i, one := range all {
		words[i] = one.String()
	}
	return strings.Join(words, ", ")
}
