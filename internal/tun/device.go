package tun

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"sync/atomic"

	wgtun "github.com/tailscale/wireguard-go/tun"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"firezone-gateway/internal/drop"
)

// Driver selects how packets move between the process and the device.
type Driver int

// The drivers.
const (
	Auto  Driver = iota // offloads if the kernel grants them, else Water
	Water               // plain reads and writes, one packet per system call
)

var driverNames = [...]string{Auto: "auto", Water: "water"}

// String returns the name that UnmarshalText reads.
func (d Driver) String() string {
	if d < 0 || int(d) >= len(driverNames) {
		return "invalid"
	}
	return driverNames[d]
}

// UnmarshalText reads "auto" or "water".
func (d *Driver) UnmarshalText(text []byte) error {
	for i, name := range driverNames {
		if string(text) == name {
			*d = Driver(i)
			return nil
		}
	}
	return fmt.Errorf("unknown TUN driver %q", text)
}

// Owner is the user and group that may attach to the device without
// CAP_NET_ADMIN.
type Owner struct {
	UID, GID uint
}

// Config says which device to open. The zero value is usable.
type Config struct {
	Name       string // DefaultName if empty
	MTU        int    // DefaultMTU if zero
	TxQueueLen int    // DefaultTxQueueLen if zero
	Driver     Driver
	Owner      *Owner         // nil leaves the device to CAP_NET_ADMIN
	Logger     *slog.Logger   // nil discards
	Drops      *drop.Counters // nil counts into nothing
}

// Device is an open TUN device. It implements the engine's [wgtun.Device]; one
// goroutine at a time may call Read, everything else may be called
// concurrently. The kernel removes the device when the process ends or Close
// is called.
type Device struct {
	name   string
	mtu    int
	driver Driver
	port   port
	reader *reader
	writer *writer
	stats  counters
	events chan wgtun.Event

	closed    atomic.Bool
	closeOnce sync.Once
	closeErr  error

	goneOnce  sync.Once
	gone      chan struct{}
	goneCause error // set before gone is closed
}

// Open creates the device cfg.Name, or takes over one that no process holds,
// and sets its MTU and queue length. Errors wrap [ErrNoDevice],
// [ErrPermission], [ErrBusy] or [ErrNameTaken] where one of them is the cause.
func Open(cfg Config) (*Device, error) {
	cfg, err := cfg.complete()
	if err != nil {
		return nil, err
	}
	p, err := openPort(cfg)
	if err != nil {
		return nil, fmt.Errorf("TUN device %s: %w", cfg.Name, err)
	}
	d, err := newDevice(cfg, p)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("TUN device %s: %w", cfg.Name, err), p.Close())
	}
	return d, nil
}

func newDevice(cfg Config, p port) (*Device, error) {
	conn, err := p.file.SyscallConn()
	if err != nil {
		return nil, err
	}
	link, err := netlink.LinkByName(cfg.Name)
	if err != nil {
		return nil, err
	}
	if err := setLinkSizes(link, cfg.MTU, cfg.TxQueueLen); err != nil {
		return nil, err
	}
	d := &Device{
		name:   cfg.Name,
		mtu:    cfg.MTU,
		driver: p.driver,
		port:   p,
		events: make(chan wgtun.Event, 1),
		gone:   make(chan struct{}),
	}
	d.reader = newReader(conn, p.vnet, cfg.MTU, cfg.Drops, &d.stats, d.lost)
	d.writer = newWriter(p.writer, cfg.Logger, cfg.Drops, &d.closed, d.lost)
	// The engine opens its bind on this event and would close it on
	// EventDown, which is not for the link's state to decide.
	d.events <- wgtun.EventUp
	return d, nil
}

// Read implements [wgtun.Reader]. It waits for a packet, then takes what else is
// queued. Super packets are split, partial checksums completed. After Close,
// after a read deadline set on File, and once the device is gone it returns
// os.ErrClosed. It does not allocate.
func (d *Device) Read(slab []byte, packets []wgtun.ReadPacket) (int, error) {
	if d.closed.Load() {
		return 0, os.ErrClosed
	}
	return d.reader.Read(slab, packets)
}

// Write implements [wgtun.Device] with offset at least 10. It returns the number
// of packets the kernel took. Packets the kernel refused are counted as
// drop.TUNWrite and are no error; os.ErrClosed means closed or gone. The packets
// are modified when they are merged.
func (d *Device) Write(bufs [][]byte, offset int) (int, error) {
	if d.closed.Load() {
		return 0, os.ErrClosed
	}
	return d.writer.Write(bufs, offset)
}

// Gone is closed when the kernel reports that the device no longer exists,
// which a Read or Write has to run into. Close does not close it.
func (d *Device) Gone() <-chan struct{} { return d.gone }

// Cause returns why Gone was closed, or nil.
func (d *Device) Cause() error {
	select {
	case <-d.gone:
		return d.goneCause
	default:
		return nil
	}
}

// Name implements [wgtun.Device].
func (d *Device) Name() (string, error) { return d.name, nil }

// MTU implements [wgtun.Device]. It is the configured value, whatever became of
// the link.
func (d *Device) MTU() (int, error) { return d.mtu, nil }

// Driver returns the driver in use, which is Water if offloads were refused.
func (d *Device) Driver() Driver { return d.driver }

// File implements [wgtun.Queue]. The file belongs to the device.
func (d *Device) File() *os.File { return d.port.file }

// Events implements [wgtun.Device]: one EventUp, and the channel is closed by
// Close.
func (d *Device) Events() <-chan wgtun.Event { return d.events }

// BatchSize implements [wgtun.Device].
func (d *Device) BatchSize() int { return batchSize }

// Stats returns what was read so far.
func (d *Device) Stats() Stats { return d.stats.load() }

// Close removes the device and wakes a waiting Read. It may be called again.
func (d *Device) Close() error {
	d.closeOnce.Do(func() {
		d.closed.Store(true)
		close(d.events)
		d.closeErr = d.port.Close()
	})
	return d.closeErr
}

func (d *Device) lost(cause error) {
	d.goneOnce.Do(func() {
		d.goneCause = fmt.Errorf("TUN device %s: %w", d.name, cause)
		close(d.gone)
	})
}

func (c Config) complete() (Config, error) {
	if c.Name == "" {
		c.Name = DefaultName
	}
	if len(c.Name) >= unix.IFNAMSIZ {
		return c, fmt.Errorf("interface name %q is longer than %d bytes", c.Name, unix.IFNAMSIZ-1)
	}
	if c.MTU == 0 {
		c.MTU = DefaultMTU
	}
	if c.TxQueueLen == 0 {
		c.TxQueueLen = DefaultTxQueueLen
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	if c.Drops == nil {
		c.Drops = new(drop.Counters)
	}
	return c, nil
}
