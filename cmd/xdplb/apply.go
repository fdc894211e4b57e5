package main

import (
	"errors"
	"fmt"
	"io"
	"log/syslog"
	"os"
	"strings"

	"github.com/spf13/pflag"
	"golang.org/x/sys/unix"

	"github.com/xdplb/xdplb/cmd/xdplb/internal/config"
	"github.com/xdplb/xdplb/loader"
)

// applyHelp says what becomes of what the file does not name.
const applyHelp = `
The file says what should be: interfaces, snat, timeouts, vips and more; --schema prints all fields.
FILE - is standard input. What differs is printed, + added, ~ changed, - removed, and then done;
what is as the file says is not touched. All is checked first: a file that cannot be applied changes nothing.
A run that was killed is finished by the next.

A part that the file does not have (vips:, snat:, timeouts: ...) stays as it is: an empty file does nothing.
Of a part that it has, what it does not name is removed: a VIP, a backend, an address of the pool; and what
an object does not say has its default: a backend without weight has 1, one without drain takes new flows.
Interfaces are never detached: those that the file does not name stay, with a warning.

  interfaces: [eth0]
  vips:
  - vip: 192.0.2.10:80
    backends:
    - 192.0.2.11
    - address: 192.0.2.12
      weight: 3
`

// applyCommands change the balancer, but log for themselves: the state before and
// after of a thousand VIPs is no line, and reading it twice is slow.
func applyCommands() []command {
	return []command{
		{name: "apply", args: "FILE|- [--dry-run] | --schema", max: 1, summary: "make the balancer what a YAML file says", more: applyHelp, setup: setupApply},
	}
}

func setupApply(flags *pflag.FlagSet) func(*env) error {
	dry := flags.Bool("dry-run", false, "print the difference, and change nothing")
	schema := flags.Bool("schema", false, "print the JSON Schema of the file")
	return func(e *env) error {
		if *schema != (len(e.args) == 0) {
			return usagef("wants a FILE, or - for standard input, or --schema alone")
		}
		if *schema {
			text, err := config.Schema()
			if err == nil {
				_, err = fmt.Fprintf(e.stdout, "%s\n", text)
			}
			return err
		}
		f, err := readConfig(e.args[0])
		if err != nil {
			return err
		}
		return e.mendedFile(f, applyWanted(e, f.Wanted(), applying{name: "apply", dry: *dry, plan: true}))
	}
}

// readFile reads a file, or standard input if it is "-", and returns what errors call it.
func readFile(path string) (name string, text []byte, err error) {
	if name = path; path == "-" {
		name = "standard input"
		text, err = io.ReadAll(os.Stdin)
	} else {
		text, err = os.ReadFile(path)
	}
	if err != nil {
		err = fmt.Errorf("%s: %w", name, unwrapPath(err))
	}
	return name, text, err
}

func readConfig(path string) (*config.File, error) {
	name, text, err := readFile(path)
	if err != nil {
		return nil, err
	}
	return config.ParseAt(name, inputPath(path), text)
}

// mendedFile is an error about a file that ends with the command that mends the file.
func (e *env) mendedFile(f *config.File, err error) error {
	m := new(loader.Misuse)
	if !errors.As(err, &m) {
		return err
	}
	b, closed := loader.Open(e.pins)
	if closed == nil {
		b.Close()
	}
	advice, command := f.Mend(m, closed == nil)
	return remade(err, m, advice, e.here(command))
}

func unwrapPath(err error) error {
	if p, ok := err.(*os.PathError); ok {
		return p.Err
	}
	return err
}

// applying is how a command applies.
type applying struct {
	name string
	dry  bool
	plan bool // print it
}

// changeJSON is a line of the plan.
type changeJSON struct {
	Action string `json:"action"`
	Object string `json:"object"`
	Of     string `json:"of,omitempty"`
	Detail string `json:"detail,omitempty"`
}

type planJSON struct {
	DryRun   bool         `json:"dry_run"`
	Changes  []changeJSON `json:"changes"`
	Warnings []string     `json:"warnings"`
}

func applyWanted(e *env, w loader.Wanted, how applying) error {
	bar := newBar(e.stderr)
	planned := false
	plan, err := loader.Apply(e.pins, w, loader.ApplyOptions{
		DryRun: how.dry,
		Planned: func(p *loader.Plan) {
			planned = true
			if how.plan && !e.json {
				printPlan(e.stdout, p)
			}
		},
		Attached: func(a loader.Attached) {
			if a.Warning != "" {
				e.notice("%s: %s: %s", how.name, a.Interface, a.Warning)
			}
		},
		Progress: bar.show,
	})
	bar.clear()
	if planned && !how.dry {
		logPlan(how.name, e.args, plan, err)
	}
	if err != nil {
		return err
	}
	for _, text := range plan.Warnings {
		e.notice("%s: %s", how.name, text)
	}
	for _, a := range plan.Silent {
		e.notice("%s: %s: nobody answers there yet; it takes no traffic until it does and you run: xdplb refresh", how.name, a)
	}
	if e.json {
		return e.printJSON(e.jsonOfPlan(plan, how.dry))
	}
	fmt.Fprintln(e.stdout, conclusion(plan, how.dry))
	return nil
}

func (e *env) jsonOfPlan(p *loader.Plan, dry bool) planJSON {
	j := planJSON{DryRun: dry, Changes: []changeJSON{}, Warnings: []string{}}
	for _, text := range p.Warnings {
		j.Warnings = append(j.Warnings, e.said(text))
	}
	for _, i := range p.Items {
		j.Changes = append(j.Changes, changeJSON{string(i.Action), i.Object, i.Of, i.Detail})
	}
	return j
}

var planSigns = map[loader.PlanAction]string{loader.PlanAdd: "+", loader.PlanChange: "~", loader.PlanRemove: "-"}

// printPlan prints a line for each difference; those of a VIP's backends are
// indented under it.
func printPlan(w io.Writer, p *loader.Plan) {
	var text strings.Builder
	under := ""
	for _, i := range p.Items {
		if i.Of == "" {
			under = strings.TrimPrefix(i.Object, "vip ")
		} else if i.Of != under { // the VIP itself is as it should be
			under = i.Of
			fmt.Fprintf(&text, "  vip %s\n", i.Of)
		}
		fmt.Fprintf(&text, "%s %s\n", planSigns[i.Action], planText(i))
	}
	_, _ = io.WriteString(w, text.String())
}

func planText(i loader.PlanItem) string {
	text := i.Object
	if i.Of != "" {
		text = "  " + text
	}
	switch {
	case i.Detail == "":
		return text
	case i.Action == loader.PlanChange:
		return text + ": " + i.Detail
	}
	return text + " (" + i.Detail + ")"
}

// conclusion counts.
func conclusion(p *loader.Plan, dry bool) string {
	count := make(map[loader.PlanAction]int)
	for _, i := range p.Items {
		count[i.Action]++
	}
	if p.Empty() {
		return "nothing to do"
	}
	verb := ""
	if dry {
		verb = "would be "
	}
	return fmt.Sprintf("%[1]d %[4]sadded, %[2]d %[4]schanged, %[3]d %[4]sremoved", count[loader.PlanAdd], count[loader.PlanChange], count[loader.PlanRemove], verb)
}

// logPlan tells syslog who changed what, as logged does of other commands.
func logPlan(name string, args []string, p *loader.Plan, err error) {
	if err == nil && p.Empty() {
		return
	}
	log, logErr := syslog.New(syslog.LOG_NOTICE|syslog.LOG_DAEMON, "xdplb")
	if logErr != nil {
		return
	}
	defer log.Close()
	outcome := "done"
	var what strings.Builder
	if err != nil {
		outcome = "failed: " + err.Error()
	} else {
		outcome += ", " + conclusion(p, false)
		for _, i := range p.Items {
			if what.Len() > 400 {
				what.WriteString("...")
				break
			}
			fmt.Fprintf(&what, "; %s %s", planSigns[i.Action], strings.TrimSpace(planText(i)))
		}
	}
	_ = log.Notice(fmt.Sprintf("%s: %s %s: %s%s", who(), name, strings.Join(args, " "), outcome, what.String()))
}

// bar shows progress on a terminal, and nothing elsewhere.
type bar struct{ w io.Writer }

func newBar(w io.Writer) *bar {
	if f, ok := w.(*os.File); ok {
		if _, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS); err == nil {
			return &bar{w}
		}
	}
	return &bar{}
}

const progressWidth = 40

func (b *bar) show(done, total int) {
	if b.w == nil || total == 0 {
		return
	}
	filled := progressWidth * done / total
	fmt.Fprintf(b.w, "\r[%s%s] %d of %d VIPs", strings.Repeat("#", filled), strings.Repeat(".", progressWidth-filled), done, total)
}

func (b *bar) clear() {
	if b.w != nil {
		fmt.Fprint(b.w, "\r\x1b[K")
	}
}
