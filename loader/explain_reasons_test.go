package loader

import (
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/cilium/ebpf/btf"

	"github.com/xdplb/xdplb/bpf"
)

// Every reason that the program has, as its BTF says, has a text, and no text is of a reason that is no more.
func TestEveryReasonIsExplained(t *testing.T) {
	spec, err := bpf.LoadXdplb()
	must(t, err)
	var reasons *btf.Enum
	must(t, spec.Types.TypeByName("reason", &reasons))
	var names []string
	for _, v := range reasons.Values {
		if v.Name == "reason_max" {
			continue
		}
		names = append(names, v.Name)
		r, err := ExplainReason(v.Name)
		must(t, err)
		fields := reflect.ValueOf(r)
		for i := range fields.NumField() {
			if text := fields.Field(i).String(); strings.TrimSpace(text) == "" || strings.Contains(text, "\n") {
				t.Errorf("%s: %s is %q", v.Name, fields.Type().Field(i).Name, text)
			}
		}
	}
	for name := range reasonTexts {
		if !slices.Contains(names, name) {
			t.Errorf("%s: explained, and not a reason", name)
		}
	}
	if all, err := ExplainReasons(); err != nil || len(all) != len(names) {
		t.Errorf("%d reasons are listed of %d (%v)", len(all), len(names), err)
	}
	if _, err := ExplainReason("reason_max"); err == nil || !strings.Contains(err.Error(), "no_backend, no_next_hop") {
		t.Errorf("reason_max: %v", err)
	}
}
