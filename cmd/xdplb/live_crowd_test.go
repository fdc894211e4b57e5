package main

import (
	"fmt"
	"maps"
	"net/netip"
	"sync"
	"time"
)

// rules are what the commands so far allow: which servers new connections may go to, and whose connections
// may have broken.
type rules struct {
	mu      sync.Mutex
	version int             // odd while a command runs
	takes   map[string]bool // by server
	deleted map[string]int  // counts up when a deletion begins and when it ends
}

// moment is a copy of rules.
type moment struct {
	version, deletions int
	takes              map[string]bool
	deleted            map[string]int
}

func (r *rules) now() moment {
	r.mu.Lock()
	defer r.mu.Unlock()
	m := moment{version: r.version, takes: maps.Clone(r.takes), deleted: maps.Clone(r.deleted)}
	for _, n := range m.deleted {
		m.deletions += n
	}
	return m
}

// begin and end bracket a command; server is whom it deletes, or empty.
func (r *rules) begin(server string) { r.step(server, nil) }

func (r *rules) end(server string, takes map[string]bool) { r.step(server, takes) }

func (r *rules) step(server string, takes map[string]bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.version++
	if server != "" {
		r.deleted[server]++
	}
	if takes != nil {
		r.takes = takes
	}
}

// crowd is many connections to one VIP, and what became of them.
type crowd struct {
	net   *liveNet
	vip   netip.AddrPort
	rules *rules
	idle  time.Duration // the idle timeout
	gate  chan struct{} // bounds how many connect at once
	quit  chan struct{}
	wait  sync.WaitGroup

	mu                                 sync.Mutex
	failures                           []string
	answers, opened, excused, on, late int
	idleRounds                         int
}

func newCrowd(n *liveNet, vip netip.AddrPort, r *rules, idle time.Duration) *crowd {
	return &crowd{net: n, vip: vip, rules: r, idle: idle, gate: make(chan struct{}, 16), quit: make(chan struct{})}
}

func (c *crowd) fail(format string, args ...any) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.failures = append(c.failures, time.Now().Format("05.000 ")+fmt.Sprintf(format, args...))
}

func (c *crowd) failed() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.failures) > 0
}

func (c *crowd) count(what *int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	*what++
}

// pause returns false when the test ends.
func (c *crowd) pause(d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-c.quit:
		return false
	}
}

// member is a connection that stays open.
type member struct {
	*talk
	server string
	opened moment    // right before it was
	asked  time.Time // last
}

// open opens a connection and asks. A connection fails unless a server was deleted meanwhile; it must go to a
// server that takes new ones unless a command ran meanwhile. nil: it failed, or the test ends.
func (c *crowd) open(source netip.Addr) *member {
	for {
		select {
		case c.gate <- struct{}{}:
		case <-c.quit:
			return nil
		}
		before := c.rules.now()
		var server string
		conn, err := c.net.dial(source, c.vip)
		if err == nil {
			server, err = conn.name()
		}
		after := c.rules.now()
		<-c.gate
		switch {
		case err != nil && before.deletions%2 == 0 && before.deletions == after.deletions:
			c.fail("a new connection from %s failed: %v", source, err)
			return nil
		case err != nil:
			c.count(&c.excused)
			continue
		case before.version == after.version && before.version%2 == 0 && !before.takes[server]:
			c.fail("a new connection from %s went to %s, which takes none", conn.LocalAddr(), server)
		}
		c.count(&c.opened)
		return &member{conn, server, before, time.Now()}
	}
}

// ask asks again. An error or another name fails the test unless the server was deleted since.
func (c *crowd) ask(m *member) (goesOn bool) {
	silent := time.Since(m.asked)
	server, err := m.name()
	m.asked = time.Now()
	if err == nil && server == m.server {
		c.count(&c.answers)
		if silent > c.idle*4/5 {
			c.count(&c.idleRounds)
		}
		return true
	}
	if c.rules.now().deleted[m.server] != m.opened.deleted[m.server] {
		c.count(&c.excused)
		return false
	}
	if err != nil {
		c.fail("%s to %s, silent for %s: %v", m.LocalAddr(), m.server, silent.Round(time.Millisecond), err)
	} else {
		c.fail("%s to %s, silent for %s: %s answered", m.LocalAddr(), m.server, silent.Round(time.Millisecond), server)
	}
	return false
}

// join opens number connections that ask at every interval until the crowd is dismissed; those whose server was
// deleted begin anew. It returns when all are open.
func (c *crowd) join(number int, interval time.Duration) {
	var opened sync.WaitGroup
	for i := range number {
		opened.Add(1)
		c.wait.Go(func() {
			m := c.open(c.source(i))
			opened.Done()
			for m != nil {
				m = c.stay(m, interval*time.Duration(i+1)/time.Duration(number), interval)
			}
		})
	}
	opened.Wait()
}

// source is one of the client's addresses, or none.
func (c *crowd) source(i int) netip.Addr {
	if len(c.net.sources) == 0 {
		return netip.Addr{}
	}
	return c.net.sources[i%len(c.net.sources)]
}

// stay asks after a while and then at every interval until the connection ends, and opens the next.
func (c *crowd) stay(m *member, first, interval time.Duration) *member {
	defer m.leave()
	for next := m.asked.Add(first); ; next = m.asked.Add(interval) {
		goesOn := c.pause(time.Until(next))
		if time.Since(m.asked) > c.idle-c.idle/50 { // this machine was late: nothing is promised to it
			c.count(&c.late)
			return c.open(c.sourceOf(m))
		}
		switch {
		case !c.ask(m):
			if c.failed() || !goesOn {
				return nil
			}
			return c.open(c.sourceOf(m))
		case !goesOn:
			c.count(&c.on)
			return nil
		}
	}
}

func (c *crowd) sourceOf(m *member) netip.Addr {
	if len(c.net.sources) == 0 {
		return netip.Addr{}
	}
	return netip.MustParseAddrPort(m.LocalAddr().String()).Addr()
}

func (m *member) leave() {
	if m != nil {
		m.Close()
	}
}

// newcomers keeps opening connections, asks once on each, and closes them.
func (c *crowd) newcomers(every time.Duration) {
	c.wait.Go(func() {
		for i := 0; c.pause(every); i++ {
			c.open(c.source(i)).leave()
		}
	})
}

// dismiss asks every open connection once more, closes all, and returns the failures.
func (c *crowd) dismiss() []string {
	close(c.quit)
	c.wait.Wait()
	return c.failures
}

func (c *crowd) String() string {
	return fmt.Sprintf("%d answers on %d connections, %d open to the end; %d broken by deletions; %d times idle until just before the timeout, %d times too long",
		c.answers, c.opened, c.on, c.excused, c.idleRounds, c.late)
}
