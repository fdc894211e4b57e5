package main

import (
	"encoding/binary"
	"net"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// tagMain is a switch with a trunk: what comes by a port of a VLAN leaves by the trunk with the VLAN's tag, and what
// comes back with that tag leaves without: tag PORT TRUNK VLAN. The kernel's own VLANs may not be there.
func tagMain() {
	if len(os.Args) != 4 {
		die("usage: tag PORT TRUNK VLAN")
	}
	vlan, err := strconv.ParseUint(os.Args[3], 10, 12)
	if err != nil {
		die("tag: %v", err)
	}
	port, trunk := openWire(os.Args[1]), openWire(os.Args[2])
	tag := []byte{0x81, 0x00, byte(vlan >> 8), byte(vlan)}
	go port.each(func(frame []byte, got int) {
		if got == 0 {
			trunk.send(append(append(append([]byte{}, frame[:12]...), tag...), frame[12:]...))
		}
	})
	trunk.each(func(frame []byte, got int) {
		if got == int(vlan) {
			port.send(frame)
		}
	})
}

// wire is a socket for the frames of a device.
type wire struct{ socket int }

func openWire(dev string) wire {
	all := binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, unix.ETH_P_ALL))
	device, err := net.InterfaceByName(dev)
	if err != nil {
		die("tag: %s: %v", dev, err)
	}
	w := wire{}
	if w.socket, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW, int(all)); err != nil {
		die("tag: %v", err)
	}
	for _, option := range []int{unix.PACKET_AUXDATA, unix.PACKET_IGNORE_OUTGOING} {
		if err := unix.SetsockoptInt(w.socket, unix.SOL_PACKET, option, 1); err != nil {
			die("tag: %v", err)
		}
	}
	if err := unix.Bind(w.socket, &unix.SockaddrLinklayer{Protocol: all, Ifindex: device.Index}); err != nil {
		die("tag: %v", err)
	}
	return w
}

// each calls f with every frame that arrives and its VLAN, 0 if it has no tag: the kernel has taken the tag off
// (struct tpacket_auxdata in linux/if_packet.h).
func (w wire) each(f func(frame []byte, vlan int)) {
	frame, control := make([]byte, 1<<16), make([]byte, 256)
	for {
		size, length, _, _, err := unix.Recvmsg(w.socket, frame, control, 0)
		if err != nil {
			die("tag: %v", err)
		}
		messages, err := unix.ParseSocketControlMessage(control[:length])
		if err != nil {
			die("tag: %v", err)
		}
		vlan := 0
		for _, m := range messages {
			if status := binary.NativeEndian.Uint32(m.Data); m.Header.Type == unix.PACKET_AUXDATA && status&unix.TP_STATUS_VLAN_VALID != 0 {
				vlan = int(binary.NativeEndian.Uint16(m.Data[16:])) & 0xfff
			}
		}
		f(frame[:size], vlan)
	}
}

// send loses a frame that the device has no room for, as a switch does.
func (w wire) send(frame []byte) { _, _ = unix.Write(w.socket, frame) }
