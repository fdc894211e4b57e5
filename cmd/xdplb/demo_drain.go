package main

import (
	"encoding/hex"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/xdplb/xdplb/cmd/xdplb/internal/lab"
)

// drain drains a server while a download from it is on its way.
func (d *demo) drain(m *demoMode) error {
	d.screen.blank()
	vip := d.vips[0]
	load, err := startDownload(d.ctx, d.net.Client, vip, demoDownload)
	if err != nil {
		return fmt.Errorf("mode %s: the download did not start: %w", m.Mode, err)
	}
	defer load.body.Close()
	i := slices.Index(d.names(), load.server)
	if i < 0 {
		return fmt.Errorf("mode %s: the download came from %q", m.Mode, load.server)
	}
	r := &demoDrain{Server: load.server, MiB: demoDownload}
	m.Drain = r
	d.screen.say("client downloads %d MiB from %s; %s is drained when %d have arrived",
		r.MiB, r.Server, r.Server, demoBefore)
	load.upTo(demoBefore * lab.MiB)
	r.MiBBefore = int(load.read / lab.MiB)
	if err := d.xdplb(d.net.Balancer, "drain", d.net.Servers4[i].String()); err != nil {
		return err
	}

	asked := 0
	r.Connections = ask(d.ctx, d.net.Client, vip, demoConnections, func() {
		asked++
		load.upTo(demoBefore*lab.MiB + int64(asked)*demoDuring*lab.MiB/demoConnections)
	})
	r.MiBAfter = int(load.read / lab.MiB)
	r.Digest = load.finish()
	if err := d.ctx.Err(); err != nil {
		return err
	}
	want := lab.Digest(demoDownload)
	r.DigestEqual = r.Digest == hex.EncodeToString(want[:])
	if load.err != nil {
		r.Error = load.err.Error()
	}
	d.showDrain(m.Mode, r)
	return d.xdplb(d.net.Balancer, "enable", d.net.Servers4[i].String())
}

func (d *demo) showDrain(mode string, r *demoDrain) {
	toDrained := r.Connections.Answers[r.Server]
	d.screen.say("%d new connections while %d MiB more arrive", r.Connections.Connections, r.MiBAfter-r.MiBBefore)
	d.screen.bars(d.names(), r.Connections)
	d.screen.say("%s new connections to %s: %d", d.screen.mark(toDrained == 0), r.Server, toDrained)
	if r.DigestEqual {
		d.screen.say("%s the download is whole: %d MiB, SHA-256 as sent (%.12s…)", d.screen.mark(true), r.MiB, r.Digest)
	} else {
		d.screen.say("%s the download is not what was sent: %s", d.screen.mark(false), r.Error)
		d.fail("mode %s: the download from %s broke when it was drained: SHA-256 differs %s", mode, r.Server, r.Error)
	}
	if toDrained > 0 {
		d.fail("mode %s: %d new connections went to %s, which was drained", mode, toDrained, r.Server)
	}
	d.judge(mode, "during the drain", r.Connections)
}

// unattended shows that packets flow while no process lives in the balancer's namespace.
func (d *demo) unattended(m *demoMode) error {
	var err error
	for tick := time.Tick(time.Millisecond); ; {
		m.Processes, err = d.net.Balancer.Processes()
		if err != nil {
			return err
		}
		// A thread that this process used there needs a moment to end.
		if len(m.Processes) == 0 || !slices.ContainsFunc(m.Processes, ofThisProcess) {
			break
		}
		select {
		case <-tick:
		case <-d.ctx.Done():
			return d.ctx.Err()
		}
	}
	d.screen.blank()
	if len(m.Processes) > 0 {
		d.fail("mode %s: processes run in the balancer's namespace: %v", m.Mode, m.Processes)
	} else {
		m.Processes = []lab.Process{} // JSON: [], not null
	}
	a := ask(d.ctx, d.net.Client, d.vips[0], demoConnections, func() {})
	if err := d.ctx.Err(); err != nil {
		return err
	}
	m.Unattended = &a
	d.screen.say("%s processes in the balancer's namespace: %s", d.screen.mark(len(m.Processes) == 0), processNames(m.Processes))
	d.screen.say("%s %d connections meanwhile, %d failed: the kernel forwards by itself",
		d.screen.mark(a.Failed == 0), a.Connections, a.Failed)
	d.judge(m.Mode, "without a process", a)
	return nil
}

func ofThisProcess(p lab.Process) bool { return p.PID == os.Getpid() }

func processNames(processes []lab.Process) string {
	if len(processes) == 0 {
		return "none"
	}
	names := make([]string, len(processes))
	for i, p := range processes {
		names[i] = fmt.Sprintf("%s (%d)", p.Name, p.PID)
	}
	return strings.Join(names, ", ")
}
