// Command bench measures what the data path costs, what goes over a wire, and how
// long changes take. Its lines are what benchstat reads; a table for people follows.
package main

import (
	"flag"
	"fmt"
	"os"
	"runtime"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

var pathFilter = flag.String("paths", "", "regular expression of the paths to measure")

func main() {
	runs := flag.Int("runs", 15, "measurements of each path, at least 15 for a median to quote")
	only := flag.String("only", "", "comma-separated parts: program, nat, spread, control, wire, requests")
	flag.Parse()
	if err := bench(*runs, *only); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// bench runs the parts one after the other, on one CPU where packets are counted in nanoseconds.
func bench(runs int, only string) error {
	fmt.Printf("goos: linux\ngoarch: %s\npkg: github.com/xdplb/xdplb\ncpu: %s, Linux %s\n", runtime.GOARCH, processor(), kernel())
	rep := new(report)
	for _, part := range []struct {
		name string
		run  func(*report, int) error
	}{{"program", measurePaths}, {"nat", measureTranslation}, {"spread", measureSpread}, {"control", measureControl},
		{"wire", measureWire}, {"requests", measureRequests},
	} {
		if only != "" && !slices.Contains(strings.Split(only, ","), part.name) {
			continue
		}
		if err := part.run(rep, runs); err != nil {
			rep.print() // what was measured is measured
			return fmt.Errorf("%s: %w", part.name, err)
		}
	}
	rep.print()
	return nil
}

func processor() string {
	info, _ := os.ReadFile("/proc/cpuinfo")
	for line := range strings.Lines(string(info)) {
		if name, value, found := strings.Cut(line, ":"); found && strings.TrimSpace(name) == "model name" {
			return strings.TrimSpace(value)
		}
	}
	return "unknown"
}

func kernel() string {
	var u unix.Utsname
	_ = unix.Uname(&u)
	return unix.ByteSliceToString(u.Release[:])
}
