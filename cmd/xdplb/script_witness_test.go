package main

import (
	"encoding/binary"
	"fmt"
	"os"
	"sync"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/xdplb/xdplb/cmd/xdplb/internal/lab"
)

// witness is a node that knows the namespaces of all labs by a number. The kernel
// drops a number with its namespace.
type witness struct {
	node *lab.Node

	mu    sync.Mutex
	names map[int]string
}

func (w *witness) sees(script string, n *lab.Node) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	number := len(w.names)
	w.names[number] = fmt.Sprintf("namespace %s of script %s", n.Name, script)
	return w.node.Do(func() error { return netlink.SetNetNsIdByFd(int(n.NetNS().Fd()), number) })
}

// remaining names the namespaces that still exist.
func (w *witness) remaining() (left []string) {
	err := w.node.Do(func() error {
		request := nl.NewNetlinkRequest(unix.RTM_GETNSID, unix.NLM_F_DUMP)
		request.AddData(&nl.RtGenMsg{RtGenmsg: unix.RtGenmsg{Family: unix.AF_UNSPEC}})
		messages, err := request.Execute(unix.NETLINK_ROUTE, unix.RTM_NEWNSID)
		for _, m := range messages {
			const header = 4 // struct rtgenmsg, with padding
			attrs, err := nl.ParseRouteAttr(m[header:])
			if err != nil {
				return err
			}
			for _, a := range attrs {
				if a.Attr.Type == unix.NETNSA_NSID {
					left = append(left, w.names[int(binary.NativeEndian.Uint32(a.Value))])
				}
			}
		}
		return err
	})
	if err != nil {
		left = append(left, err.Error())
	}
	return left
}

// openMounts opens the node's mount namespace, for processes that enter it.
func openMounts(n *lab.Node) (f *os.File, err error) {
	err = n.Do(func() error {
		f, err = os.Open("/proc/thread-self/ns/mnt")
		return err
	})
	return f, err
}
