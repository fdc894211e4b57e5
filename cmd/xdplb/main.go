// Command xdplb is a layer-4 load balancer whose data plane is XDP.
package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"unicode"

	"github.com/spf13/pflag"

	"github.com/xdplb/xdplb/loader"
)

// Exit statuses.
const (
	exitDone   = 0
	exitFailed = 1
	exitUsage  = 2
)

// env is what a command runs in; tests call commands in-process with their own.
type env struct {
	stdout, stderr io.Writer
	pins           string
	json           bool
	args           []string // without flags
	typed          []string // all of it, as it was given
}

// notice tells people something that is no failure.
func (e *env) notice(format string, a ...any) {
	fmt.Fprintln(e.stderr, e.said(fmt.Sprintf("xdplb: "+format, a...)))
}

// command is one line of the command table.
type command struct {
	name    string // one or two words
	args    string // as the usage line shows them
	min     int    // how many arguments at least
	max     int    // and at most; -1: any number
	summary string
	more    string // of --help, after the summary
	changes bool   // it changes the balancer, and is logged
	hidden  bool   // it is for programs: no help lists it
	setup   func(*pflag.FlagSet) func(*env) error
}

func commands() []command {
	return slices.Concat(
		attachCommands(), vipCommands(), backendCommands(), drainCommands(), statsCommands(),
		flowsCommands(), snatCommands(), applyCommands(), saveCommands(), statusCommands(), doctorCommands(), explainCommands(), realserverCommands(), ipvsadmCommands(), demoCommands(),
		completionCommands(), manCommands(),
	)
}

// usageError is a wrong use: status 2.
type usageError struct{ error }

func usagef(format string, a ...any) error { return usageError{fmt.Errorf(format, a...)} }

func main() { os.Exit(run(argumentsOf(os.Args), openOutput(), os.Stderr)) }

// argumentsOf are those behind the program's name; a link named ipvsadm is that command.
func argumentsOf(args []string) []string {
	if filepath.Base(args[0]) == ipvsadmName {
		return append([]string{ipvsadmName}, args[1:]...)
	}
	return args[1:]
}

// run runs the command that the arguments name and returns the exit status.
func run(arguments []string, stdout, stderr io.Writer) int {
	words := leadingWords(arguments)
	if len(words) == 0 || words[0] == "help" {
		printHelp(outputOf(command{name: "help"}, stdout))
		return exitDone
	}
	cmd, err := find(words)
	if err != nil {
		fmt.Fprintf(stderr, "xdplb: %s\n", oneLine(err.Error()))
		return exitUsage
	}
	stdout = outputOf(cmd, stdout)
	if cmd.name == ipvsadmName { // its options are not ours
		return runIpvsadm(arguments, stdout, stderr)
	}
	e := &env{stdout: stdout, stderr: stderr, typed: arguments}
	flags := pflag.NewFlagSet(cmd.name, pflag.ContinueOnError)
	flags.SetOutput(io.Discard)
	flags.SortFlags = false
	runs := cmd.setup(flags)
	pins, output := globalFlags(flags)
	err = flags.Parse(arguments)
	if errors.Is(err, pflag.ErrHelp) {
		printUsage(stdout, cmd, flags)
		return saidAll(exitDone, stdout, stderr)
	}
	if err != nil {
		err = usagef("%s; see: xdplb %s --help", flagError(err), cmd.name)
	} else {
		e.args, e.pins = flags.Args()[len(strings.Fields(cmd.name)):], *pins
		err = e.check(cmd, *output)
	}
	if err == nil {
		err = logged(e, cmd, runs)
	}
	if err == nil {
		return saidAll(exitDone, stdout, stderr)
	}
	if status := exitStatus(0); errors.As(err, &status) {
		return saidAll(int(status), stdout, stderr)
	}
	text := complaint(cmd, e.args, e.mended(cmd, err))
	if errors.As(err, new(usageError)) {
		fmt.Fprintln(stderr, text)
		return exitUsage
	}
	fmt.Fprintln(stderr, e.said(text))
	return exitFailed
}

func globalFlags(flags *pflag.FlagSet) (pins, output *string) {
	where := os.Getenv("XDPLB_PINS")
	if where == "" {
		where = loader.DefaultPins
	}
	pins = flags.String("pins", where, "directory of the pins, in a BPF file system (or XDPLB_PINS)")
	output = flags.StringP("output", "o", "text", "text or json")
	return pins, output
}

func (e *env) check(cmd command, output string) error {
	switch output {
	case "text":
	case "json":
		e.json = true
	default:
		return usagef("-o %s: use text or json", output)
	}
	if e.pins == "" || e.pins[0] != '/' {
		return usagef("--pins %s: not an absolute path; use one in a BPF file system, such as %s", e.pins, loader.DefaultPins)
	}
	if len(e.args) < cmd.min || cmd.max >= 0 && len(e.args) > cmd.max {
		return usagef("wants %s; usage: xdplb %s %s", wanted(cmd), cmd.name, cmd.args)
	}
	return nil
}

func wanted(cmd command) string {
	switch {
	case cmd.max == 0:
		return "no arguments"
	case cmd.min == cmd.max:
		return fmt.Sprintf("%d argument(s)", cmd.min)
	case cmd.max < 0:
		return fmt.Sprintf("%d argument(s) or more", cmd.min)
	}
	return fmt.Sprintf("%d to %d arguments", cmd.min, cmd.max)
}

// complaint is the one line that a failure gets: command, object, mend.
func complaint(cmd command, args []string, err error) string {
	text := oneLine(err.Error())
	for _, arg := range args {
		if arg != "" && strings.HasPrefix(text, arg) {
			return fmt.Sprintf("xdplb: %s %s", cmd.name, text)
		}
	}
	return fmt.Sprintf("xdplb: %s: %s", cmd.name, text)
}

// oneLine keeps the blanks of commands, and what a terminal would obey away.
func oneLine(text string) string {
	var lines []string
	for line := range strings.Lines(text) {
		if line = strings.TrimSpace(line); line != "" {
			lines = append(lines, line)
		}
	}
	return strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return unicode.ReplacementChar
	}, strings.ReplaceAll(strings.Join(lines, " "), "\t", " "))
}

// leadingWords are the arguments before the first that is neither a word of a
// command nor a global flag.
func leadingWords(arguments []string) (words []string) {
	for i := 0; i < len(arguments); i++ {
		switch a := arguments[i]; {
		case a == "--pins" || a == "-o" || a == "--output":
			i++
		case !strings.HasPrefix(a, "-"):
			words = append(words, a)
		}
	}
	return words
}

func find(words []string) (command, error) {
	var others []string
	for _, c := range commands() {
		name := strings.Fields(c.name)
		if len(words) >= len(name) && slices.Equal(words[:len(name)], name) {
			return c, nil
		}
		if len(name) == 2 && name[0] == words[0] {
			others = append(others, name[1])
		}
	}
	if len(others) > 0 {
		return command{}, fmt.Errorf("%s: wants one of %s", words[0], strings.Join(others, ", "))
	}
	return command{}, fmt.Errorf("%s: no such command; xdplb help lists them", words[0])
}

func printHelp(w io.Writer) {
	fmt.Fprint(w, "xdplb balances TCP and UDP at the network card (XDP). Commands:\n\n")
	table := newTable(w)
	for _, c := range commands() {
		if c.hidden {
			continue
		}
		table.row("  xdplb "+strings.TrimSpace(c.name+" "+c.args), c.summary)
	}
	table.flush()
	fmt.Fprint(w, "\nVIP is ADDR:PORT[/tcp|/udp], BACKEND is ADDR[:PORT]. Every command takes --pins DIR, -o json, --help.\n")
}

func printUsage(w io.Writer, c command, flags *pflag.FlagSet) {
	fmt.Fprintf(w, "usage: xdplb %s\n%s\n%s\n%s", strings.TrimSpace(c.name+" "+c.args), c.summary, c.more, flags.FlagUsages())
}
