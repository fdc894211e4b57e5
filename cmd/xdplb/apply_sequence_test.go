package main

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/xdplb/xdplb/cmd/xdplb/internal/config"
	"github.com/xdplb/xdplb/loader"
	"github.com/xdplb/xdplb/maps"
)

// TestApplySequence applies one random file after the other: whatever there was, what is saved then is what the
// file says, to apply it once more is nothing to do, and the tables are those of a balancer that had nothing before.
func TestApplySequence(t *testing.T) {
	t.Parallel()
	n := buildLive(t, 4)
	for i := range 4 {
		n.check(n.Balancer.Addr("eth0", fmt.Sprintf("192.0.2.%d/32", 20+i)))
	}
	path := filepath.Join(t.TempDir(), "random.yaml")
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	prints := make(map[string]string) // of tables, by what they are made of
	var f *config.File
	var err error
	for round := range 100 {
		var text bytes.Buffer
		n.check(nextFile(random, n, f).Write(&text))
		f, err = config.Parse("random", text.Bytes())
		n.check(err)
		n.check(os.WriteFile(path, text.Bytes(), 0o600))
		plan, err := n.output(n.Balancer, "apply", path)
		if err != nil {
			t.Fatalf("round %d: %v\n%s", round, err, text.String())
		}
		if again, err := n.output(n.Balancer, "apply", path); err != nil || string(again) != "nothing to do\n" {
			t.Fatalf("round %d, applied once more: %v\n%safter\n%s%s", round, err, again, plan, text.String())
		}
		saved, err := n.output(n.Balancer, "save")
		n.check(err)
		is, err := config.Parse("saved", saved)
		n.check(err)
		if d := cmp.Diff(vipsOf(t, f), vipsOf(t, is)); d != "" {
			t.Fatalf("round %d (-file +saved):\n%s\nafter\n%s", round, d, plan)
		}
		n.samePrints(f, prints)
	}
	if len(prints) < 20 {
		t.Errorf("only %d different tables", len(prints))
	}
}

// vipsOf is what a file says of VIPs, as text.
func vipsOf(t *testing.T, f *config.File) string {
	t.Helper()
	w := f.Wanted()
	slices.SortFunc(w.VIPs, func(a, b loader.WantedVIP) int { return a.Compare(b.VIP) })
	for i := range w.VIPs {
		slices.SortFunc(w.VIPs[i].Backends, func(a, b loader.WantedBackend) int { return a.At.Compare(b.At) })
	}
	var text bytes.Buffer
	if err := config.Of(loader.Wanted{VIPs: w.VIPs}).Write(&text); err != nil {
		t.Fatal(err)
	}
	return text.String()
}

// samePrints: a table is a function of the backends that take new flows, whatever was before.
func (n *liveNet) samePrints(f *config.File, prints map[string]string) {
	n.t.Helper()
	var list struct {
		VIPs []struct{ VIP, Fingerprint string }
	}
	n.ask(&list, "vip", "list")
	for i := range f.VIPs {
		v := &f.VIPs[i]
		made := []string{fmt.Sprint(v.Scheduler == maps.SchedulerRR)}
		for _, b := range v.Backends {
			weight := uint16(1)
			if b.Weight != nil {
				weight = *b.Weight
			}
			if !b.Drain && weight > 0 {
				made = append(made, fmt.Sprint(b.Address, weight))
			}
		}
		slices.Sort(made[1:])
		key := strings.Join(made, " ")
		for _, one := range list.VIPs {
			if one.VIP != v.VIP.String() {
				continue
			}
			if before, known := prints[key]; known && before != one.Fingerprint {
				n.t.Fatalf("%s: the table of %s is %s, and was %s", one.VIP, key, one.Fingerprint, before)
			}
			prints[key] = one.Fingerprint
		}
	}
}

// nextFile is another file, or the same with one property of one VIP changed.
func nextFile(random *rand.Rand, n *liveNet, before *config.File) *config.File {
	f := &config.File{VIPs: []config.VIP{}}
	if before != nil && len(before.VIPs) > 0 && random.IntN(3) > 0 {
		f.VIPs = slices.Clone(before.VIPs)
		v := &f.VIPs[random.IntN(len(f.VIPs))]
		other := randomVIP(random, n, v.VIP.Port)
		switch random.IntN(7) {
		case 0:
			v.Mode = other.Mode
		case 1:
			v.Scheduler, v.SourcePrefix = other.Scheduler, other.SourcePrefix
		case 2:
			v.Affinity, v.AffinityGroup, v.SourcePrefix = other.Affinity, other.AffinityGroup, nil
		case 3:
			v.Track = other.Track
		case 4:
			v.SNAT = other.SNAT
		case 5:
			v.Backends = other.Backends
		case 6:
			f.VIPs = slices.DeleteFunc(f.VIPs, func(one config.VIP) bool { return one.VIP == v.VIP })
		}
		return f
	}
	for port := range uint16(5) {
		if random.IntN(4) > 0 {
			f.VIPs = append(f.VIPs, randomVIP(random, n, 80+port))
		}
	}
	return f
}

func randomVIP(random *rand.Rand, n *liveNet, port uint16) config.VIP {
	some := func(k int) bool { return random.IntN(k) == 0 }
	modes := []loader.Mode{loader.ModeDR, loader.ModeTUN, loader.ModeNAT, loader.ModeFullNAT}
	v := config.VIP{VIP: maps.VIP{Addr: n.VIP4, Port: port, Proto: unix.IPPROTO_TCP}, Mode: modes[random.IntN(4)], Scheduler: maps.Scheduler(random.IntN(4))}
	if v.Scheduler == maps.SchedulerSource && some(2) {
		bits := uint8(random.IntN(32))
		v.SourcePrefix = &bits
	}
	if some(3) {
		d := config.Duration(time.Duration(1+random.IntN(3)) * time.Minute)
		v.Affinity = &d
		v.AffinityGroup = []string{"", "red", "blue"}[random.IntN(3)]
	}
	if some(2) {
		v.Track = config.TrackAll
	}
	for i := range 4 {
		if some(5) {
			v.SNAT = append(v.SNAT, netip.AddrFrom4([4]byte{192, 0, 2, byte(20 + i)}))
		}
	}
	for _, server := range n.Servers4 {
		if some(3) {
			continue
		}
		weight := uint16(random.IntN(4))
		b := config.Backend{Weight: &weight, Drain: some(5), Address: netip.AddrPortFrom(server, port)}
		if some(3) {
			b.Mode = modes[random.IntN(4)]
		}
		v.Backends = append(v.Backends, b)
	}
	return v
}
