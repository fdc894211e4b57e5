// Package config reads and writes the file that says what a balancer should be:
// YAML, strictly, with errors that name file, line and field.
package config

import (
	"fmt"
	"net"
	"net/netip"
	"time"

	"github.com/xdplb/xdplb/cmd/xdplb/internal/ipvsadm"
	"github.com/xdplb/xdplb/loader"
	"github.com/xdplb/xdplb/maps"
)

// File is the whole file. A part that it does not have stays as it is.
//
// The tags say all that reading, writing and the schema need: the field's name;
// `required`; `short` for the field that stands for an object with nothing else.
type File struct {
	Place
	Interfaces  []Interface   `yaml:"interfaces" doc:"Interfaces to be attached. Others that are attached stay so, with a warning."`
	HashKey     *maps.HashKey `yaml:"hash_key" doc:"A secret, the same on every balancer that shares VIPs; random if left out."`
	MaxVIPs     *Size         `yaml:"max_vips" doc:"How many VIPs there can be. Fixed while pins exist."`
	MaxBackends *Size         `yaml:"max_backends" doc:"How many backends there can be. Fixed while pins exist."`
	MaxFlows    *Size         `yaml:"max_flows" doc:"How many flows can be pinned. Fixed while pins exist."`
	TunSpread   *netip.Prefix `yaml:"tun_spread" doc:"IPv4 prefix in which the outer source of tunnels varies with the flow; 0.0.0.0/0 for none."`
	SNAT        *SNAT         `yaml:"snat" doc:"What mode fullnat sends from."`
	Timeouts    *Timeouts     `yaml:"timeouts" doc:"How long flows live without a packet."`
	VIPs        []VIP         `yaml:"vips" doc:"All VIPs. One that is not here is removed."`
}

// Interface is an attached interface.
type Interface struct {
	Place
	Name       string         `yaml:"name,required,short" doc:"The interface, such as eth0."`
	XDPMode    loader.XDPMode `yaml:"xdp_mode" doc:"Where the program runs (default auto)."`
	AcceptMACs []MAC          `yaml:"accept_macs" doc:"Further destination MACs that are ours, such as VRRP's."`
}

// SNAT is the pool of FULL-NAT.
type SNAT struct {
	Place
	Addresses []netip.Addr      `yaml:"addresses" doc:"Addresses of this balancer; none: each VIP's own."`
	AnySNAT   bool              `yaml:"any_snat" doc:"Addresses, those of VIPs as well, need not be this host's."`
	Ports     *loader.PortRange `yaml:"ports" doc:"Ports to send from, such as 10000-32767."`
}

// Timeouts of flows.
type Timeouts struct {
	Place
	TCP     *Duration `yaml:"tcp" doc:"Established TCP connections (15m)."`
	Closing *Duration `yaml:"closing" doc:"TCP connections that one side has closed (2m)."`
	UDP     *Duration `yaml:"udp" doc:"UDP flows (5m)."`
}

// VIP is a virtual service. What is left out has its default.
type VIP struct {
	Place
	VIP           maps.VIP           `yaml:"vip,required" doc:"ADDR:PORT[/tcp|/udp]; an IPv6 address stands in brackets; port 0 is every port."`
	Mode          loader.Mode        `yaml:"mode" doc:"How packets reach backends that name no mode (default dr)."`
	Scheduler     maps.Scheduler     `yaml:"scheduler" doc:"Who gets a new flow (default maglev)."`
	Ipvsadm       ipvsadm.Scheduling `yaml:"ipvsadm" doc:"What ipvsadm -Ln calls the scheduler, with ipvsadm's flags, such as wrr or mh,mh-fallback; it must be one that the scheduler stands for. Left out: as it is."`
	SourcePrefix  *uint8             `yaml:"source_prefix" doc:"With scheduler source, or affinity: bits of the client's address that count (default all)."`
	Affinity      *Duration          `yaml:"affinity" doc:"How long a client keeps its backend after its last new flow."`
	AffinityGroup string             `yaml:"affinity_group" doc:"VIPs of one group share their clients' backends."`
	Track         Track              `yaml:"track" doc:"Follow flows while something changes (default), or all."`
	TableSize     *uint32            `yaml:"table_size" doc:"Slots of the lookup table, a prime. Fixed while the VIP lives."`
	Assign        string             `yaml:"assign" doc:"Interface to put the address on."`
	SNAT          []netip.Addr       `yaml:"snat" doc:"Addresses that its FULL-NAT backends see, instead of the pool's."`
	Backends      []Backend          `yaml:"backends" doc:"All backends. One that is not here is removed."`
}

// Backend is a server of a VIP.
type Backend struct {
	Place
	Address netip.AddrPort `yaml:"address,required,short" doc:"ADDR[:PORT]; the VIP's port if not said."`
	Mode    loader.Mode    `yaml:"mode" doc:"How packets reach it (default: the VIP's mode)."`
	Weight  *uint16        `yaml:"weight" doc:"Its share of new flows (default 1); 0 drains."`
	Drain   bool           `yaml:"drain" doc:"No new flows; those it has stay."`
}

// Place is where in the file an object stands.
type Place struct {
	file  string
	path  string // vips[0].backends[1]
	line  int
	lines map[string]int // of the fields it has

	source      *source
	spots       map[string]spot // of fields that are one value
	start       spot            // of the first field; of the brace, in flow style
	short       bool            // one value stands for it
	first, last int             // lines, of an item of a list in block style
	item, cut   spot            // in flow style: the item, and with its comma
}

func (p *Place) place() *Place { return p }

// Has reports whether the file has the field.
func (p *Place) Has(field string) bool { _, has := p.lines[field]; return has }

// Line is the line of a field, or of the object if it has none such.
func (p *Place) Line(field string) int {
	if line, has := p.lines[field]; has {
		return line
	}
	return p.line
}

// where is file, line and field.
func (p *Place) where(field string) string {
	return at(p.file, p.Line(field), join(p.path, field))
}

// placeOf is file, line and field; of a field that the file does not have it is the object.
func (p *Place) placeOf(field string) string {
	if !p.Has(field) {
		field = ""
	}
	return p.where(field)
}

func (p *Place) errorf(field, format string, a ...any) error {
	return fmt.Errorf("%s: %w", p.where(field), fmt.Errorf(format, a...))
}

func at(file string, line int, path string) string {
	if path == "" {
		return fmt.Sprintf("%s:%d", file, line)
	}
	return fmt.Sprintf("%s:%d: %s", file, line, path)
}

func join(path, field string) string {
	if path == "" || field == "" {
		return path + field
	}
	return path + "." + field
}

// Size is a number of places in a map: not 0.
type Size uint32

// Duration is at least a second.
type Duration time.Duration

// MAC is the address of one station.
type MAC [6]byte

func (m MAC) String() string { return net.HardwareAddr(m[:]).String() }

// Track says which flows are followed.
type Track string

// Tracks.
const (
	TrackChanges Track = "changes"
	TrackAll     Track = "all"
)
