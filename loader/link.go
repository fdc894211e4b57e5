package loader

import (
	"errors"
	"fmt"
	"io/fs"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// putOn attaches the program to a device, or updates the link pinned at pin. It
// returns how to take it off or back.
func putOn(pin string, device netlink.Link, program *ebpf.Program, mode XDPMode) (done Attached, off func(), err error) {
	attrs := device.Attrs()
	done.Interface = attrs.Name
	if old, err := link.LoadPinnedLink(pin, nil); err == nil {
		defer old.Close()
		return upgrade(pin, old, attrs, program, mode)
	}
	if attrs.Xdp != nil && attrs.Xdp.Attached {
		return done, nil, foreignProgram(attrs)
	}
	var l link.Link
	for _, try := range modesToTry(mode) {
		done.Mode = try
		flags := map[XDPMode]link.XDPAttachFlags{XDPNative: link.XDPDriverMode, XDPGeneric: link.XDPGenericMode}[try]
		l, err = link.AttachXDP(link.XDPOptions{Program: program, Interface: attrs.Index, Flags: flags})
		if err == nil {
			break
		}
		if errors.Is(err, unix.EBUSY) || errors.Is(err, unix.EEXIST) {
			return done, nil, foreignProgram(attrs)
		}
		if try == XDPNative && mode == XDPAuto {
			done.Warning = fmt.Sprintf("the driver cannot run it natively (%v); attached in generic mode, which is slower", unix.Errno(errnoOf(err)))
		}
	}
	if err != nil {
		return done, nil, fmt.Errorf("attaching in %s mode: %w; try another --xdp-mode, or see: xdplb attach %s --dry-run", done.Mode, err, attrs.Name)
	}
	defer l.Close()
	if done.Mode == XDPGeneric {
		done.Warning = sentences(done.Warning, genericFindings(attrs.Name))
	}
	if err := l.Pin(pin); err != nil {
		return done, nil, fmt.Errorf("pinning the link: %w", err)
	}
	return done, func() { _ = takeOff(pin) }, nil
}

func modesToTry(mode XDPMode) []XDPMode {
	if mode == XDPAuto || mode == "" {
		return []XDPMode{XDPNative, XDPGeneric}
	}
	return []XDPMode{mode}
}

func upgrade(pin string, old link.Link, attrs *netlink.LinkAttrs, program *ebpf.Program, mode XDPMode) (done Attached, off func(), err error) {
	done = Attached{Interface: attrs.Name, Mode: attachedMode(attrs), Upgraded: true}
	if mode != XDPAuto && mode != "" && mode != done.Mode {
		return done, nil, fmt.Errorf("attached in %s mode; to change it: xdplb detach %s, then attach", done.Mode, attrs.Name)
	}
	info, err := old.Info()
	if err != nil {
		return done, nil, err
	}
	before, err := ebpf.NewProgramFromID(info.Program)
	if err != nil {
		return done, nil, err
	}
	if err := old.Update(program); err != nil {
		before.Close()
		return done, nil, fmt.Errorf("updating the program: %w", err)
	}
	return done, func() {
		defer before.Close()
		if again, err := link.LoadPinnedLink(pin, nil); err == nil {
			_ = again.Update(before)
			again.Close()
		}
	}, nil
}

func attachedMode(attrs *netlink.LinkAttrs) XDPMode {
	if attrs.Xdp != nil && attrs.Xdp.AttachMode == nlXDPGeneric {
		return XDPGeneric
	}
	return XDPNative
}

// nlXDPGeneric is XDP_ATTACHED_SKB of include/uapi/linux/if_link.h.
const nlXDPGeneric = 2

func foreignProgram(attrs *netlink.LinkAttrs) error {
	name := "another XDP program"
	if attrs.Xdp != nil {
		if p, err := ebpf.NewProgramFromID(ebpf.ProgramID(attrs.Xdp.ProgId)); err == nil {
			defer p.Close()
			if info, err := p.Info(); err == nil {
				name = fmt.Sprintf("another XDP program (%q, id %d)", info.Name, attrs.Xdp.ProgId)
			}
		}
	}
	return fmt.Errorf("%s is attached; take it off with its own tool, or with: ip link set dev %s xdp off", name, attrs.Name)
}

func errnoOf(err error) unix.Errno {
	var errno unix.Errno
	errors.As(err, &errno)
	return errno
}

// takeOff detaches a pinned link and removes its pin. Removing the pin alone
// would detach some time later. A link that is not there is off.
func takeOff(pin string) error {
	l, err := link.LoadPinnedLink(pin, nil)
	if err == nil {
		defer l.Close()
		// Of an interface that was deleted there is nothing to detach.
		if err := l.Detach(); err != nil && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.ENOLINK) {
			return fmt.Errorf("detaching: %w", err)
		}
		err = l.Unpin()
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("detaching: %w", err)
	}
	return nil
}

// genericFindings is what breaks in generic mode as the interface is set up now.
func genericFindings(iface string) (text string) {
	device, err := InspectDevice(iface)
	if err != nil {
		return "" // a warning that cannot be given is no reason not to attach
	}
	for _, f := range device.Findings {
		if f.Mode == string(XDPGeneric) {
			text = sentences(text, fmt.Sprintf("%s %s: %s; mend: %s", f.Feature, f.State, f.Why, f.Mend))
		}
	}
	return text
}

func sentences(a, b string) string {
	if a == "" || b == "" {
		return a + b
	}
	return a + "; " + b
}
