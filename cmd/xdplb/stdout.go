package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"

	"github.com/spf13/pflag"
	"golang.org/x/sys/unix"
)

// standardOutput knows what becomes of a command whose output cannot be written. A
// listing ends there, by the signal if its reader has gone, as programs do; a change
// goes on to its end, and then says so.
type standardOutput struct {
	file   *os.File
	cmd    command
	goesOn bool
	err    error
}

func openOutput() io.Writer {
	// Else a write to a pipe that nobody reads kills, in the middle of a change.
	signal.Notify(make(chan os.Signal, 1), unix.SIGPIPE)
	return &standardOutput{file: os.Stdout}
}

func (o *standardOutput) Write(text []byte) (int, error) {
	n, err := o.file.Write(text)
	if errors.Is(err, unix.EPIPE) {
		if o.goesOn {
			return len(text), nil
		}
		signal.Reset(unix.SIGPIPE)
		_, _ = o.file.Write(text) // which ends this process
	}
	if err != nil {
		err = fmt.Errorf("standard output: %w; make room there, or send it elsewhere", unwrapPath(err))
		if !o.goesOn {
			fmt.Fprintln(os.Stderr, complaint(o.cmd, nil, err))
			os.Exit(exitFailed)
		}
		o.err = err
	}
	return n, err
}

// outputOf is what a command writes to.
func outputOf(cmd command, w io.Writer) io.Writer {
	o, ok := w.(*standardOutput)
	if !ok {
		return w
	}
	if cmd.name == "demo" { // it asks whether this is a terminal, and changes nothing that stays
		signal.Reset(unix.SIGPIPE)
		return o.file
	}
	o.cmd, o.goesOn = cmd, cmd.changes || cmd.name == "apply" || cmd.name == "restore"
	return o
}

func goesOn(w io.Writer) {
	if o, ok := w.(*standardOutput); ok {
		o.goesOn = true
	}
}

// saidAll is the status of a command that has done what it was to do: it has failed
// if what it had to say was not written.
func saidAll(status int, stdout, stderr io.Writer) int {
	o, ok := stdout.(*standardOutput)
	if !ok || o.err == nil {
		return status
	}
	fmt.Fprintln(stderr, complaint(o.cmd, nil, fmt.Errorf("%w; what was to be done is done", o.err)))
	return exitFailed
}

// flagError says what a flag takes.
func flagError(err error) string {
	wrong := new(pflag.InvalidValueError)
	if !errors.As(err, &wrong) {
		return err.Error()
	}
	f := wrong.GetFlag()
	takes, known := map[string]string{
		"uint8": "a number from 0 to 255", "uint16": "a number from 0 to 65535", "uint32": "a number from 0 to 4294967295",
		"int": "a number", "duration": "a time such as 15m or 1h30m", "bool": "true or false",
	}[f.Value.Type()]
	if !known {
		return err.Error()
	}
	return fmt.Sprintf("--%s %s: use %s", f.Name, wrong.GetValue(), takes)
}
