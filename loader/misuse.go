package loader

import (
	"fmt"
	"net/netip"
	"strings"

	"github.com/xdplb/xdplb/maps"
)

// Misuse is an error that asking for something else would mend. Its text says how
// in words of the command line; who has other words, such as a file, makes them
// from the fields.
type Misuse struct {
	Problem string // the object, and what is wrong with it
	Advice  string // what to do, in words
	Command string // that does it, if one is known; behind the advice

	VIP     maps.VIP       // that it is about
	Backend netip.AddrPort // that does not fit it; none: the VIP itself

	Use     Mode // serves the backend; 0: the mode is not what is wrong
	Alone   bool // others that were named beside it want another mode
	NoPort  bool // the backend's port must be the VIP's
	Delete  bool // VIP is a backend of others, and must not be
	Loop    *maps.VIP
	Servers []WantedBackend // of Loop, that the VIP does not have
	Ports   *PortRange      // to send from, without the ports of VIPs
}

func (m *Misuse) Error() string {
	text := m.Problem + "; " + m.Advice
	if m.Command != "" {
		text += ": " + m.Command
	}
	return text
}

// misfit is a backend that a mode cannot serve, and another can.
func (c *change) misfit(at netip.AddrPort, use Mode, advice, format string, a ...any) *Misuse {
	return &Misuse{Problem: fmt.Sprintf(format, a...), Advice: advice, VIP: c.service.VIP, Backend: at, Use: use}
}

// suits finds a mode that serves all backends of one command, on the ways that there
// are to them. Without one, the mode that the misfit names is for that backend only.
func (c *change) suits(m *Misuse, at []netip.AddrPort, hops map[netip.Addr]Resolution) *Misuse {
	if m.NoPort {
		m.Alone = len(at) > 1
		return m
	}
	for _, mode := range []Mode{m.Use, ModeFullNAT, ModeTUN} {
		fits := true
		for _, a := range at {
			_, err := c.reach(a, mode, hops[a.Addr()])
			fits = fits && err == nil
		}
		if fits {
			m.Use = mode
			return m
		}
	}
	m.Alone = true
	return m
}

// loop is a backend that is a VIP; servers are that VIP's, and has tells those that
// the VIP has itself.
func (c *change) loop(at netip.AddrPort, other maps.VIP, servers []WantedBackend, has func(netip.AddrPort) bool) *Misuse {
	m := &Misuse{VIP: c.service.VIP, Backend: at, Loop: &other, Advice: "name its servers instead"}
	m.Problem = fmt.Sprintf("%s: a VIP of this balancer, so packets would go in circles", at)
	for _, s := range servers {
		if has(s.At) || Meets(s.At, c.service.VIP, c.service.Proto) {
			continue
		}
		if s.At.Port() != c.service.Port && !s.Mode.translates() {
			s.Mode = ModeFullNAT
		}
		m.Servers = append(m.Servers, s)
	}
	switch {
	case len(servers) == 0 && other != c.service.VIP:
		m.Advice, m.Command = "it has no servers; delete it, if it serves nothing", "xdplb vip del "+other.String()
	case len(m.Servers) == 0:
		m.Command = "xdplb backend list " + other.String()
	default:
		m.Command = addServers(m)
	}
	return m
}

// addServers are the commands that add what is behind the other VIP.
func addServers(m *Misuse) string {
	type way struct {
		mode   Mode
		weight uint16
	}
	var ways []way
	at := make(map[way][]string)
	for _, s := range m.Servers {
		w := way{s.Mode, s.Weight}
		if at[w] == nil {
			ways = append(ways, w)
		}
		at[w] = append(at[w], s.At.String())
	}
	commands := make([]string, len(ways))
	for i, w := range ways {
		commands[i] = fmt.Sprintf("xdplb backend add %s %s --mode %s", m.VIP, strings.Join(at[w], " "), w.mode)
		if w.weight != 1 {
			commands[i] += fmt.Sprintf(" --weight %d", w.weight)
		}
	}
	return strings.Join(commands, " && ")
}

// serversOf are the listed backends of a VIP.
func (b *Balancer) serversOf(id uint32) (all []WantedBackend) {
	for _, record := range b.Maps.ReadBackends(func(vip uint32) bool { return vip == id }) {
		if record.Listed() {
			all = append(all, WantedBackend{At: record.AddrPort(), Mode: Mode(record.Mode), Weight: record.Weight})
		}
	}
	return all
}
