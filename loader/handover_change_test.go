package loader

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/xdplb/xdplb/maps"
)

// What a VIP has beside its backends stays while it is given back, but for clients that keep their backend: they would
// begin flows there.
func TestHandoverKeepsWhatItHas(t *testing.T) {
	b := newBench(t, AttachOptions{})
	hour, iface, group := time.Hour, "eth0", "g"
	const first, second = 10 * time.Minute, 20 * time.Minute
	affinity := first
	v := b.vip("192.0.2.10:80", VIPOptions{Assign: &iface, Affinity: &affinity, AffinityGroup: &group})
	b.add(v, ModeDR, "10.0.0.11")
	expect := func(when string, stored, is time.Duration) {
		t.Helper()
		s := b.service(v)
		views, err := b.Views(&v, false)
		must(t, err)
		if got := b.Settings.Duration(uint64(s.Affinity)); got != stored || views[0].AffinityTime != is || s.Group() != group {
			t.Errorf("%s: packets see %s, users %s, group %q; want %s, %s, %q", when, got, views[0].AffinityTime, s.Group(), stored, is, group)
		}
		if ifindex, _ := b.Maps.AddressMark(v.Addr); ifindex == 0 {
			t.Errorf("%s: the address is no longer ours", when)
		}
	}
	expect("at first", first, first)
	must(t, b.GiveBack(&v, hour))
	expect("given back", 0, first)
	affinity = second
	must(t, b.SetVIP(v, VIPOptions{Affinity: &affinity}))
	expect("set meanwhile", 0, second)
	s := b.service(v)
	s.Affinity = uint32(b.Settings.Jiffies(second))
	must(t, b.Maps.PutService(&s))
	_, err := b.Refresh()
	must(t, err)
	expect("killed before it was stored, and refreshed", 0, second)
	must(t, b.SetVIP(v, VIPOptions{Handover: &hour}))
	expect("taken again", second, second)
	affinity = first
	must(t, b.SetVIP(v, VIPOptions{Affinity: &affinity}))
	expect("set while it is taken over", first, first)

	// It ends by itself or by a command that removes it: the address stays.
	for _, end := range []func(){
		func() { b.over(v) },
		func() {
			_, err := Apply(b.dir, Wanted{VIPs: []WantedVIP{}}, ApplyOptions{})
			must(t, err)
			if !b.hasVIP(v) {
				t.Error("apply ends it")
			}
			_, err = Apply(b.dir, Wanted{VIPs: []WantedVIP{}, EndHandover: true}, ApplyOptions{})
			must(t, err)
		},
	} {
		id := b.service(v).Id
		must(t, b.GiveBack(&v, hour))
		end()
		assigned, err := isAssigned(v.Addr)
		must(t, err)
		if b.hasVIP(v) || !assigned {
			t.Errorf("the VIP is there: %t; its address is: %t", b.hasVIP(v), assigned)
		}
		if server, err := b.Maps.Server(id, at(t, "10.0.0.11")[0].Addr()); server != 0 || err != nil {
			t.Errorf("server %d is left, %v", server, err)
		}
		must(t, UnassignAddress(b.index("eth0"), v.Addr))
		b.vip("192.0.2.10:80", VIPOptions{Assign: &iface, Affinity: &affinity})
		b.add(v, ModeDR, "10.0.0.11")
	}
}

// A change to a VIP that can end finds it gone, whichever way it comes.
func TestHandoverEndedByAChange(t *testing.T) {
	b := newBench(t, AttachOptions{})
	hour, rr := time.Hour, maps.SchedulerRR
	server := Selection{At: at(t, "10.0.0.11")[0]}
	other := b.vip("192.0.2.11:80", VIPOptions{})
	b.add(other, ModeDR, "10.0.0.12")
	for _, c := range []struct {
		name   string
		others bool // it has something else to change
		change func(maps.VIP) error
	}{
		{"vip set", false, func(v maps.VIP) error { return b.SetVIP(v, VIPOptions{Scheduler: &rr}) }},
		{"backend add", false, func(v maps.VIP) error {
			_, err := b.AddBackends(v, at(t, "10.0.0.12"), BackendOptions{})
			return err
		}},
		{"drain", false, func(maps.VIP) error { _, err := b.Drain(server); return err }},
		{"enable", false, func(maps.VIP) error { _, err := b.Enable(server); return err }},
		{"drain of others, too", true, func(v maps.VIP) error {
			b.add(other, ModeDR, "10.0.0.11")
			vips, err := b.Drain(server)
			if !slices.Equal(vips, []maps.VIP{other}) {
				t.Errorf("drained on %v", vips)
			}
			return err
		}},
	} {
		v := b.vip("192.0.2.10:80", VIPOptions{})
		b.add(v, ModeDR, "10.0.0.11")
		must(t, b.GiveBack(&v, hour))
		b.expire(v)
		err := c.change(v)
		if told := err != nil && strings.Contains(err.Error(), "192.0.2.10:80/tcp: was given back to the local stack, and is gone; add it with xdplb vip add"); told == c.others || err != nil && !told {
			t.Errorf("%s: %v", c.name, err)
		}
		if b.hasVIP(v) {
			t.Errorf("%s: the VIP is there", c.name)
		}
		if n := b.records(other); len(b.Maps.ReadBackends(func(uint32) bool { return true })) != n {
			t.Errorf("%s: records are left", c.name)
		}
	}

	// Who takes it again is in time.
	v := b.vip("192.0.2.10:80", VIPOptions{})
	must(t, b.GiveBack(&v, hour))
	b.expire(v)
	must(t, b.SetVIP(v, VIPOptions{Handover: &hour}))
	if l := b.local(v); !b.hasVIP(v) || handoverOf(&l).back {
		t.Error("it is not taken again")
	}
}

// Apply finishes what a killed command began to give back or to take again, whether its file names the VIP or not.
func TestHandoverFinishedByApply(t *testing.T) {
	b := newBench(t, AttachOptions{})
	hour, affinity := time.Hour, 10*time.Minute
	v := b.vip("192.0.2.10:80", VIPOptions{Affinity: &affinity})
	b.add(v, ModeDR, "10.0.0.11")
	is, err := b.Wanted()
	must(t, err)
	id := b.service(v).Id
	_, before := b.moving(v)
	apply := func(when string, vips []WantedVIP, want int) {
		t.Helper()
		plan, err := Apply(b.dir, Wanted{VIPs: vips}, ApplyOptions{})
		must(t, err)
		if len(plan.Items) != want {
			t.Errorf("%s: %+v", when, plan.Items)
		}
	}
	for _, vips := range [][]WantedVIP{is.VIPs, {}} {
		must(t, b.GiveBack(&v, hour))
		_, given := b.moving(v)
		l := b.local(v)
		stored := b.service(v)
		taken := stored
		taken.Affinity = uint32(b.Settings.Jiffies(affinity))

		must(t, b.Maps.PutTable(id, before))
		must(t, b.Maps.PutService(&taken))
		apply("killed before the table", vips, 1)
		b.slots(v, "finished", func(s maps.Slot) bool { return s.Backend == l.Id })
		apply("finished", vips, 0)

		must(t, b.Maps.PutService(&taken))
		apply("killed before the VIP", vips, 1)
		if now := b.service(v); now.Affinity != 0 {
			t.Errorf("affinity of %d jiffies", now.Affinity)
		}

		must(t, b.SetVIP(v, VIPOptions{Handover: &hour}))
		must(t, b.Maps.PutTable(id, given))
		must(t, b.Maps.PutService(&stored))
		apply("killed while taking again", is.VIPs, 1)
		b.slots(v, "taken again", func(s maps.Slot) bool { return s.Backend != l.Id })
		apply("taken again", is.VIPs, 0)
	}
	must(t, b.DeleteVIP(v))
	b.vip("192.0.2.10:80", VIPOptions{Handover: &hour})
	is, err = b.Wanted()
	must(t, err)
	apply("being taken over, without backends", is.VIPs, 0)
	b.expire(v)
	apply("the time is over", is.VIPs, 0)
}
