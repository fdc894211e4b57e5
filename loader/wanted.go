package loader

import (
	"net"
	"net/netip"
	"time"

	"github.com/xdplb/xdplb/maps"
)

// Where says where a field of its owner stands, such as in a file; the field is called
// as a file calls it. What it returns is put before what is said of the field.
type Where func(field string) string

// Wanted is what a balancer should be. What is nil or zero stays as it is; a list
// that is there is the whole of it, and what it does not name is removed.
// Interfaces alone are never taken off.
type Wanted struct {
	Where                          Where
	Interfaces                     []WantedInterface
	HashKey                        *maps.HashKey
	MaxVIPs, MaxBackends, MaxFlows uint32
	TunSpread                      *netip.Prefix // 0 bits: off
	SNAT                           *WantedSNAT
	Timeouts                       Timeouts
	VIPs                           []WantedVIP // nil: as they are
	Keep                           bool        // VIPs that are not named stay
	Remove                         []maps.VIP  // but for these
	EndHandover                    bool        // of those that go also the ones that are being given back, at once
}

// WantedInterface is an interface to be attached.
type WantedInterface struct {
	Where  Where
	Name   string
	Mode   XDPMode // XDPAuto: any
	Accept []net.HardwareAddr
}

// WantedSNAT is the pool that FULL-NAT sends from. Ports that are nil stay as they are.
type WantedSNAT struct {
	Where     Where
	Addresses []netip.Addr
	Any       bool // addresses, those of VIPs as well, need not be this host's
	Ports     *PortRange
}

// WantedVIP is a VIP with all it has.
type WantedVIP struct {
	Where Where
	maps.VIP
	Mode          Mode
	Scheduler     maps.Scheduler
	SourcePrefix  uint8 // bits of the client's address, for scheduler source and affinity
	Affinity      time.Duration
	AffinityGroup string
	TrackAll      bool
	TableSize     uint32 // 0: as it is, or the default
	Assign        string // interface that the address is put on; empty: none
	SNAT          []netip.Addr
	Backends      []WantedBackend
	Alias         uint8         // what ipvsadm calls its scheduler; 0: as it is
	Handover      time.Duration // of one that is new or being given back: it is taken over; 0: no
}

// WantedBackend is a backend of a WantedVIP. Port 0 is the VIP's, mode 0 likewise.
type WantedBackend struct {
	Where  Where
	At     netip.AddrPort
	Mode   Mode
	Weight uint16
	Drain  bool
}
