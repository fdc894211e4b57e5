package loader

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/xdplb/xdplb/bpf"
	"github.com/xdplb/xdplb/maps"
)

// vip compares one VIP, and refuses what cannot be.
func (p *planner) vip(w *WantedVIP) error {
	v := &vipPlan{want: w, is: p.state.vips[w.VIP]}
	object := "vip " + w.VIP.String()
	before := len(p.Items)
	if err := p.checkVIP(v); err != nil {
		return placed(w.Where, "vip", fmt.Errorf("%s: %w", w.VIP, err))
	}
	switch changes := v.changes(); {
	case v.is == nil:
		p.note(PlanAdd, object, w.describe())
		if w.Handover > 0 { // the local stack has a record
			v.adds++
		}
	case len(changes) > 0:
		p.note(PlanChange, object, strings.Join(changes, ", "))
	}
	if err := p.backends(v); err != nil {
		return err
	}
	if len(p.Items) > before || v.is == nil {
		p.vips = append(p.vips, v)
	} else if v.is.unfinished {
		p.finish(v)
	}
	return nil
}

func (p *planner) finish(v *vipPlan) {
	p.note(PlanChange, "vip "+v.want.VIP.String(), "finish a change that was interrupted")
	p.vips = append(p.vips, v)
}

// checkVIP refuses what no VIP can have.
func (p *planner) checkVIP(v *vipPlan) error {
	w := v.want
	if v.is != nil && w.TableSize != 0 && w.TableSize != v.is.TableSize {
		return wrong("table_size", "table_size %d: it is %d, and fixed while the VIP lives; to change it: xdplb vip del %s, and apply again", w.TableSize, v.is.TableSize, w.VIP)
	}
	if w.TableSize != 0 {
		if err := maps.ValidTableSize(w.TableSize); err != nil {
			return wrong("table_size", "%w", err)
		}
	}
	if w.Handover != 0 {
		if err := CheckHandover(w.Handover); err != nil {
			return err
		}
	}
	if p.b.Settings.Jiffies(w.Affinity) > maxAffinity {
		return wrong("affinity", "affinity %s: at most %s", w.Affinity, p.b.Settings.Duration(maxAffinity))
	}
	if w.AffinityGroup != "" && !groupName.MatchString(w.AffinityGroup) {
		return wrong("affinity_group", "affinity_group %s: a name has 1 to %d letters, digits, or any of . _ -", w.AffinityGroup, len(maps.Service{}.AffinityName))
	}
	for _, addr := range w.SNAT {
		if addr.Is4() != w.Addr.Is4() {
			return wrong("snat", "snat %s: FULL-NAT does not translate between IPv4 and IPv6; use an address of the VIP's family", addr)
		}
	}
	var is []netip.Addr
	if v.is != nil {
		is = v.is.is.SNAT
	}
	if v.reSNAT = !slices.Equal(is, w.SNAT); v.reSNAT {
		if err := p.b.checkSNATAddresses(w.SNAT, p.w.SNAT != nil && p.w.SNAT.Any, fileAnySNAT); err != nil {
			return wrong("snat", "snat %w", err)
		}
	}
	return nil
}

func (w *WantedVIP) describe() string {
	words := []string{w.Mode.String(), w.schedule()}
	if w.Affinity != 0 {
		words = append(words, "affinity "+w.Affinity.String())
	}
	if w.AffinityGroup != "" {
		words = append(words, "affinity_group "+w.AffinityGroup)
	}
	if w.Handover > 0 {
		words = append(words, "handover "+w.Handover.String())
	}
	if w.TrackAll {
		words = append(words, "track all")
	}
	if w.TableSize != 0 && w.TableSize != maps.DefaultTableSize {
		words = append(words, fmt.Sprintf("table_size %d", w.TableSize))
	}
	if len(w.SNAT) > 0 {
		words = append(words, "snat "+listing(w.SNAT))
	}
	return strings.Join(words, ", ")
}

func (w *WantedVIP) schedule() string {
	if w.usesPrefix() && int(w.SourcePrefix) != w.Addr.BitLen() {
		return fmt.Sprintf("%s/%d", w.Scheduler, w.SourcePrefix)
	}
	return w.Scheduler.String()
}

// changes are those of a VIP's own properties.
func (v *vipPlan) changes() (all []string) {
	if v.is == nil {
		return nil
	}
	differs := func(name, is, wants string) {
		if is != wants {
			all = append(all, fmt.Sprintf("%s %s -> %s", name, is, wants))
		}
	}
	is, w := &v.is.is, v.want
	if w.Handover > 0 && v.is.givenBack {
		all = append(all, "no longer given back")
	}
	differs("mode", is.Mode.String(), w.Mode.String())
	differs("scheduler", is.schedule(), w.schedule())
	differs("affinity", is.Affinity.String(), w.Affinity.String())
	differs("affinity_group", cmp.Or(is.AffinityGroup, "none"), cmp.Or(w.AffinityGroup, "none"))
	differs("track", is.track(), w.track())
	differs("snat", listing(is.SNAT), listing(w.SNAT))
	if w.Alias != 0 && w.Alias != is.Alias {
		all = append(all, "name of the scheduler in ipvsadm")
	}
	return all
}

func (w *WantedVIP) track() string {
	if w.TrackAll {
		return "all"
	}
	return "changes"
}

// backends compares those of a VIP.
func (p *planner) backends(v *vipPlan) error {
	named := make(map[netip.AddrPort]bool, len(v.want.Backends))
	for i := range v.want.Backends {
		b := &v.want.Backends[i]
		b.At = v.want.at(b.At)
		if named[b.At] {
			return placed(b.Where, "address", fmt.Errorf("%s: named twice", b.At))
		}
		named[b.At] = true
		if err := p.backend(v, b); err != nil {
			return placed(b.Where, "address", err)
		}
	}
	if v.is == nil {
		return nil
	}
	for i := range v.is.is.Backends {
		if b := &v.is.is.Backends[i]; !named[b.At] {
			v.frees++
			p.backendItem(PlanRemove, v, b, "")
		}
	}
	return nil
}

func (p *planner) backendItem(action PlanAction, v *vipPlan, b *WantedBackend, detail string) {
	p.Items = append(p.Items, PlanItem{action, "backend " + b.At.String(), v.want.VIP.String(), detail})
}

func (p *planner) backend(v *vipPlan, b *WantedBackend) error {
	w := v.want
	if v.is != nil && v.is.stays(w, b) {
		if changes := v.backendChanges(b); len(changes) > 0 {
			p.backendItem(PlanChange, v, b, strings.Join(changes, ", "))
		}
		return nil
	}
	c := &change{b: p.b}
	c.service.VIP = w.VIP
	mode := w.modeOf(b)
	hop, err := c.reach(b.At, mode, p.hops[b.At.Addr()])
	if err != nil {
		return err
	}
	var record *maps.Backend
	if v.is != nil {
		record = v.is.find(b.At)
	}
	if hop.Link.Flags == 0 && (record == nil || record.Resolved()) {
		p.Silent = append(p.Silent, b.At)
	}
	if record == nil {
		v.adds++
		p.backendItem(PlanAdd, v, b, b.describe())
		return nil
	}
	changes := v.backendChanges(b)
	if Mode(record.Mode) != mode {
		v.adds++
	} else if !record.Resolved() && hop.Link.Flags != 0 {
		changes = append(changes, "next hop found")
	}
	if len(changes) > 0 {
		p.backendItem(PlanChange, v, b, strings.Join(changes, ", "))
	}
	return nil
}

func (b *WantedBackend) describe() string {
	words := []string{fmt.Sprintf("weight %d", b.Weight)}
	if b.Mode != 0 {
		words = append(words, b.Mode.String())
	}
	if b.Drain {
		words = append(words, "drain")
	}
	return strings.Join(words, ", ")
}

// backendChanges are those of one that is listed.
func (v *vipPlan) backendChanges(b *WantedBackend) (all []string) {
	record := v.is.find(b.At)
	if is, wants := Mode(record.Mode), v.want.modeOf(b); is != wants {
		all = append(all, fmt.Sprintf("mode %s -> %s", is, wants))
	} else if inherits := record.Has(bpf.XdplbBackendFlagBackendInherits); inherits != (b.Mode == 0) {
		all = append(all, map[bool]string{true: "mode " + wants.String() + " of its own", false: "mode of the VIP"}[inherits])
	}
	if record.Weight != b.Weight {
		all = append(all, fmt.Sprintf("weight %d -> %d", record.Weight, b.Weight))
	}
	if drains := record.Has(bpf.XdplbBackendFlagBackendDrain); drains != b.Drain {
		all = append(all, map[bool]string{true: "drain", false: "no longer drain"}[b.Drain])
	}
	return all
}
