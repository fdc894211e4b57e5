package main

import (
	"encoding/binary"
	"fmt"
	"net/netip"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Frames that never saw a socket: a small XDP program writes them, and the kernel puts them on a wire to the
// balancer (BPF_PROG_RUN with BPF_F_TEST_XDP_LIVE_FRAMES), so that they arrive as any other does.

// liveFlood is how many spoofed SYNs and how many ACKs a flood has.
const liveFlood = 1_000_000

// shot is a kind of frame.
type shot struct {
	*ebpf.Program
	size int
}

// part is a part of a frame that is another in each.
type part interface{ write() asm.Instructions } // R6 is where the frame begins

// random is any 1, 2 or 4 bytes.
type random struct{ offset, size int }

func (r random) write() asm.Instructions {
	return asm.Instructions{
		asm.FnGetPrandomU32.Call(),
		asm.StoreMem(asm.R6, int16(r.offset), asm.R0, map[int]asm.Size{1: asm.Byte, 2: asm.Half, 4: asm.Word}[r.size]),
	}
}

// choice is one of eight bytes.
type choice struct {
	offset int
	among  [8]byte
}

func (c choice) write() asm.Instructions {
	return asm.Instructions{
		asm.FnGetPrandomU32.Call(),
		asm.And.Imm(asm.R0, 7),
		asm.LSh.Imm(asm.R0, 3),
		asm.LoadImm(asm.R2, int64(binary.LittleEndian.Uint64(c.among[:])), asm.DWord),
		asm.RSh.Reg(asm.R2, asm.R0),
		asm.StoreMem(asm.R6, int16(c.offset), asm.R2, asm.Byte),
	}
}

const xdpTX = 3 // linux/bpf.h

// newShot makes frames like this one. The kernel uses pages again without filling them anew, so the program
// writes as much of the frame as a balancer may have changed.
func newShot(n *liveNet, frame []byte, parts ...part) shot {
	n.t.Helper()
	written := min(len(frame), 128)
	code := asm.Instructions{
		asm.LoadMem(asm.R6, asm.R1, 0, asm.Word), // data
		asm.LoadMem(asm.R2, asm.R1, 4, asm.Word), // data_end
		asm.Mov.Reg(asm.R3, asm.R6),
		asm.Add.Imm(asm.R3, int32(written)),
		asm.JGT.Reg(asm.R3, asm.R2, "done"),
	}
	at := 0
	for ; at+4 <= written; at += 4 {
		code = append(code, asm.StoreImm(asm.R6, int16(at), int64(int32(binary.LittleEndian.Uint32(frame[at:]))), asm.Word))
	}
	for ; at < written; at++ {
		code = append(code, asm.StoreImm(asm.R6, int16(at), int64(frame[at]), asm.Byte))
	}
	for _, p := range parts {
		code = append(code, p.write()...)
	}
	code = append(code, asm.Mov.Imm(asm.R0, xdpTX).WithSymbol("done"), asm.Return())
	program, err := ebpf.NewProgram(&ebpf.ProgramSpec{Name: "live_frames", Type: ebpf.XDP, License: "MIT", Instructions: code})
	n.check(err)
	n.t.Cleanup(func() { program.Close() })
	return shot{program, len(frame)}
}

// fire puts number frames on the balancer's wire.
func (n *liveNet) fire(s shot, number int) error {
	return n.Switches[0].Do(func() error { return s.fire("balancer-eth0", number) }) // the switch's end of the cable
}

// fire puts number frames on the wire behind a device of the calling thread's node.
func (s shot) fire(dev string, number int) error {
	l, err := netlink.LinkByName(dev)
	if err != nil {
		return err
	}
	// A signal, such as those by which Go schedules, would end it early. This thread ends with the function.
	var all unix.Sigset_t
	for i := range all.Val {
		all.Val[i] = ^uint64(0)
	}
	if err := unix.PthreadSigmask(unix.SIG_BLOCK, &all, nil); err != nil {
		return err
	}
	context := make([]byte, 24) // struct xdp_md
	binary.LittleEndian.PutUint32(context[4:], uint32(s.size))
	binary.LittleEndian.PutUint32(context[12:], uint32(l.Attrs().Index))
	_, err = s.Run(&ebpf.RunOptions{
		Data: make([]byte, s.size), Context: context, Repeat: uint32(number), Flags: unix.BPF_F_TEST_XDP_LIVE_FRAMES,
	})
	return err
}

// Offsets in a frame without VLAN tags.
const (
	frameIP   = 14
	frameTCP4 = frameIP + 20
	frameTCP6 = frameIP + 40
	flagSYN   = 0x02
	flagACK   = 0x10
)

// tcpFrame is an Ethernet frame with a TCP segment from nobody, of either family. Its checksums are wrong: the
// balancer looks at none, and servers drop it in silence.
func tcpFrame(n *liveNet, to netip.AddrPort, flags byte) (frame []byte, source, port random) {
	n.t.Helper()
	theirs, err := n.Balancer.MAC("eth0")
	n.check(err)
	ours, err := n.Client.MAC("eth0")
	n.check(err)
	frame = append(append(frame, theirs...), ours...)
	if to.Addr().Is4() {
		frame = append(frame, 0x08, 0x00, 0x45, 0, 0, 40, 0, 1, 0x40, 0, 64, unix.IPPROTO_TCP, 0, 0, 203, 0, 113, 1)
		source, port = random{frameIP + 12, 4}, random{frameTCP4, 2}
	} else {
		frame = append(frame, 0x86, 0xdd, 0x60, 0, 0, 0, 0, 20, unix.IPPROTO_TCP, 64)
		client := netip.MustParseAddr("2001:db8:ffff::1").As16()
		frame = append(frame, client[:]...)
		source, port = random{frameIP + 8 + 12, 4}, random{frameTCP6, 2}
	}
	frame = append(frame, to.Addr().AsSlice()...)
	frame = binary.BigEndian.AppendUint16(frame, 1024)
	frame = binary.BigEndian.AppendUint16(frame, to.Port())
	frame = append(frame, 0, 0, 0, 1, 0, 0, 0, 2, 0x50, flags, 0xff, 0xff, 0, 0, 0, 0)
	return frame, source, port
}

// flood is spoofed SYNs and ACKs, each from another address and port.
type flood struct {
	net      *liveNet
	syn, ack shot
}

func newFlood(n *liveNet, to netip.AddrPort) *flood {
	syn, source, port := tcpFrame(n, to, flagSYN)
	ack, _, _ := tcpFrame(n, to, flagACK)
	return &flood{n, newShot(n, syn, source, port), newShot(n, ack, source, port)}
}

// floodBurst is sent at once. The ring of a veth device has 256 places: while it overflows it loses the frames of
// connections too, which then pause for seconds through no fault of the balancer's.
const floodBurst = 1024

// send sends half as many SYNs and half as many ACKs, in turns. After each burst the ring empties, so that what
// connections send is taken as well.
func (f *flood) send(frames int) error {
	for sent := 0; sent < frames; sent += 2 * floodBurst {
		for _, s := range []shot{f.syn, f.ack} {
			if err := f.net.fire(s, floodBurst); err != nil {
				return fmt.Errorf("a flood: %w", err)
			}
			for before := uint64(0); ; {
				now := f.net.arrived()
				if now-before < floodBurst/8 { // what connections send goes on
					break
				}
				before = now
			}
		}
	}
	return nil
}
