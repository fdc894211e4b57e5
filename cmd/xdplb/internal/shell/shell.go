// Package shell writes command lines as one types them into a shell.
package shell

import (
	"regexp"
	"strings"
)

// plain are words that a shell takes as they are.
var plain = regexp.MustCompile(`^[A-Za-z0-9@%+=:,./_-]+$`)

// Quote is a command line of these words.
func Quote(words ...string) string {
	all := make([]string, len(words))
	for i, w := range words {
		if all[i] = w; !plain.MatchString(w) {
			all[i] = "'" + strings.ReplaceAll(w, "'", `'\''`) + "'"
		}
	}
	return strings.Join(all, " ")
}
