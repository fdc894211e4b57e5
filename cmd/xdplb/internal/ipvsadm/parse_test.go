package ipvsadm

import (
	"errors"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

var comparable = cmp.Comparer(func(a, b netip.Addr) bool { return a == b })

func parse(t *testing.T, line string) Command {
	t.Helper()
	c, err := Parse(strings.Fields(line), Resolver{})
	if err != nil {
		t.Fatalf("%s: %v", line, err)
	}
	return c
}

func TestShortAndLongBundledAndAttachedAreOneLanguage(t *testing.T) {
	for _, alike := range [][]string{
		{"-A -t 192.0.2.10:80 -s rr -p 600", "-At 192.0.2.10:80 -srr -p600", "--add-service --tcp-service 192.0.2.10:80 --scheduler rr --persistent 600", "-A --tcp-service=192.0.2.10:80 --scheduler=rr --persistent=600"},
		{"-A -t 192.0.2.10:80 -p 300 -s rr", "-A -t 192.0.2.10:80 -p -s rr", "-A -t 192.0.2.10:80 -s rr -p"},
		{"-A -t 192.0.2.10:443 -s wlc -p 600 -M 255.255.255.0", "-A -t 192.0.2.10:443 -s wlc -p 600 -M 24"},
		{"-a -t 192.0.2.10:80 -r 198.51.100.11 -m -w 5", "-at 192.0.2.10:80 -r 198.51.100.11 -m -w5", "-amt 192.0.2.10:80 -r198.51.100.11 -w 5", "--add-server -t 192.0.2.10:80 --real-server 198.51.100.11 --masquerading --weight 5"},
		{"-e -u [2001:db8::10]:53 -r [2001:db8::11]:5353 --fullnat", "-eu [2001:db8::10]:53 --fullnat -r [2001:db8::11]:5353"},
		{"-a -t 192.0.2.10:80 -r 198.51.100.12:80 -i -w 0 --tun-type ipip", "-a -t 192.0.2.10:80 -r 198.51.100.12:80 --ipip --weight 0"},
		{"-L -n", "-Ln", "-ln", "-nL", "--list --numeric", "-Ln --sort", "-Ln --nosort"}, // which is sorted all the same
		{"-Lnc", "-l -n -c", "--list --numeric --connection"},
		{"-Ln --stats --exact", "-L --exact -n --stats"},
		{"-S -n", "-Sn", "--save --numeric"},
		{"-L", "-l", "--list", ""},
		{"-D -t 192.0.2.10:80", "-Dt 192.0.2.10:80", "--delete-service --tcp-service 192.0.2.10:80"},
		{"--set 900 120 300", "--set -- 900 120 300"},
	} {
		want := parse(t, alike[0])
		for _, line := range alike[1:] {
			if diff := cmp.Diff(want, parse(t, line), comparable, cmp.AllowUnexported(Key{}), cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b })); diff != "" {
				t.Errorf("%q is not %q:\n%s", line, alike[0], diff)
			}
		}
	}
}

func TestParsedValues(t *testing.T) {
	c := parse(t, "-A -t [2001:db8::10]:80 -s sh -b sh-port,sh-fallback -p 60 -M 64 --handover 15m")
	if c.Service.String() != "[2001:db8::10]:80/tcp" || *c.Scheduler != "sh" || *c.Flags != "sh-port,sh-fallback" ||
		*c.Persistent != 60 || *c.MaskBits != 64 || c.Handover != 15*time.Minute {
		t.Errorf("%+v", c)
	}
	c = parse(t, "-e -t 192.0.2.10:80 -r 198.51.100.11")
	if c.Forward != nil || c.Weight != nil || c.Port != nil || c.Host.String() != "198.51.100.11" {
		t.Errorf("-e names what it was not told: %+v", c)
	}
	c = parse(t, "--set 0 120 300")
	if c.Timeouts != [3]time.Duration{0, 2 * time.Minute, 5 * time.Minute} {
		t.Errorf("%+v", c.Timeouts)
	}
	names := Resolver{
		Addr: func(host string) (netip.Addr, error) { return netip.MustParseAddr("192.0.2.7"), nil },
		Port: func(string, Protocol) (uint16, error) { return 80, nil },
	}
	c, err := Parse(strings.Fields("-A -t web.example:http -s rr"), names)
	if err != nil || c.Service.String() != "192.0.2.7:80/tcp" {
		t.Errorf("names: %v %v", c.Service, err)
	}
}

func TestWhatIsRefusedSaysWhatToDo(t *testing.T) {
	for line, want := range map[string]string{
		"-A -f 7 -s rr":                                 "-f 7: no firewall marks in XDP; use one -t or -u service",
		"-A --sctp-service 192.0.2.10:80":               "--sctp-service 192.0.2.10:80: only TCP and UDP; leave SCTP",
		"-A -t 192.0.2.10:80 -p --pe sip":               "--pe sip: no persistence engines; use -p, or -s sh",
		"--start-daemon master":                         "--start-daemon master: connections are not copied between balancers; give both the same --hash-key",
		"--stop-daemon master":                          "--stop-daemon master: there is no sync daemon",
		"-L --daemon":                                   "--daemon: there is no sync daemon",
		"-A -t 192.0.2.10:80 -s lblc":                   "-s lblc: not in XDP; use mh",
		"-A -t 192.0.2.10:80 -s lblcr":                  "-s lblcr: not in XDP; use mh",
		"-A -t 192.0.2.10:80 -s dh":                     "-s dh: not in XDP; use sh (by the client's address) or mh",
		"-A -t 192.0.2.10:80 -s fo":                     "-s fo: not in XDP; use mh, and give",
		"-A -t 192.0.2.10:80 -s ovf":                    "-s ovf: not in XDP; use wlc",
		"-A -t 192.0.2.10:80 -s fifo":                   "-s fifo: no such scheduler; use one of rr, wrr",
		"-a -t 192.0.2.10:80 -r 198.51.100.11 -x 9":     "-x 9: no connection limits yet; leave it out",
		"-a -t 192.0.2.10:80 -r 198.51.100.11 -y 9":     "-y 9: no connection limits yet; leave it out",
		"-a -t 192.0.2.10:80 -r 198.51.100.11 -w -1":    "-w -1: use 0 to 65535",
		"-a -t 192.0.2.10:80 -r 198.51.100.11 -g -m":    "-g and -m: two ways of forwarding",
		"-a -t 192.0.2.10:80 -r server":                 "-r server: not an address; write ADDR[:PORT]",
		"-a -t 192.0.2.10:80 -r 198.51.100.11:x":        "-r 198.51.100.11:x: \"x\" is no port; use 0 to 65535",
		"-a -t 192.0.2.10:80 -r 198.51.100.11:65536":    "-r 198.51.100.11:65536: \"65536\" is no port",
		"-a -t 192.0.2.10:80 -r a --tun-type gue":       "-r a: not an address",
		"-a -t 192.0.2.10:80 -r 1.1.1.1 --tun-type gue": "--tun-type gue: tunnels are IP in IP; use --tun-type ipip",
		"-a -t 192.0.2.10:80 -r 1.1.1.1 --tun-port 5":   "--tun-port 5: tunnels are IP in IP, which has no ports",
		"-a -t 192.0.2.10:80":                           "-a 192.0.2.10:80/tcp: names no server; add -r ADDR[:PORT]",
		"-a -r 198.51.100.11":                           "-a: names no service; add -t",
		"-A -s rr":                                      "-A: names no service; add -t",
		"-A -t 192.0.2.10":                              "-t 192.0.2.10: names no port; use 192.0.2.10:80, or port 0",
		"-A -t 2001:db8::1":                             "-t 2001:db8::1: names no port; use [2001:db8::1]:80, or port 0",
		"-A -t 192.0.2.10:80 -o":                        "-o 192.0.2.10:80/tcp: only of UDP services",
		"-A -t 192.0.2.10:80 -M 24":                     "-M: only of persistent services; add -p",
		"-A -t 192.0.2.10:80 -p -M 33":                  "-M 33: 192.0.2.10 has 32 bits; use 1 to 32",
		"-A -t 192.0.2.10:80 -p -M 255.0.255.0":         "-M 255.0.255.0: has bits behind a gap",
		"-A -t 192.0.2.10:80 -p -M 0.0.0.0":             "-M 0.0.0.0: use 1 bit or more",
		"-A -t 192.0.2.10:80 -p x":                      "-p x: use 1 to",
		"-A -t 192.0.2.10:80 -s rr -b mh-port":          "-b mh-port: scheduler rr has no flags",
		"-A -t 192.0.2.10:80 -s mh -b sh-port":          "-b sh-port: scheduler mh has the flags mh-fallback and mh-port",
		"-A -t 192.0.2.10:80 -w 5":                      "-w: not with -A",
		"-A -t 192.0.2.10:80 -u 192.0.2.10:53":          "-u 192.0.2.10:53: a second service; give one",
		"-A -D -t 192.0.2.10:80":                        "-A and -D: two commands; give one",
		"-C -t 192.0.2.10:80":                           "-t: not with -C",
		"-L --stats --rate":                             "--rate: not with another kind of listing",
		"-t 192.0.2.10:80":                              "no command; begin with one of",
		"-Lq":                                           "-q: no such option",
		"--lost":                                        "--lost: no such option",
		"--list=5":                                      "--list: takes no argument",
		"-A -t":                                         "-t: wants an argument",
		"-L 5":                                          "5: belongs to no option",
		"--set 900 120":                                 "--set: wants three times in seconds",
		"--set 900 120 -3":                              "-3: no such option",
		"--set 900 120 x":                               "--set x: use 0 to",
		"-R --handover soon":                            "--handover soon: use a time such as 15m",
	} {
		_, err := Parse(strings.Fields(line), Resolver{})
		switch {
		case err == nil:
			t.Errorf("%s: is accepted", line)
		case !strings.HasPrefix(err.Error(), want):
			t.Errorf("%s: %v\nwant %s", line, err, want)
		case strings.Contains(err.Error(), "\n") || !errors.As(err, new(UsageError)):
			t.Errorf("%s: not one line of wrong usage: %q", line, err)
		}
	}
}
