package ipvsadm

import (
	"net/netip"
	"slices"
	"strings"
	"time"
)

// Action is what a command line asks for: the letter of its option.
type Action byte

// Actions. That of no arguments is List.
const (
	List          Action = 'L'
	Save          Action = 'S'
	Restore       Action = 'R'
	Zero          Action = 'Z'
	Clear         Action = 'C'
	SetTimeouts   Action = 's'
	EditService   Action = 'E'
	DeleteService Action = 'D'
	DeleteServer  Action = 'd'
	Help          Action = 'h'
	Version       Action = 'v'
	AddService    Action = 'A'
	EditServer    Action = 'e'
	AddServer     Action = 'a'
)

// Changes reports whether it changes the table or what belongs to it.
func (a Action) Changes() bool { return !slices.Contains([]Action{List, Save, Help, Version}, a) }

// Name is how the action is asked for.
func (a Action) Name() string {
	if a == SetTimeouts {
		return "--set"
	}
	return "-" + string(a)
}

// Command is a command line. What is nil was not named.
type Command struct {
	Action  Action
	Service *Key

	Scheduler  *string
	Flags      *string
	Persistent *uint32 // seconds; 0: not any more
	MaskBits   *int
	OnePacket  bool
	Handover   time.Duration

	Host    netip.Addr // of the server
	Port    *uint16
	Forward *Forward
	Weight  *uint16

	Listing  Listing
	Timeouts [3]time.Duration // tcp, tcpfin, udp; 0 keeps
	Pins     string
}

// Listing is what a listing shows, and how.
type Listing struct {
	Kind    Kind
	Exact   bool
	Numeric bool
}

// Kind is which of ipvsadm's listings it is.
type Kind uint8

// Kinds of listings.
const (
	Rules Kind = iota
	Stats
	Rates
	Thresholds
	PersistentConns
	Connections
	TimeoutValues
)

// Resolver finds what names stand for; what is nil knows none.
type Resolver struct {
	Addr func(host string) (netip.Addr, error)
	Port func(service string, p Protocol) (uint16, error)
}

// refused are options whose work is done otherwise here, or not at all.
var refused = map[string]string{
	"fwmark-service":  "no firewall marks in XDP; use one -t or -u service for each address and port, or port 0 for every port",
	"sctp-service":    "only TCP and UDP; leave SCTP services to IPVS, whose packets pass",
	"pe":              "no persistence engines; use -p, or -s sh for one server per client address",
	"start-daemon":    "connections are not copied between balancers; give both the same --hash-key, see: xdplb attach --help",
	"stop-daemon":     "there is no sync daemon; balancers with the same --hash-key choose alike",
	"daemon":          "there is no sync daemon; balancers with the same --hash-key choose alike",
	"mcast-interface": "there is no sync daemon; balancers with the same --hash-key choose alike",
	"syncid":          "there is no sync daemon; balancers with the same --hash-key choose alike",
	"u-threshold":     "no connection limits yet; leave it out, and give busy servers less weight with -w",
	"l-threshold":     "no connection limits yet; leave it out, and give busy servers less weight with -w",
	"tun-port":        "tunnels are IP in IP, which has no ports; leave it out",
	"tun-csum":        "tunnels are IP in IP, which has no checksum of its own; leave it out",
	"tun-remcsum":     "tunnels are IP in IP, which has no checksum of its own; leave it out",
}

// allowed are the options of each action.
var allowed = map[Action][]string{
	AddService:   {"scheduler", "sched-flags", "persistent", "netmask", "ops", "handover"},
	EditService:  {"scheduler", "sched-flags", "persistent", "netmask", "ops"},
	AddServer:    {"real-server", "gatewaying", "ipip", "masquerading", "fullnat", "weight", "tun-type", "tun-nocsum"},
	EditServer:   {"real-server", "gatewaying", "ipip", "masquerading", "fullnat", "weight", "tun-type", "tun-nocsum"},
	DeleteServer: {"real-server"},
	Clear:        {"handover"},
	Restore:      {"handover"},
	List:         {"connection", "timeout", "stats", "rate", "exact", "thresholds", "persistent-conn", "tun-info", "sort", "nosort"},
	Save:         {"sort", "nosort"},
}

// wantService are the actions that are about a service; those of mayService may be.
const (
	wantService = "AEDaed"
	mayService  = "LZ"
	wantServer  = "aed"
)

// Parse reads a command line, without the program's name. Errors are UsageErrors.
func Parse(args []string, names Resolver) (Command, error) {
	c := Command{Action: List}
	all, rest, err := scan(args)
	if err != nil {
		return c, err
	}
	if err := c.takeAction(all); err != nil {
		return c, err
	}
	if c.Action == Help || c.Action == Version {
		return c, nil
	}
	for _, g := range all {
		if err := c.take(g, names); err != nil {
			return c, err
		}
	}
	if c.Action == SetTimeouts {
		return c, c.takeTimeouts(rest)
	}
	if len(rest) > 0 {
		return c, usagef("%s: belongs to no option; see: ipvsadm --help", rest[0])
	}
	return c, c.check()
}

// actionOf is the action that an option asks for, or 0.
func actionOf(o *option) Action {
	switch {
	case o.long == "list":
		return List
	case o.long == "set":
		return SetTimeouts
	case o.short != 0 && strings.IndexByte("AEDCRSaedZhv", o.short) >= 0:
		return Action(o.short)
	}
	return 0
}

func (c *Command) takeAction(all []given) error {
	var found []string
	for _, g := range all {
		if mend, no := refused[g.long]; no {
			return usagef("%s: %s", strings.TrimSpace(g.name()+" "+g.value), mend)
		}
		if a := actionOf(g.option); a != 0 {
			found = append(found, g.name())
			c.Action = a
		}
	}
	if len(found) > 1 {
		return usagef("%s and %s: two commands; give one", found[0], found[1])
	}
	if len(found) == 0 && slices.ContainsFunc(all, func(g given) bool { return g.long != "pins" }) {
		return usagef("no command; begin with one of -A -E -D -a -e -d -C -R -S -L -Z --set, see: ipvsadm --help")
	}
	return nil
}

// always are options that every action takes.
var always = []string{"numeric", "pins", "ipv6"}

// take is given one option after the other.
func (c *Command) take(g given, names Resolver) (err error) {
	switch {
	case actionOf(g.option) != 0:
		return nil
	case g.long == "tcp-service" || g.long == "udp-service":
		return c.takeService(g, names)
	case !slices.Contains(always, g.long) && !slices.Contains(allowed[c.Action], g.long):
		return usagef("%s: not with %s; see: ipvsadm --help", g.name(), c.Action.Name())
	}
	switch g.long {
	case "numeric":
		c.Listing.Numeric = true
	case "pins":
		c.Pins = g.value
	case "scheduler":
		c.Scheduler, err = &g.value, checkScheduler(g.value)
	case "sched-flags":
		c.Flags = &g.value
	case "persistent":
		c.Persistent, err = parsePersistent(g)
	case "netmask":
		c.MaskBits, err = parseMask(g.value)
	case "ops":
		c.OnePacket = true
	case "handover":
		c.Handover, err = parseHandover(g.value)
	case "real-server":
		err = c.takeServer(g, names)
	case "weight":
		c.Weight, err = parseWeight(g.value)
	case "tun-type":
		if g.value != "ipip" {
			err = usagef("--tun-type %s: tunnels are IP in IP; use --tun-type ipip", g.value)
		}
	case "gatewaying", "ipip", "masquerading", "fullnat":
		err = c.takeForward(g)
	default:
		err = c.Listing.take(g)
	}
	return err
}

func (c *Command) takeForward(g given) error {
	if c.Forward != nil {
		return usagef("%s and %s: two ways of forwarding; give one", c.Forward.Option(), g.name())
	}
	way := map[string]Forward{"gatewaying": Route, "ipip": Tunnel, "masquerading": Masq, "fullnat": FullNat}[g.long]
	c.Forward = &way
	return nil
}

func (l *Listing) take(g given) error {
	kind, shows := map[string]Kind{
		"connection": Connections, "timeout": TimeoutValues, "stats": Stats, "rate": Rates,
		"thresholds": Thresholds, "persistent-conn": PersistentConns,
	}[g.long]
	switch {
	case g.long == "exact":
		l.Exact = true
	case shows && l.Kind != Rules && l.Kind != kind:
		return usagef("%s: not with another kind of listing; give one", g.name())
	case shows:
		l.Kind = kind
	}
	return nil
}

func (c *Command) takeService(g given, names Resolver) error {
	if c.Service != nil {
		return usagef("%s %s: a second service; give one", g.name(), g.value)
	}
	if strings.IndexByte(wantService+mayService, byte(c.Action)) < 0 {
		return usagef("%s: not with %s; see: ipvsadm --help", g.name(), c.Action.Name())
	}
	k := Key{Proto: TCP}
	if g.long == "udp-service" {
		k.Proto = UDP
	}
	addr, port, err := parseHost(g, k.Proto, names)
	if err != nil {
		return err
	}
	if port != nil {
		k.At = netip.AddrPortFrom(addr, *port)
	} else {
		k.At = netip.AddrPortFrom(addr, 0)
	}
	if port == nil && c.Action == AddService {
		return usagef("%s %s: names no port; use %s, or port 0 for every port", g.name(), g.value, netip.AddrPortFrom(addr, 80))
	}
	c.Service = &k
	return nil
}

func (c *Command) takeServer(g given, names Resolver) error {
	if c.Host.IsValid() {
		return usagef("-r %s: a second server; give one", g.value)
	}
	proto := TCP
	if c.Service != nil {
		proto = c.Service.Proto
	}
	var err error
	c.Host, c.Port, err = parseHost(g, proto, names)
	return err
}

// check finds what is missing or does not go together.
func (c *Command) check() error {
	letter := byte(c.Action)
	switch {
	case c.Service == nil && strings.IndexByte(wantService, letter) >= 0:
		return usagef("%s: names no service; add -t ADDR:PORT or -u ADDR:PORT", c.Action.Name())
	case !c.Host.IsValid() && strings.IndexByte(wantServer, letter) >= 0:
		return usagef("%s %s: names no server; add -r ADDR[:PORT]", c.Action.Name(), c.Service)
	case c.OnePacket && c.Service.Proto != UDP:
		return usagef("-o %s: only of UDP services; leave it out, or use -u", c.Service)
	}
	if c.MaskBits != nil && *c.MaskBits > c.Service.At.Addr().BitLen() {
		return usagef("-M %d: %s has %d bits; use 1 to %[3]d", *c.MaskBits, c.Service.At.Addr(), c.Service.At.Addr().BitLen())
	}
	if c.Action == AddService {
		if c.MaskBits != nil && c.Persistent == nil {
			return usagef("-M: only of persistent services; add -p SECONDS")
		}
		s := Service{Key: *c.Service}
		return s.edit(c)
	}
	return nil
}
