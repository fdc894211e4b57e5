package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/pflag"
	"golang.org/x/sys/unix"

	"github.com/xdplb/xdplb/cmd/xdplb/internal/config"
	"github.com/xdplb/xdplb/cmd/xdplb/internal/ipvsadm"
	"github.com/xdplb/xdplb/loader"
)

const saveHelp = `
Writes all that a reboot loses: interfaces, hash key, sizes, SNAT pool, timeouts, VIPs and backends, as YAML
that apply and restore read. Flows, counters and the verdicts of health checks are not in it. The hash key is a
secret, and other balancers that share the VIPs need the same one: FILE gets mode 0600, and without FILE all goes
to standard output, which is yours to protect. FILE is replaced as a whole or stays as it is.
With --format ipvsadm it is what ipvsadm -S -n prints: services and servers only.
`

const restoreHelp = `
Reads what save has written, from FILE or standard input, and makes the balancer exactly that; a run changes all
or, if anything is wrong with the file, nothing. What is as the file says is not touched, and goes on serving.
A run that was killed is finished by the next. An empty file does nothing. See also: xdplb apply --help
With --format ipvsadm it reads what ipvsadm -S has written, and attaches the interfaces that it needs.
`

func saveCommands() []command {
	return []command{
		{name: "save", args: "[FILE] [--format yaml|ipvsadm]", max: 1, summary: "write the configuration, secret hash key included", more: saveHelp, setup: setupSave},
		{name: "restore", args: "[FILE] [--format yaml|ipvsadm]", max: 1, summary: "read what save has written", more: restoreHelp, setup: setupRestore},
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
		if len(e.args) == 0 {
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
	w, err := b.Wanted()
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
	return func(e *env) error {
		asIPVS, err := format()
		if err != nil {
			return err
		}
		path := "-"
		if len(e.args) > 0 {
			path = e.args[0]
		} else if _, err := unix.IoctlGetTermios(int(os.Stdin.Fd()), unix.TCGETS); err == nil {
			return usagef("standard input is a terminal; name a FILE that xdplb save has written")
		}
		if asIPVS {
			return logged(e, command{name: "restore", changes: true}, func(e *env) error { return restoreIPVS(e, path) })
		}
		w, err := readWanted(path)
		if err != nil {
			return err
		}
		return applyWanted(e, w, applying{name: "restore"})
	}
}

// restoreIPVS makes the services those of a file that ipvsadm -S has written, or a
// person. What such a file cannot say stays as it is. Unlike ipvsadm -R it removes
// the services that the file does not have.
func restoreIPVS(e *env, path string) error {
	name, text, err := readFile(path)
	if err != nil {
		return err
	}
	lines, err := ipvsadm.Read(bytes.NewReader(text), names())
	if err == nil && len(lines) > 0 {
		all := append([]ipvsadm.Line{{Command: ipvsadm.Command{Action: ipvsadm.Clear}}}, lines...)
		err = (&ipvsadmRun{env: e}).restore(all)
	}
	if err != nil {
		return fmt.Errorf("%s: %s", name, strings.TrimPrefix(err.Error(), "-R: "))
	}
	return nil
}
