package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"

	"github.com/xdplb/xdplb/cmd/xdplb/internal/lab"
)

const installedUnit = "/usr/local/lib/systemd/system/xdplb.service"

func runMake(t *testing.T, args ...string) {
	t.Helper()
	cmd := exec.Command("make", append([]string{"-C", "../.."}, args...)...)
	cmd.Env = append(os.Environ(), "MAKEFLAGS=") // this may run under make
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("make %v: %v\n%s", args, err, out)
	}
}

// filesUnder lists files with their modes, and directories with a slash.
func filesUnder(t *testing.T, root string) (all []string) {
	t.Helper()
	err := filepath.Walk(root, func(path string, info os.FileInfo, err error) error {
		switch {
		case err != nil:
			return err
		case !info.IsDir():
			all = append(all, fmt.Sprintf("%s %o", strings.TrimPrefix(path, root), info.Mode()))
		case filepath.Base(path) == "xdplb":
			all = append(all, fmt.Sprintf("%s/ %o", strings.TrimPrefix(path, root), info.Mode().Perm()))
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// TestMakeInstall: what make install puts where, twice, and that make uninstall leaves what is the operator's.
func TestMakeInstall(t *testing.T) {
	root := t.TempDir()
	runMake(t, "install", "DESTDIR="+root)
	want := []string{
		"/etc/xdplb/ 700",
		"/usr/local/lib/systemd/system/xdplb.service 644",
		"/usr/local/sbin/xdplb 755",
		"/usr/local/share/bash-completion/completions/xdplb 644",
		"/usr/local/share/man/man8/xdplb.8 644",
	}
	if diff := cmp.Diff(want, filesUnder(t, root)); diff != "" {
		t.Error(diff)
	}
	if out, err := exec.Command(root+"/usr/local/sbin/xdplb", "version").CombinedOutput(); err != nil {
		t.Errorf("version: %v: %s", err, out)
	}

	config := filepath.Join(root, "etc/xdplb/xdplb.yaml")
	if err := errors.Join(os.WriteFile(config, []byte("# mine\n"), 0o600), os.Chmod(filepath.Dir(config), 0o750)); err != nil {
		t.Fatal(err)
	}
	runMake(t, "install", "DESTDIR="+root)
	want[0] = "/etc/xdplb/ 750"
	want = append(want[:1], append([]string{"/etc/xdplb/xdplb.yaml 600"}, want[1:]...)...)
	if diff := cmp.Diff(want, filesUnder(t, root)); diff != "" {
		t.Error(diff)
	}
	runMake(t, "uninstall", "DESTDIR="+root)
	if diff := cmp.Diff(want[:2], filesUnder(t, root)); diff != "" {
		t.Error(diff)
	}
	if text, err := os.ReadFile(config); err != nil || string(text) != "# mine\n" {
		t.Errorf("xdplb.yaml is %q, %v", text, err)
	}

	// Elsewhere the unit names what is there.
	runMake(t, "install", "DESTDIR="+root, "PREFIX=/opt/lb", "SYSCONFDIR=/opt/etc")
	u := readUnit(t, root+"/opt/lb/lib/systemd/system/xdplb.service")
	for _, name := range []string{"ExecStart", "ExecReload"} {
		if got := u.one(name); got != "/opt/lb/sbin/xdplb restore --etc /opt/etc" {
			t.Errorf("%s=%s", name, got)
		}
	}
	runMake(t, "uninstall", "DESTDIR="+root, "PREFIX=/opt/lb", "SYSCONFDIR=/opt/etc")
	if diff := cmp.Diff(want[:2], filesUnder(t, root)); diff != "" {
		t.Error(diff)
	}
}

// unit is a systemd unit; a key may stand several times.
type unit struct {
	t      *testing.T
	values map[string][]string
}

func readUnit(t *testing.T, path string) unit {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	u := unit{t, map[string][]string{}}
	for line := range strings.Lines(string(text)) {
		if key, value, ok := strings.Cut(strings.TrimSpace(line), "="); ok && !strings.HasPrefix(key, "#") {
			u.values[key] = append(u.values[key], value)
		}
	}
	return u
}

func (u unit) one(key string) string {
	u.t.Helper()
	if len(u.values[key]) != 1 {
		u.t.Fatalf("%s= stands %d times", key, len(u.values[key]))
	}
	return u.values[key][0]
}

// host is a balancer of the lab on which xdplb is installed: its /usr/local and /etc are its own.
type host struct {
	t    *testing.T
	net  *lab.Network
	etc  string
	unit unit
}

func newHost(t *testing.T) *host {
	t.Helper()
	root := t.TempDir()
	runMake(t, "install", "DESTDIR="+root)
	network, err := lab.BuildNetwork(lab.Plan{Servers: 2})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := network.Close(); err != nil {
			t.Error(err)
		}
	})
	h := &host{t, network, root + "/etc", readUnit(t, root+installedUnit)}
	// of this machine's /etc what programs want, and nothing to restore
	h.run("cp", "-a", "/etc/.", h.etc)
	for _, name := range []string{"sysconfig", "ipvsadm.rules"} {
		if err := os.RemoveAll(filepath.Join(h.etc, name)); err != nil {
			t.Fatal(err)
		}
	}
	h.run("mount", "--bind", root+"/usr/local", "/usr/local")
	h.run("mount", "--bind", h.etc, "/etc")
	return h
}

func (h *host) try(words ...string) (stdout, stderr string, status int) {
	h.t.Helper()
	ctx, cancel := context.WithTimeout(h.t.Context(), time.Minute)
	defer cancel()
	cmd := h.net.Balancer.Command(ctx, words[0], words[1:]...)
	var out, complaint strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &complaint
	if err := cmd.Run(); err != nil && !errors.As(err, new(*exec.ExitError)) {
		h.t.Fatalf("%v: %v", words, err)
	}
	return out.String(), complaint.String(), cmd.ProcessState.ExitCode()
}

func (h *host) run(words ...string) string {
	h.t.Helper()
	out, complaint, status := h.try(words...)
	if status != 0 {
		h.t.Fatalf("%v: status %d: %s%s", words, status, out, complaint)
	}
	return out
}

// start runs the line of the unit with no more privileges than the unit leaves it, and no file system that can be
// written but those of the kernel. What seccomp forbids it is not tested here.
func (h *host) start(key string) (stdout, stderr string, status int) {
	h.t.Helper()
	if h.unit.one("ProtectSystem") != "strict" || h.unit.one("NoNewPrivileges") != "yes" {
		h.t.Fatal("the unit is not what this test makes of it")
	}
	bounding := "-all"
	for _, name := range strings.Fields(h.unit.one("CapabilityBoundingSet")) {
		bounding += ",+" + strings.ToLower(strings.TrimPrefix(name, "CAP_"))
	}
	words := []string{"unshare", "--mount", "sh", "-c", `mount -o remount,bind,ro / && mount -o remount,bind,ro /etc && exec "$@"`, "sh",
		"setpriv", "--no-new-privs", "--inh-caps=-all", "--bounding-set=" + bounding}
	return h.try(append(words, strings.Fields(h.unit.one(key))...)...)
}

// starts is a start that does what it should, and says so on one line.
func (h *host) starts(want string) {
	h.t.Helper()
	for _, key := range []string{"ExecStart", "ExecReload"} { // the second time there is nothing left to do
		out, complaint, status := h.start(key)
		if status != 0 || strings.Count(out, "\n") != 1 || key == "ExecStart" && out != want+"\n" {
			h.t.Errorf("%s: status %d, %q, %q; want %q", key, status, out, complaint, want)
		}
	}
}

// fails is a start that fails with one line and changes nothing.
func (h *host) fails(want string) {
	h.t.Helper()
	before := h.state()
	out, complaint, status := h.start("ExecStart")
	if status != exitFailed || out != "" || strings.Count(complaint, "\n") != 1 || !strings.HasPrefix(complaint, want) {
		h.t.Errorf("status %d, %q, %q; want %q", status, out, complaint, want)
	}
	if after := h.state(); after != before {
		h.t.Errorf("changed; before:\n%s\nafter:\n%s", before, after)
	}
}

func (h *host) state() (text string) {
	h.t.Helper()
	if err := h.net.Balancer.Do(func() error { text = state(); return nil }); err != nil {
		h.t.Fatal(err)
	}
	return text
}

func (h *host) write(name, text string) {
	h.t.Helper()
	path := filepath.Join(h.etc, name)
	if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(text), 0o600)); err != nil {
		h.t.Fatal(err)
	}
}

// TestUnit: systemd finds nothing wrong with the unit, and what it runs at boot does what it should.
func TestUnit(t *testing.T) {
	h := newHost(t)
	if out, complaint, status := h.try("systemd-analyze", "verify", "--man=no", installedUnit); status != 0 || out+complaint != "" {
		t.Errorf("systemd-analyze verify: status %d\n%s%s", status, out, complaint)
	}
	if before := strings.Fields(h.unit.one("Before")); !cmp.Equal(before, []string{"keepalived.service"}) {
		t.Errorf("Before=%s", before)
	}
	for _, key := range []string{"ExecStop", "ExecStopPost"} {
		if _, there := h.unit.values[key]; there {
			t.Errorf("%s=: stopping must not take the balancer away", key)
		}
	}

	h.starts("nothing to do: there is no /etc/xdplb/xdplb.yaml, /etc/sysconfig/ipvsadm, /etc/ipvsadm.rules")
	h.write("xdplb/xdplb.yaml", "")
	h.starts("/etc/xdplb/xdplb.yaml: nothing to do")
	if err := os.Remove(h.etc + "/xdplb/xdplb.yaml"); err != nil {
		t.Fatal(err)
	}

	h.write("ipvsadm.rules", "-A -t 192.0.2.10:80 -s rr\n-a -t 192.0.2.10:80 -r 192.0.2.11 -g\n")
	h.starts("/etc/ipvsadm.rules: services restored: 1")
	h.write("sysconfig/ipvsadm", "-A -t 192.0.2.10:80 -s rr\n-a -t 192.0.2.10:80 -r 192.0.2.12 -g\n-A -t 192.0.2.10:81 -s mh\n")
	h.starts("/etc/sysconfig/ipvsadm: services restored: 2")
	h.write("sysconfig/ipvsadm", "# empty\n")
	h.starts("/etc/sysconfig/ipvsadm: nothing to do")
	h.write("sysconfig/ipvsadm", "-A -t 192.0.2.10:82 -s rr\n-a -t 192.0.2.10:82 -r 192.0.2.12 -x\n")
	h.fails("xdplb: restore /etc/sysconfig/ipvsadm: line 2: ")
	h.write("xdplb/xdplb.yaml", "interfaces: [eth0]\nvips:\n- vip: 192.0.2.10:80\n  mode: drr\n")
	h.fails("xdplb: restore /etc/xdplb/xdplb.yaml:4: vips[0].mode: ")

	// A reboot loses what there is, and xdplb.yaml comes before the others; it may belong to another user.
	h.run("xdplb", "vip", "add", "192.0.2.20:80", "--assign", "eth0")
	saved := h.run("xdplb", "save")
	h.write("xdplb/xdplb.yaml", saved)
	h.run("chown", "65534", "/etc/xdplb/xdplb.yaml")
	h.run("xdplb", "detach", "--all", "--purge")
	if out, complaint, status := h.start("ExecStart"); status != 0 || complaint != "" || !strings.HasPrefix(out, "/etc/xdplb/xdplb.yaml: ") {
		t.Errorf("status %d, %q, %q", status, out, complaint)
	}
	if diff := cmp.Diff(saved, h.run("xdplb", "save")); diff != "" {
		t.Error(diff)
	}

	// An interface that comes late: systemd tries again.
	h.write("xdplb/xdplb.yaml", "interfaces: [eth0, late0]\n")
	h.fails("xdplb: restore /etc/xdplb/xdplb.yaml:1: interfaces[1].name: late0: no such interface; ")
	if h.unit.one("Restart") != "on-failure" {
		t.Error("systemd does not try again")
	}
	err := h.net.Balancer.Do(func() error {
		late := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "late0"}, PeerName: "late1"}
		return errors.Join(netlink.LinkAdd(late), netlink.LinkSetUp(late))
	})
	if err != nil {
		t.Fatal(err)
	}
	h.starts("/etc/xdplb/xdplb.yaml: 1 added, 0 changed, 0 removed")
}

// TestReadmeUnit: the unit that the READMEs have for a server's boot makes it one, and ends that.
func TestReadmeUnit(t *testing.T) {
	h := newHost(t)
	text := fenceOf(t, "README.md", "ini")
	if diff := cmp.Diff(text, fenceOf(t, "README.zh-CN.md", "ini")); diff != "" {
		t.Errorf("README.md (-) and README.zh-CN.md (+) differ:\n%s", diff)
	}
	const path = "systemd/system/xdplb-realserver.service"
	h.write(path, text)
	if out, complaint, status := h.try("systemd-analyze", "verify", "--man=no", "/etc/"+path); status != 0 || out+complaint != "" {
		t.Errorf("systemd-analyze verify: status %d\n%s%s", status, out, complaint)
	}
	u := readUnit(t, filepath.Join(h.etc, path))
	for range 2 { // as with a boot in between: release leaves nothing
		h.run(strings.Fields(u.one("ExecStart"))...)
		if out := h.run("xdplb", "realserver", "list"); !strings.Contains(out, "192.0.2.10") {
			t.Errorf("nothing is accepted:\n%s", out)
		}
		h.run(strings.Fields(u.one("ExecStop"))...)
		if out := h.run("xdplb", "realserver", "list"); strings.Contains(out, "192.0.2.10") {
			t.Errorf("still accepted:\n%s", out)
		}
	}
}

// fenceOf is what stands in a text's first fence of a kind.
func fenceOf(t *testing.T, name, kind string) string {
	t.Helper()
	text, err := os.ReadFile("../../" + name)
	if err != nil {
		t.Fatal(err)
	}
	_, after, _ := strings.Cut(string(text), "\n```"+kind+"\n")
	fence, _, found := strings.Cut(after, "```\n")
	if !found {
		t.Fatalf("%s: no fence of kind %s", name, kind)
	}
	return fence
}
