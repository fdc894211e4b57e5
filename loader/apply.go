package loader

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/xdplb/xdplb/maps"
)

// ApplyOptions say how Apply works.
type ApplyOptions struct {
	DryRun   bool
	Planned  func(*Plan)           // told before the first write
	Attached func(Attached)        // told of each interface that was attached
	Progress func(done, total int) // VIPs
}

// Apply makes the balancer pinned in dir what w says, and makes the pins if there
// are none. All that can be refused is refused before the first write. One that is
// killed leaves every VIP as it was, as it is to be, or not there yet; Apply of the
// same finishes it. What is as wanted is not touched.
func Apply(dir string, w Wanted, o ApplyOptions) (*Plan, error) {
	if err := cmp.Or(checkPrivilege(), checkBPFFS(dir)); err != nil {
		return nil, err
	}
	if err := probeNew(dir, &w); err != nil {
		return nil, err
	}
	if !o.DryRun {
		unlock, err := lockPins(dir)
		if err != nil {
			return nil, err
		}
		defer unlock()
		if err := removeStale(dir); err != nil {
			return nil, err
		}
	}
	b, fresh, err := openOrMake(dir, &w)
	if b == nil || err != nil {
		return new(Plan), err
	}
	defer b.Close()
	plan, err := b.plan(&w, fresh)
	if err != nil {
		return nil, err
	}
	if o.Planned != nil {
		o.Planned(plan)
	}
	if o.DryRun || plan.Empty() {
		return plan, nil
	}
	if err := b.attachPlanned(plan, fresh, o); err != nil {
		return nil, err
	}
	return plan, cmp.Or(b.carryOut(plan, o), b.recount())
}

// probeNew waits for the neighbours of backends that are new, without the lock.
func probeNew(dir string, w *Wanted) error {
	known := make(map[netip.Addr]bool)
	if b, err := Open(dir); err == nil {
		servers, err := b.Servers()
		b.Close()
		if err != nil {
			return err
		}
		for _, addr := range servers {
			known[addr] = true
		}
	}
	var addrs []netip.Addr
	for i := range w.VIPs {
		for j := range w.VIPs[i].Backends {
			if addr := w.VIPs[i].Backends[j].At.Addr(); !known[addr] {
				known[addr] = true
				addrs = append(addrs, addr)
			}
		}
	}
	if len(addrs) == 0 {
		return nil
	}
	return Probe(addrs)
}

// openOrMake opens the balancer, or makes one that is not pinned as yet. None if
// none is wanted.
func openOrMake(dir string, w *Wanted) (b *Balancer, fresh bool, err error) {
	b, err = Open(dir)
	if err == nil {
		if err = b.checkNamespace(); err != nil {
			b.Close()
		}
		return b, false, err
	}
	if _, there := os.Stat(dir); there == nil {
		if pinned, _ := os.ReadDir(dir); len(pinned) > 0 {
			return nil, false, fmt.Errorf("%w; the running balancer is unchanged", err)
		}
	}
	if len(w.Interfaces) == 0 {
		if len(w.VIPs) == 0 {
			return nil, false, nil
		}
		return nil, false, placed(w.Where, "interfaces", errors.New("names no interface, and none is attached; add a line such as interfaces: [eth0]"))
	}
	m, err := createMaps(AttachOptions{MaxVIPs: w.MaxVIPs, MaxBackends: w.MaxBackends, MaxFlows: w.MaxFlows, HashKey: w.HashKey})
	if err != nil {
		return nil, false, err
	}
	b = &Balancer{Maps: m, dir: dir}
	if b.Settings, err = m.ReadSettings(); err == nil {
		b.clock, err = maps.NewClock()
	}
	if err != nil {
		b.Close()
		return nil, false, err
	}
	return b, true, nil
}

// attachPlanned attaches, all or none. Pins that are new are made in a temporary
// directory, which is renamed into place.
func (b *Balancer) attachPlanned(p *Plan, fresh bool, o ApplyOptions) (err error) {
	dir := b.dir
	if fresh {
		b.dir = temporaryPins(dir)
		if err := os.Mkdir(b.dir, 0o700); err != nil {
			return fmt.Errorf("%s: %w", dir, errors.Unwrap(err))
		}
		defer func() {
			if err != nil {
				os.RemoveAll(temporaryPins(dir))
			}
		}()
		if err := b.Maps.Pin(b.dir); err != nil {
			return err
		}
	}
	var undo []func()
	defer func() {
		if err != nil {
			for _, f := range undo {
				f()
			}
		}
	}()
	b.dropVanished()
	for _, one := range p.attach {
		done, off, err := b.attachPlan(one)
		if err != nil {
			return placed(one.want.Where, "name", fmt.Errorf("%s: %w", one.want.Name, err))
		}
		undo = append(undo, off)
		if o.Attached != nil && one.is == nil {
			o.Attached(done)
		}
	}
	if len(p.attach) > 0 {
		if err := attachTracers(b.dir, b.Maps); err != nil {
			return err
		}
	}
	b.attaching = nil
	if !fresh {
		return nil
	}
	b.dir = dir
	// Not os.Rename: it refuses an existing empty directory, which a killed purge leaves.
	if err := unix.Rename(temporaryPins(dir), dir); err != nil {
		return fmt.Errorf("%s: making the pins: %w", dir, err)
	}
	return nil
}

// attachPlan attaches an interface, or changes what it accepts: neither needs a new
// program on one that is attached.
func (b *Balancer) attachPlan(one *interfacePlan) (done Attached, off func(), err error) {
	if one.is == nil {
		accept := one.want.Accept
		return b.attachOne(one.link, AttachOptions{Mode: one.want.Mode, AcceptMACs: accept})
	}
	before, after := *one.is, *one.is
	after.Accept = [len(after.Accept)]uint64{}
	for i, mac := range one.want.Accept {
		after.Accept[i] = maps.MACWord(mac)
	}
	return done, func() { _ = b.Maps.PutInterface(before) }, b.Maps.PutInterface(after)
}

// carryOut writes all but the interfaces.
func (b *Balancer) carryOut(p *Plan, o ApplyOptions) error {
	if err := b.sweep(p.orphans); err != nil {
		return err
	}
	for _, set := range p.settings {
		if err := set(); err != nil {
			return err
		}
	}
	for _, addr := range p.unassign {
		if err := cmp.Or(b.unassign(addr), b.Maps.MarkAddress(addr, 0)); err != nil {
			return err
		}
	}
	total := len(p.vips) + len(p.removed)
	done := 0
	progress := func(n int) {
		if done += n; o.Progress != nil {
			o.Progress(done, total)
		}
	}
	steps := []func(*Plan, func(int)) error{b.putVIPs, b.removeVIPs}
	if !p.removeLast {
		slices.Reverse(steps)
	}
	for _, step := range steps {
		if err := step(p, progress); err != nil {
			return err
		}
	}
	return cmp.Or(b.tidyAddresses(), b.tidyReplies(), b.tidyAnyPort())
}

// sweep takes away what is left of VIPs whose deletion or addition was killed.
func (b *Balancer) sweep(orphans []maps.Backend) error {
	var vips []uint32
	for i := range orphans {
		one := &orphans[i]
		if err := cmp.Or(b.Maps.DeleteServer(one.Vip, one.Addr()), b.Maps.FreeBackend(one)); err != nil {
			return err
		}
		if !slices.Contains(vips, one.Vip) {
			vips = append(vips, one.Vip)
		}
	}
	return b.Maps.DeleteTables(vips)
}
