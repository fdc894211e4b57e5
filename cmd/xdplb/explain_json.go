package main

import (
	"fmt"
	"net"
	"net/netip"

	"github.com/xdplb/xdplb/bpf"
	"github.com/xdplb/xdplb/loader"
	"github.com/xdplb/xdplb/maps"
)

type explanationJSON struct {
	Packet  packetJSON       `json:"packet"`
	VIP     *explainedVIP    `json:"vip"`
	Slot    *slotJSON        `json:"slot"`
	Pin     *pinJSON         `json:"pin"`
	Backend *explainedJSON   `json:"backend"`
	Source  *sourceJSON      `json:"source"`
	Hop     *hopJSON         `json:"next_hop"`
	Before  headerJSON       `json:"before"`
	After   *headerJSON      `json:"after"`
	Verdict string           `json:"verdict"`
	Reset   bool             `json:"reset"`
	Detail  string           `json:"detail"`
	Mend    string           `json:"mend"`
	SYN     *explanationJSON `json:"syn"` // a SYN instead, where it ends otherwise
}

type packetJSON struct {
	Client    string `json:"source"`
	VIP       string `json:"destination"`
	Proto     string `json:"proto"`
	SYN       bool   `json:"syn"`
	Reply     bool   `json:"reply"`
	Interface string `json:"interface"`
}

type explainedVIP struct {
	VIP       string `json:"vip"`
	AnyPort   bool   `json:"any_port"`
	Scheduler string `json:"scheduler"`
	TableSize uint32 `json:"table_size"`
}

type slotJSON struct {
	Index  uint32 `json:"index"`
	Hash   string `json:"hash"`
	Moving bool   `json:"moving"`
	Looked bool   `json:"flows_looked_up"`
	Why    string `json:"why"`
}

type pinJSON struct {
	Table    string  `json:"table"`
	State    string  `json:"state"`
	Backend  *string `json:"backend"` // null: gone
	Idle     float64 `json:"idle_seconds"`
	Expires  float64 `json:"expires_seconds"` // below 0: expired
	Twin     *string `json:"twin"`            // there, gone, other; null: it has none, or was not asked
	Followed bool    `json:"followed"`
	Why      string  `json:"why_not"`
}

type explainedJSON struct {
	Backend  string     `json:"backend"`
	Mode     string     `json:"mode"`
	Weight   uint16     `json:"weight"`
	Draining bool       `json:"draining"`
	Listed   bool       `json:"listed"`
	Local    bool       `json:"local"`
	By       string     `json:"chosen_by"`
	Loads    []loadJSON `json:"loads,omitempty"`
}

type loadJSON struct {
	Backend string `json:"backend"`
	Flows   uint64 `json:"flows"`
	Weight  uint16 `json:"weight"`
}

type sourceJSON struct {
	Address   *string  `json:"address"` // null: drawn at random, or none
	First     *string  `json:"first"`
	Addresses []string `json:"addresses"`
	Ports     string   `json:"ports"`
	Adopted   bool     `json:"adopted"`
}

type hopJSON struct {
	Interface string `json:"interface"`
	MAC       string `json:"mac"`
	VLAN      string `json:"vlan"`
	MTU       int    `json:"mtu"`
	Resolved  bool   `json:"resolved"`
}

type headerJSON struct {
	Source      *string `json:"source"` // null: drawn at random
	Destination string  `json:"destination"`
	SourceMAC   string  `json:"source_mac,omitempty"`
	MAC         string  `json:"destination_mac,omitempty"`
	Outer       *string `json:"outer_source,omitempty"`
	OuterTo     *string `json:"outer_destination,omitempty"`
}

func (t told) json(opens *loader.Explanation) *explanationJSON {
	j := &explanationJSON{
		Packet: packetJSON{t.Source().String(), t.Destination().String(), maps.ProtoName(t.Proto), t.SYN, t.Reply, t.arrives},
		Before: headerJSON{Source: valid(t.Source()), Destination: t.Destination().String()},
		Pin:    t.pinJSON(), Backend: t.backendJSON(), Source: t.sourceJSON(),
		Verdict: t.reasons[t.Reason], Reset: t.Reset, Detail: t.Detail, Mend: t.Mend,
	}
	if v := t.VIP; v != nil {
		j.VIP = &explainedVIP{v.VIP.String(), t.AnyPort, v.InUse().Scheduler.String(), v.TableSize}
	}
	if s := t.Slot; s != nil {
		j.Slot = &slotJSON{s.Index, fmt.Sprintf("%016x", s.Hash), s.Moving, s.Looked, s.Why}
	}
	if h := t.Hop; h != nil {
		j.Hop = &hopJSON{h.Interface, net.HardwareAddr(h.MAC.Mac[:]).String(), vlanText(h.MAC.Vlan), h.MTU, h.Resolved}
	}
	if h := t.After; h != nil {
		j.After = &headerJSON{
			Source: valid(h.Src), Destination: h.Dst.String(),
			SourceMAC: loader.MAC(h.From).String(), MAC: net.HardwareAddr(h.To.Mac[:]).String(),
		}
		if h.OuterDst.IsValid() {
			from, to := h.OuterSrc.String(), h.OuterDst.String()
			j.After.Outer, j.After.OuterTo = &from, &to
		}
	}
	if opens != nil {
		j.SYN = told{opens, t.arrives, t.reasons}.json(nil)
	}
	return j
}

// valid is null for what is not known.
func valid(a netip.AddrPort) *string {
	if !a.IsValid() {
		return nil
	}
	text := a.String()
	return &text
}

func (t told) pinJSON() *pinJSON {
	p := t.Pin
	if p == nil {
		return nil
	}
	j := &pinJSON{
		Table: "flows", State: string(p.State), Idle: p.Idle.Seconds(), Expires: (p.Lifetime - p.Idle).Seconds(),
		Followed: p.Followed, Why: p.Why,
	}
	if p.HalfOpen {
		j.Table = "half_open"
	}
	if p.Backend != nil {
		j.Backend = valid(p.Backend.AddrPort())
	}
	if p.Twin != loader.TwinNone {
		twin := string(p.Twin)
		j.Twin = &twin
	}
	return j
}

func (t told) backendJSON() *explainedJSON {
	b := t.Backend
	if b == nil {
		return nil
	}
	j := &explainedJSON{
		Backend: b.AddrPort().String(), Mode: loader.Mode(b.Mode).String(), Weight: b.Weight,
		Draining: b.Has(bpf.XdplbBackendFlagBackendDrain) || b.Weight == 0,
		Listed:   !b.Has(bpf.XdplbBackendFlagBackendUnlisted), Local: t.Hop != nil && t.Hop.Local, By: "pin",
	}
	if t.Choice != nil {
		j.By = string(t.Choice.By)
		for _, l := range t.Choice.Loads {
			j.Loads = append(j.Loads, loadJSON{l.AddrPort().String(), l.Load, l.Weight})
		}
	}
	return j
}

func (t told) sourceJSON() *sourceJSON {
	c := t.Claim
	if c == nil {
		return nil
	}
	j := &sourceJSON{Address: valid(c.Source), First: valid(c.First), Addresses: []string{}, Ports: c.Ports.String(), Adopted: c.Adopted}
	for _, a := range c.Addresses {
		j.Addresses = append(j.Addresses, a.String())
	}
	return j
}
