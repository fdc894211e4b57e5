package main

import (
	"bytes"
	_ "embed"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/pflag"

	"github.com/xdplb/xdplb/loader"
)

func manCommands() []command {
	return []command{{name: "man", summary: "print the man page, xdplb(8), in roff", setup: noFlags(man)}}
}

// What the command table does not say. Lines that begin with a dot are requests.
const (
	manHead = `.SH NAME
xdplb \- layer-4 load balancer at the network card (XDP)
.SH SYNOPSIS
.B xdplb
.I command
.RI [ argument ...]
.RI [ flags ]
.SH DESCRIPTION
xdplb forwards TCP and UDP of virtual services (VIPs) to their backends, in an XDP program: with a new destination MAC (mode
.BR dr ),
in a tunnel
.RB ( tun ),
with the server's address
.RB ( nat ),
or with an address of the balancer in place of the client's, too
.RB ( fullnat ).
There is no daemon: once a command has returned, the kernel forwards by itself, from maps that are pinned in a BPF file system.
They are lost with a reboot;
.B xdplb save
writes what brings them back.
.PP
.I VIP
is
.IR ADDR : PORT [\fB/tcp\fR|\fB/udp\fR],
tcp if not said, IPv6 in brackets; port 0 is every port.
.I BACKEND
is
.IR ADDR [: PORT ],
the VIP's port if not said. A
.I DURATION
is written as 90s, 15m or 1h30m.
Changes are logged to syslog, with who made them.
`
	manTail = `.SH FILES
.TP
.I /etc/xdplb/xdplb.yaml
What
.B xdplb restore
restores at boot; written by
.BR "xdplb save" ,
or by hand. It has the secret hash key: keep its mode 0600.
.TP
.IR /etc/sysconfig/ipvsadm ", " /etc/ipvsadm.rules
What it restores if there is no such file: what
.B ipvsadm \-S
has written. The first that there is counts.
.TP
.I /sys/fs/bpf/xdplb
The pins: all state that there is.
.TP
.I xdplb.service
The systemd unit that restores at boot, before keepalived. Stopping or restarting it does not touch connections: the kernel goes on
forwarding. To end that:
.BR "xdplb detach \-\-all" .
.SH ENVIRONMENT
.TP
.B XDPLB_PINS
What
.B \-\-pins
is if it is not said.
.SH EXIT STATUS
.TP
.B 0
Done.
.TP
.B 1
Failed; one line on standard error names what mends it, and nothing was changed.
.TP
.B 2
Used wrongly.
.TP
.B 3
Of
.BR "xdplb doctor" :
warnings, and nothing worse.
`
	manSeeAlso = `.SH SEE ALSO
.BR ipvsadm (8),
.BR keepalived (8),
.BR ip (8),
.BR ethtool (8),
.BR systemctl (1)
`
)

// manExamples are command lines, each with what it does.
var manExamples = []struct{ line, what string }{
	{"xdplb attach eth0 --dry-run", "What would happen, and what of the hardware helps or hinders."},
	{"xdplb attach eth0", "Attach. The same, of a new version, upgrades in place."},
	{"xdplb vip add 192.0.2.10:80 --assign eth0", "A service, its address put on eth0."},
	{"xdplb backend add 192.0.2.10:80 192.0.2.11 192.0.2.12 --weight 2", "Two servers on the same network. On each of them, before:"},
	{"xdplb realserver accept 192.0.2.10 --mode dr --dev eth0", "Take packets for the service, and do not answer ARP for it."},
	{"xdplb stats --watch 1s", "Packets, bytes and connections a second."},
	{"xdplb drain 192.0.2.12 --wait 20m", "No new connections to this server; return when the last is gone."},
	{"xdplb save /etc/xdplb/xdplb.yaml", "Write it down for the next boot:"},
	{"systemctl enable xdplb", "Restore that file at boot, before keepalived."},
	{"xdplb apply /etc/xdplb/xdplb.yaml --dry-run", "How the balancer differs from the file."},
}

func man(e *env) error {
	var m manPage
	m.WriteString(".TH XDPLB 8 \"\" xdplb \"System Administration\"\n.nr HY 0\n.ad l\n") // words may be typed: no hyphens in them
	m.WriteString(manHead)
	m.WriteString(".SH COMMANDS\n")
	for _, c := range commands() {
		if !c.hidden {
			m.command(c)
		}
	}
	m.WriteString(".SH GLOBAL FLAGS\nEvery command takes\n.B --help\nand these.\n")
	flags := pflag.NewFlagSet("", pflag.ContinueOnError)
	globalFlags(flags)
	flags.Lookup("pins").DefValue = loader.DefaultPins // of whatever environment this runs in
	m.flags(flags)
	m.WriteString(manTail)
	m.WriteString(".SH EXAMPLES\n")
	for _, example := range manExamples {
		fmt.Fprintf(&m, ".TP\n.B %s\n%s\n", roff(example.line), roff(example.what))
	}
	m.WriteString(manSeeAlso)
	_, err := e.stdout.Write(m.Bytes())
	return err
}

// manPage is roff with the macros of man(7).
type manPage struct{ bytes.Buffer }

func (m *manPage) command(c command) {
	fmt.Fprintf(m, ".SS \"xdplb %s\"\n", roff(strings.TrimSpace(c.name+" "+c.args)))
	fmt.Fprintln(m, roff(sentence(c.summary)))
	m.text(c.more)
	if c.name == ipvsadmName {
		m.text("\n" + indented(ipvsadmHelp))
	}
	flags := pflag.NewFlagSet("", pflag.ContinueOnError)
	flags.SortFlags = false
	c.setup(flags)
	m.flags(flags)
}

// text sets paragraphs; what is indented stays as it is.
func (m *manPage) text(text string) {
	literal := false
	for line := range strings.Lines(text) {
		line = strings.TrimRight(line, "\n")
		if as := strings.HasPrefix(line, " "); as != literal && line != "" {
			literal = as
			m.WriteString(map[bool]string{true: ".PP\n.EX\n", false: ".EE\n"}[literal])
		}
		switch {
		case line == "" && !literal:
			m.WriteString(".PP\n")
		default:
			fmt.Fprintln(m, roff(line))
		}
	}
	if literal {
		m.WriteString(".EE\n")
	}
}

// manKinds are words for Go's types.
var manKinds = map[string]string{
	"string": "VALUE", "stringArray": "VALUE", "duration": "DURATION",
	"int": "N", "uint8": "N", "uint16": "N", "uint32": "N", "uint64": "N",
}

func (m *manPage) flags(flags *pflag.FlagSet) {
	flags.VisitAll(func(f *pflag.Flag) {
		if f.Hidden {
			return
		}
		kind, usage := pflag.UnquoteUsage(f)
		short := ""
		if f.Shorthand != "" {
			short = fmt.Sprintf(`\fB\-%s\fR, `, f.Shorthand)
		}
		if typed, ok := manKinds[kind]; ok {
			kind = typed
		}
		if kind != "" {
			kind = ` \fI` + roff(kind) + `\fR`
		}
		if !slices.Contains([]string{"", "0", "0s", "false", "[]"}, f.DefValue) {
			usage += " (default " + f.DefValue + ")"
		}
		fmt.Fprintf(m, ".TP\n%s\\fB\\-\\-%s\\fR%s\n%s\n", short, roff(f.Name), kind, roff(usage))
	})
}

// sentence begins with a capital letter and ends with a full stop.
func sentence(s string) string {
	s = strings.TrimSuffix(s, ".") + "."
	return strings.ToUpper(s[:1]) + s[1:]
}

func indented(text string) string {
	return "  " + strings.ReplaceAll(strings.TrimRight(text, "\n"), "\n", "\n  ") + "\n"
}

// roff makes a line of text one that roff prints as it is.
func roff(line string) string {
	line = strings.NewReplacer(`\`, `\e`, "-", `\-`, `"`, `\(dq`, "'", `\(aq`, "^", `\(ha`, "~", `\(ti`, "`", `\(ga`).Replace(line)
	if strings.HasPrefix(line, ".") {
		line = `\&` + line
	}
	return line
}
