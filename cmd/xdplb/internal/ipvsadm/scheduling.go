package ipvsadm

import (
	"fmt"
	"slices"
	"strings"
)

// Scheduling is how a service chooses servers, in ipvsadm's words.
type Scheduling struct {
	Name string // of the scheduler
	// Of mh and sh: another server instead of one that is unavailable; the client's port counts, too.
	Fallback, Port bool
	OnePacket      bool // -o: of UDP, every datagram is chosen for
}

// Default is the scheduler of a service that names none.
const Default = "wlc"

// schedulers are those that something here does the work of. Their places are in
// codes that are stored: only append.
var schedulers = []string{"rr", "wrr", "lc", "wlc", "sed", "nq", "mh", "sh"}

// instead says what to use for the schedulers that there are none for.
var instead = map[string]string{
	"lblc":  "use mh, which sends what belongs together to one server",
	"lblcr": "use mh, which sends what belongs together to one server",
	"dh":    "use sh (by the client's address) or mh (by address and port)",
	"fo":    "use mh, and give the servers that stand by weight 0",
	"ovf":   "use wlc",
}

func checkScheduler(name string) error {
	if slices.Contains(schedulers, name) {
		return nil
	}
	if mend, known := instead[name]; known {
		return usagef("-s %s: not in XDP; %s", name, mend)
	}
	return usagef("-s %s: no such scheduler; use one of %s", name, strings.Join(schedulers, ", "))
}

// Here is the scheduler that does it: rr, lc, maglev or source.
func (s Scheduling) Here() string {
	switch s.Name {
	case "rr", "wrr":
		return "rr"
	case "mh":
		return "maglev"
	case "sh":
		if s.Port {
			return "maglev"
		}
		return "source"
	}
	return "lc"
}

// Note is a line about what is not the same; empty if there is nothing to say.
func (s Scheduling) Note() string {
	var note string
	switch {
	case s.Name == "mh" && !s.Port:
		note = "-s mh: done by maglev, which hashes ports, too, as with -b mh-port; for one server per client address use -s sh or -p"
	case s.Name == "sh" && s.Port:
		note = "-s sh -b sh-port: done by maglev, which hashes addresses and ports"
	case s.Here() == "lc":
		note = fmt.Sprintf("-s %s: done by lc, which takes of two servers the one with fewer connections for its weight", s.Name)
	}
	if s.OnePacket {
		if note != "" {
			note += "; "
		}
		note += "-o: datagrams of one client port stay with one server here"
	}
	return note
}

// sharedAlike: ipvsadm's scheduler of this name looks at no weight but 0.
func (s Scheduling) sharedAlike() bool { return s.Name == "rr" || s.Name == "lc" }

// Bits of a code above the place of the name, which counts from 1.
const (
	codeName = 1<<4 - 1
	codeFall = 1 << 4
	codePort = 1 << 5
	codeOne  = 1 << 6
)

// Code keeps it in a byte, never 0.
func (s Scheduling) Code() uint8 {
	code := uint8(slices.Index(schedulers, s.Name) + 1)
	for _, flag := range []struct {
		on  bool
		bit uint8
	}{{s.Fallback, codeFall}, {s.Port, codePort}, {s.OnePacket, codeOne}} {
		if flag.on {
			code |= flag.bit
		}
	}
	return code
}

// OfCode is what ipvsadm calls a service that the scheduler `here` works for. The
// code counts if it was made for that scheduler: others may have changed it since.
func OfCode(code uint8, here string) Scheduling {
	if n := int(code & codeName); n > 0 && n <= len(schedulers) {
		s := Scheduling{schedulers[n-1], code&codeFall != 0, code&codePort != 0, code&codeOne != 0}
		if s.Here() == here {
			return s
		}
	}
	switch here {
	case "maglev":
		return Scheduling{Name: "mh", Fallback: true, Port: true}
	case "source":
		return Scheduling{Name: "sh", Fallback: true}
	case "rr":
		return Scheduling{Name: "wrr"}
	}
	return Scheduling{Name: "wlc"}
}

// String is name and flags, as ParseScheduling reads them: "mh,mh-fallback,mh-port", "rr,ops".
func (s Scheduling) String() string {
	text := s.Name
	if flags := s.flags(); flags != "" {
		text += "," + flags
	}
	if s.OnePacket {
		text += ",ops"
	}
	return text
}

// ParseScheduling reads what String writes.
func ParseScheduling(text string) (s Scheduling, err error) {
	name, flags, _ := strings.Cut(text, ",")
	if !slices.Contains(schedulers, name) {
		return s, fmt.Errorf("%q: none of ipvsadm's schedulers; use one of %s", text, strings.Join(schedulers, ", "))
	}
	s.Name = name
	if before, ops := strings.CutSuffix(","+flags, ",ops"); ops {
		s.OnePacket, flags = true, strings.TrimPrefix(before, ",")
	}
	if flags != "" {
		if err = s.setFlags(flags); err != nil {
			return s, fmt.Errorf("%q: not as save writes it; use the name of the scheduler and its flags, such as mh,mh-fallback,mh-port", text)
		}
	}
	if s.String() != text {
		return s, fmt.Errorf("%q: write it as %s", text, s)
	}
	return s, nil
}

// flags are the scheduler's, as -b takes them.
func (s Scheduling) flags() string {
	var all []string
	if s.Fallback {
		all = append(all, s.Name+"-fallback")
	}
	if s.Port {
		all = append(all, s.Name+"-port")
	}
	return strings.Join(all, ",")
}

// setFlags reads what -b says.
func (s *Scheduling) setFlags(list string) error {
	if s.Name != "mh" && s.Name != "sh" {
		return usagef("-b %s: scheduler %s has no flags; leave it out, or use -s mh or -s sh", list, s.Name)
	}
	s.Fallback, s.Port = false, false
	for flag := range strings.SplitSeq(list, ",") {
		switch flag {
		case s.Name + "-fallback", "flag-1":
			s.Fallback = true
		case s.Name + "-port", "flag-2":
			s.Port = true
		default:
			return usagef("-b %s: scheduler %s has the flags %[2]s-fallback and %[2]s-port", flag, s.Name)
		}
	}
	return nil
}
