package ipvsadm

import (
	"fmt"
	"io"
	"net/netip"
	"time"
)

// Printer prints listings. What is nil prints numbers.
type Printer struct {
	io.Writer
	Addr func(netip.Addr) string
	Port func(uint16, Protocol) string
}

// banner is the first line of a listing of all services. The size is that of IPVS's
// table of connections: nothing here is of that size, and scripts have always read this.
const banner = "IP Virtual Server version 1.2.1 (size=4096)"

// The rest of the head of each kind of listing.
var heads = map[Kind]string{
	Rules: "Prot LocalAddress:Port Scheduler Flags\n" +
		"  -> RemoteAddress:Port           Forward Weight ActiveConn InActConn\n",
	Stats: "Prot LocalAddress:Port               Conns   InPkts  OutPkts  InBytes OutBytes\n" +
		"  -> RemoteAddress:Port\n",
	Rates: "Prot LocalAddress:Port                 CPS    InPPS   OutPPS    InBPS   OutBPS\n" +
		"  -> RemoteAddress:Port\n",
	Thresholds: "Prot LocalAddress:Port            Uthreshold Lthreshold ActiveConn InActConn \n" +
		"  -> RemoteAddress:Port\n",
	PersistentConns: "Prot LocalAddress:Port            Weight    PersistConn ActiveConn InActConn \n" +
		"  -> RemoteAddress:Port\n",
}

// All lists a table.
func (p Printer) All(t Table, l Listing) {
	fmt.Fprintln(p, banner)
	p.Some(t, l)
}

// Some lists the services that were asked for, without the banner.
func (p Printer) Some(t Table, l Listing) {
	fmt.Fprint(p, heads[l.Kind])
	for i := range t {
		p.service(&t[i], l)
	}
}

func (p Printer) service(s *Service, l Listing) {
	name := s.Proto.String() + "  " + p.place(s.At, s.Proto)
	if s.mark != 0 {
		name = fmt.Sprintf("%s  %d", s.Proto, s.mark)
	}
	if l.Kind == Stats || l.Kind == Rates {
		fmt.Fprintf(p, "%-33s%s\n", name, s.Figures.columns(l.Exact))
	} else {
		fmt.Fprintf(p, "%s %s\n", name, s.properties())
	}
	for i := range s.Servers {
		p.server(&s.Servers[i], s.Proto, l)
	}
}

func (s *Service) properties() string {
	text := s.Name
	if flags := s.flags(); flags != "" {
		text += " (" + flags + ")"
	}
	if s.Persistent != 0 {
		text += fmt.Sprintf(" persistent %d", s.Persistent)
		if s.maskBits() != s.At.Addr().BitLen() {
			text += " mask " + dotted(s.At.Addr(), s.maskBits())
		}
	}
	if s.OnePacket {
		text += " ops"
	}
	return text
}

// nameWidth is the column of a server's name.
const nameWidth = 28

func (p Printer) server(r *Server, proto Protocol, l Listing) {
	name := p.place(r.At, proto)
	if r.At.Addr().Is4() {
		name = name[:min(len(name), nameWidth)] // of names, IPv6 ones push the columns
	}
	fmt.Fprintf(p, "  -> %-*s", nameWidth, name)
	switch l.Kind {
	case Stats, Rates:
		fmt.Fprintf(p, "%s\n", r.Figures.columns(l.Exact))
	case Thresholds:
		fmt.Fprintf(p, " %-10d %-10d %-10s %-10s\n", r.Upper, r.Lower, r.Active, r.Inactive)
	case PersistentConns:
		fmt.Fprintf(p, " %-9d %-11s %-10s %-10s\n", r.Weight, r.Sticky, r.Active, r.Inactive)
	default:
		fmt.Fprintf(p, " %-7s %-6d %-10s %-10s\n", r.Forward, r.Weight, r.Active, r.Inactive)
	}
}

func (p Printer) place(at netip.AddrPort, proto Protocol) string {
	text := at.Addr().String()
	if p.Addr != nil {
		text = p.Addr(at.Addr())
	}
	if at.Addr().Is6() {
		text = "[" + text + "]"
	}
	if p.Port != nil {
		return text + ":" + p.Port(at.Port(), proto)
	}
	return fmt.Sprintf("%s:%d", text, at.Port())
}

func (f Figures) columns(exact bool) (text string) {
	for _, n := range []uint64{f.Connections, f.InPackets, f.OutPackets, f.InBytes, f.OutBytes} {
		text += figure(n, exact)
	}
	return text
}

// figure fits a number into its column unless it must be exact.
func figure(n uint64, exact bool) string {
	switch {
	case exact:
		return fmt.Sprintf(" %8d", n)
	case n < 1e8:
		return fmt.Sprintf("%9d", n)
	case n < 1e9:
		return fmt.Sprintf("%8dK", n/1e3)
	case n < 1e11:
		return fmt.Sprintf("%8dM", n/1e6)
	case n < 1e14:
		return fmt.Sprintf("%8dG", n/1e9)
	}
	return fmt.Sprintf("%8dT", n/1e12)
}

// Connection is one line of -L -c.
type Connection struct {
	Key
	Client, Server netip.AddrPort
	State          string
	Expires        time.Duration
}

// Connections lists connections.
func (p Printer) Connections(all []Connection) {
	fmt.Fprint(p, "IPVS connection entries\npro expire state       source             virtual            destination\n")
	for _, c := range all {
		fmt.Fprintf(p, "%-3s %-6s %-11s %-18s %-18s %s\n", c.Proto, clock(c.Expires), c.State,
			p.place(c.Client, c.Proto), p.place(c.At, c.Proto), p.place(c.Server, c.Proto))
	}
}

// Timeouts lists them.
func (p Printer) Timeouts(tcp, tcpfin, udp time.Duration) {
	fmt.Fprintf(p, "Timeout (tcp tcpfin udp): %d %d %d\n", int(tcp.Seconds()), int(tcpfin.Seconds()), int(udp.Seconds()))
}
