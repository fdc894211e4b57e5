package ipvsadm

import (
	"fmt"
	"strings"
)

// UsageError is a command line that means nothing, or nothing here.
type UsageError struct{ error }

func usagef(format string, a ...any) error { return UsageError{fmt.Errorf(format, a...)} }

// takes says whether an option has an argument.
type takes uint8

const (
	nothing takes = iota
	something
	maybe // an argument, unless what follows is an option
)

// option is one that ipvsadm has.
type option struct {
	short byte // 0: none
	long  string
	takes takes
}

// name is how it is written, short if it can be.
func (o *option) name() string {
	if o.short != 0 {
		return "-" + string(o.short)
	}
	return "--" + o.long
}

// options are ipvsadm's, and ours at the end.
var options = []option{
	{'A', "add-service", nothing}, {'E', "edit-service", nothing}, {'D', "delete-service", nothing},
	{'C', "clear", nothing}, {'R', "restore", nothing}, {'S', "save", nothing},
	{'a', "add-server", nothing}, {'e', "edit-server", nothing}, {'d', "delete-server", nothing},
	{'L', "list", nothing}, {'l', "list", nothing}, {'Z', "zero", nothing}, {0, "set", nothing},
	{'h', "help", nothing}, {'v', "version", nothing},
	{0, "start-daemon", something}, {0, "stop-daemon", something},

	{'t', "tcp-service", something}, {'u', "udp-service", something}, {0, "sctp-service", something},
	{'f', "fwmark-service", something}, {'6', "ipv6", nothing},
	{'s', "scheduler", something}, {'b', "sched-flags", something}, {'p', "persistent", maybe},
	{'M', "netmask", something}, {'o', "ops", nothing}, {0, "pe", something},
	{'r', "real-server", something}, {'g', "gatewaying", nothing}, {'i', "ipip", nothing},
	{'m', "masquerading", nothing}, {'w', "weight", something},
	{'x', "u-threshold", something}, {'y', "l-threshold", something},
	{0, "tun-type", something}, {0, "tun-port", something}, {0, "tun-nocsum", nothing},
	{0, "tun-csum", nothing}, {0, "tun-remcsum", nothing},
	{0, "mcast-interface", something}, {0, "syncid", something},

	{'n', "numeric", nothing}, {'c', "connection", nothing}, {0, "timeout", nothing},
	{0, "daemon", nothing}, {0, "stats", nothing}, {0, "rate", nothing}, {0, "exact", nothing},
	{0, "thresholds", nothing}, {0, "persistent-conn", nothing}, {0, "tun-info", nothing},
	{0, "sort", nothing}, {0, "nosort", nothing},

	{0, "fullnat", nothing}, {0, "handover", something}, {0, "pins", something},
}

func shortOption(c byte) *option {
	for i := range options {
		if options[i].short == c {
			return &options[i]
		}
	}
	return nil
}

func longOption(name string) *option {
	for i := range options {
		if options[i].long == name {
			return &options[i]
		}
	}
	return nil
}

// given is an option as it was given.
type given struct {
	*option
	value string
	has   bool // an argument
}

// scan takes a command line apart: short options may be bundled, the last one of
// a bundle may have its argument right behind it; what belongs to no option is rest.
func scan(args []string) (all []given, rest []string, err error) {
	for len(args) > 0 {
		arg := args[0]
		args = args[1:]
		switch {
		case arg == "--":
			return all, append(rest, args...), nil
		case strings.HasPrefix(arg, "--"):
			name, value, has := strings.Cut(arg[2:], "=")
			o := longOption(name)
			if o == nil {
				return nil, nil, usagef("%s: no such option; see: ipvsadm --help", arg)
			}
			g := given{o, value, has}
			if has && o.takes == nothing {
				return nil, nil, usagef("--%s: takes no argument", name)
			}
			if !has {
				args = g.argument(args)
			}
			all = append(all, g)
		case len(arg) > 1 && arg[0] == '-':
			bundle, left, err := scanBundle(arg[1:], args)
			if err != nil {
				return nil, nil, err
			}
			all, args = append(all, bundle...), left
		default:
			rest = append(rest, arg)
		}
	}
	for _, g := range all {
		if g.takes == something && !g.has {
			return nil, nil, usagef("%s: wants an argument; see: ipvsadm --help", g.name())
		}
	}
	return all, rest, nil
}

func scanBundle(letters string, args []string) (all []given, left []string, err error) {
	for i := range len(letters) {
		o := shortOption(letters[i])
		if o == nil {
			return nil, nil, usagef("-%c: no such option; see: ipvsadm --help", letters[i])
		}
		g := given{option: o}
		if o.takes == nothing {
			all = append(all, g)
			continue
		}
		if g.value = letters[i+1:]; g.value != "" {
			g.value, g.has = strings.TrimPrefix(g.value, "="), true
		} else {
			args = g.argument(args)
		}
		return append(all, g), args, nil
	}
	return all, args, nil
}

// argument takes the next of args, if the option wants it.
func (g *given) argument(args []string) []string {
	if g.takes == nothing || len(args) == 0 || g.takes == maybe && strings.HasPrefix(args[0], "-") {
		return args
	}
	g.value, g.has = args[0], true
	return args[1:]
}
