package loader

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/xdplb/xdplb/bpf"
)

// realserver is the pinned state of one network namespace.
type realserver struct {
	dir  string
	maps bpf.RealserverMaps
}

// openRealserver opens the pins of this thread's network namespace. Without
// create it returns nil if there are none.
//
// Several namespaces can share one bpffs, so the directory bears the
// namespace's inode number. Those are used again, and pins outlive their
// namespace; a cookie that differs tells them from ours, and they are replaced.
func openRealserver(pins string, create bool) (*realserver, error) {
	if err := checkBPFFS(pins); err != nil {
		return nil, err
	}
	inode, cookie, err := networkNamespace()
	if err != nil {
		return nil, err
	}
	dir := filepath.Clean(pins) + "_realserver_" + strconv.FormatUint(inode, 10)
	for range 2 {
		_, err := os.Stat(dir)
		switch {
		case err == nil:
		case !errors.Is(err, fs.ErrNotExist):
			return nil, err
		case !create:
			return nil, nil
		default:
			if err := os.Mkdir(dir, 0o700); err != nil {
				return nil, fmt.Errorf("%s: cannot be made: %w", dir, err)
			}
		}
		server, err := openPins(dir)
		if err != nil {
			return nil, err
		}
		var identity bpf.RealserverIdentity
		if err := server.maps.Identities.Lookup(uint32(0), &identity); err != nil {
			server.close()
			return nil, fmt.Errorf("%s: %w", dir, err)
		}
		switch identity.NetnsCookie {
		case cookie:
			return server, nil
		case 0: // new
			if err := server.maps.Identities.Put(uint32(0), bpf.RealserverIdentity{NetnsCookie: cookie}); err != nil {
				server.close()
				return nil, fmt.Errorf("%s: %w", dir, err)
			}
			return server, nil
		}
		if create {
			err = server.remove()
		}
		server.close()
		if err != nil || !create {
			return nil, err
		}
	}
	return nil, fmt.Errorf("%s: left by another network namespace, and comes back; remove it", dir)
}

// openPins opens the maps in dir, making those that are missing.
func openPins(dir string) (*realserver, error) {
	spec, err := bpf.LoadRealserver()
	if err != nil {
		return nil, err
	}
	for _, one := range spec.Maps {
		one.Pinning = ebpf.PinByName
	}
	server := &realserver{dir: dir}
	err = spec.LoadAndAssign(&server.maps, &ebpf.CollectionOptions{Maps: ebpf.MapOptions{PinPath: dir}})
	if errors.Is(err, ebpf.ErrMapIncompatible) {
		return nil, fmt.Errorf("%s: pinned by another version of xdplb; release all with that version, or remove the directory", dir)
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", dir, err)
	}
	return server, nil
}

func (server *realserver) close() { _ = server.maps.Close() }

// records returns what is accepted, by unmapped address.
func (server *realserver) records() (map[netip.Addr]bpf.RealserverAccepted, error) {
	records := map[netip.Addr]bpf.RealserverAccepted{}
	var key bpf.RealserverAddress
	var record bpf.RealserverAccepted
	all := server.maps.Accepted.Iterate()
	for all.Next(&key, &record) {
		records[netip.AddrFrom16(key.Bytes).Unmap()] = record
	}
	if err := all.Err(); err != nil {
		return nil, fmt.Errorf("%s: reading what is accepted: %w", server.dir, err)
	}
	return records, nil
}

// settle undoes everything that no accepted address needs: sysctls, XDP
// programs, and with the last address the pins. It may be called at any time.
func (server *realserver) settle() error {
	records, err := server.records()
	if err != nil {
		return err
	}
	silent, tunnelled := map[uint32]bool{}, map[uint32]bool{}
	for addr, record := range records {
		if addr.Is4() {
			silent[0], silent[record.Ifindex] = true, true
		}
		if record.Mode == bpf.RealserverModeModeTun {
			tunnelled[record.Ifindex] = true
		}
	}
	if err := server.restoreRules(silent); err != nil {
		return err
	}
	if len(records) == 0 {
		return server.remove()
	}
	return server.detachOthers(tunnelled)
}

// remove detaches the programs and removes the pins.
func (server *realserver) remove() error {
	if err := server.detachOthers(nil); err != nil {
		return err
	}
	if err := os.RemoveAll(server.dir); err != nil {
		return fmt.Errorf("%s: cannot be removed: %w", server.dir, err)
	}
	return nil
}

// detachOthers takes our program off all interfaces but those kept.
func (server *realserver) detachOthers(keep map[uint32]bool) error {
	links, err := pinnedLinks(server.dir)
	if err != nil {
		return err
	}
	for _, ifindex := range links {
		if keep[ifindex] {
			continue
		}
		if err := server.detach(ifindex); err != nil {
			return fmt.Errorf("%s: cannot detach the program: %w", interfaceName(ifindex), err)
		}
	}
	return nil
}

// attachment returns our link on an interface, or nil. The pin of a link
// outlives its interface; such a link names interface 0.
func (server *realserver) attachment(ifindex uint32) (link.Link, error) {
	path := linkPin(server.dir, ifindex)
	attached, err := link.LoadPinnedLink(path, nil)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	info, err := attached.Info()
	if err != nil {
		attached.Close()
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	if xdp := info.XDP(); xdp == nil || xdp.Ifindex != ifindex {
		attached.Close()
		return nil, nil
	}
	return attached, nil
}

// attachable tells whether somebody else's program is on dev.
func (server *realserver) attachable(dev netlink.Link) error {
	attrs := dev.Attrs()
	if attrs.Xdp == nil || !attrs.Xdp.Attached {
		return nil
	}
	ours, err := server.attachment(uint32(attrs.Index))
	if err != nil {
		return err
	}
	if ours != nil {
		return ours.Close()
	}
	return fmt.Errorf("%s: %w", attrs.Name, foreignProgram(attrs))
}

// attach puts the program on dev, or this version of it in place of ours that is there.
func (server *realserver) attach(dev netlink.Link) (notices []string, err error) {
	name, ifindex := dev.Attrs().Name, uint32(dev.Attrs().Index)
	program, err := server.program()
	if err != nil {
		return nil, err
	}
	defer program.Close()
	pin := linkPin(server.dir, ifindex)
	old, err := server.attachment(ifindex)
	if err != nil {
		return nil, err
	}
	if old != nil {
		old.Close()
	} else if err := os.Remove(pin); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%s: detached, and cannot be removed: %w", pin, err)
	}
	done, _, err := putOn(pin, dev, program, XDPAuto)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	if done.Warning != "" {
		notices = append(notices, fmt.Sprintf("%s: %s", name, done.Warning))
	}
	return notices, nil
}

// detach takes our program off an interface. Removing the pin alone would do
// so too, but some time later, and whoever attaches next would find it there.
func (server *realserver) detach(ifindex uint32) error {
	attached, err := server.attachment(ifindex)
	if err != nil {
		return err
	}
	if attached != nil {
		defer attached.Close()
		if err := attached.Detach(); err != nil {
			return err
		}
	}
	return os.Remove(linkPin(server.dir, ifindex))
}

func (server *realserver) program() (*ebpf.Program, error) {
	spec, err := bpf.LoadRealserver()
	if err != nil {
		return nil, err
	}
	maps := map[string]*ebpf.Map{
		bpf.RealserverMapAccepted: server.maps.Accepted,
		bpf.RealserverMapHosts:    server.maps.Hosts,
		bpf.RealserverMapSources:  server.maps.Sources,
		bpf.RealserverMapOutcomes: server.maps.Outcomes,
	}
	var programs bpf.RealserverPrograms
	if err := spec.LoadAndAssign(&programs, &ebpf.CollectionOptions{MapReplacements: maps}); err != nil {
		return nil, fmt.Errorf("the XDP program of real servers: %w", err)
	}
	return programs.Realserver, nil
}

// outcomeNames are those of C, in its order.
func outcomeNames() ([]string, error) {
	spec, err := bpf.LoadRealserver()
	if err != nil {
		return nil, err
	}
	enum, ok := spec.Maps[bpf.RealserverMapOutcomes].Key.(*btf.Enum)
	if !ok {
		return nil, errors.New("the XDP program of real servers names no outcomes")
	}
	names := make([]string, bpf.RealserverOutcomeOutcomeMax)
	for _, value := range enum.Values {
		if value.Value < uint64(len(names)) {
			names[value.Value] = strings.TrimPrefix(value.Name, "outcome_")
		}
	}
	return names, nil
}

// networkNamespace identifies the network namespace of this thread.
func networkNamespace() (inode, cookie uint64, err error) {
	var stat unix.Stat_t
	if err := unix.Stat("/proc/thread-self/ns/net", &stat); err != nil {
		return 0, 0, fmt.Errorf("/proc/thread-self/ns/net: %w", err)
	}
	cookie, err = netnsCookie()
	return stat.Ino, cookie, err
}

func isReadOnly(err error) bool { return errors.Is(err, unix.EROFS) }

func mapKey(addr netip.Addr) bpf.RealserverAddress {
	return bpf.RealserverAddress{Bytes: addr.As16()}
}
