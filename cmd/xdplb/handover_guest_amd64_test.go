package main

import (
	"bufio"
	"bytes"
	"context"
	"debug/elf"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// A test that this kernel has no modules for runs in a guest: Debian's kernel under qemu, with this test binary as its
// init, which runs the test of the same name. The kernel's package is unpacked in the user's cache, and not installed.
// (amd64 only: that is the machine, and the name of the package.)

const (
	guestInit  = "handover-guest" // this binary's name as the guest's init
	guestTest  = "xdplb.test.run" // of the kernel's command line: which test to run
	guestEnv   = "XDPLB_GUEST"
	guestEnds  = "guest ends with status" // what init says last
	guestMeta  = "linux-image-cloud-amd64"
	ipvsadmBin = "/usr/sbin/ipvsadm"
)

// guestTime is when a guest hangs: longer than the test in it may take, which tells more.
const guestTime = 20 * time.Minute

func init() { helpers[guestInit] = guestMain }

func inGuest() bool { return os.Getenv(guestEnv) != "" }

// runInGuest runs the test in a guest, with kernel modules loaded and programs at hand.
func runInGuest(t *testing.T, modules, programs []string) {
	t.Helper()
	kernel, tree, err := guestKernel()
	if err != nil {
		t.Fatal(err)
	}
	initrd := filepath.Join(t.TempDir(), "initrd")
	if err := writeInitrd(initrd, tree, modules, programs); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), guestTime) // kills qemu, whose output ends with it
	defer cancel()
	// Software emulation: works everywhere, also inside of another guest.
	qemu := exec.CommandContext(ctx, "qemu-system-x86_64", "-accel", "tcg,thread=multi", "-M", "q35", "-cpu", "max", "-m", "2048", "-smp", "2",
		"-nodefaults", "-display", "none", "-serial", "stdio", "-no-reboot", "-kernel", kernel, "-initrd", initrd,
		"-append", "console=ttyS0 quiet panic=-1 rdinit=/bin/"+guestInit+" "+guestTest+"="+t.Name())
	out, err := qemu.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	var complaints bytes.Buffer
	qemu.Stderr = &complaints
	if err := qemu.Start(); err != nil {
		t.Fatalf("%v; install qemu-system-x86", err)
	}
	status := ""
	for lines := bufio.NewScanner(out); lines.Scan(); {
		line := strings.TrimRight(lines.Text(), "\r")
		t.Log(line)
		if _, after, ended := strings.Cut(line, guestEnds); ended {
			status = strings.TrimSpace(after)
		}
	}
	if err := qemu.Wait(); err != nil || status != "0" {
		t.Fatalf("the guest's test failed (status %q, %v, %v) %s", status, err, context.Cause(ctx), complaints.Bytes())
	}
}

// guestKernel finds or fetches the kernel's package, and returns its image and where its modules are.
func guestKernel() (image, tree string, err error) {
	out, err := exec.Command("apt-cache", "depends", "--important", guestMeta).Output()
	if err != nil {
		return "", "", fmt.Errorf("%s: apt-cache does not know it: %w; run apt-get update on Debian 12", guestMeta, err)
	}
	_, name, _ := strings.Cut(string(out), "Depends: ")
	name, _, _ = strings.Cut(name, "\n")
	cache, err := os.UserCacheDir()
	if err != nil {
		return "", "", err
	}
	dir := filepath.Join(cache, "xdplb-test")
	tree = filepath.Join(dir, name)
	find := func() (string, error) {
		images, _ := filepath.Glob(filepath.Join(tree, "boot", "vmlinuz-*"))
		if len(images) != 1 {
			return "", fmt.Errorf("%s: not one kernel image, but %v", tree, images)
		}
		return images[0], nil
	}
	if image, err = find(); err == nil {
		return image, tree, nil
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", "", err
	}
	work, err := os.MkdirTemp(dir, "unpack")
	if err != nil {
		return "", "", err
	}
	defer os.RemoveAll(work)
	unpack := `apt-get download -qq "$1" && dpkg -x "$1"_*.deb tree && rm "$1"_*.deb`
	fetch := exec.Command("sh", "-c", unpack, "sh", name)
	fetch.Dir = work
	if out, err := fetch.CombinedOutput(); err != nil {
		return "", "", fmt.Errorf("%s: cannot be fetched: %w: %s", name, err, bytes.TrimSpace(out))
	}
	if err := os.Rename(filepath.Join(work, "tree"), tree); err != nil && !errors.Is(err, os.ErrExist) {
		return "", "", err
	}
	image, err = find()
	return image, tree, err
}

// writeInitrd writes the guest's root: this binary, programs with their libraries, and modules in the order in which they load.
func writeInitrd(path, tree string, modules, programs []string) (err error) {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	archive := &cpio{w: bufio.NewWriter(f), dirs: map[string]bool{"/": true}}
	for _, dir := range []string{"/dev", "/proc", "/sys", "/tmp", "/run", "/modules"} {
		archive.mkdir(dir)
	}
	exe, err := os.Executable()
	if err != nil {
		return err
	}
	archive.addFile("/bin/"+guestInit, exe)
	for _, program := range append(programs, exe) {
		if program != exe {
			archive.addFile(program, program)
		}
		out, err := exec.Command("ldd", program).Output()
		if err != nil && program != exe { // which may be static
			return fmt.Errorf("%s: %w; install it: make tools", program, err)
		}
		for _, word := range strings.Fields(string(out)) {
			if strings.HasPrefix(word, "/") {
				archive.addFile(word, word)
			}
		}
	}
	files, err := moduleFiles(tree, modules)
	if err != nil {
		return err
	}
	for i, file := range files {
		archive.addFile(fmt.Sprintf("/modules/%02d-%s", i, filepath.Base(file)), file)
	}
	archive.entry("TRAILER!!!", 0, nil)
	return errors.Join(archive.err, archive.w.Flush())
}

// moduleFiles are the modules after those that they need. What has no file is built in.
func moduleFiles(tree string, names []string) (files []string, err error) {
	byName := make(map[string]string)
	root := filepath.Join(tree, "lib", "modules")
	if err := filepath.WalkDir(root, func(path string, _ os.DirEntry, err error) error {
		if name, is := strings.CutSuffix(filepath.Base(path), ".ko"); is {
			byName[strings.ReplaceAll(name, "-", "_")] = path
		}
		return err
	}); err != nil {
		return nil, err
	}
	var add func(name string) error
	add = func(name string) error {
		path := byName[name]
		if path == "" || slices.Contains(files, path) {
			return nil
		}
		module, err := elf.Open(path)
		if err != nil {
			return err
		}
		defer module.Close()
		info, err := module.Section(".modinfo").Data()
		if err != nil {
			return err
		}
		for _, field := range strings.Split(string(info), "\x00") {
			needs, is := strings.CutPrefix(field, "depends=")
			for _, need := range strings.Split(needs, ",") {
				if !is || need == "" {
					continue
				}
				if err := add(strings.ReplaceAll(need, "-", "_")); err != nil {
					return err
				}
			}
		}
		files = append(files, path)
		return nil
	}
	for _, name := range names {
		if err := add(name); err != nil {
			return nil, fmt.Errorf("module %s: %w", name, err)
		}
	}
	return files, nil
}

// cpio writes an archive as the kernel unpacks it (Documentation/driver-api/early-userspace/buffer-format.rst). It
// keeps the first error.
type cpio struct {
	w    *bufio.Writer
	dirs map[string]bool
	ino  int
	err  error
}

func (c *cpio) entry(name string, mode uint32, data []byte) {
	if c.err != nil {
		return
	}
	c.ino++
	header := "070701" + fmt.Sprintf("%08X%08X%08X%08X%08X%08X%08X", c.ino, mode, 0, 0, 1, 0, len(data)) +
		fmt.Sprintf("%08X%08X%08X%08X%08X%08X", 0, 0, 0, 0, len(name)+1, 0) + name + "\x00"
	pad := func(n int) string { return "\x00\x00\x00"[:(4-n%4)%4] }
	_, c.err = io.WriteString(c.w, header+pad(len(header))+string(data)+pad(len(data)))
}

func (c *cpio) mkdir(dir string) {
	if !c.dirs[dir] {
		c.dirs[dir] = true
		c.mkdir(filepath.Dir(dir))
		c.entry(strings.TrimPrefix(dir, "/"), unix.S_IFDIR|0o755, nil)
	}
}

func (c *cpio) addFile(name, from string) {
	if c.dirs[name] {
		return
	}
	data, err := os.ReadFile(from)
	if c.err == nil {
		c.err = err
	}
	c.mkdir(filepath.Dir(name))
	c.dirs[name] = true
	c.entry(strings.TrimPrefix(name, "/"), unix.S_IFREG|0o755, data)
}

// guestMain is the guest's init.
func guestMain() {
	status, err := guestRun()
	if err != nil {
		fmt.Println(err)
		status = 1
	}
	fmt.Println(guestEnds, status)
	unix.Sync()
	_ = unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
}

func guestRun() (status int, err error) {
	for _, m := range [][2]string{{"proc", "/proc"}, {"sysfs", "/sys"}, {"devtmpfs", "/dev"}, {"tmpfs", "/tmp"}, {"tmpfs", "/run"}, {"bpf", "/sys/fs/bpf"}} {
		if err := unix.Mount(m[0], m[1], m[0], 0, ""); err != nil {
			return 1, fmt.Errorf("mounting %s: %w", m[1], err)
		}
	}
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 65536, Max: 65536}); err != nil {
		return 1, err
	}
	modules, err := filepath.Glob("/modules/*.ko") // sorted
	if err != nil {
		return 1, err
	}
	for _, path := range modules {
		f, err := os.Open(path)
		if err != nil {
			return 1, err
		}
		err = unix.FinitModule(int(f.Fd()), "", 0)
		f.Close()
		if err != nil {
			return 1, fmt.Errorf("%s: %w", path, err)
		}
	}
	line, err := os.ReadFile("/proc/cmdline")
	if err != nil {
		return 1, err
	}
	_, test, _ := strings.Cut(string(line), guestTest+"=")
	cmd := exec.Command("/bin/"+guestInit, "-test.run=^"+strings.TrimSpace(test)+"$", "-test.v", "-test.timeout=15m")
	cmd.Args[0] = "tests"
	cmd.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/tmp", guestEnv + "=1"}
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stdout
	if err := cmd.Run(); err != nil && cmd.ProcessState == nil {
		return 1, err
	}
	return cmd.ProcessState.ExitCode(), nil
}
