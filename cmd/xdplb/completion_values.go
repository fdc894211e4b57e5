package main

import (
	"net"
	"slices"
	"strings"

	"github.com/spf13/pflag"

	"github.com/xdplb/xdplb/loader"
	"github.com/xdplb/xdplb/maps"
)

// flagWordsOf are the values of flags that know few. A usage line that says
// `--mode dr|tun` knows better.
var flagWordsOf = map[string][]string{
	"format":    {"yaml", "ipvsadm"},
	"mode":      {"dr", "tun", "nat", "fullnat"},
	"output":    {"text", "json"},
	"scheduler": {"maglev", "source", "rr", "lc"},
	"track":     {"changes", "all"},
	"xdp-mode":  {"auto", "native", "generic"},
}

func (c *completer) flagValues(cmd command, f *pflag.Flag) []string {
	usage := strings.Fields(cmd.args)
	for i, word := range usage[:max(len(usage)-1, 0)] {
		if values := strings.Trim(usage[i+1], "[]"); strings.Trim(word, "[]") == "--"+f.Name && strings.Contains(values, "|") {
			return strings.Split(values, "|")
		}
	}
	if words := flagWordsOf[f.Name]; words != nil {
		return words
	}
	kind, _ := pflag.UnquoteUsage(f)
	if f.Name == "pins" {
		kind = "DIR"
	}
	return c.values(cmd, kind, nil)
}

// values are those of a kind, which is a word of a usage line such as VIP, in the
// system as it is. What cannot be read has none.
func (c *completer) values(cmd command, kind string, given []string) (words []string) {
	switch kind {
	case "IFACE":
		devices, _ := net.Interfaces()
		for _, d := range devices {
			words = append(words, d.Name)
		}
	case "VIP":
		for _, v := range c.vips() {
			words = append(words, v.String())
		}
	case "VIPADDR":
		if s, err := loader.ListAccepted(c.pins); err == nil {
			for _, a := range s.Addresses {
				words = append(words, a.Address.String())
			}
		}
	case "BACKEND":
		words = c.backends(given, true)
	case "ADDR":
		if strings.HasPrefix(cmd.name, "snat") {
			return c.pool()
		}
		words = c.backends(given, false)
	case "REASON":
		words, _ = maps.ReasonNames()
		words = append(words, "all")
	case "FILE", "DIR":
		c.files = true
	}
	return words
}

// open is nil where nothing can be read.
func (c *completer) open() *loader.Balancer {
	b, err := loader.Open(c.pins)
	if err != nil {
		return nil
	}
	return b
}

func (c *completer) vips() (all []maps.VIP) {
	if b := c.open(); b != nil {
		defer b.Close()
		services, _ := b.Maps.Services()
		for _, s := range services {
			all = append(all, s.VIP)
		}
	}
	return all
}

// backends are those of the VIP that is given, or of all: their addresses, and with
// their ports if they can be named so.
func (c *completer) backends(given []string, ports bool) (words []string) {
	b := c.open()
	if b == nil {
		return nil
	}
	defer b.Close()
	only, named := maps.VIP{}, slices.IndexFunc(given, isVIP)
	if named >= 0 {
		only, _ = maps.ParseVIP(given[named])
	}
	services, _ := b.Maps.Services()
	wanted := make(map[uint32]bool)
	for _, s := range services {
		wanted[s.Id] = named < 0 || s.VIP == only
	}
	for _, backend := range b.Maps.ReadBackends(func(vip uint32) bool { return wanted[vip] }) {
		switch {
		case !backend.Listed():
		case ports:
			words = append(words, backend.AddrPort().String())
		default:
			words = append(words, backend.Addr().String())
		}
	}
	return words
}

func isVIP(word string) bool {
	_, err := maps.ParseVIP(word)
	return err == nil
}

func (c *completer) pool() (words []string) {
	if b := c.open(); b != nil {
		defer b.Close()
		pool, _ := b.Maps.SNATPool(&b.Settings)
		for _, addr := range pool {
			words = append(words, addr.String())
		}
	}
	return words
}
