package loader

import (
	"fmt"
	"math"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/xdplb/xdplb/bpf"
	"github.com/xdplb/xdplb/maps"
)

// ParseScheduler reads the name of a scheduler.
func ParseScheduler(s string) (maps.Scheduler, error) {
	var names []string
	for one := maps.SchedulerMaglev; one <= maps.SchedulerLC; one++ {
		if s == one.String() {
			return one, nil
		}
		names = append(names, one.String())
	}
	return 0, fmt.Errorf("--scheduler %s: unknown; use %s or %s", s, strings.Join(names[:len(names)-1], ", "), names[len(names)-1])
}

// maxAffinity is in jiffies: entries keep half of a 64-bit clock, and compare it signed.
const maxAffinity = math.MaxInt32

var groupName = regexp.MustCompile(fmt.Sprintf("^[[:alnum:]._-]{1,%d}$", len(maps.Service{}.AffinityName)))

// applyAffinity edits how long clients keep their backend, and with which VIPs
// they share it.
func (o VIPOptions) applyAffinity(c *change) error {
	s := &c.service
	if o.Affinity != nil {
		jiffies := c.b.Settings.Jiffies(max(*o.Affinity, 0))
		switch {
		case *o.Affinity < 0, *o.Affinity > 0 && *o.Affinity < time.Second:
			return fmt.Errorf("--affinity %s: use 1s or more, or 0 to end it", *o.Affinity)
		case jiffies > maxAffinity:
			return fmt.Errorf("--affinity %s: at most %s", *o.Affinity, c.b.Settings.Duration(maxAffinity).Truncate(time.Hour))
		}
		s.Affinity = uint32(jiffies)
	}
	if o.AffinityGroup != nil && *o.AffinityGroup != "" {
		if !groupName.MatchString(*o.AffinityGroup) {
			return fmt.Errorf("--affinity-group %s: a name has 1 to %d letters, digits, or any of . _ -", *o.AffinityGroup, len(s.AffinityName))
		}
		if s.Affinity == 0 {
			return fmt.Errorf("--affinity-group %s: the VIP has no affinity; add --affinity 10m", *o.AffinityGroup)
		}
		number, err := c.b.groupNumber(*o.AffinityGroup)
		if err != nil {
			return err
		}
		s.SetGroup(*o.AffinityGroup, number)
	} else if o.AffinityGroup != nil || s.Affinity == 0 {
		s.SetGroup("", 0)
	}
	return nil
}

// groupNumber is the number of the VIPs in this group, or the first that none has.
func (b *Balancer) groupNumber(name string) (uint32, error) {
	services, err := b.Maps.Services()
	used := make(map[uint32]bool)
	for i := range services {
		if s := &services[i]; s.Group() == name {
			return s.AffinityGroup, nil
		} else {
			used[s.AffinityGroup] = true
		}
	}
	number := uint32(1)
	for used[number] {
		number++
	}
	return number, err
}

// Affinity is how long clients of a VIP with these records keep their backend; 0: not at
// all. One that is being given back remembers it.
func (b *Balancer) Affinity(s *maps.Service, records []maps.Backend) time.Duration {
	return b.Settings.Duration(uint64(affinityOf(s, records)))
}

func affinityOf(s *maps.Service, records []maps.Backend) uint32 {
	if local := localStackOf(s.VIP, records); local != nil {
		return handoverOf(local).affinity
	}
	return s.Affinity
}

// schedules reports whether more than a tuple and the table says who gets a flow.
func (c *change) schedules() bool {
	return !c.function.Scheduler.Pure() || c.service.Affinity != 0
}

// wanted is the table that the scheduler asks for. lc has Maglev's with its weights:
// a server that is to have most of the flows must be one of the two asked most of
// the times, and if it then has more than its share the other one wins.
func (c *change) wanted() ([]uint32, error) {
	var entries []maps.Entry
	for i := range c.backends {
		if b := &c.backends[i]; b.TakesNew() && !c.removed[b.Id] {
			entries = append(entries, b.Entry())
		}
	}
	local, err := c.localTakes(len(entries) > 0)
	switch {
	case err != nil:
		return nil, err
	case local != 0:
		return slices.Repeat([]uint32{local}, int(c.service.TableSize)), nil
	case c.function.Scheduler == maps.SchedulerRR:
		return maps.Sequence(c.service.TableSize, entries), nil
	}
	return maps.Maglev(&c.b.Settings.HashKey, c.service.TableSize, entries), nil
}

// servers are the ids of listed backends by their address. Of several ports the
// first that takes new flows stands for the server.
func (c *change) servers() map[netip.Addr]uint32 {
	byAddr := make(map[netip.Addr]uint32)
	for _, able := range []bool{true, false} {
		for i := range c.backends {
			b := &c.backends[i]
			if _, has := byAddr[b.Addr()]; b.Listed() && !c.removed[b.Id] && b.TakesNew() == able && !has {
				byAddr[b.Addr()] = b.Id
			}
		}
	}
	return byAddr
}

// putServers writes where clients find their servers, of a VIP with affinity: once
// the records are written, and before a table names those that are new.
func (c *change) putServers() error {
	if c.service.Affinity == 0 {
		return nil
	}
	for addr, id := range c.servers() {
		if before, err := c.b.Maps.Server(c.service.Id, addr); err != nil || before == id {
			if err != nil {
				return err
			}
			continue
		}
		if err := c.b.Maps.PutServer(c.service.Id, addr, id); err != nil {
			return err
		}
	}
	return nil
}

// dropServers takes back what is no longer true, before its records are freed: if
// this is killed, they tell the next command to do it.
func (c *change) dropServers() error {
	if c.service.Affinity == 0 && c.stored.Affinity == 0 {
		return nil
	}
	byAddr := c.servers()
	if c.service.Affinity == 0 {
		clear(byAddr)
	}
	for i := range c.backends {
		addr := c.backends[i].Addr()
		if _, stays := byAddr[addr]; stays {
			continue
		}
		if err := c.b.Maps.DeleteServer(c.service.Id, addr); err != nil {
			return err
		}
	}
	return nil
}

// forgetServers takes back all, of a VIP that is no more.
func (c *change) forgetServers() error {
	for i := range c.backends {
		if err := c.b.Maps.DeleteServer(c.service.Id, c.backends[i].Addr()); err != nil {
			return err
		}
	}
	return nil
}

// settleable are the backends whose pins keep slots moving. None where the pins say
// all: who has a flow was never its slot's to say, and every flow that lives has one.
func (c *change) settleable() func(id uint32) bool {
	if c.schedules() && c.service.Has(bpf.XdplbVipFlagVipPinAll) {
		return func(uint32) bool { return false }
	}
	return c.up()
}

// comparesLoads reports whether a VIP compares how many flows its backends have.
func (b *Balancer) comparesLoads() (bool, error) {
	services, err := b.Maps.Services()
	return slices.ContainsFunc(services, func(s maps.Service) bool { return s.InUse().Scheduler == maps.SchedulerLC }), err
}

// recount counts the flows of backends anew, if a VIP compares them. It needs the lock.
func (b *Balancer) recount() error {
	compares, err := b.comparesLoads()
	if err != nil || !compares {
		return err
	}
	now, err := b.Now()
	if err != nil {
		return err
	}
	return b.Maps.Recount(func(f maps.Flow) bool { return b.Settings.Live(f, now) }, nil)
}

// walkLive calls f once for each live flow, and counts them anew on the way if a VIP
// compares them and the lock is free: who holds it has counted.
func (b *Balancer) walkLive(now uint64, f func(maps.Flow)) error {
	live := func(f maps.Flow) bool { return b.Settings.Live(f, now) }
	compares, err := b.comparesLoads()
	if err == nil && compares && b.unlock == nil {
		directory, err := os.Open(filepath.Dir(b.dir))
		if err != nil {
			return err
		}
		defer directory.Close()
		if unix.Flock(int(directory.Fd()), unix.LOCK_EX|unix.LOCK_NB) == nil {
			return b.Maps.Recount(live, f)
		}
	}
	if err != nil {
		return err
	}
	return b.Maps.LiveFlows(live, func(flow maps.Flow) bool {
		f(flow)
		return true
	})
}
