package loader

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/xdplb/xdplb/bpf"
	"github.com/xdplb/xdplb/maps"
)

// Mode is how a packet reaches its backend. The numbers are those of enum mode.
type Mode uint8

// Modes that exist.
const (
	ModeDR      = Mode(bpf.XdplbModeModeDr)
	ModeTUN     = Mode(bpf.XdplbModeModeTun)
	ModeNAT     = Mode(bpf.XdplbModeModeNat)
	ModeFullNAT = Mode(bpf.XdplbModeModeFullnat)
)

var modeNames = map[Mode]string{ModeDR: "dr", ModeTUN: "tun", ModeNAT: "nat", ModeFullNAT: "fullnat"}

// String is the name, and the number of what has none.
func (m Mode) String() string { return cmp.Or(modeNames[m], strconv.Itoa(int(m))) }

// ParseMode reads the name of a mode.
func ParseMode(s string) (Mode, error) {
	for m, name := range modeNames {
		if s == name {
			return m, nil
		}
	}
	return 0, fmt.Errorf("--mode %s: unknown; use dr, tun, nat or fullnat", s)
}

// VIPOptions are the properties of a VIP; nil leaves one as it is, or as is the default.
type VIPOptions struct {
	Mode         *Mode
	Scheduler    *maps.Scheduler
	SourcePrefix *uint8 // bits of the client's address; 0 to 32 for IPv4, to 128 for IPv6
	TrackAll     *bool
	TableSize    *uint32
	Assign       *string       // interface to put the address on
	SNAT         *[]netip.Addr // that FULL-NAT sends from; none: the pool's
	AnySNAT      bool          // they need not be this host's

	Affinity      *time.Duration // a client keeps its backend so long after its last new flow; 0: not at all
	AffinityGroup *string        // VIPs of one name share it; empty: none

	Handover *time.Duration // for how long the local stack keeps what it has; of a VIP that exists: it is no longer given back

	Alias *uint8 // what ipvsadm calls its scheduler; the balancer keeps it and knows nothing of it
}

// sourcePrefix converts to the first of 128 bits.
func sourcePrefix(v maps.VIP, bits uint8) (uint8, error) {
	most := uint8(v.Addr.BitLen())
	if bits > most {
		return 0, fmt.Errorf("--source-prefix %d: an address has %d bits; use 0 to %d", bits, most, most)
	}
	return bits + 128 - most, nil
}

// SourcePrefix is the prefix of a VIP's function as users give it.
func SourcePrefix(s *maps.Service) uint8 {
	return s.Function.SourcePrefix - (128 - uint8(s.Addr.BitLen()))
}

// apply edits the VIP of a change.
func (o VIPOptions) apply(c *change) error {
	s := &c.service
	if o.Scheduler != nil {
		c.function.Scheduler = *o.Scheduler
	}
	if err := o.applyAffinity(c); err != nil {
		return err
	}
	if o.SourcePrefix != nil {
		if c.function.Scheduler != maps.SchedulerSource && s.Affinity == 0 {
			return fmt.Errorf("--source-prefix: scheduler %s does not use it; add --scheduler source or --affinity 10m", c.function.Scheduler)
		}
		prefix, err := sourcePrefix(s.VIP, *o.SourcePrefix)
		if err != nil {
			return err
		}
		c.function.SourcePrefix = prefix
	}
	c.moveAll = c.function != s.InUse()
	if o.Alias != nil {
		s.Alias = *o.Alias
	}
	if o.TrackAll != nil {
		s.SetFlag(bpf.XdplbVipFlagVipTrackAll, *o.TrackAll)
	}
	if o.SNAT != nil {
		if err := c.useSNAT(*o.SNAT, o.AnySNAT); err != nil {
			return err
		}
	}
	if o.Mode != nil && uint8(*o.Mode) != s.Mode {
		s.Mode = uint8(*o.Mode)
		return c.inheritMode(*o.Mode)
	}
	return nil
}

// AddVIP adds a VIP without backends.
func (b *Balancer) AddVIP(v maps.VIP, o VIPOptions) error {
	services, err := b.Maps.Services()
	if err != nil {
		return err
	}
	used := make(map[uint32]bool)
	for _, s := range services {
		if s.VIP == v {
			return b.existing(&s)
		}
		used[s.Id] = true
	}
	if err := cmp.Or(b.checkNewVIP(v), b.checkLoop(v, services)); err != nil {
		return err
	}
	s := maps.Service{VIP: v}
	for used[s.Id] {
		s.Id++
	}
	if s.Id >= b.Maps.MaxVIPs() {
		return fmt.Errorf("%s: %w", v, fullVIPs(b.Maps, unix.ENOSPC))
	}
	s.Mode, s.TableSize, s.Function.SourcePrefix = uint8(ModeDR), maps.DefaultTableSize, 128
	if o.TableSize != nil {
		s.TableSize = *o.TableSize
	}
	if err := maps.ValidTableSize(s.TableSize); err != nil {
		return fmt.Errorf("%s: %w", v, err)
	}
	now, err := b.Now()
	if err != nil {
		return err
	}
	c := b.newChange(s)
	if err := o.apply(c); err != nil {
		return fmt.Errorf("%s: %w", v, err)
	}
	if o.Handover != nil {
		if err := b.sweepPlace(s.Id); err != nil { // before takeOver takes one
			return fmt.Errorf("%s: %w", v, err)
		}
		if err := c.takeOver(*o.Handover); err != nil {
			return fmt.Errorf("%s: %w", v, err)
		}
	}
	c.service.Function = bpf.XdplbSlotFunction{Scheduler: uint8(c.function.Scheduler), SourcePrefix: c.function.SourcePrefix}
	c.service.ChangedAt = now
	err = cmp.Or(c.placeSNAT(), c.follow())
	if err == nil && o.Assign != nil {
		if err = c.assign(*o.Assign); err != nil {
			err = fmt.Errorf("%s: %w", v, err)
		}
	}
	if err == nil {
		err = c.publish()
		if err != nil && o.Assign != nil {
			err = errors.Join(err, b.tidyAddresses())
		}
	}
	if err != nil {
		c.discard()
	}
	return err
}

func (b *Balancer) existing(s *maps.Service) error {
	c, err := b.beginService(*s)
	if err == nil && c.givesBack() {
		return fmt.Errorf("%s: exists, and is being given back; take it again with: %s", s.VIP, TakeAgain(s.VIP))
	}
	return cmp.Or(err, fmt.Errorf("%s: exists; change it with xdplb vip set", s.VIP))
}

// sweepPlace frees the records of a VIP with this id whose addition or deletion was killed.
func (b *Balancer) sweepPlace(id uint32) error {
	for _, orphan := range b.Maps.ReadBackends(func(vip uint32) bool { return vip == id }) {
		if err := b.Maps.FreeBackend(&orphan); err != nil {
			return err
		}
	}
	return nil
}

// publish writes a new VIP: first what it needs, and last itself.
func (c *change) publish() error {
	b, s := c.b, &c.service
	if len(c.backends) == 0 {
		if err := b.sweepPlace(s.Id); err != nil {
			return err
		}
	}
	if err := b.Maps.ResetRetired(s.Id); err != nil {
		return err
	}
	c.writeBefore()
	if err := b.Maps.PutTable(s.Id, c.slots); err != nil {
		return err
	}
	if s.Port == 0 {
		if err := b.setAnyPort(true); err != nil {
			return err
		}
	}
	if err := b.Maps.PutService(s); err != nil {
		return fmt.Errorf("%s: %w", s.VIP, fullVIPs(b.Maps, err))
	}
	c.fresh = nil // packets use them, whatever fails from here on
	return b.tidyAddresses()
}

func (b *Balancer) setAnyPort(on bool) error {
	b.Settings.SetFlag(bpf.XdplbSettingFlagSettingAnyPort, on)
	return b.Maps.PutSettings(b.Settings)
}

// SetVIP changes what o names.
func (b *Balancer) SetVIP(v maps.VIP, o VIPOptions) error {
	return b.edit(v, func(c *change) error {
		if o.TableSize != nil && *o.TableSize != c.service.TableSize {
			return fmt.Errorf("%s: --table-size is fixed while the VIP lives (%d); delete and add it anew", v, c.service.TableSize)
		}
		if err := o.apply(c); err != nil {
			return fmt.Errorf("%s: %w", v, err)
		}
		if o.Handover != nil {
			if err := c.takeAgain(*o.Handover); err != nil {
				return fmt.Errorf("%s: %w", v, err)
			}
		}
		if o.Assign != nil {
			return c.assign(*o.Assign)
		}
		return nil
	})
}

// DeleteVIP removes a VIP with its backends. Its packets pass from then on.
func (b *Balancer) DeleteVIP(v maps.VIP) error {
	c, err := b.begin(v)
	if err != nil {
		return err
	}
	services, err := b.Maps.Services()
	if err != nil {
		return err
	}
	rest := slices.DeleteFunc(services, func(s maps.Service) bool { return s.VIP == v })
	// Before the VIP goes: if this is killed, the VIP can be deleted once more.
	if c.givesBack() {
		err = b.leaveAddress(v.Addr)
	} else if !slices.ContainsFunc(rest, func(s maps.Service) bool { return s.Addr == v.Addr }) {
		err = b.unassign(v.Addr)
	}
	if err != nil {
		return err
	}
	if err := b.Maps.DeleteService(v); err != nil {
		return fmt.Errorf("%s: %w", v, err)
	}
	if err := b.tidyAddresses(); err != nil {
		return err
	}
	if err := b.Maps.DeleteTable(c.service.Id); err != nil {
		return err
	}
	if err := c.forgetServers(); err != nil {
		return err
	}
	for i := range c.backends {
		if err := b.Maps.FreeBackend(&c.backends[i]); err != nil {
			return err
		}
	}
	if err := b.tidyReplies(); err != nil {
		return err
	}
	if slices.ContainsFunc(rest, func(s maps.Service) bool { return s.Port == 0 }) {
		return nil
	}
	return b.setAnyPort(false)
}

func (b *Balancer) hasVIP(v maps.VIP) bool {
	var value bpf.XdplbVip
	return b.Maps.LookupVIP(v, &value)
}

// assign puts the VIP's address on an interface. The address's mark says that it
// was us, and is written first: a command that is killed leaves an address that
// the next one knows to be ours.
func (c *change) assign(iface string) error {
	m, addr := c.b.Maps, c.service.Addr
	link, err := linkByName(iface)
	if err != nil {
		return err
	}
	if there, err := isAssigned(addr); there || err != nil {
		return err
	}
	if err := m.MarkAddress(addr, uint32(link.Attrs().Index)); err != nil {
		return fullVIPs(m, err)
	}
	if _, err := AssignAddress(iface, addr); err != nil {
		return errors.Join(err, c.b.tidyAddresses())
	}
	return nil
}

// unassign takes an address off if --assign put it on.
func (b *Balancer) unassign(addr netip.Addr) error {
	ifindex, _ := b.Maps.AddressMark(addr)
	if ifindex == 0 {
		return nil
	}
	err := UnassignAddress(int(ifindex), addr)
	if errors.As(err, new(netlink.LinkNotFoundError)) {
		return nil
	}
	return err
}

// tidyAddresses makes the marks of addresses those of the VIPs there are. It
// mends what a killed command left.
func (b *Balancer) tidyAddresses() error {
	stale, err := b.Maps.StaleAddresses()
	if err != nil {
		return err
	}
	for _, addr := range stale {
		if err := b.unassign(addr); err != nil {
			return err
		}
	}
	return b.Maps.MarkAddresses()
}

// leaveAddress lets an address stay that --assign put on an interface, when a VIP ends that
// was given back: who serves it from now on needs it.
func (b *Balancer) leaveAddress(addr netip.Addr) error {
	if ifindex, _ := b.Maps.AddressMark(addr); ifindex == 0 {
		return nil
	}
	return b.Maps.MarkAddress(addr, 0)
}

func (b *Balancer) unassignAll() {
	services, _ := b.Maps.Services()
	for _, s := range services {
		if GivenBack(s.VIP, b.Maps.ReadBackends(func(vip uint32) bool { return vip == s.Id })) {
			_ = b.leaveAddress(s.Addr)
		}
	}
	for _, s := range services {
		_ = b.unassign(s.Addr) // again for a second VIP: no harm
	}
}
