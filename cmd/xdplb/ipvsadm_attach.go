package main

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink"

	"github.com/xdplb/xdplb/loader"
)

// way is an interface that is needed, and what for. None is needed if it has no name.
type way struct{ iface, why string }

// vipWay finds the interface of a VIP. One that nothing leads to is no error where
// something is attached: the address may come later, as VRRP's do.
func vipWay(addr netip.Addr) func(attached bool) (way, error) {
	return func(attached bool) (way, error) {
		owner, err := loader.OwnerOf(addr)
		switch {
		case err != nil && attached || err == nil && owner.Interface == "" && attached:
			return way{}, nil
		case err != nil:
			return way{}, fmt.Errorf("%s: on no interface, and no route leads to it; put it on one: ip addr add %s dev IFACE", addr, netip.PrefixFrom(addr, addr.BitLen()))
		case owner.Interface == "":
			return way{}, fmt.Errorf("%s: on a loopback device, where no packets come in; attach the interface that they come in by: xdplb attach IFACE", addr)
		case owner.Has:
			return way{owner.Interface, "it has " + addr.String()}, nil
		}
		return way{owner.Interface, fmt.Sprintf("it leads to %s, which is on no interface yet", addr)}, nil
	}
}

// serverWay finds the interface toward a server; what is wrong with the way there
// is said when the server is added.
func serverWay(addr netip.Addr) func(bool) (way, error) {
	return func(bool) (way, error) {
		iface, err := loader.WayTo(addr)
		if err != nil {
			return way{}, nil
		}
		return way{iface, "it leads to " + addr.String()}, nil
	}
}

// withInterface attaches what is needed and does something. If that fails, what
// this command attached is detached again.
func (r *ipvsadmRun) withInterface(find func(attached bool) (way, error), do func() error) error {
	return r.withInterfaces([]func(bool) (way, error){find}, do)
}

func (r *ipvsadmRun) withInterfaces(finds []func(bool) (way, error), do func() error) error {
	attached, pinned, err := r.attachedInterfaces()
	if err != nil {
		return err
	}
	var missing []string
	var notes []string
	for _, find := range finds {
		need, err := find(len(attached) > 0)
		if err != nil {
			return err
		}
		if need.iface == "" || attached[need.iface] {
			continue
		}
		attached[need.iface] = true
		missing = append(missing, need.iface)
		notes = append(notes, need.why)
	}
	if len(missing) == 0 {
		return do()
	}
	done, err := loader.Attach(r.pins, missing, loader.AttachOptions{Mode: loader.XDPAuto})
	if err != nil {
		return err
	}
	if err := do(); err != nil {
		_, undo := loader.Detach(r.pins, missing, !pinned)
		return errors.Join(err, undo)
	}
	for i, a := range done {
		r.say(fmt.Sprintf("attached %s (%s mode): %s", a.Interface, a.Mode, notes[i]))
		if a.Warning != "" {
			r.say(a.Interface + ": " + a.Warning)
		}
	}
	return nil
}

// attachedInterfaces also tells whether there are pins.
func (r *ipvsadmRun) attachedInterfaces() (names map[string]bool, pinned bool, err error) {
	names = make(map[string]bool)
	b, err := r.open()
	if b == nil {
		return names, false, err
	}
	defer b.Close()
	for _, i := range b.Maps.ReadInterfaces() {
		if link, err := netlink.LinkByIndex(int(i.Ifindex)); err == nil {
			names[link.Attrs().Name] = true
		}
	}
	return names, true, nil
}

// withPins makes the pins, if there are none, without any interface.
func (r *ipvsadmRun) withPins(do func() error) error {
	_, pinned, err := r.attachedInterfaces()
	if err != nil {
		return err
	}
	if !pinned {
		if _, err := loader.Attach(r.pins, nil, loader.AttachOptions{Mode: loader.XDPAuto}); err != nil {
			return err
		}
	}
	return do()
}
