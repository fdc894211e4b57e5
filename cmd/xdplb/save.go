package main

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/pflag"

	"github.com/xdplb/xdplb/cmd/xdplb/internal/config"
	"github.com/xdplb/xdplb/cmd/xdplb/internal/ipvsadm"
	"github.com/xdplb/xdplb/loader"
)

const saveHelp = `
Writes all that a reboot loses: interfaces, hash key, sizes, SNAT pool, timeouts, VIPs and backends, as YAML
that apply and restore read. Flows, counters and the verdicts of health checks are not in it. The hash key is a
secret, and other balancers that share the VIPs need the same one: FILE gets mode 0600, and without FILE, or with -,
all goes to standard output, which is yours to protect. FILE is replaced as a whole or stays as it is.
With --format ipvsadm it is what ipvsadm -S -n prints: services and servers only.
`

const restoreHelp = `
Reads what save has written and makes the balancer exactly that; a run changes all or, if anything is wrong with
the file, nothing. What is as the file says is not touched, and goes on serving. A run that was killed is finished by
the next. An empty file does nothing. See also: xdplb apply --help.
With --format ipvsadm it reads what ipvsadm -S has written, and attaches the interfaces that it needs.

FILE - is standard input, and so is no FILE where a file or a pipe is redirected into it. Otherwise, without FILE,
it restores what a boot needs: the first that there is of /etc/xdplb/xdplb.yaml (of save), /etc/sysconfig/ipvsadm and
/etc/ipvsadm.rules (of ipvsadm -S). Without any of them there is nothing to do, which is no failure. This is what
xdplb.service does at boot and systemctl reload xdplb at any time.
`

func saveCommands() []command {
	return []command{
		{name: "save", args: "[FILE|-] [--format yaml|ipvsadm]", max: 1, summary: "write the configuration, secret hash key included", more: saveHelp, setup: setupSave},
		{name: "restore", args: "[FILE|-] [--format yaml|ipvsadm]", max: 1, summary: "read what save has written; without FILE: as at boot", more: restoreHelp, setup: setupRestore},
	}
}

// formatFlag returns whether the file is ipvsadm's, once flags are parsed.
func formatFlag(flags *pflag.FlagSet) func() (asIPVS bool, err error) {
	format := flags.String("format", "yaml", "yaml or ipvsadm")
	return func() (bool, error) {
		if *format != "yaml" && *format != "ipvsadm" {
			return false, usagef("--format %s: use yaml or ipvsadm", *format)
		}
		return *format == "ipvsadm", nil
	}
}

func setupSave(flags *pflag.FlagSet) func(*env) error {
	format := formatFlag(flags)
	return func(e *env) error {
		asIPVS, err := format()
		if err != nil {
			return err
		}
		write := saved
		if asIPVS {
			write = savedAsIPVS
		}
		text, err := write(e)
		if err != nil {
			return err
		}
		if len(e.args) == 0 || e.args[0] == "-" {
			_, err := e.stdout.Write(text)
			return err
		}
		return replaceFile(e.args[0], text)
	}
}

// savedAsIPVS is what ipvsadm -S -n prints.
func savedAsIPVS(e *env) ([]byte, error) {
	var text bytes.Buffer
	r := &ipvsadmRun{env: &env{stdout: &text, stderr: e.stderr, pins: e.pins}}
	r.Action = ipvsadm.Save
	err := r.show()
	return text.Bytes(), err
}

func saved(e *env) ([]byte, error) {
	b, err := loader.Open(e.pins)
	if err != nil {
		return nil, err
	}
	defer b.Close()
	w, err := b.Lasting()
	if err != nil {
		return nil, err
	}
	var text bytes.Buffer
	err = config.Of(w).Write(&text)
	return text.Bytes(), err
}

// replaceFile writes a file for its owner only. Who reads it meanwhile, or after a
// crash, sees the old one or the new one.
func replaceFile(path string, text []byte) (err error) {
	if path == "" {
		return usagef("FILE is empty; name one, or leave it out for standard output")
	}
	if info, err := os.Stat(path); err == nil && !info.Mode().IsRegular() {
		return fmt.Errorf("%s: not a file; name one, or leave it out for standard output", path)
	}
	f, err := os.CreateTemp(filepath.Dir(path), filepath.Base(path)+".new-*") // mode 0600
	if err != nil {
		return fmt.Errorf("%s: %w", path, unwrapPath(err))
	}
	defer func() {
		if err != nil {
			os.Remove(f.Name())
		}
	}()
	_, err = f.Write(text)
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	return os.Rename(f.Name(), path)
}

func setupRestore(flags *pflag.FlagSet) func(*env) error {
	format := formatFlag(flags)
	etc := flags.String("etc", "/etc", "without FILE: the `DIR` that has xdplb/xdplb.yaml, sysconfig/ipvsadm or ipvsadm.rules")
	return func(e *env) error {
		asIPVS, err := format()
		if err != nil {
			return err
		}
		switch named := len(e.args) > 0; {
		case flags.Changed("etc") && (named || flags.Changed("format")):
			return usagef("--etc %s: takes the file that a boot takes; name a FILE and its --format, or --etc", *etc)
		case named:
			return restoreFile(e, e.args[0], asIPVS)
		case flags.Changed("etc"):
			return restoreBoot(e, *etc)
		case redirected(os.Stdin):
			return restoreFile(e, "-", asIPVS)
		case flags.Changed("format"):
			return usagef("--format: of no FILE; name one, or - for standard input")
		}
		return restoreBoot(e, *etc)
	}
}

// redirected tells whether standard input is a file or the output of another
// program: who redirects means it to be read. A terminal, /dev/null (as under
// systemd) and a socket (as under ssh) are just there.
func redirected(f *os.File) bool {
	info, err := f.Stat()
	return err == nil && (info.Mode().IsRegular() || info.Mode()&fs.ModeNamedPipe != 0)
}

func restoreFile(e *env, path string, asIPVS bool) error {
	if asIPVS {
		return logged(e, command{name: "restore", changes: true}, func(e *env) error { return restoreIPVS(e, path) })
	}
	f, err := readConfig(path)
	if err != nil {
		return err
	}
	return e.mendedFile(f, applyWanted(e, f.Wanted(), applying{name: "restore"}))
}

// bootFiles are what a boot restores: the first that there is. A link that leads
// nowhere is there, and an error.
var bootFiles = [...]struct {
	path   string
	asIPVS bool
}{{"xdplb/xdplb.yaml", false}, {"sysconfig/ipvsadm", true}, {"ipvsadm.rules", true}}

func restoreBoot(e *env, etc string) error {
	var missing []string
	for _, f := range bootFiles {
		path := filepath.Join(etc, f.path)
		if _, err := os.Lstat(path); errors.Is(err, fs.ErrNotExist) {
			missing = append(missing, path)
			continue
		}
		var said bytes.Buffer
		e.args = []string{path} // as if it had been named
		inner := *e
		inner.stdout = &said
		err := restoreFile(&inner, path, f.asIPVS)
		if err == nil && !e.json {
			_, err = fmt.Fprintf(e.stdout, "%s: ", path)
		}
		if err == nil {
			_, err = e.stdout.Write(said.Bytes())
		}
		return err
	}
	if e.json {
		return e.printJSON(e.jsonOfPlan(&loader.Plan{}, false))
	}
	_, err := fmt.Fprintf(e.stdout, "nothing to do: there is no %s\n", strings.Join(missing, ", "))
	return err
}

// restoreIPVS makes the services those of a file that ipvsadm -S has written, or a
// person. What such a file cannot say stays as it is. Unlike ipvsadm -R it removes
// the services that the file does not have.
func restoreIPVS(e *env, path string) error {
	name, text, err := readFile(path)
	if err != nil {
		return err
	}
	services, plan := 0, new(loader.Plan)
	lines, err := ipvsadm.Read(bytes.NewReader(text), names())
	if err == nil && len(lines) > 0 {
		all := append([]ipvsadm.Line{{Command: ipvsadm.Command{Action: ipvsadm.Clear}}}, lines...)
		plan, err = (&ipvsadmRun{env: e}).restore(all)
	}
	if err = e.fileMended(err, lines, path); err != nil {
		return fmt.Errorf("%s: %s", name, strings.TrimPrefix(err.Error(), "-R: "))
	}
	for _, l := range lines {
		if l.Action == ipvsadm.AddService {
			services++
		}
	}
	switch {
	case e.json:
		return e.printJSON(e.jsonOfPlan(plan, false))
	case len(lines) == 0:
		fmt.Fprintln(e.stdout, "nothing to do")
	default:
		fmt.Fprintf(e.stdout, "services restored: %d\n", services)
	}
	return nil
}
