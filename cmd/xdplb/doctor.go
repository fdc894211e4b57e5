package main

import (
	"fmt"

	"github.com/spf13/pflag"

	"github.com/xdplb/xdplb/loader"
)

// exitWarned is the status of a doctor that found nothing worse than a warning; 2 means used wrongly.
const exitWarned = 3

func doctorCommands() []command {
	return []command{
		{name: "doctor", args: "[--dev IFACE]...", setup: setupDoctor,
			summary: "check the host, and say what mends it; exit status 0: all is well, 3: warnings, 1: failures"},
	}
}

// exitStatus ends a command that has said all there is to say.
type exitStatus int

func (s exitStatus) Error() string { return fmt.Sprintf("exit status %d", int(s)) }

type checkJSON struct {
	Name   string `json:"name"`
	Status string `json:"status"`
	Detail string `json:"detail"`
	Mend   string `json:"mend"`
}

func setupDoctor(flags *pflag.FlagSet) func(*env) error {
	devices := flags.StringArray("dev", nil, "look at this `IFACE`, and no others; may be repeated (default: those in use)")
	return func(e *env) error {
		checks, err := loader.Doctor(e.pins, *devices)
		if err != nil {
			return err
		}
		for i := range checks {
			checks[i].Mend, checks[i].Detail = e.here(checks[i].Mend), e.said(checks[i].Detail)
		}
		if err := printChecks(e, checks); err != nil {
			return err
		}
		switch loader.Worst(checks) {
		case loader.CheckFail:
			return exitStatus(exitFailed)
		case loader.CheckWarn:
			return exitStatus(exitWarned)
		}
		return nil
	}
}

func printChecks(e *env, checks []loader.Check) error {
	if e.json {
		objects := []checkJSON{}
		for _, c := range checks {
			objects = append(objects, checkJSON{c.Name, string(c.Status), c.Detail, c.Mend})
		}
		return e.printJSON(map[string]any{"status": loader.Worst(checks), "checks": objects})
	}
	table := newTable(e.stdout)
	table.row("STATUS", "CHECK", "DETAIL")
	for _, c := range checks {
		table.row(string(c.Status), c.Name, c.Detail)
		if c.Mend != "" {
			table.row("", "", "mend: "+c.Mend)
		}
	}
	table.flush()
	return nil
}
