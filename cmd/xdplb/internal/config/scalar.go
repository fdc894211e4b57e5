package config

import (
	"encoding/hex"
	"fmt"
	"net"
	"net/netip"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/xdplb/xdplb/cmd/xdplb/internal/ipvsadm"
	"github.com/xdplb/xdplb/loader"
	"github.com/xdplb/xdplb/maps"
)

// scalar is a type that is one value in the file.
type scalar struct {
	parse   func(string) (any, error)
	text    func(any) string // nil: fmt.Sprint
	schema  map[string]any
	example string
	low     uint64 // of numbers that are one of a range
	high    uint64
}

// nearest is the number of the range that is nearest to one outside of it.
func (s scalar) nearest(text string) (near string, ok bool) {
	digits, negative := strings.CutPrefix(text, "-")
	if s.high == 0 || digits == "" || strings.Trim(digits, "0123456789") != "" {
		return "", false
	}
	if n, err := strconv.ParseUint(digits, 10, 64); negative || err == nil && n < s.low {
		return fmt.Sprint(s.low), true
	}
	return fmt.Sprint(s.high), true
}

// write is the text of a value.
func (s scalar) write(v any) string {
	if s.text == nil {
		return fmt.Sprint(v)
	}
	return s.text(v)
}

var scalars = map[reflect.Type]scalar{
	reflect.TypeFor[string]():             {parse: parseName, schema: text(`^\S+$`), example: "eth0"},
	reflect.TypeFor[bool]():               {parse: parseBool, schema: map[string]any{"type": "boolean"}, example: "true"},
	reflect.TypeFor[uint8]():              ranged[uint8](0, 128, "24"),
	reflect.TypeFor[uint16]():             ranged[uint16](0, 65535, "1"),
	reflect.TypeFor[uint32]():             {parse: parseTableSize, schema: integer(maps.MinTableSize, maps.MaxTableSize), example: fmt.Sprint(maps.DefaultTableSize)},
	reflect.TypeFor[Size]():               ranged[Size](1, 1<<31, fmt.Sprint(loader.DefaultMaxVIPs)),
	reflect.TypeFor[Duration]():           {parse: parseDuration, text: durationText, schema: text(`^([0-9.]+(h|m|s))+$`), example: "15m"},
	reflect.TypeFor[MAC]():                {parse: parseMAC, schema: text(`^[0-9A-Fa-f]{2}([:-][0-9A-Fa-f]{2}){5}$`), example: "00:00:5e:00:01:0a"},
	reflect.TypeFor[loader.PortRange]():   {parse: parsePorts, schema: text(`^[0-9]{1,5}-[0-9]{1,5}$`), example: "1024-65535"},
	reflect.TypeFor[Track]():              oneOf(TrackChanges, TrackAll),
	reflect.TypeFor[loader.XDPMode]():     oneOf(loader.XDPAuto, loader.XDPNative, loader.XDPGeneric),
	reflect.TypeFor[loader.Mode]():        named(loader.ParseMode, "dr", "tun", "nat", "fullnat"),
	reflect.TypeFor[maps.Scheduler]():     named(loader.ParseScheduler, "maglev", "source", "rr", "lc"),
	reflect.TypeFor[ipvsadm.Scheduling](): {parse: parseIpvsadm, schema: text(`^(rr|wrr|lc|wlc|sed|nq|mh|sh)(,mh-fallback|,sh-fallback)?(,mh-port|,sh-port)?(,ops)?$`), example: "wrr"},
	reflect.TypeFor[netip.Addr]():         {parse: parseAddr, schema: text(`^[0-9A-Fa-f:.]+$`), example: "192.0.2.20"},
	reflect.TypeFor[netip.Prefix]():       {parse: parseSpread, schema: text(`^[0-9.]+/[0-9]+$`), example: "172.31.0.0/16"},
	reflect.TypeFor[netip.AddrPort]():     {parse: parseBackend, text: backendText, schema: text(`^(\[[0-9A-Fa-f:.]+\]|[0-9A-Fa-f:.]+)(:[0-9]{1,5})?$`), example: "10.0.0.11"},
	reflect.TypeFor[maps.VIP]():           {parse: parseVIP, schema: text(`^(\[[0-9A-Fa-f:.]+\]|[0-9.]+):[0-9]{1,5}(/(tcp|udp))?$`), example: "192.0.2.10:80"},
	reflect.TypeFor[maps.HashKey]():       {parse: parseKey, text: keyText, schema: text(`^[0-9A-Fa-f]{32}$`), example: "what `openssl rand -hex 16` prints"},
}

func text(pattern string) map[string]any {
	return map[string]any{"type": "string", "pattern": pattern}
}

func integer(low, high int) map[string]any {
	return map[string]any{"type": "integer", "minimum": low, "maximum": high}
}

func choice(words []string) map[string]any { return map[string]any{"enum": words} }

func unknown(s string, words []string) error {
	last := len(words) - 1
	return fmt.Errorf("%q is unknown; use %s or %s", s, strings.Join(words[:last], ", "), words[last])
}

// oneOf is a type whose values are these words.
func oneOf[T ~string](values ...T) scalar {
	var words []string
	for _, v := range values {
		words = append(words, string(v))
	}
	return scalar{schema: choice(words), example: words[0], parse: func(s string) (any, error) {
		if !slices.Contains(words, s) {
			return nil, unknown(s, words)
		}
		return T(s), nil
	}}
}

// named is a type whose values have these names.
func named[T fmt.Stringer](parse func(string) (T, error), words ...string) scalar {
	return scalar{schema: choice(words), example: words[0], parse: func(s string) (any, error) {
		if !slices.Contains(words, s) {
			return nil, unknown(s, words)
		}
		v, err := parse(s)
		return v, err
	}}
}

// ranged is a type whose values are numbers of a range.
func ranged[T ~uint8 | ~uint16 | ~uint32](low, high uint64, example string) scalar {
	return scalar{parse: number[T](low, high), schema: integer(int(low), int(high)), example: example, low: low, high: high}
}

func number[T ~uint8 | ~uint16 | ~uint32](low, high uint64) func(string) (any, error) {
	return func(s string) (any, error) {
		n, err := strconv.ParseUint(s, 10, 64)
		if err != nil || n < low || n > high {
			return nil, fmt.Errorf("%q; use a number from %d to %d", s, low, high)
		}
		return T(n), nil
	}
}

func parseName(s string) (any, error) {
	if s == "" || strings.ContainsFunc(s, func(r rune) bool { return r <= ' ' || r == 0x7f }) {
		return nil, fmt.Errorf("%q; use a name without spaces", s)
	}
	return s, nil
}

func parseBool(s string) (any, error) {
	if s != "true" && s != "false" {
		return nil, fmt.Errorf("%q; use true or false", s)
	}
	return s == "true", nil
}

func parseTableSize(s string) (any, error) {
	n, err := strconv.ParseUint(s, 10, 32)
	if err != nil {
		return nil, fmt.Errorf("%q; use a prime from %d to %d", s, maps.MinTableSize, maps.MaxTableSize)
	}
	return uint32(n), maps.ValidTableSize(uint32(n))
}

func parseDuration(s string) (any, error) {
	d, err := time.ParseDuration(s)
	if err != nil || d < time.Second {
		return nil, fmt.Errorf("%q; use 1s or more, such as 15m or 1h30m", s)
	}
	return Duration(d), nil
}

// durationText leaves out zeros: 15m, not 15m0s.
func durationText(v any) string {
	s := time.Duration(v.(Duration)).String()
	if strings.HasSuffix(s, "m0s") {
		s = strings.TrimSuffix(s, "0s")
	}
	if strings.HasSuffix(s, "h0m") {
		s = strings.TrimSuffix(s, "0m")
	}
	return s
}

func parseMAC(s string) (any, error) {
	mac, err := net.ParseMAC(s)
	if err != nil || len(mac) != 6 || mac[0]&1 != 0 {
		return nil, fmt.Errorf("%q: not the MAC address of one station; write it as 00:00:5e:00:01:0a", s)
	}
	return MAC(mac), nil
}

func parsePorts(s string) (any, error) { r, err := loader.ParsePorts(s); return r, err }

func parseAddr(s string) (any, error) {
	a, err := netip.ParseAddr(s)
	if err != nil || a.Zone() != "" {
		return nil, fmt.Errorf("%q: not an address; write it as 192.0.2.20 or 2001:db8::20", s)
	}
	return a.Unmap(), nil
}

func parseSpread(s string) (any, error) {
	p, err := netip.ParsePrefix(s)
	if err != nil || !p.Addr().Is4() {
		return nil, fmt.Errorf("%q: not an IPv4 prefix; write it as 172.31.0.0/16, or 0.0.0.0/0 for none", s)
	}
	return p, nil
}

func parseBackend(s string) (any, error) { a, err := loader.ParseBackend(s); return a, err }

func backendText(v any) string {
	a := v.(netip.AddrPort)
	if a.Port() == 0 {
		return a.Addr().String()
	}
	return a.String()
}

func parseIpvsadm(s string) (any, error) { v, err := ipvsadm.ParseScheduling(s); return v, err }

func parseVIP(s string) (any, error) { v, err := maps.ParseVIP(s); return v, err }

func parseKey(s string) (any, error) { k, err := maps.ParseHashKey(s); return k, err }

func keyText(v any) string {
	k := v.(maps.HashKey)
	return hex.EncodeToString(k[:])
}
