package loader

import (
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/xdplb/xdplb/maps"
)

// CheckStatus is the outcome of a check.
type CheckStatus string

// Outcomes of checks. CheckWarn: it works, but worse than it could, or not in every case. CheckFail: packets are lost.
const (
	CheckOK   CheckStatus = "ok"
	CheckWarn CheckStatus = "warn"
	CheckFail CheckStatus = "fail"
)

// Check is one thing that Doctor looked at.
type Check struct {
	Name   string // of one word; several checks may share it, one for each object that is not well
	Status CheckStatus
	Detail string // begins with the object, if there is one
	Mend   string // a command to paste; empty if all is well, or no command mends it
}

// Worst is the worst status of checks.
func Worst(checks []Check) CheckStatus {
	worst := CheckOK
	for _, c := range checks {
		if c.Status == CheckFail || c.Status == CheckWarn && worst == CheckOK {
			worst = c.Status
		}
	}
	return worst
}

// doctor collects what it finds.
type doctor struct {
	dir      string
	only     []string // the devices to look at; empty: those in use
	checks   []Check
	balancer *Balancer   // nil if there is none here
	server   *Realserver // nil if it cannot be read
	attached map[int]bool
}

// Doctor looks at all that has to be right on a balancer or a real server, in the
// network namespace of the calling thread. Of devices it looks at those named, or
// at those in use; if none is in use, at those that could be attached. It changes
// nothing, but sends ARP requests and neighbour probes, and waits up to five
// seconds for answers. What it cannot find out it reports as a check, not as an
// error; the error is that it may not look.
func Doctor(dir string, devices []string) ([]Check, error) {
	if err := checkPrivilege(); err != nil {
		return nil, err
	}
	d := &doctor{dir: dir, only: devices, attached: map[int]bool{}}
	d.kernel()
	d.jit()
	if d.bpffs() {
		d.open()
	}
	if d.balancer != nil {
		defer d.balancer.Close()
		for _, r := range d.balancer.Maps.ReadInterfaces() {
			d.attached[int(r.Ifindex)] = true
		}
	}
	d.devices()
	if d.balancer != nil {
		d.balance()
	}
	d.realserver()
	return d.checks, nil
}

func (d *doctor) add(status CheckStatus, name, mend, format string, a ...any) {
	d.checks = append(d.checks, Check{Name: name, Status: status, Detail: fmt.Sprintf(format, a...), Mend: mend})
}

func (d *doctor) ok(name, format string, a ...any) { d.add(CheckOK, name, "", format, a...) }

func (d *doctor) warn(name, mend, format string, a ...any) {
	d.add(CheckWarn, name, mend, format, a...)
}

func (d *doctor) fail(name, mend, format string, a ...any) {
	d.add(CheckFail, name, mend, format, a...)
}

// unknown reports what could not be looked at.
func (d *doctor) unknown(name string, err error) {
	d.warn(name, "", "cannot be checked: %v", err)
}

// well adds that a check found nothing wrong, unless it found something.
func (d *doctor) well(name, format string, a ...any) {
	for _, c := range d.checks {
		if c.Name == name {
			return
		}
	}
	d.ok(name, format, a...)
}

func (d *doctor) kernel() {
	var u unix.Utsname
	_ = unix.Uname(&u)
	release := "Linux " + unix.ByteSliceToString(u.Release[:])
	if err := probeKernel(); err != nil {
		d.fail("kernel", "", "%s: %s", release, strings.ReplaceAll(err.Error(), "\n", "; "))
		return
	}
	d.ok("kernel", "%s has all that is needed", release)
}

// jit looks at what became of a program: network namespaces other than the first do not show the sysctl.
func (d *doctor) jit() {
	program, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Name: "jit_probe", Type: ebpf.XDP, License: "GPL",
		Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, unix.BPF_OK), asm.Return()},
	})
	if err != nil {
		d.unknown("jit", err)
		return
	}
	defer program.Close()
	info, err := program.Info()
	if err != nil {
		d.unknown("jit", err)
		return
	}
	if size, err := info.JitedSize(); err == nil && size == 0 || !JITEnabled() {
		d.warn("jit", "sysctl net.core.bpf_jit_enable=1", "BPF is interpreted, which is several times slower; programs that are loaded already stay so until they are attached anew")
		return
	}
	d.ok("jit", "BPF programs are compiled")
}

func (d *doctor) bpffs() bool {
	err := checkBPFFS(d.dir)
	parent := filepath.Dir(d.dir)
	switch {
	case err == nil:
		d.ok("bpffs", "%s is a BPF file system", parent)
	case errors.Is(err, ErrNoBPFFS):
		d.fail("bpffs", "mount -t bpf bpf "+parent, "%s: no BPF file system; under ip netns exec, which hides it, use instead: nsenter --net=/run/netns/NAME", parent)
	default:
		d.fail("bpffs", "", "%v", err)
	}
	return err == nil
}

// open opens what there is: a balancer, what a real server accepts, or both.
func (d *doctor) open() {
	server, err := ListAccepted(d.dir)
	if err != nil {
		d.unknown("vip_on_lo", err)
	} else if len(server.Addresses) > 0 {
		d.server = server
	}
	b, err := Open(d.dir)
	if errors.Is(err, maps.ErrNotAttached) {
		if d.server == nil {
			d.warn("pins", "xdplb attach "+d.candidate(), "%s: nothing is attached yet", d.dir)
		}
		return
	}
	if err != nil {
		d.fail("pins", "", "%v", err)
		return
	}
	if err := b.checkNamespace(); err != nil {
		b.Close()
		d.fail("pins", "", "%v", err)
		return
	}
	d.balancer = b
	if len(b.Maps.ReadInterfaces()) == 0 {
		d.fail("pins", "xdplb attach "+d.candidate(), "%s: no interface is attached, so the VIPs get no packets", d.dir)
		return
	}
	d.ok("pins", "%s", d.dir)
}

// candidate is a device to attach.
func (d *doctor) candidate() string {
	for _, name := range append(d.only, candidates()...) {
		return name
	}
	return "IFACE"
}

// candidates are the devices that could be attached.
func candidates() (names []string) {
	links, err := netlink.LinkList()
	if err != nil {
		return nil
	}
	for _, link := range links {
		attrs := link.Attrs()
		if attrs.Flags&net.FlagUp != 0 && attrs.Flags&net.FlagLoopback == 0 && len(attrs.HardwareAddr) == 6 && AttachTarget(link) == nil {
			names = append(names, attrs.Name)
		}
	}
	return names
}
