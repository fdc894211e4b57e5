package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/pflag"

	"github.com/xdplb/xdplb/cmd/xdplb/internal/ipvsadm"
	"github.com/xdplb/xdplb/cmd/xdplb/internal/shell"
	"github.com/xdplb/xdplb/loader"
	"github.com/xdplb/xdplb/maps"
)

// ipvsadmName is the command, and the name of a link to this program that is it.
const ipvsadmName = "ipvsadm"

func ipvsadmCommands() []command {
	return []command{{
		name: ipvsadmName, args: "-A|-E|-D|-a|-e|-d|-C|-R|-S|-L|-Z|--set ...", max: -1,
		summary: "take ipvsadm's command line; a link of that name does the same", setup: noFlags(nil),
	}}
}

const ipvsadmHelp = `usage: ipvsadm -A|-E SERVICE [-s SCHEDULER] [-b FLAGS] [-p [SECONDS]] [-M NETMASK] [-o] [--handover DURATION]
       ipvsadm -D SERVICE
       ipvsadm -a|-e SERVICE -r HOST[:PORT] [-g|-i|-m|--fullnat] [-w WEIGHT]
       ipvsadm -d SERVICE -r HOST[:PORT]
       ipvsadm -L|-l [SERVICE] [-n] [-c|--stats|--rate|--thresholds|--persistent-conn|--timeout] [--exact] [--nosort]
       ipvsadm -C [--handover DURATION]   -S [-n]   -R [--handover DURATION]   -Z [SERVICE]   --set TCP TCPFIN UDP
SERVICE is -t HOST:PORT or -u HOST:PORT. Every command takes --pins DIR.

As ipvsadm 1.31, but: -E and -e change only what they name (-p 0 ends persistence), -R is all or nothing
(and no error if what it adds is there, the same), -S is numeric always, ActiveConn counts every connection
that a server may still have (- where connections are not followed), --nosort sorts all the same. --handover takes services
over from IPVS on this host, and with -C gives all back to it, without a connection lost. Schedulers: rr and wrr are rr,
lc, wlc, sed and nq are lc, mh is maglev, sh is source. --fullnat is the fourth way of forwarding.
`

// ipvsadmRun is one command line.
type ipvsadmRun struct {
	*env
	ipvsadm.Command
}

// runIpvsadm runs `xdplb [--pins DIR] ipvsadm ...`, whose options are ipvsadm's.
func runIpvsadm(arguments []string, stdout, stderr io.Writer) int {
	r := &ipvsadmRun{env: &env{stdout: stdout, stderr: stderr, typed: arguments}}
	err := r.parse(arguments)
	if words, ok := ipvsadm.Mended(r.args, err); ok {
		before := arguments[:len(arguments)-len(r.args)]
		err = fmt.Errorf("%w: %s", err, shell.Quote(slices.Concat([]string{"xdplb"}, before, words)...))
	}
	if err == nil {
		c := command{name: ipvsadmName, changes: r.Action.Changes()}
		if c.changes {
			goesOn(stdout)
		}
		err = r.mended(logged(r.env, c, func(*env) error { return r.run() }))
	}
	if err == nil {
		return saidAll(exitDone, stdout, stderr)
	}
	fmt.Fprintln(stderr, r.said(complaint(command{name: ipvsadmName}, nil, writable(err, r.pins))))
	if errors.As(err, new(usageError)) || errors.As(err, new(ipvsadm.UsageError)) {
		return exitUsage
	}
	return exitFailed
}

func (r *ipvsadmRun) parse(arguments []string) (err error) {
	name := slices.Index(arguments, ipvsadmName)
	flags := pflag.NewFlagSet(ipvsadmName, pflag.ContinueOnError)
	flags.SetOutput(io.Discard)
	pins, output := globalFlags(flags)
	if err := flags.Parse(arguments[:name]); err != nil {
		return usageError{err}
	}
	r.args = arguments[name+1:]
	if r.Command, err = ipvsadm.Parse(r.args, names()); err != nil {
		return err
	}
	if r.pins = *pins; r.Pins != "" {
		r.pins = r.Pins
	}
	if *output != "text" {
		return usagef("-o %s: these listings are ipvsadm's; for JSON use xdplb stats -o json", *output)
	}
	return r.check(command{max: -1}, *output)
}

func (r *ipvsadmRun) run() error {
	if r.Handover != 0 {
		if err := loader.CheckHandover(r.Handover); err != nil {
			return usageError{err}
		}
	}
	switch r.Action {
	case ipvsadm.Help:
		_, err := io.WriteString(r.stdout, ipvsadmHelp)
		return err
	case ipvsadm.Version:
		fmt.Fprint(r.stdout, "ipvsadm v1.31, as ")
		return version(r.env)
	case ipvsadm.List, ipvsadm.Save:
		return r.show()
	case ipvsadm.Zero:
		return r.zero()
	case ipvsadm.SetTimeouts:
		return r.setTimeouts()
	case ipvsadm.Restore:
		lines, err := ipvsadm.Read(os.Stdin, names())
		if err != nil {
			err = r.fileMended(fmt.Errorf("-R: %w", err), nil, "-")
			return errors.New(err.Error()) // the file is wrong, and not the use
		}
		_, err = r.restore(lines)
		return r.fileMended(err, lines, "-")
	}
	return r.change()
}

// say tells people something about what was done.
func (r *ipvsadmRun) say(notes ...string) {
	for _, note := range notes {
		r.notice("%s: %s", ipvsadmName, note)
	}
}

// open returns nil where nothing is attached: then there are no services, as in a
// kernel that has just loaded IPVS.
func (r *ipvsadmRun) open() (*loader.Balancer, error) {
	b, err := loader.Open(r.pins)
	if errors.Is(err, maps.ErrNotAttached) && !strings.Contains(err.Error(), "no BPF file system") {
		return nil, nil
	}
	return b, err
}

// table is what there is, without its figures.
func (r *ipvsadmRun) table() (vipTable, error) {
	b, err := r.open()
	if b == nil {
		return vipTable{}, err
	}
	defer b.Close()
	return readTable(b)
}

func (r *ipvsadmRun) zero() error {
	b, err := r.open()
	if b == nil {
		return err
	}
	b.Close()
	return change(r.env, func(b *loader.Balancer) error {
		if r.Service == nil {
			return b.ZeroCounters(nil)
		}
		v, err := vipOf(*r.Service)
		if err != nil {
			return err
		}
		return b.ZeroCounters(&v)
	})
}

func (r *ipvsadmRun) setTimeouts() error {
	return r.withPins(func() error {
		return change(r.env, func(b *loader.Balancer) error { return b.SetTimeouts(timeoutsOf(r.Command)) })
	})
}

// timeoutsOf are those that are not 0.
func timeoutsOf(c ipvsadm.Command) (t loader.Timeouts) {
	for i := range c.Timeouts {
		if c.Timeouts[i] != 0 {
			*[]**time.Duration{&t.TCP, &t.Closing, &t.UDP}[i] = &c.Timeouts[i]
		}
	}
	return t
}
