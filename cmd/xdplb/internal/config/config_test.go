package config

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math"
	"os"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/goccy/go-yaml"
	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/xdplb/xdplb/loader"
	"github.com/xdplb/xdplb/maps"
)

func example(t *testing.T) []byte {
	t.Helper()
	text, err := os.ReadFile("../../../../testdata/config/example.yaml")
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// same compares what files say, and not where.
var same = cmp.Options{
	cmpopts.IgnoreTypes(Place{}), cmpopts.EquateEmpty(), cmpopts.EquateComparable(maps.VIP{}),
	cmp.Exporter(func(t reflect.Type) bool {
		return t.PkgPath() == "net/netip" || t.PkgPath() == "unique" || t.PkgPath() == "internal/unsafe"
	}),
}

func TestExample(t *testing.T) {
	f, err := Parse("example.yaml", example(t))
	if err != nil {
		t.Fatal(err)
	}
	w := f.Wanted()
	if len(w.Interfaces) != 2 || w.Interfaces[0].Mode != loader.XDPAuto || w.Interfaces[1].Accept[0].String() != "00:00:5e:00:01:0a" {
		t.Errorf("interfaces: %+v", w.Interfaces)
	}
	v := w.VIPs[0]
	if v.VIP.String() != "192.0.2.10:80/tcp" || v.Mode != loader.ModeTUN || v.SourcePrefix != 24 || !v.TrackAll || v.AffinityGroup != "shop" {
		t.Errorf("first VIP: %+v", v)
	}
	if b := v.Backends[0]; b.At.String() != "192.0.2.11:80" || b.Weight != 1 || b.Mode != 0 || b.Where("address") != "example.yaml:29: vips[0].backends[0].address" {
		t.Errorf("first backend: %+v", b)
	}
	if b := v.Backends[1]; b.At.String() != "192.0.2.12:80" || b.Weight != 3 || b.Mode != loader.ModeDR || !b.Drain {
		t.Errorf("second backend: %+v", b)
	}
	if b := w.VIPs[2].Backends[0]; b.At.String() != "192.0.2.11:81" {
		t.Errorf("a list that an alias names: %+v", b)
	}
}

// TestWritten: what is written says the same, and writing that once more gives the same bytes.
func TestWritten(t *testing.T) {
	f, err := Parse("example.yaml", example(t))
	if err != nil {
		t.Fatal(err)
	}
	var first, second bytes.Buffer
	if err := Of(f.Wanted()).Write(&first); err != nil {
		t.Fatal(err)
	}
	again, err := Parse("written", first.Bytes())
	if err != nil {
		t.Fatalf("%v in:\n%s", err, first.String())
	}
	if d := cmp.Diff(withoutWhere(f.Wanted()), withoutWhere(again.Wanted()), same); d != "" {
		t.Errorf("it says something else (-before +after):\n%s\n%s", d, first.String())
	}
	if err := Of(again.Wanted()).Write(&second); err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(first.String(), second.String()); d != "" {
		t.Errorf("written twice:\n%s", d)
	}
	if err := valid(t, first.Bytes()); err != nil {
		t.Errorf("the schema refuses what was written: %v\n%s", err, first.String())
	}
}

func withoutWhere(w loader.Wanted) loader.Wanted {
	w.Where = nil
	for i := range w.Interfaces {
		w.Interfaces[i].Where = nil
	}
	w.SNAT.Where = nil
	for i := range w.VIPs {
		w.VIPs[i].Where = nil
		if w.VIPs[i].TableSize == 0 {
			w.VIPs[i].TableSize = maps.DefaultTableSize
		}
		for j := range w.VIPs[i].Backends {
			w.VIPs[i].Backends[j].Where = nil
		}
	}
	return w
}

func TestRefused(t *testing.T) {
	for text, want := range map[string]string{
		"vips:\n- vip: 192.0.2.10:80\n  wieght: 3\n": `f:3: vips[0].wieght: unknown field; known are vip, mode, `,
		"vipz: []\n":               `f:1: vipz: unknown field; known are interfaces, hash_key, `,
		"vips:\n- mode: dr\n":      `f:2: vips[0]: vip: missing; add a line vip: 192.0.2.10:80`,
		"vips:\n- 192.0.2.10:80\n": `f:2: vips[0]: a single value; write an object with vip, mode, `,
		"vips: 3\n":                `f:1: vips: a single value; write a list: each item on a line that begins with -`,
		"vips:\n":                  `f:1: vips: nothing there; leave the field out, or write [] for none`,
		"vips:\n- vip: 192.0.2.10:80\n- vip: 192.0.2.20:80\n- mode: tun\n  vip: 192.0.2.10:80/tcp\n": `f:5: vips[2].vip: 192.0.2.10:80/tcp: there twice, first in line 2; delete one of them`,
		"vips: []\nvips: []\n": `f:2: vips: there twice, first in line 1; delete one of them`,
		"vips:\n- vip: 192.0.2.10:80\n  backends:\n  - 192.0.2.11\n  - 192.0.2.11:80\n":       `f:5: vips[0].backends[1].address: 192.0.2.11:80: there twice, first in line 4; delete one of them`,
		"vips:\n- vip: 192.0.2.10:80\n  backends:\n  - address: 192.0.2.11\n    weight: -1\n": `f:5: vips[0].backends[0].weight: "-1"; use a number from 0 to 65535`,
		"vips:\n- vip: 192.0.2.10:80\n  backends:\n  - address: 192.0.2.11\n    drain: yes\n": `f:5: vips[0].backends[0].drain: "yes"; use true or false`,
		"vips:\n- vip: 192.0.2.10:80\n  mode: route\n":                                        `f:3: vips[0].mode: "route" is unknown; use dr, tun, nat or fullnat`,
		"vips:\n- vip: 192.0.2.10:80\n  scheduler: wlc\n":                                     `f:3: vips[0].scheduler: "wlc" is unknown; use maglev, source, rr or lc`,
		"vips:\n- vip: 192.0.2.10:80\n  source_prefix: 24\n":                                  `f:3: vips[0].source_prefix: scheduler maglev does not use it; write scheduler: source, or leave it out`,
		"vips:\n- vip: 192.0.2.10:80\n  scheduler: source\n  source_prefix: 33\n":             `f:4: vips[0].source_prefix: 33: an address has 32 bits; use 0 to 32`,
		"vips:\n- vip: 192.0.2.10:80\n  affinity_group: shop\n":                               `f:3: vips[0].affinity_group: without affinity it says nothing; add a line affinity: 5m, or leave it out`,
		"vips:\n- vip: 192.0.2.10:80\n  table_size: 1000\n":                                   `f:3: vips[0].table_size: table size 1000: not a prime; use 1009`,
		"vips:\n- vip: 192.0.2.10\n":                                                          `f:2: vips[0].vip: 192.0.2.10: not a VIP; write ADDR:PORT`,
		"vips:\n- vip: [192.0.2.10:80]\n":                                                     `f:2: vips[0].vip: a list; write one value, such as 192.0.2.10:80`,
		"interfaces: [eth0, eth1, eth0]\n":                                                    `f:1: interfaces[2].name: eth0: there twice, first in line 1; delete one of them`,
		"interfaces:\n- name: eth0\n  accept_macs: [ff:ff:ff:ff:ff:ff]\n":                     `f:3: interfaces[0].accept_macs[0]: "ff:ff:ff:ff:ff:ff": not the MAC address of one station`,
		"hash_key: secret\n":                             `f:1: hash_key: hash key of 6 characters: not 32 hexadecimal digits`,
		"timeouts:\n  tcp: 10ms\n":                       `f:2: timeouts.tcp: "10ms"; use 1s or more, such as 15m or 1h30m`,
		"snat:\n  ports: 100\n":                          `f:2: snat.ports: 100: not a range of ports`,
		"snat:\n  addresses: [192.0.2.20, 192.0.2.20]\n": `f:2: snat.addresses[1]: 192.0.2.20: there twice, first in line 2; delete one of them`,
		"max_vips: 0\n":                                  `f:1: max_vips: "0"; use a number from 1 to `,
		"tun_spread: 2001::/16\n":                        `f:1: tun_spread: "2001::/16": not an IPv4 prefix`,
		"vips: []\n---\nvips: []\n":                      `f:3: a second document; a file has one`,
		"vips: *all\n":                                   `f:1: vips: *all: no such anchor before it`,
		"a: &a {}\n<<: *a\n":                             `f:1: a: unknown field; known are `,
		"<<: {vips: []}\n":                               `f:1: <<: objects are not merged; write the fields out`,
		"vips: [\n":                                      `f:1: not YAML: `,
		"vips:\n\t- a\n":                                 `f:2: not YAML: `,
		"%d: 1\n":                                        `f:1: not YAML: `,
		"\"%d\": 1\n":                                    `f:1: %d: unknown field; known are `,
		"- vips\n":                                       `f:1: a list; write an object with interfaces, `,
	} {
		_, err := Parse("f", []byte(text))
		if err == nil || !strings.HasPrefix(err.Error(), want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%q: %v; want %s", text, err, want)
		}
	}
}

func TestEmpty(t *testing.T) {
	for _, text := range []string{"", "\n", "# nothing\n", "---\n", "{}\n"} {
		f, err := Parse("f", []byte(text))
		if err != nil {
			t.Errorf("%q: %v", text, err)
			continue
		}
		if w := f.Wanted(); w.VIPs != nil || w.Interfaces != nil || w.SNAT != nil {
			t.Errorf("%q wants something: %+v", text, w)
		}
	}
	f, err := Parse("f", []byte("vips: []\n"))
	if err != nil || f.Wanted().VIPs == nil {
		t.Errorf("an empty list of VIPs is one: %v", err)
	}
}

// TestSchema: the schema has every field, accepts the example, and refuses what Parse refuses.
func TestSchema(t *testing.T) {
	if err := valid(t, example(t)); err != nil {
		t.Errorf("the example: %v", err)
	}
	for _, text := range []string{
		"vipz: []", "vips: [{vip: '192.0.2.10:80', wieght: 3}]", "vips: [{mode: dr}]", "vips: 3",
		"vips: [{vip: '192.0.2.10:80', mode: route}]", "vips: [{vip: '192.0.2.10:80', backends: [{address: 192.0.2.11, weight: -1}]}]",
		"vips: [{vip: '192.0.2.10'}]", "interfaces: [{xdp_mode: native}]", "timeouts: {ftp: 3m}", "hash_key: abc",
	} {
		if err := valid(t, []byte(text)); err == nil {
			t.Errorf("the schema accepts %s", text)
		}
		if _, err := Parse("f", []byte(text)); err == nil {
			t.Errorf("accepted: %s", text)
		}
	}
}

// valid checks YAML, as another reader sees it, against the schema.
func valid(t *testing.T, text []byte) error {
	t.Helper()
	printed, err := Schema()
	if err != nil {
		t.Fatal(err)
	}
	var schema map[string]any
	if err := json.Unmarshal(printed, &schema); err != nil {
		t.Fatal(err)
	}
	asJSON, err := yaml.YAMLToJSON(text)
	if err != nil {
		t.Fatal(err)
	}
	var value any
	if err := json.Unmarshal(asJSON, &value); err != nil {
		t.Fatal(err)
	}
	return check(schema, value, "")
}

// check knows the part of JSON Schema that ours is made of, and fails on any other.
func check(schema map[string]any, value any, path string) error {
	for key, want := range schema {
		ok := true
		switch key {
		case "$schema", "title", "description":
		case "type":
			ok = isType(want.(string), value)
		case "enum":
			ok = slices.Contains(want.([]any), value)
		case "pattern":
			text, is := value.(string)
			ok = is && regexp.MustCompile(want.(string)).MatchString(text)
		case "minimum", "maximum":
			n, is := value.(float64)
			ok = is && (key == "minimum" && n >= want.(float64) || key == "maximum" && n <= want.(float64))
		case "items":
			list, _ := value.([]any)
			for i, item := range list {
				if err := check(want.(map[string]any), item, fmt.Sprintf("%s[%d]", path, i)); err != nil {
					return err
				}
			}
		case "required":
			object, _ := value.(map[string]any)
			for _, name := range want.([]any) {
				_, has := object[name.(string)]
				ok = ok && has
			}
		case "properties", "additionalProperties":
			object, _ := value.(map[string]any)
			properties := schema["properties"].(map[string]any)
			for name, v := range object {
				property, known := properties[name].(map[string]any)
				if !known {
					return fmt.Errorf("%s.%s: unknown", path, name)
				}
				if err := check(property, v, path+"."+name); err != nil {
					return err
				}
			}
		case "anyOf":
			ok = slices.ContainsFunc(want.([]any), func(one any) bool { return check(one.(map[string]any), value, path) == nil })
		default:
			return fmt.Errorf("%s: this test knows no %s", path, key)
		}
		if !ok {
			return fmt.Errorf("%s: %v: not %s %v", path, value, key, want)
		}
	}
	return nil
}

func isType(name string, value any) bool {
	switch v := value.(type) {
	case string:
		return name == "string"
	case bool:
		return name == "boolean"
	case float64:
		return name == "integer" && v == math.Trunc(v)
	case []any:
		return name == "array"
	case map[string]any:
		return name == "object"
	}
	return false
}

// TestScalars: every type is read as it is written.
func TestScalars(t *testing.T) {
	for kind, s := range scalars {
		if kind == reflect.TypeFor[maps.HashKey]() { // its example is none
			continue
		}
		value, err := s.parse(s.example)
		if err != nil {
			t.Errorf("%v: %v", kind, err)
			continue
		}
		again, err := s.parse(s.write(value))
		if err != nil || !reflect.DeepEqual(value, again) {
			t.Errorf("%v: %v is written as %s and read as %v, %v", kind, value, s.write(value), again, err)
		}
	}
	for text, want := range map[string]string{"15m": "15m", "1h": "1h", "90s": "1m30s", "10s": "10s", "1h0m1s": "1h0m1s", "120m": "2h", "20s": "20s"} {
		d, err := parseDuration(text)
		if err != nil || durationText(d) != want {
			t.Errorf("%s is written as %s, %v; want %s", text, durationText(d), err, want)
		}
	}
}
