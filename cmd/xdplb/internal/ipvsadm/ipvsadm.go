// Package ipvsadm reads the command line and the save files of ipvsadm 1.31, keeps
// the table that they are about, and prints it as ipvsadm does, to the column. It
// does nothing: it knows no kernel.
package ipvsadm

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
)

// Protocol is the protocol of a service.
type Protocol uint8

// Protocols, in the order of listings.
const (
	TCP Protocol = iota
	UDP
	firewallMark
)

// String is the name in listings.
func (p Protocol) String() string { return [...]string{"TCP", "UDP", "FWM"}[p] }

// Key names a service.
type Key struct {
	Proto Protocol
	At    netip.AddrPort // port 0: every port
	mark  uint32         // instead of the above; such services are printed, and refused when read
}

// String is ADDR:PORT/tcp or /udp, as other commands write it.
func (k Key) String() string {
	if k.Proto == UDP {
		return k.At.String() + "/udp"
	}
	return k.At.String() + "/tcp"
}

func (k Key) compare(o Key) int {
	return cmp.Or(
		cmp.Compare(k.mark, o.mark), cmp.Compare(k.At.Addr().BitLen(), o.At.Addr().BitLen()),
		cmp.Compare(k.Proto, o.Proto), k.At.Compare(o.At),
	)
}

// Forward is how packets reach a server.
type Forward uint8

// Ways of forwarding. Local is what a listing calls a server that is this host.
const (
	Route Forward = iota
	Tunnel
	Masq
	FullNat
	Local
)

// String is the name in listings.
func (f Forward) String() string {
	return [...]string{"Route", "Tunnel", "Masq", "FullNat", "Local"}[f]
}

// Option is what a save file has for it.
func (f Forward) Option() string { return [...]string{"-g", "-i", "-m", "--fullnat", "-g"}[f] }

// keepsPort: a server's port is its service's.
func (f Forward) keepsPort() bool { return f != Masq && f != FullNat }

// Service is a virtual service with its servers.
type Service struct {
	Key
	Scheduling
	Persistent uint32 // seconds that a client keeps its server; 0: not at all
	MaskBits   int    // of the client's address that count; 0 or all: all
	Servers    []Server
	Figures
}

// maskBits resolves 0.
func (s *Service) maskBits() int {
	if s.MaskBits == 0 {
		return s.At.Addr().BitLen()
	}
	return s.MaskBits
}

// Server is one of a service's servers.
type Server struct {
	At      netip.AddrPort
	Forward Forward
	Weight  uint16

	Active, Inactive, Sticky Count // connections; clients that keep this server
	Upper, Lower             uint32
	Figures
}

// Count is a number that may be unknown.
type Count struct {
	N       uint64
	Unknown bool
}

func (c Count) String() string {
	if c.Unknown {
		return "-"
	}
	return strconv.FormatUint(c.N, 10)
}

// Figures are counters, or what they grew in a second.
type Figures struct{ Connections, InPackets, OutPackets, InBytes, OutBytes uint64 }

// Table is all services.
type Table []Service

// Find returns the service of a key, or nil.
func (t Table) Find(k Key) *Service {
	if i := slices.IndexFunc(t, func(s Service) bool { return s.Key == k }); i >= 0 {
		return &t[i]
	}
	return nil
}

// Server finds a server of a service, or nil.
func (s *Service) Server(at netip.AddrPort) *Server {
	if i := slices.IndexFunc(s.Servers, func(r Server) bool { return r.At == at }); i >= 0 {
		return &s.Servers[i]
	}
	return nil
}

// Clone copies a table, so that changes to one are not seen in the other.
func (t Table) Clone() Table {
	copied := slices.Clone(t)
	for i := range copied {
		copied[i].Servers = slices.Clone(copied[i].Servers)
	}
	return copied
}

// Sort puts services and servers in the order of ipvsadm's listings.
func (t Table) Sort() {
	slices.SortStableFunc(t, func(a, b Service) int { return a.Key.compare(b.Key) })
	for i := range t {
		slices.SortStableFunc(t[i].Servers, func(a, b Server) int { return a.At.Compare(b.At) })
	}
}

// Same reports whether two services are set up alike, whatever their servers.
func (s *Service) Same(o *Service) bool {
	return s.Scheduling == o.Scheduling && s.Persistent == o.Persistent && s.maskBits() == o.maskBits()
}

// Equal reports whether two services and their servers are set up alike.
func (s *Service) Equal(o *Service) bool { return s.Same(o) && slices.Equal(s.Servers, o.Servers) }

func at(k Key, r netip.AddrPort) string { return fmt.Sprintf("%s of %s", r, k) }
