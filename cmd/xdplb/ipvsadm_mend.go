package main

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strings"

	"github.com/xdplb/xdplb/cmd/xdplb/internal/ipvsadm"
	"github.com/xdplb/xdplb/cmd/xdplb/internal/shell"
	"github.com/xdplb/xdplb/loader"
)

// mended is an error that ends with the command that mends it, in ipvsadm's words
// where there are some.
func (r *ipvsadmRun) mended(err error) error {
	m := new(loader.Misuse)
	if !errors.As(err, &m) {
		return err
	}
	advice, rules := rulesFor(m, &r.Command)
	if rules == nil {
		return remade(err, m, m.Advice, r.here(m.Command))
	}
	for i := range rules {
		rules[i] = "xdplb ipvsadm " + rules[i]
	}
	return remade(err, m, advice, r.here(strings.Join(rules, " && ")))
}

// rulesFor are the rules to give instead of the command that was wrong; none if what
// mends it is not one of ipvsadm's.
func rulesFor(m *loader.Misuse, c *ipvsadm.Command) (advice string, rules []string) {
	if c.Action != ipvsadm.AddServer && c.Action != ipvsadm.EditServer || c.Service == nil {
		return "", nil
	}
	switch {
	case len(m.Servers) > 0:
		for _, other := range m.Servers {
			one := ipvsadm.Server{At: other.At, Forward: forwardIn(other.Mode), Weight: other.Weight}
			rules = append(rules, one.Rule(ipvsadm.AddServer, *c.Service))
		}
		return m.Advice, rules
	case m.Use != 0 && m.Loop == nil:
		at, way := c.Server(c.Service.At), forwardIn(m.Use)
		if m.NoPort {
			at = netip.AddrPortFrom(c.Host, c.Service.At.Port())
		}
		return strings.ReplaceAll(m.Advice, "--mode "+m.Use.String(), way.Option()), []string{c.Forwarding(at, way)}
	}
	return "", nil
}

func forwardIn(mode loader.Mode) ipvsadm.Forward {
	for way, m := range modeOf {
		if m == mode && way != ipvsadm.Local {
			return way
		}
	}
	return ipvsadm.Route
}

// fileMended is an error about a file of ipvsadm rules that ends with the command
// that mends the file.
func (e *env) fileMended(err error, lines []ipvsadm.Line, path string) error {
	path = inputPath(path)
	wrong := new(ipvsadm.LineError)
	if errors.As(err, &wrong) && len(wrong.Mended) > 0 && path != "" {
		return fmt.Errorf("%w: %s", err, sedLines(wrong.Number, wrong.Mended, path))
	}
	m := new(loader.Misuse)
	if !errors.As(err, &m) {
		return err
	}
	advice, command := m.Advice, e.here(m.Command)
	if path != "" {
		advice, command = mendLines(m, lines, path, command)
	}
	return remade(err, m, advice, command)
}

// mendLines mends the lines of a file that are wrong; other is the command that mends
// what is not of the file.
func mendLines(m *loader.Misuse, lines []ipvsadm.Line, path, other string) (advice, command string) {
	var again []string // lines that add anew what other deletes
	for i := range lines {
		l := &lines[i]
		if l.Service == nil || !l.Host.IsValid() {
			continue
		}
		v, err := vipOf(*l.Service)
		if err != nil {
			continue
		}
		if m.Delete && loader.Meets(l.Server(l.Service.At), m.VIP, v.Proto) {
			again = append(again, fmt.Sprintf("%dd", l.Number))
		}
		if l.Host != m.Backend.Addr() || m.VIP != v {
			continue
		}
		if advice, rules := rulesFor(m, &l.Command); rules != nil {
			return advice, sedLines(l.Number, rules, path)
		}
		if m.Loop != nil {
			return "leave it out", shell.Quote("sed", "-i", fmt.Sprintf("%dd", l.Number), path)
		}
	}
	if len(again) > 0 {
		other = shell.Quote("sed", "-i", strings.Join(again, ";"), path) + " && " + other
	}
	return m.Advice, other
}

// sedLines puts lines in the place of one.
func sedLines(number int, lines []string, path string) string {
	return shell.Quote("sed", "-i", fmt.Sprintf(`%dc\%s`, number, strings.Join(lines, `\n`)), path)
}

// inputPath is the file that is read: of standard input, if it is one. Else empty.
func inputPath(path string) string {
	if path != "-" {
		return path
	}
	path, err := os.Readlink("/proc/self/fd/0")
	if info, bad := os.Stat(path); err != nil || bad != nil || !info.Mode().IsRegular() {
		return ""
	}
	return path
}
