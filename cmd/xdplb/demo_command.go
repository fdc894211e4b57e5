package main

import (
	"bytes"
	"errors"
	"os"
	"slices"
	"strings"

	"github.com/xdplb/xdplb/cmd/xdplb/internal/lab"
)

// onServers runs a command on every server and prints it once.
func (d *demo) onServers(args []string) error {
	var others []string
	for i, server := range d.net.Servers {
		if i == 0 {
			if err := d.xdplb(server, args...); err != nil {
				return err
			}
			continue
		}
		if _, err := d.quiet(server, args...); err != nil {
			return err
		}
		others = append(others, server.Name)
	}
	d.screen.say("%s", d.screen.paint(dim, "  (and the same on "+strings.Join(others, ", ")+")"))
	return nil
}

// xdplb runs this program's own binary on a node, as a user would there, and shows what it prints.
func (d *demo) xdplb(n *lab.Node, args ...string) error {
	d.screen.command(n.Name, append([]string{"xdplb"}, args...))
	cmd := d.child(n, args)
	var stderr bytes.Buffer
	out, err := d.finish(cmd, &stderr)
	d.screen.output(out)
	d.screen.output(stderr.Bytes())
	return err
}

// quiet does the same and shows nothing.
func (d *demo) quiet(n *lab.Node, args ...string) ([]byte, error) {
	return d.finish(d.child(n, args), new(bytes.Buffer))
}

func (d *demo) child(n *lab.Node, args []string) *lab.Cmd {
	cmd := n.Command(d.ctx, "/proc/self/exe", args...)
	cmd.Args[0] = "xdplb"
	// The pins are where they are by default: the bpffs there is the node's own.
	cmd.Env = slices.DeleteFunc(os.Environ(), func(s string) bool { return strings.HasPrefix(s, "XDPLB_PINS=") })
	return cmd
}

func (d *demo) finish(cmd *lab.Cmd, stderr *bytes.Buffer) ([]byte, error) {
	cmd.Stderr = stderr
	out, err := cmd.Output()
	if err == nil {
		return out, nil
	}
	if d.ctx.Err() != nil {
		return out, d.ctx.Err()
	}
	// The last line is the error; warnings come before it.
	lines := strings.Split(strings.TrimSpace(stderr.String()), "\n")
	if last := strings.TrimPrefix(lines[len(lines)-1], "xdplb: "); last != "" {
		err = errors.New(last)
	}
	return out, err
}
