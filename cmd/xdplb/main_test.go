package main

import (
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
)

// TestMain lets tests run this binary under other names: started as xdplb it is the program, and scripts have
// more. Where they come from: script_test.go.
func TestMain(m *testing.M) {
	testscript.Main(&tidyRun{m}, helpers)
}

var helpers = map[string]func(){
	"xdplb": main, "ipvsadm": main,
	"on": onMain, "until": untilMain, "refused": refusedMain,
	"mended": mendedMain, "instead": insteadMain, "halves": halvesMain,
	"udp": udpMain, "hold": holdMain, "bulk": bulkMain, "ttl": ttlMain, "tag": tagMain,
	"secrets": secretsMain,
}
