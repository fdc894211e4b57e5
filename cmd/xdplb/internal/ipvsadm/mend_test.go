package ipvsadm

import (
	"errors"
	"strings"
	"testing"
)

func TestMended(t *testing.T) {
	const head = "-a -t 192.0.2.10:80 -r 192.0.2.11 "
	for wrong, right := range map[string]string{
		"-w -1": "-w 0", "-w-1": "-w0", "--weight -1": "--weight 0", "--weight=70000": "--weight=65535", "-gw 99999": "-gw 65535",
		"-gw-7": "-gw0", "-w +3": "-w 3", "-w=-1": "-w=0", "-w heavy": "", "-w ": "", "-w 1.5": "", "-x 5": "", "-w 1": "",
	} {
		words := strings.Fields(head + wrong)
		_, err := Parse(words, Resolver{})
		if err != nil && wrong != "-w 1" {
			if text := err.Error(); strings.Contains(text, "\n") {
				t.Errorf("%s: %q", wrong, text)
			}
		}
		mended, ok := Mended(words, err)
		if ok != (right != "") || ok && strings.Join(mended, " ") != head+right {
			t.Errorf("%s: %q, %v; want %s", wrong, mended, ok, right)
		}
		if ok {
			if _, err := Parse(mended, Resolver{}); err != nil {
				t.Errorf("%s is mended to %q: %v", wrong, mended, err)
			}
		}
	}
}

// TestTwiceMended: where a second line adds what is there and is not the same, the
// line that it is mended to makes it that.
func TestTwiceMended(t *testing.T) {
	for _, lines := range [][3]string{
		{"-A -t 192.0.2.10:80 -s rr -p 300", "-A -t 192.0.2.10:80", "-E -t 192.0.2.10:80 -s wlc -p 0"},
		{"-A -t 192.0.2.10:80 -s rr", "-A -t 192.0.2.10:80 -s rr -p", "-E -t 192.0.2.10:80 -s rr -p 300 -M 255.255.255.255"},
		{"-A -t [2001:db8::10]:80 -p 60 -M 64", "-A -t [2001:db8::10]:80 -p 60", "-E -t [2001:db8::10]:80 -s wlc -p 60 -M 128"},
		{"-A -u 192.0.2.10:53 -s rr", "-A -u 192.0.2.10:53 -s mh -b mh-port -o", "-E -u 192.0.2.10:53 -s mh -p 0 -o -b mh-port"},
	} {
		var first, want Table
		do(t, &want, lines[1])
		read, err := Read(strings.NewReader(lines[0]+"\n"+lines[1]), Resolver{})
		if err == nil {
			_, err = first.Restore(read)
		}
		wrong := new(LineError)
		if !errors.As(err, &wrong) || len(wrong.Mended) != 1 || wrong.Mended[0] != lines[2] {
			t.Errorf("%q: %v, mended %q", lines, err, wrong.Mended)
			continue
		}
		do(t, &first, lines[0])
		if saved, _ := do(t, &first, wrong.Mended[0]); saved != save(want) {
			t.Errorf("%q is mended to %s, which makes it\n%s", lines[:2], wrong.Mended[0], saved)
		}
	}
}

// TestSchedulingText: what is written is read, and nothing else.
func TestSchedulingText(t *testing.T) {
	seen := make(map[string]bool)
	for i := range 4 * 256 {
		s := OfCode(uint8(i), []string{"rr", "lc", "maglev", "source"}[i>>8])
		if (s.Fallback || s.Port) && s.Name != "mh" && s.Name != "sh" {
			continue // no code of a command
		}
		again, err := ParseScheduling(s.String())
		if err != nil || again != s {
			t.Errorf("%+v is written as %s and read as %+v, %v", s, s, again, err)
		}
		seen[s.String()] = true
	}
	if len(seen) < 16 {
		t.Errorf("only %d: %v", len(seen), seen)
	}
	for _, text := range []string{"", ",", "wrrr", "rr,", "rr,ops,ops", "mh,mh-port,mh-fallback", "mh,sh-port", "rr,rr-port", "mh,", "RR", "lblc", "mh,flag-1", "rr, ops"} {
		if s, err := ParseScheduling(text); err == nil {
			t.Errorf("%q is read as %+v", text, s)
		}
	}
}
