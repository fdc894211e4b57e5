package ipvsadm

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/xdplb/xdplb/cmd/xdplb/internal/shell"
)

// Do changes the table as a command says; after an error it is unchanged. Notes are
// lines for people, about what is not as they may think.
func (t *Table) Do(c Command) (notes []string, err error) {
	switch c.Action {
	case Clear:
		*t = nil
		return nil, nil
	case AddService:
		return t.addService(c)
	}
	s := t.Find(*c.Service)
	if s == nil {
		return nil, fmt.Errorf("%s: no such service; add it with -A, ipvsadm -Ln shows those there are", c.Service)
	}
	switch c.Action {
	case EditService:
		return t.editService(s, c)
	case DeleteService:
		*t = slices.DeleteFunc(*t, func(s Service) bool { return s.Key == *c.Service })
		return nil, nil
	case AddServer:
		return s.addServer(c)
	case EditServer:
		return s.editServer(c)
	}
	r := c.Server(s.At)
	if s.Server(r) == nil {
		return nil, s.noServer(r)
	}
	s.Servers = slices.DeleteFunc(s.Servers, func(o Server) bool { return o.At == r })
	return nil, nil
}

// Again is Do for a file that may have been restored in part before: what is there
// already, and the same, is no error.
func (t *Table) Again(c Command) (notes []string, err error) {
	if c.Action != AddService && c.Action != AddServer {
		return t.Do(c)
	}
	s := t.Find(*c.Service)
	if s == nil {
		return t.Do(c)
	}
	if c.Action == AddService {
		wanted := Service{Key: s.Key}
		if err := wanted.edit(&c); err != nil || !wanted.Same(s) {
			return t.Do(c)
		}
		return nil, nil
	}
	wanted, _, err := s.newServer(c)
	there := s.Server(wanted.At)
	if err == nil && there != nil && there.Weight == wanted.Weight &&
		(there.Forward == wanted.Forward || there.Forward == Local && wanted.Forward == Route) {
		return nil, nil
	}
	return t.Do(c)
}

// existsError says that what shall be added is there, and not the same.
type existsError struct{ error }

func (t *Table) addService(c Command) ([]string, error) {
	if t.Find(*c.Service) != nil {
		return nil, existsError{fmt.Errorf("%s: exists; change it with -E", c.Service)}
	}
	s := Service{Key: *c.Service}
	if err := s.edit(&c); err != nil {
		return nil, err
	}
	*t = append(*t, s)
	return s.note(), nil
}

func (t *Table) editService(s *Service, c Command) ([]string, error) {
	next := *s
	if err := next.edit(&c); err != nil {
		return nil, err
	}
	before := *s
	*s = next
	if s.Scheduling == before.Scheduling {
		return nil, nil
	}
	return append(s.note(), s.noteWeights()...), nil
}

func (s *Service) note() []string {
	if note := s.Scheduling.Note(); note != "" {
		return []string{note}
	}
	return nil
}

// edit sets what a command names, and of a new service also the rest.
func (s *Service) edit(c *Command) error {
	if s.Name == "" {
		s.Name = Default
	}
	if c.Scheduler != nil && *c.Scheduler != s.Name {
		s.Name, s.Fallback, s.Port = *c.Scheduler, false, false
	}
	if c.Flags != nil {
		if err := s.setFlags(*c.Flags); err != nil {
			return err
		}
	}
	s.OnePacket = s.OnePacket || c.OnePacket
	if c.Persistent != nil {
		s.Persistent = *c.Persistent
	}
	if c.MaskBits != nil {
		s.MaskBits = *c.MaskBits
	}
	if s.Persistent == 0 {
		s.MaskBits = 0
		if c.MaskBits != nil {
			return usagef("-M: only of persistent services; add -p SECONDS")
		}
	}
	return nil
}

// Server is the server that a command names; without a port it has its service's.
func (c *Command) Server(service netip.AddrPort) netip.AddrPort {
	if c.Port == nil {
		return netip.AddrPortFrom(c.Host, service.Port())
	}
	return netip.AddrPortFrom(c.Host, *c.Port)
}

func (s *Service) noServer(r netip.AddrPort) error {
	return fmt.Errorf("%s: no such server; add it with -a, ipvsadm -Ln shows those there are", at(s.Key, r))
}

// newServer is what -a adds.
func (s *Service) newServer(c Command) (Server, []string, error) {
	r := Server{At: c.Server(s.At), Weight: 1}
	if c.Weight != nil {
		r.Weight = *c.Weight
	}
	if c.Forward != nil {
		r.Forward = *c.Forward
	}
	if !r.Forward.keepsPort() || r.At.Port() == s.At.Port() {
		return r, nil, nil
	}
	// As ipvsadm does, which does not say so.
	wanted := Server{At: r.At, Forward: Masq, Weight: r.Weight}
	r.At = netip.AddrPortFrom(c.Host, s.At.Port())
	note := fmt.Sprintf("-r %s: %s keeps the port, so it is %d as the service's; for another use -m: xdplb ipvsadm %s && xdplb ipvsadm %s",
		wanted.At, r.Forward.Option(), s.At.Port(), quoted(r.Rule(DeleteServer, s.Key)), quoted(wanted.Rule(AddServer, s.Key)))
	return r, []string{note}, nil
}

func (s *Service) addServer(c Command) ([]string, error) {
	r, notes, err := s.newServer(c)
	if err != nil {
		return nil, err
	}
	if s.Server(r.At) != nil {
		return nil, existsError{fmt.Errorf("%s: exists; change it with -e", at(s.Key, r.At))}
	}
	s.Servers = append(s.Servers, r)
	return append(notes, s.noteWeights()...), nil
}

// quoted is a rule as a shell takes it.
func quoted(rule string) string { return shell.Quote(strings.Fields(rule)...) }

// editServer changes only what the command names: ipvsadm makes of the rest what a
// new server has, and so a NAT server becomes one of direct routing.
func (s *Service) editServer(c Command) ([]string, error) {
	r := s.Server(c.Server(s.At))
	if r == nil {
		return nil, s.noServer(c.Server(s.At))
	}
	if c.Forward != nil && *c.Forward != r.Forward && !(r.Forward == Local && *c.Forward == Route) {
		if c.Forward.keepsPort() && r.At.Port() != s.At.Port() {
			next := Server{At: netip.AddrPortFrom(r.At.Addr(), s.At.Port()), Forward: *c.Forward, Weight: r.Weight}
			if c.Weight != nil {
				next.Weight = *c.Weight
			}
			return nil, fmt.Errorf("%s: %s keeps the port, and the service's is %d; delete it, and add it with that port: xdplb ipvsadm %s && xdplb ipvsadm %s",
				at(s.Key, r.At), c.Forward.Option(), s.At.Port(), quoted(r.Rule(DeleteServer, s.Key)), quoted(next.Rule(AddServer, s.Key)))
		}
		r.Forward = *c.Forward
	}
	if c.Weight == nil {
		return nil, nil
	}
	before := s.noteWeights()
	r.Weight = *c.Weight
	if notes := s.noteWeights(); before == nil {
		return notes, nil
	}
	return nil, nil
}

// noteWeights: weights count in every scheduler here.
func (s *Service) noteWeights() []string {
	if !s.sharedAlike() {
		return nil
	}
	weight := uint16(0)
	for _, r := range s.Servers {
		if r.Weight != 0 && weight != 0 && r.Weight != weight {
			return []string{fmt.Sprintf("-s %s: weights count here, as with -s w%[1]s; for equal shares give equal weights", s.Name)}
		}
		weight = max(weight, r.Weight)
	}
	return nil
}
