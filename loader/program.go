package loader

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"

	"github.com/xdplb/xdplb/bpf"
	"github.com/xdplb/xdplb/maps"
)

// createMaps creates the maps with the sizes of o, and the first settings.
func createMaps(o AttachOptions) (*maps.Maps, error) {
	if err := probeKernel(); err != nil {
		return nil, err
	}
	spec, err := bpf.LoadXdplb()
	if err != nil {
		return nil, err
	}
	vips, backends, flows := or(o.MaxVIPs, DefaultMaxVIPs), or(o.MaxBackends, DefaultMaxBackends), or(o.MaxFlows, DefaultMaxFlows)
	if most := uint32(bpf.XdplbBackendIdPartBackendIndexMask); backends > most {
		return nil, fmt.Errorf("--max-backends %d: at most %d", backends, most)
	}
	for name, size := range map[string]uint32{
		bpf.XdplbMapVips: 2 * vips, bpf.XdplbMapTables: vips, bpf.XdplbMapRetired: vips,
		bpf.XdplbMapBackends: backends + 1, bpf.XdplbMapCounters: backends + 1, // place 0 stays free
		bpf.XdplbMapCursors: vips, bpf.XdplbMapLoads: backends + 1, bpf.XdplbMapServers: backends,
		bpf.XdplbMapFlows: flows, bpf.XdplbMapHalfOpen: flows,
	} {
		spec.Maps[name].MaxEntries = size
	}
	var created bpf.XdplbMaps
	if err := spec.LoadAndAssign(&created, nil); err != nil {
		return nil, fmt.Errorf("creating maps: %w", err)
	}
	m, err := maps.Adopt(created)
	if err != nil {
		created.Close()
		return nil, err
	}
	if err := firstSettings(m, o); err != nil {
		m.Close()
		return nil, err
	}
	return m, nil
}

func firstSettings(m *maps.Maps, o AttachOptions) error {
	clock, err := maps.NewClock()
	if err != nil {
		return err
	}
	defer clock.Close()
	var s maps.Settings
	if s.Hz, err = clock.Hz(); err != nil {
		return err
	}
	if s.NetnsCookie, err = netnsCookie(); err != nil {
		return err
	}
	key := maps.NewHashKey()
	if o.HashKey != nil {
		key = *o.HashKey
	}
	s.SetKey(key)
	s.TcpIdle, s.UdpIdle = s.Jiffies(maps.DefaultTCPIdle), s.Jiffies(maps.DefaultUDPIdle)
	s.Closing, s.HalfOpen = s.Jiffies(maps.DefaultClosing), s.Jiffies(maps.DefaultHalfOpen)
	s.UdpGrace = s.Jiffies(maps.DefaultUDPGrace)
	ports := defaultSNATPorts(localPorts())
	s.SnatLow, s.SnatHigh = ports.Low, ports.High
	return m.PutSettings(s)
}

func or(n, otherwise uint32) uint32 {
	if n == 0 {
		return otherwise
	}
	return n
}

// onMaps prepares the programs for loading on maps that exist.
func onMaps(m *maps.Maps) (*ebpf.CollectionSpec, *ebpf.CollectionOptions, error) {
	spec, err := bpf.LoadXdplb()
	if err != nil {
		return nil, nil, err
	}
	replacements := m.Replacements()
	for name, existing := range replacements {
		spec.Maps[name].MaxEntries = existing.MaxEntries()
	}
	return spec, &ebpf.CollectionOptions{MapReplacements: replacements}, nil
}

// loadProgram loads the data path for the interface with this number.
func loadProgram(m *maps.Maps, number uint32) (*ebpf.Program, error) {
	spec, options, err := onMaps(m)
	if err != nil {
		return nil, err
	}
	if err := spec.Variables[bpf.XdplbVarThisInterface].Set(number); err != nil {
		return nil, err
	}
	var object struct {
		Program *ebpf.Program `ebpf:"xdplb"`
	}
	if err := spec.LoadAndAssign(&object, options); err != nil {
		return nil, loadError(err)
	}
	return object.Program, nil
}

func loadError(err error) error {
	if errors.Is(err, ebpf.ErrMapIncompatible) {
		return fmt.Errorf("the pinned maps are of another version, and the old program goes on: %w; begin anew with: xdplb detach --all --purge", err)
	}
	return fmt.Errorf("loading the program: %w", err)
}

// attachTracers attaches the programs that count frames lost after the verdict.
// They need the kernel's BTF; without it those reasons stay 0.
func attachTracers(dir string, m *maps.Maps) error {
	spec, options, err := onMaps(m)
	if err != nil {
		return err
	}
	var tracers struct {
		BulkTx      *ebpf.Program `ebpf:"on_bulk_tx"`
		DevmapXmit  *ebpf.Program `ebpf:"on_devmap_xmit"`
		Exception   *ebpf.Program `ebpf:"on_exception"`
		RedirectErr *ebpf.Program `ebpf:"on_redirect_err"`
	}
	if err := spec.LoadAndAssign(&tracers, options); err != nil {
		return nil //nolint:nilerr // optional
	}
	for name, program := range map[string]*ebpf.Program{
		"bulk_tx": tracers.BulkTx, "devmap_xmit": tracers.DevmapXmit,
		"exception": tracers.Exception, "redirect_err": tracers.RedirectErr,
	} {
		err := pinTracer(filepath.Join(dir, "trace_"+name), program)
		program.Close()
		if err != nil {
			return err
		}
	}
	return nil
}

// pinTracer leaves a tracer of the same program alone.
func pinTracer(pin string, program *ebpf.Program) error {
	if old, err := link.LoadPinnedLink(pin, nil); err == nil {
		defer old.Close()
		if sameProgram(old, program) {
			return nil
		}
		if err := old.Unpin(); err != nil {
			return fmt.Errorf("%s: %w", pin, err)
		}
	}
	l, err := link.AttachTracing(link.TracingOptions{Program: program})
	if err != nil {
		return fmt.Errorf("%s: %w", filepath.Base(pin), err)
	}
	defer l.Close()
	return l.Pin(pin)
}

func sameProgram(l link.Link, program *ebpf.Program) bool {
	info, err := l.Info()
	if err != nil {
		return false
	}
	running, err := ebpf.NewProgramFromID(info.Program)
	if err != nil {
		return false
	}
	defer running.Close()
	return programTag(running) == programTag(program)
}

func programTag(p *ebpf.Program) string {
	info, err := p.Info()
	if err != nil {
		return ""
	}
	return info.Tag
}

// spreadWords are the setting for outer sources within a prefix.
func spreadWords(p netip.Prefix) (prefix, mask uint32) {
	if !p.IsValid() || p.Bits() == 0 {
		return 0, 0
	}
	a := p.Masked().Addr().As4()
	hosts := make([]byte, 4)
	binary.BigEndian.PutUint32(hosts, uint32(uint64(1)<<(32-p.Bits())-1))
	return binary.LittleEndian.Uint32(a[:]), binary.LittleEndian.Uint32(hosts)
}
