package loader

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"syscall"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// neighbour is a key of the kernel's neighbour tables.
type neighbour struct {
	link int
	addr netip.Addr
}

// answer is what became of the search for a neighbour's MAC.
type answer struct {
	mac   [6]byte
	known bool
	err   error
}

// usable are the states in which the kernel itself would send to the entry's MAC
// (NUD_VALID in include/net/neighbour.h).
const usable = netlink.NUD_PERMANENT | netlink.NUD_NOARP | netlink.NUD_REACHABLE |
	netlink.NUD_PROBE | netlink.NUD_STALE | netlink.NUD_DELAY

// resolveNeighbours finds the MACs of the neighbours that are the keys of wanted.
// A neighbour without an answer in the result is unknown.
func resolveNeighbours[V any](ctx context.Context, handle *netlink.Handle, wanted map[neighbour]V, wait time.Duration) (map[neighbour]answer, error) {
	answers := make(map[neighbour]answer, len(wanted))
	if len(wanted) == 0 {
		return answers, nil
	}
	// Listen before looking, so that no change falls between the two.
	changes, stop, err := neighbourChanges()
	if err != nil {
		return answers, err
	}
	defer stop()

	families := make(map[int]bool)
	for at := range wanted {
		families[at.family()] = true
	}
	table, err := neighbourTable(handle, families)
	if err != nil {
		return answers, err
	}

	pending := make(map[neighbour]bool)
	for at := range wanted {
		entry := table[at]
		if mac, ok := entryMAC(entry); ok {
			answers[at] = answer{mac: mac, known: true}
			if entry.State&netlink.NUD_STALE != 0 {
				// Good until shown wrong. XDP's packets do not make the kernel check it, so ask; nobody waits.
				_ = probe(handle, at)
			}
			continue
		}
		if err := probe(handle, at); err != nil {
			answers[at] = answer{err: err}
			continue
		}
		pending[at] = true
	}
	settle := func(entry netlink.Neigh) {
		at, ok := neighbourKey(entry)
		if !ok || !pending[at] {
			return
		}
		if mac, ok := entryMAC(entry); ok {
			answers[at] = answer{mac: mac, known: true}
			delete(pending, at)
		} else if entry.State&netlink.NUD_FAILED != 0 {
			delete(pending, at)
		}
	}
	// Look again: entries that need no probing (NOARP) change without an event, and events may be lost.
	look := func() error {
		if len(pending) == 0 {
			return nil
		}
		table, err := neighbourTable(handle, families)
		for _, entry := range table {
			settle(entry)
		}
		return err
	}
	if err := look(); err != nil {
		return answers, err
	}
	timer := time.NewTimer(wait)
	defer timer.Stop()
	for len(pending) > 0 {
		select {
		case change, open := <-changes:
			switch {
			case !open:
				return answers, errors.New("neighbours: the kernel stopped telling of changes; try again")
			case change.lost:
				if err := look(); err != nil {
					return answers, err
				}
			default:
				settle(change.entry)
			}
		case <-timer.C:
			return answers, nil
		case <-ctx.Done():
			return answers, ctx.Err()
		}
	}
	return answers, nil
}

func (n neighbour) family() int {
	if n.addr.Is4() {
		return unix.AF_INET
	}
	return unix.AF_INET6
}

// probe makes the kernel ask for a neighbour's MAC as if it had a packet for it.
func probe(handle *netlink.Handle, at neighbour) error {
	err := handle.NeighSet(&netlink.Neigh{
		LinkIndex: at.link,
		Family:    at.family(),
		Flags:     netlink.NTF_USE,
		IP:        net.IP(at.addr.AsSlice()),
	})
	if errors.Is(err, unix.ENOBUFS) {
		return fmt.Errorf("%w; raise net.%s.neigh.default.gc_thresh3", ErrNeighboursFull,
			map[int]string{unix.AF_INET: "ipv4", unix.AF_INET6: "ipv6"}[at.family()])
	}
	if err != nil {
		return fmt.Errorf("asking for the MAC of %s: %w", at.addr, err)
	}
	return nil
}

// neighbourTable reads the neighbours of the given families, one dump each.
func neighbourTable(handle *netlink.Handle, families map[int]bool) (map[neighbour]netlink.Neigh, error) {
	table := make(map[neighbour]netlink.Neigh)
	for family := range families {
		entries, err := handle.NeighList(0, family)
		// An interrupted dump may lack entries; those are probed, and an event tells of them.
		if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
			return nil, fmt.Errorf("neighbours: %w", err)
		}
		for _, entry := range entries {
			if at, ok := neighbourKey(entry); ok {
				table[at] = entry
			}
		}
	}
	return table, nil
}

// neighbourKey tells entries of neighbours from those of bridges' forwarding tables.
func neighbourKey(entry netlink.Neigh) (neighbour, bool) {
	if entry.Family != unix.AF_INET && entry.Family != unix.AF_INET6 {
		return neighbour{}, false
	}
	addr, ok := netip.AddrFromSlice(entry.IP)
	return neighbour{link: entry.LinkIndex, addr: addr}, ok
}

func entryMAC(entry netlink.Neigh) (mac [6]byte, ok bool) {
	if entry.State&usable == 0 || len(entry.HardwareAddr) != len(mac) {
		return mac, false
	}
	return [6]byte(entry.HardwareAddr), true
}

// neighbourChange is an entry that the kernel changed, or the news that some such news got lost.
type neighbourChange struct {
	entry netlink.Neigh
	lost  bool
}

// neighbourChanges delivers changed neighbour entries until stop is called.
func neighbourChanges() (changes <-chan neighbourChange, stop func(), err error) {
	socket, err := nl.Subscribe(unix.NETLINK_ROUTE, unix.RTNLGRP_NEIGH)
	if err != nil {
		return nil, nil, fmt.Errorf("neighbour events: %w", err)
	}
	// Answers of many neighbours come in a burst. What does not fit is made good by a dump.
	_ = socket.SetReceiveBufferSize(4<<20, true)
	ch, done := make(chan neighbourChange), make(chan struct{})
	go func() {
		defer close(ch)
		for {
			var batch []neighbourChange
			messages, from, err := socket.Receive()
			switch {
			case errors.Is(err, unix.ENOBUFS):
				batch = append(batch, neighbourChange{lost: true})
			case errors.Is(err, unix.EINTR):
			case err != nil:
				return
			case from.Pid == nl.PidKernel:
				batch = parseChanges(messages)
			}
			for _, change := range batch {
				select {
				case ch <- change:
				case <-done:
					return
				}
			}
		}
	}()
	return ch, func() {
		close(done)
		socket.Close()
	}, nil
}

// parseChanges keeps the entries that are new or changed. One that was deleted
// may have been made anew by our probe since, so its end says nothing.
func parseChanges(messages []syscall.NetlinkMessage) (changes []neighbourChange) {
	for _, message := range messages {
		if message.Header.Type != unix.RTM_NEWNEIGH {
			continue
		}
		if entry, err := netlink.NeighDeserialize(message.Data); err == nil {
			changes = append(changes, neighbourChange{entry: *entry})
		}
	}
	return changes
}
