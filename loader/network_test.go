package loader

import (
	"net"
	"net/netip"
	"os"
	"runtime"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// patience bounds waits for what must happen; running out of it is a failure.
const patience = 20 * time.Second

// network is a network namespace of a test, joined to the test's own by a veth pair.
type network struct {
	ns     netns.NsHandle
	handle *netlink.Handle
	near   netlink.Link // the pair's end in the test's namespace
	far    netlink.Link // the one in this
}

// isolate moves the test into a new, nameless network namespace. Its thread
// stays locked, so it ends with the test and the namespace with it. Subtests
// run on other threads and must isolate themselves.
func isolate(t *testing.T) {
	t.Helper()
	runtime.LockOSThread()
	must(t, unix.Unshare(unix.CLONE_NEWNET))
	lo, err := netlink.LinkByName("lo")
	must(t, err)
	must(t, netlink.LinkSetUp(lo))
}

// join makes a second namespace and a veth pair: name in the test's, "far" in the other.
func join(t *testing.T, name string) *network {
	t.Helper()
	home, err := netns.Get()
	must(t, err)
	defer home.Close()
	ns, err := netns.New()
	must(t, err)
	t.Cleanup(func() { ns.Close() })
	must(t, netns.Set(home))

	handle, err := netlink.NewHandleAt(ns)
	must(t, err)
	t.Cleanup(handle.Close)
	must(t, netlink.LinkAdd(&netlink.Veth{
		LinkAttrs:     netlink.LinkAttrs{Name: name},
		PeerName:      "far",
		PeerNamespace: netlink.NsFd(ns),
	}))
	n := &network{ns: ns, handle: handle}
	n.far, err = handle.LinkByName("far")
	must(t, err)
	must(t, handle.LinkSetUp(n.far))
	n.near, err = netlink.LinkByName(name)
	must(t, err)
	must(t, netlink.LinkSetUp(n.near))
	return n
}

// within runs body on the test's thread inside the namespace.
func (n *network) within(t *testing.T, body func()) {
	t.Helper()
	home, err := netns.Get()
	must(t, err)
	defer home.Close()
	must(t, netns.Set(n.ns))
	body()
	must(t, netns.Set(home))
}

// give puts addresses, as ADDR/LEN, on both ends of the pair.
func (n *network) give(t *testing.T, near, far []string) {
	t.Helper()
	for _, prefix := range near {
		must(t, netlink.AddrAdd(n.near, address(t, prefix)))
	}
	for _, prefix := range far {
		must(t, n.handle.AddrAdd(n.far, address(t, prefix)))
	}
}

func (n *network) farMAC() [6]byte { return [6]byte(n.far.Attrs().HardwareAddr) }

func address(t *testing.T, prefix string) *netlink.Addr {
	t.Helper()
	parsed, err := netlink.ParseAddr(prefix)
	must(t, err)
	if parsed.IP.To4() == nil {
		parsed.Flags = unix.IFA_F_NODAD
	}
	return parsed
}

func addRoute(t *testing.T, dst string, route netlink.Route) {
	t.Helper()
	_, prefix, err := net.ParseCIDR(dst)
	must(t, err)
	route.Dst = prefix
	must(t, netlink.RouteAdd(&route))
}

// sysctl writes a setting of the thread's namespace.
func sysctl(t *testing.T, path, value string) {
	t.Helper()
	must(t, os.WriteFile("/proc/sys/net/"+path, []byte(value), 0o644))
}

func ip(s string) netip.Addr { return netip.MustParseAddr(s) }

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
