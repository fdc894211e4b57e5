package main

import (
	"fmt"
	"log/syslog"
	"os"
	"os/user"
	"strings"

	"github.com/spf13/pflag"

	"github.com/xdplb/xdplb/loader"
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
	before := summary(e.pins)
	err = run(e)
	after, outcome := "unchanged", "done"
	if s := summary(e.pins); s != before {
		after = s
	}
	if err != nil {
		outcome = "failed: " + err.Error()
	}
	_ = log.Notice(fmt.Sprintf("%s: %s %s: %s; before: %s; after: %s",
		who(), cmd.name, strings.Join(e.args, " "), outcome, before, after))
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

// summary is the configuration on one line, cut to what syslog takes.
func summary(pins string) string {
	b, err := loader.Open(pins)
	if err != nil {
		return "nothing"
	}
	defer b.Close()
	views, err := b.Views(nil, false)
	if err != nil {
		return "unreadable"
	}
	pool, err := b.Maps.SNATPool(&b.Settings)
	if err != nil {
		return "unreadable"
	}
	var s strings.Builder
	for _, v := range views {
		fmt.Fprintf(&s, "%s %s [", v.VIP, v.InUse().Scheduler)
		for i, backend := range v.Backends {
			if i > 0 {
				s.WriteByte(' ')
			}
			fmt.Fprintf(&s, "%s/%s/%d/%s", backend.At, backend.Mode, backend.Weight, admin(backend))
		}
		s.WriteString("] ")
		if len(v.SNAT) > 0 {
			fmt.Fprintf(&s, "snat %v ", v.SNAT)
		}
		if s.Len() > 400 {
			s.WriteString("... ")
			break
		}
	}
	if s.Len() == 0 {
		s.WriteString("no VIPs ")
	}
	more := ""
	if len(pool) > 8 {
		pool, more = pool[:8], " ..."
	}
	return fmt.Sprintf("%s; snat %s %v%s", strings.TrimSpace(s.String()), b.SNATPorts(), pool, more)
}

// noFlags is for commands that have none of their own.
func noFlags(run func(*env) error) func(*pflag.FlagSet) func(*env) error {
	return func(*pflag.FlagSet) func(*env) error { return run }
}
