package ipvsadm

import (
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
