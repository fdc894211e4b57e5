package maps

import (
	"fmt"
	"math"
	"time"

	"golang.org/x/sys/unix"

	"github.com/xdplb/xdplb/bpf"
)

// Settings is what may change while the balancer runs. Times are in jiffies,
// Hz of them a second.
type Settings struct{ bpf.XdplbSettings }

// Default timeouts: those of IPVS where it has them.
const (
	DefaultTCPIdle  = 900 * time.Second
	DefaultClosing  = 120 * time.Second
	DefaultUDPIdle  = 300 * time.Second
	DefaultHalfOpen = 60 * time.Second
	DefaultUDPGrace = 10 * time.Second
)

// Jiffies converts a duration, rounding up.
func (s *Settings) Jiffies(d time.Duration) uint64 {
	return uint64(math.Ceil(d.Seconds() * float64(s.Hz)))
}

// Duration converts jiffies.
func (s *Settings) Duration(jiffies uint64) time.Duration {
	if s.Hz == 0 {
		return 0
	}
	hz := uint64(s.Hz)
	return time.Duration(jiffies/hz)*time.Second + time.Duration(jiffies%hz)*time.Second/time.Duration(hz)
}

// Idle is how long flows of a protocol live without a packet, in jiffies.
func (s *Settings) Idle(proto uint8) uint64 {
	if proto == unix.IPPROTO_UDP {
		return s.UdpIdle
	}
	return s.TcpIdle
}

// Has reports whether a flag of enum setting_flag is set.
func (s *Settings) Has(flag bpf.XdplbSettingFlag) bool { return s.Flags&uint32(flag) != 0 }

// SetFlag sets or clears a flag of enum setting_flag.
func (s *Settings) SetFlag(flag bpf.XdplbSettingFlag, on bool) {
	s.Flags &^= uint32(flag)
	if on {
		s.Flags |= uint32(flag)
	}
}

// SetKey makes key the hash key, which is fixed while there are VIPs.
func (s *Settings) SetKey(key HashKey) {
	s.HashKey, s.KeyFingerprint, s.GivenKey = key.Words(), key.Fingerprint(), key
}

// How long closed flows stay: IPVS keeps them for 10 s, and the side that closed
// first holds the tuple in TIME_WAIT for 60 s (TCP_TIMEWAIT_LEN of include/net/tcp.h).
const (
	closedAfter   = 10 * time.Second
	timeWaitAfter = 60 * time.Second
)

// Lifetime is how long a flow lives after the last packet, in jiffies. Those of DR
// and TUN show one side only, and live alike whether their client closed them or not.
func (s *Settings) Lifetime(f Flow) uint64 {
	if f.Translated() {
		switch state := f.State(); {
		case state == FlowClosed && f.BackendFirst && !f.Reset:
			return s.Jiffies(timeWaitAfter)
		case state == FlowClosed:
			return s.Jiffies(closedAfter)
		case state == FlowClosing:
			return s.Closing
		}
	}
	if !f.Spoken {
		return s.HalfOpen
	}
	return s.Idle(f.Proto)
}

// Live reports whether a flow is within its timeout at the time now, in jiffies.
func (s *Settings) Live(f Flow, now uint64) bool { return elapsed(f.Seen, now) <= s.Lifetime(f) }

// Active reports whether a live flow counts as a connection. What both sides closed
// is none; nor is a flow of DR and TUN that its client closed, whose server closes it
// unseen. In NAT and FULL-NAT one that only one side closed counts while it is Left.
func (s *Settings) Active(f Flow, now uint64) bool {
	if !f.Translated() && f.State() == FlowClosing {
		return false
	}
	return s.Left(f, now)
}

// Left reports whether a live flow may still carry data, which is what a drain waits
// for: it is not closed, and where one side has closed it somebody has spoken of late.
func (s *Settings) Left(f Flow, now uint64) bool {
	switch f.State() {
	case FlowClosed:
		return false
	case FlowClosing:
		return elapsed(f.Seen, now) <= s.Jiffies(closedAfter) && s.Live(f, now)
	}
	return s.Live(f, now)
}

// For how long flows keep their ports from others: bpf/claim.h. ClosedKeeps is of
// those whose tuple no one holds in TIME_WAIT; HandshakeKeeps where no other port is free.
const (
	ClosedKeeps    = time.Second
	HandshakeKeeps = 3 * time.Second
)

const (
	mostTwinLag = 4 * time.Second
	twinLagPart = 32 // of what a flow lives
)

// TwinLag is twin_lag of bpf/claim.h: for how long, in jiffies, one of the two entries of
// a flow that lives so many jiffies may not have heard of the other.
func (s *Settings) TwinLag(lifetime uint64) uint64 {
	return min(lifetime/twinLagPart, s.Jiffies(mostTwinLag))
}

// HoldsPort reports whether an entry toward the client keeps the tuple that it has
// from other flows of NAT and FULL-NAT, if its backend still exists.
func (s *Settings) HoldsPort(f Flow, now uint64) bool {
	keeps := s.Lifetime(f)
	switch {
	case f.State() == FlowClosed && (f.Reset || !f.BackendFirst):
		keeps = s.Jiffies(ClosedKeeps)
	case !f.Spoken && !f.Closing && !f.Finished:
		keeps = min(keeps, s.Jiffies(HandshakeKeeps))
	default:
		keeps += s.TwinLag(keeps)
	}
	return elapsed(f.Seen, now) <= keeps
}

// elapsed is 0 for a stamp that a packet wrote after now was read.
func elapsed(seen, now uint64) uint64 {
	if seen > now {
		return 0
	}
	return now - seen
}

// ReadSettings reads the settings.
func (m *Maps) ReadSettings() (s Settings, err error) {
	if err := m.XdplbMaps.Settings.Lookup(uint32(0), &s.XdplbSettings); err != nil {
		return s, fmt.Errorf("reading settings: %w", err)
	}
	return s, nil
}

// PutSettings writes them. Packets that read them meanwhile may see some of the
// old and some of the new ones; each field is whole.
func (m *Maps) PutSettings(s Settings) error {
	if err := m.XdplbMaps.Settings.Put(uint32(0), s.XdplbSettings); err != nil {
		return fmt.Errorf("writing settings: %w", err)
	}
	return nil
}
