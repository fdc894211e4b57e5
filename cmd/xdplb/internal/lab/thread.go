package lab

import (
	"errors"
	"fmt"
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

// onThread runs f on an operating system thread that nothing else uses and that ends with f. Go ends the
// thread of a goroutine that returns while locked to it, so whatever f did to its namespaces is gone then.
func onThread(f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		if unix.Gettid() == unix.Getpid() {
			// The first thread cannot end, and /proc/self shows its namespaces: keep it unchanged,
			// and occupied so that the next goroutine gets another one.
			defer runtime.UnlockOSThread()
			done <- onThread(f)
			return
		}
		err := errors.New("lab: the function ended its goroutine")
		defer func() { done <- err }()
		err = f()
	}()
	return <-done
}

// newNamespaces gives the calling thread a network and a mount namespace of its own and returns both.
func newNamespaces() (netns, mntns *os.File, err error) {
	if err := unix.Unshare(unix.CLONE_NEWNET | unix.CLONE_NEWNS); err != nil {
		return nil, nil, fmt.Errorf("cannot make namespaces: %w; run as root, outside an unprivileged container", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return nil, nil, fmt.Errorf("cannot make its mounts private: %w", err)
	}
	// sysfs shows the devices of the namespace that mounted it.
	if err := unix.Mount("sysfs", "/sys", "sysfs", 0, ""); err != nil {
		return nil, nil, fmt.Errorf("cannot mount sysfs at /sys: %w", err)
	}
	if err := unix.Mount("bpf", "/sys/fs/bpf", "bpf", 0, "mode=700"); err != nil {
		return nil, nil, fmt.Errorf("cannot mount bpffs at /sys/fs/bpf: %w; the kernel needs CONFIG_BPF_SYSCALL", err)
	}
	// What is tried in a lab does not belong into the log of this machine.
	if err := unix.Mount("/dev/null", "/dev/log", "", unix.MS_BIND, ""); err != nil && !errors.Is(err, unix.ENOENT) {
		return nil, nil, fmt.Errorf("cannot hide /dev/log: %w", err)
	}
	if netns, err = os.Open("/proc/thread-self/ns/net"); err != nil {
		return nil, nil, err
	}
	if mntns, err = os.Open("/proc/thread-self/ns/mnt"); err != nil {
		_ = netns.Close()
		return nil, nil, err
	}
	return netns, mntns, nil
}

// enter moves the calling thread into the node's namespaces, at the directory dir.
func (n *Node) enter(dir string) error {
	// A thread that shares its root and working directory cannot change its mount namespace.
	if err := unix.Unshare(unix.CLONE_FS); err != nil {
		return fmt.Errorf("%s: %w", n.Name, err)
	}
	if err := unix.Setns(int(n.mnt.Fd()), unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("%s: cannot enter its mount namespace: %w", n.Name, err)
	}
	if err := unix.Setns(int(n.net.Fd()), unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("%s: cannot enter its network namespace: %w", n.Name, err)
	}
	if dir != "" {
		if err := unix.Chdir(dir); err != nil {
			return fmt.Errorf("%s: cannot return to %s: %w", n.Name, dir, err)
		}
	}
	return nil
}
