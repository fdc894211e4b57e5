package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
)

func demoCommand(t *testing.T, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(t.Context(), "/proc/self/exe", append([]string{"demo"}, args...)...)
	cmd.Args[0] = "xdplb" // see TestMain
	return cmd
}

// TestDemo runs what `make demo` runs: it fails if a request does, if a drained server gets a new one, or if the
// download is not whole.
func TestDemo(t *testing.T) {
	cmd := demoCommand(t, "-o", "json")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v: %s", err, &stderr)
	}
	var result demoResult
	if err := json.Unmarshal(out, &result); err != nil {
		t.Fatalf("%v in %s", err, out)
	}
	if len(result.Modes) != len(demoModes) || len(result.Failures) != 0 || !result.Removed {
		t.Errorf("the demo says: %s", out)
	}
}

// TestDemoInterrupted: a demo that is stopped in the middle says so, and takes away what it made.
func TestDemoInterrupted(t *testing.T) {
	cmd := demoCommand(t, "--mode", "dr")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(stdout)
	for lines.Scan() && !strings.Contains(lines.Text(), "xdplb vip add") {
	}
	if err := cmd.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	for lines.Scan() { // until it has closed its output
	}
	err = cmd.Wait()
	status, _ := cmd.ProcessState.Sys().(syscall.WaitStatus)
	if err == nil || status.ExitStatus() != exitFailed || !strings.Contains(stderr.String(), "everything it made is removed") {
		t.Errorf("%v, and on stderr: %s", err, &stderr)
	}
}
