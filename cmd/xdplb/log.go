package main

import (
	"fmt"
	"log/syslog"
	stdmaps "maps"
	"os"
	"os/user"
	"slices"
	"strings"
	"time"

	"github.com/spf13/pflag"

	"github.com/xdplb/xdplb/bpf"
	"github.com/xdplb/xdplb/loader"
	"github.com/xdplb/xdplb/maps"
)

// logged runs a command; if it changes the balancer, syslog gets who, what, and
// the state before and after. A host without syslog loses the log, not the change.
func logged(e *env, cmd command, run func(*env) error) error {
	if !cmd.changes {
		return run(e)
	}
	log, err := syslog.New(syslog.LOG_NOTICE|syslog.LOG_DAEMON, "xdplb")
	if err != nil {
		return run(e)
	}
	defer log.Close()
	before := summaryOf(e.pins)
	err = run(e)
	after, outcome := summaryOf(e.pins), "done"
	became := "unchanged"
	if !after.equal(&before) {
		became = after.text(&before)
	}
	if err != nil {
		outcome = "failed: " + err.Error()
	}
	_ = log.Notice(fmt.Sprintf("%s: %s %s: %s; before: %s; after: %s",
		who(), cmd.name, strings.Join(e.args, " "), outcome, before.text(&after), became))
	return err
}

// who is the person behind sudo, if there is one.
func who() string {
	if name := os.Getenv("SUDO_USER"); name != "" {
		return name + " (sudo)"
	}
	if u, err := user.Current(); err == nil {
		return u.Username
	}
	return fmt.Sprintf("uid %d", os.Getuid())
}

// summary is the configuration, as far as syslog gets it. It is read before and
// after each change: not the tables, which are 130 MB of a thousand VIPs.
type summary struct {
	instead string // why there is none
	vips    []maps.VIP
	lines   map[maps.VIP]string
	pool    string
}

func summaryOf(pins string) (s summary) {
	b, err := loader.Open(pins)
	if err != nil {
		return summary{instead: "nothing"}
	}
	defer b.Close()
	if err := s.read(b); err != nil {
		return summary{instead: "unreadable"}
	}
	return s
}

func (s *summary) read(b *loader.Balancer) error {
	services, err := b.Maps.Services()
	if err != nil {
		return err
	}
	backends, records := make(map[uint32][]string), make(map[uint32][]maps.Backend)
	seen := make(map[string]bool)
	for _, r := range b.Maps.ReadBackends(func(uint32) bool { return true }) {
		records[r.Vip] = append(records[r.Vip], r)
		// While a record is replaced both are listed for a moment.
		if place := fmt.Sprint(r.Vip, r.AddrPort()); r.Listed() && !seen[place] {
			seen[place] = true
			admin := "enabled"
			if r.Has(bpf.XdplbBackendFlagBackendDrain) {
				admin = "drain"
			}
			backends[r.Vip] = append(backends[r.Vip], fmt.Sprintf("%s/%s/%d/%s", r.AddrPort(), loader.Mode(r.Mode), r.Weight, admin))
		}
	}
	s.lines = make(map[maps.VIP]string, len(services))
	for i := range services {
		v := &services[i]
		line := fmt.Sprintf("%s %s [%s]", v.VIP, v.InUse().Scheduler, strings.Join(backends[v.Id], " "))
		own, err := b.Maps.SNATOf(v)
		if err != nil {
			return err
		}
		if len(own) > 0 {
			line += fmt.Sprintf(" snat %v", own)
		}
		h, err := b.Handover(v.VIP, records[v.Id])
		if err != nil {
			return err
		}
		if h != nil {
			line += " " + loggedHandover(h)
		}
		s.vips, s.lines[v.VIP] = append(s.vips, v.VIP), line
	}
	pool, err := b.Maps.SNATPool(&b.Settings)
	if err != nil {
		return err
	}
	more := ""
	if len(pool) > 8 {
		more = fmt.Sprintf(" and %d more", len(pool)-8)
		pool = pool[:8]
	}
	s.pool = fmt.Sprintf("snat %s %v%s", b.SNATPorts(), pool, more)
	return nil
}

// loggedHandover says when it is over, and not for how long it lasts: that changes by itself.
func loggedHandover(h *loader.HandoverView) string {
	if h.Left == 0 {
		return handoverText(h)
	}
	return handoverDirection(h) + " until " + time.Now().Add(h.Left).Round(time.Minute).Format("15:04")
}

func (s *summary) equal(o *summary) bool {
	return s.instead == o.instead && s.pool == o.pool && stdmaps.Equal(s.lines, o.lines)
}

// syslogLine is about how much of a configuration syslog takes.
const syslogLine = 400

// text is the summary on one line: first of the VIPs that are otherwise in the other
// state, and of the rest as much as there is room for.
func (s *summary) text(other *summary) string {
	if s.instead != "" {
		return s.instead
	}
	same := func(v maps.VIP) bool { return s.lines[v] == other.lines[v] }
	vips := slices.Clone(s.vips)
	slices.SortStableFunc(vips, func(a, b maps.VIP) int {
		switch {
		case same(a) == same(b):
			return 0
		case same(b):
			return -1
		}
		return 1
	})
	text := "no VIPs"
	for i, v := range vips {
		if i == 0 {
			text = s.lines[v]
		} else if text += " " + s.lines[v]; len(text) > syslogLine && i < len(vips)-1 {
			text += fmt.Sprintf(" ... %d more", len(vips)-1-i)
			break
		}
	}
	if len(text) > 2*syslogLine { // of one VIP
		text = text[:2*syslogLine] + "..."
	}
	return text + "; " + s.pool
}

// noFlags is for commands that have none of their own.
func noFlags(run func(*env) error) func(*pflag.FlagSet) func(*env) error {
	return func(*pflag.FlagSet) func(*env) error { return run }
}
