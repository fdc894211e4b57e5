package main

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// What follows are programs that scripts run; they end by die or by returning.

func die(format string, args ...any) {
	fmt.Fprintf(os.Stderr, format+"\n", args...)
	os.Exit(125)
}

// onMain becomes a command in a node: on NODE COMMAND...
func onMain() {
	if len(os.Args) < 3 {
		die("usage: on NODE COMMAND...")
	}
	mounts, network, _ := strings.Cut(os.Getenv("node_"+os.Args[1]), " ")
	if network == "" {
		die("on %s: no such node; begin with: lab", os.Args[1])
	}
	runtime.LockOSThread()
	dir, err := os.Getwd()
	if err == nil {
		err = unix.Unshare(unix.CLONE_FS)
	}
	if err == nil {
		err = enter(network, unix.CLONE_NEWNET)
	}
	if err == nil {
		err = enter(mounts, unix.CLONE_NEWNS)
	}
	if err == nil {
		err = os.Chdir(dir)
	}
	path := ""
	if err == nil {
		path, err = exec.LookPath(os.Args[2])
	}
	if err == nil {
		err = syscall.Exec(path, os.Args[2:], os.Environ())
	}
	die("on %s: %v", os.Args[1], err)
}

func enter(path string, kind int) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	return unix.Setns(int(f.Fd()), kind)
}

// untilMain runs a command until it succeeds and its output matches: until PATTERN COMMAND...
func untilMain() {
	if len(os.Args) < 3 {
		die("usage: until PATTERN COMMAND...")
	}
	pattern, err := regexp.Compile("(?m)" + os.Args[1])
	if err != nil {
		die("until: %v", err)
	}
	tick, deadline := time.NewTicker(20*time.Millisecond), time.After(patience)
	for {
		var out, complaints bytes.Buffer
		c := exec.Command(os.Args[2], os.Args[3:]...)
		c.Stdout, c.Stderr = &out, &complaints
		err := c.Run()
		matches := err == nil && pattern.Match(out.Bytes())
		select {
		case <-deadline:
		default:
			if !matches {
				<-tick.C
				continue
			}
		}
		os.Stdout.Write(out.Bytes())
		os.Stderr.Write(complaints.Bytes())
		if !matches {
			die("until: no match of %q in %s (%v)", os.Args[1], patience, err)
		}
		return
	}
}

// refusedMain runs a command that must fail with one status and one line, and change nothing.
func refusedMain() {
	if len(os.Args) < 3 {
		die("usage: refused STATUS COMMAND...")
	}
	want, err := strconv.Atoi(os.Args[1])
	if err != nil {
		die("refused: %v", err)
	}
	before := state()
	var out, complaint bytes.Buffer
	c := exec.Command(os.Args[2], os.Args[3:]...)
	c.Stdin = os.Stdin
	c.Stdout, c.Stderr = &out, &complaint
	err = c.Run()
	os.Stderr.Write(complaint.Bytes())
	if exit := new(exec.ExitError); err != nil && !errors.As(err, &exit) {
		die("refused: %v", err)
	}
	if got := c.ProcessState.ExitCode(); got != want {
		die("refused: status %d, want %d", got, want)
	}
	if out.Len() > 0 {
		die("refused: printed %q", out.String())
	}
	if strings.Count(complaint.String(), "\n") != 1 {
		die("refused: not one line on stderr")
	}
	if after := state(); after != before {
		die("refused: changed something; before:\n%safter:\n%s", before, after)
	}
}

// state is all that the command line tells of the balancer here, its pins, and the addresses of the host.
func state() string {
	var all bytes.Buffer
	run([]string{"vip", "list", "-o", "json"}, &all, &all)
	run([]string{"status", "-o", "json"}, &all, &all)
	run([]string{"timeout", "-o", "json"}, &all, &all)
	run([]string{"snat", "list", "-o", "json"}, &all, &all)
	_ = filepath.WalkDir("/sys/fs/bpf", func(path string, _ fs.DirEntry, err error) error {
		fmt.Fprintln(&all, path, err)
		return nil
	})
	addrs, _ := net.InterfaceAddrs()
	for _, addr := range addrs {
		if prefix, ok := addr.(*net.IPNet); ok && !prefix.IP.IsLinkLocalUnicast() { // those come late, by themselves
			fmt.Fprintln(&all, prefix)
		}
	}
	return all.String()
}
