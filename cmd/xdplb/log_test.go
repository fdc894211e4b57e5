package main

import (
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/xdplb/xdplb/cmd/xdplb/internal/lab"
	"github.com/xdplb/xdplb/maps"
)

// TestChangesAreLogged: every change, and no listing, tells syslog who did what, and the state before and after.
func TestChangesAreLogged(t *testing.T) {
	network, err := lab.BuildNetwork(lab.Plan{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := network.Close(); err != nil {
			t.Error(err)
		}
	})
	var log net.PacketConn
	err = network.Balancer.Do(func() (err error) {
		// Where log/syslog looks when there is no /dev/log, which nodes hide.
		if err := unix.Mount("tmpfs", "/var/run", "tmpfs", 0, ""); err != nil {
			return err
		}
		log, err = net.ListenPacket("unixgram", "/var/run/log")
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	for _, line := range []string{
		"xdplb attach eth0",
		"xdplb vip add 192.0.2.10:80",
		"xdplb vip list",
		"xdplb backend add 192.0.2.10:80 192.0.2.11 --weight 3",
		"xdplb drain 192.0.2.11",
		"xdplb vip del 192.0.2.10:80 --handover 15m",
		"xdplb vip set 192.0.2.10:80 --handover 15m",
		"xdplb vip set 192.0.2.10:80 --handover 5h",
	} {
		runOn(t, network.Balancer, line)
	}
	for _, wanted := range [][]string{
		{"attach eth0: done", "before: nothing", "after: no VIPs"},
		{"vip add 192.0.2.10:80: done", "before: no VIPs", "after: 192.0.2.10:80/tcp maglev []"},
		{"backend add 192.0.2.10:80 192.0.2.11: done", "after: 192.0.2.10:80/tcp maglev [192.0.2.11:80/dr/3/enabled]"},
		{"drain 192.0.2.11: done", "before: 192.0.2.10:80/tcp maglev [192.0.2.11:80/dr/3/enabled]", "192.0.2.11:80/dr/3/drain"},
		{"vip del 192.0.2.10:80: done", "after: 192.0.2.10:80/tcp maglev [192.0.2.11:80/dr/3/drain] giving back until "},
		{"vip set 192.0.2.10:80: done", "] giving back until ", "] taking over until "},
		{"vip set 192.0.2.10:80: done", "before: 192.0.2.10:80/tcp maglev [192.0.2.11:80/dr/3/drain] taking over until ", "after: 192.0.2.10:80/tcp"},
	} {
		message := receive(t, log)
		for _, part := range append(wanted, "root") {
			if !strings.Contains(message, part) {
				t.Errorf("%q is not in %q", part, message)
			}
		}
	}
}

func receive(t *testing.T, log net.PacketConn) string {
	t.Helper()
	if err := log.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	buffer := make([]byte, 4096)
	n, _, err := log.ReadFrom(buffer)
	if err != nil {
		t.Fatal(err)
	}
	return string(buffer[:n])
}

// TestLogSaysWhatChanged: among many VIPs those that a change is about come first.
func TestLogSaysWhatChanged(t *testing.T) {
	var before, after summary
	for _, s := range []*summary{&before, &after} {
		s.lines, s.pool = make(map[maps.VIP]string), "snat"
		for port := range uint16(100) {
			v := maps.VIP{Addr: netip.MustParseAddr("192.0.2.10"), Port: port + 1, Proto: unix.IPPROTO_TCP}
			s.vips, s.lines[v] = append(s.vips, v), v.String()+" maglev []"
		}
	}
	v := after.vips[70]
	after.lines[v] = v.String() + " rr []"
	if !before.equal(&before) || before.equal(&after) {
		t.Error("what differs is equal, or the other way round")
	}
	if text := before.text(&after); !strings.HasPrefix(text, v.String()+" maglev []") || len(text) > 2*syslogLine {
		t.Errorf("before: %s", text)
	}
	if text := after.text(&before); !strings.HasPrefix(text, v.String()+" rr []") || !strings.Contains(text, " more; snat") {
		t.Errorf("after: %s", text)
	}
}
