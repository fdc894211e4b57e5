package shell

import (
	"os/exec"
	"slices"
	"strings"
	"testing"
)

// TestQuote: a shell takes the words as they were.
func TestQuote(t *testing.T) {
	words := []string{"", "plain", "[2001:db8::1]:80", "a b", "it's", `2s/\[/\\&/`, "$HOME", "`id`", "#", "~", "*", "a\nb", "-w"}
	out, err := exec.Command("sh", "-c", `printf '%s\0' `+Quote(words...)).Output()
	if err != nil {
		t.Fatal(err)
	}
	if got := strings.Split(strings.TrimSuffix(string(out), "\x00"), "\x00"); !slices.Equal(got, words) {
		t.Errorf("%q, want %q", got, words)
	}
	if text := Quote("xdplb", "vip", "add", "192.0.2.10:80/tcp"); text != "xdplb vip add 192.0.2.10:80/tcp" {
		t.Error(text)
	}
}
