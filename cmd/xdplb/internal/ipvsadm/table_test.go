package ipvsadm

import (
	"bytes"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// do runs command lines, one in a line, on a table, and returns it saved, with the notes.
func do(t *testing.T, table *Table, script string) (saved string, notes []string) {
	t.Helper()
	for line := range strings.Lines(script) {
		said, err := table.Do(parse(t, line))
		if err != nil {
			t.Fatalf("%s: %v", line, err)
		}
		notes = append(notes, said...)
	}
	return save(*table), notes
}

func save(table Table) string {
	var out bytes.Buffer
	table.Save(&out)
	return out.String()
}

func TestEditKeepsWhatItDoesNotName(t *testing.T) {
	var table Table
	do(t, &table, `-A -u 192.0.2.10:53 -s mh -b mh-port -p 60 -M 24 -o
-a -u 192.0.2.10:53 -r 198.51.100.11:5353 -m -w 7
-a -u 192.0.2.10:53 -r 198.51.100.12 -i`)
	for _, step := range [][2]string{
		{"-e -u 192.0.2.10:53 -r 198.51.100.11:5353 -w 0", "-a -u 192.0.2.10:53 -r 198.51.100.11:5353 -m -w 0\n"},
		{"-e -u 192.0.2.10:53 -r 198.51.100.11:5353", "-a -u 192.0.2.10:53 -r 198.51.100.11:5353 -m -w 0\n"},
		{"-e -u 192.0.2.10:53 -r 198.51.100.11:5353 --fullnat", "-a -u 192.0.2.10:53 -r 198.51.100.11:5353 --fullnat -w 0\n"},
		{"-e -u 192.0.2.10:53 -r 198.51.100.12 -g", "-a -u 192.0.2.10:53 -r 198.51.100.12:53 -g -w 1\n"},
		{"-E -u 192.0.2.10:53", "-A -u 192.0.2.10:53 -s mh -p 60 -M 255.255.255.0 -o -b mh-port\n"},
		{"-E -u 192.0.2.10:53 -p 90", "-A -u 192.0.2.10:53 -s mh -p 90 -M 255.255.255.0 -o -b mh-port\n"},
		{"-E -u 192.0.2.10:53 -s sh", "-A -u 192.0.2.10:53 -s sh -p 90 -M 255.255.255.0 -o\n"},
		{"-E -u 192.0.2.10:53 -p 0", "-A -u 192.0.2.10:53 -s sh -o\n"},
	} {
		if saved, _ := do(t, &table, step[0]); !strings.Contains(saved, step[1]) {
			t.Errorf("after %s: no %q in\n%s", step[0], step[1], saved)
		}
	}
}

func TestWhatIsNotThereAndWhatIsAlready(t *testing.T) {
	var table Table
	before, _ := do(t, &table, `-A -t 192.0.2.10:80
-a -t 192.0.2.10:80 -r 198.51.100.11
-a -t 192.0.2.10:80 -r 198.51.100.12:8080 -m`)
	for line, want := range map[string]string{
		"-A -t 192.0.2.10:80":                          "192.0.2.10:80/tcp: exists; change it with -E",
		"-A -t 192.0.2.10:80 -s rr":                    "192.0.2.10:80/tcp: exists",
		"-E -u 192.0.2.10:80 -s rr":                    "192.0.2.10:80/udp: no such service; add it with -A",
		"-D -t 192.0.2.10:81":                          "192.0.2.10:81/tcp: no such service",
		"-a -t 192.0.2.10:81 -r 198.51.100.11":         "192.0.2.10:81/tcp: no such service",
		"-a -t 192.0.2.10:80 -r 198.51.100.11":         "198.51.100.11:80 of 192.0.2.10:80/tcp: exists; change it with -e",
		"-a -t 192.0.2.10:80 -r 198.51.100.11:99":      "198.51.100.11:80 of 192.0.2.10:80/tcp: exists",
		"-e -t 192.0.2.10:80 -r 198.51.100.12 -w 5":    "198.51.100.12:80 of 192.0.2.10:80/tcp: no such server; add it with -a",
		"-e -t 192.0.2.10:80 -r 198.51.100.12:8080 -g": "198.51.100.12:8080 of 192.0.2.10:80/tcp: -g keeps the port, and the service's is 80",
		"-d -t 192.0.2.10:80 -r 198.51.100.12":         "198.51.100.12:80 of 192.0.2.10:80/tcp: no such server",
		"-E -t 192.0.2.10:80 -b mh-port":               "-b mh-port: scheduler wlc has no flags",
	} {
		if _, err := table.Do(parse(t, line)); err == nil || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("%s: %v\nwant %s", line, err, want)
		}
		if diff := cmp.Diff(before, save(table)); diff != "" {
			t.Fatalf("%s: changed something:\n%s", line, diff)
		}
	}
	after, _ := do(t, &table, "-d -t 192.0.2.10:80 -r 198.51.100.12:8080\n-D -t 192.0.2.10:80")
	if after != "" {
		t.Errorf("deleted all, and there is\n%s", after)
	}
}

func TestNotesAreSaidWhereItIsNotTheSameThing(t *testing.T) {
	for line, want := range map[string]string{
		"-s rr": "", "-s wrr": "", "-s sh": "", "-s sh -b sh-fallback": "", "-s mh -b mh-port": "",
		"":                 "-s wlc: done by lc",
		"-s wlc":           "-s wlc: done by lc",
		"-s lc":            "-s lc: done by lc",
		"-s sed":           "-s sed: done by lc",
		"-s nq":            "-s nq: done by lc",
		"-s mh":            "-s mh: done by maglev, which hashes ports, too",
		"-s sh -b sh-port": "-s sh -b sh-port: done by maglev",
		"-s rr -o":         "-o: datagrams of one client port stay with one server here",
	} {
		var table Table
		_, notes := do(t, &table, "-A -u 192.0.2.10:53 "+line)
		if (want == "") != (len(notes) == 0) || len(notes) > 1 || want != "" && !strings.HasPrefix(notes[0], want) {
			t.Errorf("%q says %q, want %q", line, notes, want)
		}
	}
	var table Table
	_, notes := do(t, &table, `-A -t 192.0.2.10:80 -s rr
-a -t 192.0.2.10:80 -r 198.51.100.11 -w 3
-a -t 192.0.2.10:80 -r 198.51.100.12 -w 3
-a -t 192.0.2.10:80 -r 198.51.100.13 -w 0`)
	if len(notes) != 0 {
		t.Errorf("equal weights: %q", notes)
	}
	if _, notes = do(t, &table, "-e -t 192.0.2.10:80 -r 198.51.100.13 -w 1"); len(notes) != 1 || !strings.HasPrefix(notes[0], "-s rr: weights count here") {
		t.Errorf("other weights: %q", notes)
	}
	if _, notes = do(t, &table, "-a -t 192.0.2.10:80 -r 198.51.100.14:8080 -w 1"); len(notes) == 0 || !strings.HasPrefix(notes[0], "-r 198.51.100.14:8080: -g keeps the port, so it is 80") {
		t.Errorf("another port: %q", notes)
	}
}

func TestAFileIsReadLeniently(t *testing.T) {
	text := "\ufeff# saved by hand\r\n\r\n-A -t 192.0.2.10:80 -s rr   # web\r\n" +
		"ipvsadm -a -t 192.0.2.10:80 -r 198.51.100.11:80 -g -w 1\n\n" +
		"\t/sbin/ipvsadm -a -t 192.0.2.10:80 -r 198.51.100.12:8080 -m"
	lines, err := Read(strings.NewReader(text), Resolver{})
	if err != nil {
		t.Fatal(err)
	}
	var table Table
	if _, err := table.Restore(lines); err != nil {
		t.Fatal(err)
	}
	want := `-A -t 192.0.2.10:80 -s rr
-a -t 192.0.2.10:80 -r 198.51.100.11:80 -g -w 1
-a -t 192.0.2.10:80 -r 198.51.100.12:8080 -m -w 1
`
	if diff := cmp.Diff(want, save(table)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestARestoreIsAllOrNothing(t *testing.T) {
	var table Table
	before, _ := do(t, &table, "-A -t 192.0.2.10:80 -s rr\n-a -t 192.0.2.10:80 -r 198.51.100.11")
	for text, want := range map[string]string{
		"-A -t 192.0.2.11:80 -s rr\n-A -t 192.0.2.10:80 -s wrr\n":                                "line 2: 192.0.2.10:80/tcp: exists",
		"-A -t 192.0.2.11:80\n\n-a -t 192.0.2.12:80 -r 198.51.100.11\n":                          "line 3: 192.0.2.12:80/tcp: no such service",
		"-a -t 192.0.2.10:80 -r 198.51.100.11 -w 2\n":                                            "line 1: 198.51.100.11:80 of 192.0.2.10:80/tcp: exists",
		"-A -t 192.0.2.11:80\n-a -t 192.0.2.11:80 -r 1.1.1.1\n-a -t 192.0.2.11:80 -r 1.1.1.1 -m": "line 3: 1.1.1.1:80",
		"-a -t 192.0.2.10:80 -r 198.51.100.12\n-a -t 192.0.2.11:80 -r 198.51.100.12":             "line 2: 192.0.2.11:80/tcp: no such service",
		"-e -t 192.0.2.10:80 -r 198.51.100.11 -w 9\n-E -t 192.0.2.11:80 -s rr":                   "line 2: 192.0.2.11:80/tcp: no such service",
		"-C\n-A -t 192.0.2.10:80\n-A -t 192.0.2.10:80 -p\n":                                      "line 3: 192.0.2.10:80/tcp: exists",
	} {
		lines, err := Read(strings.NewReader(text), Resolver{})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := table.Restore(lines); err == nil || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("%q: %v\nwant %s", text, err, want)
		}
		if diff := cmp.Diff(before, save(table)); diff != "" {
			t.Fatalf("%q changed something:\n%s", text, diff)
		}
	}
	for text, want := range map[string]string{
		"-A -t 192.0.2.11:80\n-S\n": "line 2: -S: not in a file", "-R": "line 1: -R: not in a file", "-Ln": "line 1: -L: not in a file",
		"-C --handover 15m": "line 1: --handover: not in a file", "-A -t 192.0.2.11:80 --handover 15m": "line 1: --handover: not in a file",
		"\n-D -t 192.0.2.11:80 --pins /sys/fs/bpf/other": "line 2: --pins: not in a file, of which it would be for one line; give it to ipvsadm -R",
		"garbage": "line 1: ", "-A -t 192.0.2.11:80\n-a -t 192.0.2.11:80 -r 1.1.1.1 -x 5\n": "line 2: -x 5: no connection limits yet",
	} {
		if _, err := Read(strings.NewReader(text), Resolver{}); err == nil || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("%q: %v\nwant %s", text, err, want)
		}
	}
}

// A code keeps ipvsadm's words as long as the scheduler is the one that it was made for.
func TestCodesKeepEveryScheduling(t *testing.T) {
	seen := map[uint8]bool{0: true}
	for _, name := range schedulers {
		for i := range 8 {
			s := Scheduling{name, i&1 != 0, i&2 != 0, i&4 != 0}
			code := s.Code()
			if seen[code] {
				t.Fatalf("%+v: the code %d is taken", s, code)
			}
			seen[code] = true
			for _, here := range []string{"rr", "lc", "maglev", "source"} {
				got := OfCode(code, here)
				if here == s.Here() && got != s || got.Here() != here {
					t.Errorf("%+v with scheduler %s is read as %+v", s, here, got)
				}
				if plain := OfCode(0, here); plain.Here() != here || plain.Note() != "" && here != "lc" {
					t.Errorf("scheduler %s is called %+v, which is not the same: %s", here, plain, plain.Note())
				}
			}
		}
	}
}

// Whatever a table is, saved and restored it is the same.
func TestSaveAndRestoreAreInverse(t *testing.T) {
	for i, script := range []string{
		"-A -t [2001:db8::10]:80 -s sh -p -M 64\n-a -t [2001:db8::10]:80 -r 2001:db8::11 -w 3\n-a -t [2001:db8::10]:80 -r [2001:db8::12]:8080 --fullnat -w 65535",
		"-A -t 192.0.2.10:0 -p 2678400 -s nq -M 1\n-a -t 192.0.2.10:0 -r 198.51.100.11 -m\n-A -u 192.0.2.10:0 -s sed",
		"-A -u 192.0.2.10:53 -o -s mh -b flag-1,flag-2\n-a -u 192.0.2.10:53 -r 198.51.100.11:1053 -m -w 0",
	} {
		var before, after Table
		do(t, &before, script)
		lines, err := Read(strings.NewReader(save(before)), Resolver{})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := after.Restore(lines); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(fmt.Sprint(before), fmt.Sprint(after)); diff != "" {
			t.Errorf("%d:\n%s", i, diff)
		}
	}
}
