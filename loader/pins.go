package loader

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// DefaultPins is where the pins are unless told otherwise.
const DefaultPins = "/sys/fs/bpf/xdplb"

// soNetnsCookie is SO_NETNS_COOKIE of include/uapi/asm-generic/socket.h.
const soNetnsCookie = 71

// ErrNoBPFFS says that the directory of the pins is not in a BPF file system.
var ErrNoBPFFS = errors.New("not in a BPF file system")

// checkBPFFS makes sure that pins can be made in dir's parent.
func checkBPFFS(dir string) error {
	parent := filepath.Dir(dir)
	var fs unix.Statfs_t
	if err := unix.Statfs(parent, &fs); err != nil {
		return fmt.Errorf("%s: %w; the directory above the pins must exist", parent, err)
	}
	if fs.Type != unix.BPF_FS_MAGIC {
		if parent != filepath.Dir(DefaultPins) {
			return fmt.Errorf("%s: %w; let --pins name a directory in one, such as %s", parent, ErrNoBPFFS, DefaultPins)
		}
		return fmt.Errorf("%s: %w; under ip netns exec, which hides it, use nsenter --net=/run/netns/NAME instead; else mount one: mount -t bpf bpf %[1]s", parent, ErrNoBPFFS)
	}
	if base := filepath.Base(dir); strings.Contains(base, ".") {
		return fmt.Errorf("%s: a BPF file system takes no dots in names; name the pins otherwise", dir)
	}
	return nil
}

// lockPins takes the lock under which everything is changed: on the directory
// above the pins, because a rename would replace a locked directory.
func lockPins(dir string) (unlock func(), err error) {
	parent := filepath.Dir(dir)
	f, err := os.Open(parent)
	if err != nil {
		return nil, fmt.Errorf("%s: %w; the directory above the pins must exist", parent, errors.Unwrap(err))
	}
	for {
		if err = unix.Flock(int(f.Fd()), unix.LOCK_EX); !errors.Is(err, unix.EINTR) {
			break
		}
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("%s: lock: %w", parent, err)
	}
	return func() { f.Close() }, nil
}

// netnsCookie identifies the network namespace of the calling thread; the kernel
// never uses a number twice (Linux 5.14).
func netnsCookie() (uint64, error) {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, fmt.Errorf("network namespace: %w", err)
	}
	defer unix.Close(fd)
	cookie, err := unix.GetsockoptUint64(fd, unix.SOL_SOCKET, soNetnsCookie)
	if err != nil {
		return 0, fmt.Errorf("this kernel lacks SO_NETNS_COOKIE (Linux 5.14): %w", err)
	}
	return cookie, nil
}

func linkPin(dir string, ifindex uint32) string {
	return filepath.Join(dir, "link_"+strconv.Itoa(int(ifindex)))
}

// pinnedLinks are the interface indexes that have a pinned link.
func pinnedLinks(dir string) ([]uint32, error) {
	names, err := filepath.Glob(filepath.Join(dir, "link_*"))
	if err != nil {
		return nil, err
	}
	var all []uint32
	for _, name := range names {
		if n, err := strconv.ParseUint(strings.TrimPrefix(filepath.Base(name), "link_"), 10, 32); err == nil {
			all = append(all, uint32(n))
		}
	}
	return all, nil
}

// temporaryPins is where pins are made, and where they go to be removed.
func temporaryPins(dir string) string { return fmt.Sprintf("%s_new_%d", dir, os.Getpid()) }

// removeStale removes the temporary directories of commands that were killed.
func removeStale(dir string) error {
	names, err := filepath.Glob(dir + "_new_*")
	if err != nil {
		return err
	}
	for _, name := range names {
		links, err := pinnedLinks(name)
		for _, ifindex := range links { // a removed pin alone would detach some time later
			err = errors.Join(err, takeOff(linkPin(name, ifindex)))
		}
		if err = errors.Join(err, os.RemoveAll(name)); err != nil {
			return fmt.Errorf("%s: left by a killed command: %w", name, err)
		}
	}
	return nil
}
