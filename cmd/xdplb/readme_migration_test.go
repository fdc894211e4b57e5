package main

import (
	"testing"

	"github.com/google/go-cmp/cmp"
)

// The READMEs' migration from LVS, and back. TestReadme does not run it: its network is of this kernel's namespaces,
// and IPVS is a module, which the kernel may not have. TestHandoverIPVS runs it, on a kernel that has.
const (
	takeOver  = "/usr/sbin/ipvsadm -S -n | xdplb ipvsadm -R --handover 15m"
	showVIPs  = "xdplb vip list"
	showStats = "xdplb stats"
	endIt     = "xdplb refresh"
	endIPVS   = "/usr/sbin/ipvsadm -C"
	giveRules = "xdplb ipvsadm -S -n | /usr/sbin/ipvsadm -R"
	giveBack  = "xdplb ipvsadm -C --handover 15m"
	endXDPLB  = "xdplb detach --all --purge"
)

var migration = []string{takeOver, showVIPs, showStats, endIt, endIPVS, giveRules, giveBack, endIt, endXDPLB}

// TestReadmeMigration compares what the READMEs say with what TestHandoverIPVS runs.
func TestReadmeMigration(t *testing.T) {
	var want []string
	for _, line := range migration {
		want = append(want, "balancer# "+line)
	}
	for _, name := range []string{"README.md", "README.zh-CN.md"} {
		if difference := cmp.Diff(want, written(commandsOf(t, name, "console ipvs"))); difference != "" {
			t.Errorf("%s (+) is not what is run (-):\n%s", name, difference)
		}
	}
}

// written is what a reader types.
func written(commands []readmeCommand) (lines []string) {
	for _, c := range commands {
		lines = append(lines, c.host+"# "+c.line)
	}
	return lines
}
