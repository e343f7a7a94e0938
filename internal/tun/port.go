package tun

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/songgao/water"
	"github.com/tailscale/wireguard-go/conn"
	wgtun "github.com/tailscale/wireguard-go/tun"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Causes of a failed Open, for the caller to turn into advice.
var (
	// ErrNoDevice means that the kernel has no TUN driver or its node is
	// missing and cannot be created.
	ErrNoDevice = errors.New("TUN driver is not available")
	// ErrPermission means that CAP_NET_ADMIN or access to the node is missing.
	ErrPermission = errors.New("not permitted to use the TUN driver")
	// ErrBusy means that another process, probably a second gateway, holds the
	// device.
	ErrBusy = errors.New("device is held by another process")
	// ErrNameTaken means that the name belongs to an interface that cannot be
	// attached to: of another kind, or a TUN device with several queues.
	ErrNameTaken = errors.New("name is taken by a different kind of interface")
)

const (
	nodePath  = "/dev/net/tun"
	nodeMajor = 10
	nodeMinor = 200

	batchSize = conn.IdealBatchSize
)

// Flags of an exclusive attachment. IFF_MULTI_QUEUE is absent on purpose: with
// it a second process could attach to the same device.
const (
	flagsPlain   = unix.IFF_TUN | unix.IFF_NO_PI
	flagsOffload = flagsPlain | unix.IFF_VNET_HDR
)

// port is an attached TUN file with a way to write to it.
type port struct {
	driver Driver
	file   *os.File
	vnet   bool
	writer batchWriter
	close  func() error
}

func (p port) Close() error { return p.close() }

// openPort provisions the device and attaches to it with the first driver that
// works.
func openPort(cfg Config) (port, error) {
	if err := ensureNode(nodePath); err != nil {
		return port{}, err
	}
	if err := probe(cfg.Name); err != nil {
		return port{}, err
	}
	if cfg.Driver == Water {
		return openWater(cfg)
	}
	p, err := openOffload(cfg)
	if errors.Is(err, errNoOffload) {
		cfg.Logger.Info("kernel refuses TUN offloads, moving packets one by one", "error", err)
		return openWater(cfg)
	}
	return p, err
}

// ensureNode creates the device node and its directory if they are missing.
func ensureNode(path string) error {
	if _, err := os.Stat(path); err == nil || !errors.Is(err, fs.ErrNotExist) {
		return classify(err)
	}
	err := os.MkdirAll(filepath.Dir(path), 0o751)
	if err == nil {
		err = unix.Mknod(path, unix.S_IFCHR|0o600, int(unix.Mkdev(nodeMajor, nodeMinor)))
	}
	if err != nil && !errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("%w: create %s: %w", ErrNoDevice, path, err)
	}
	return nil
}

// probe refuses a name that cannot be attached to. It comes before water, which
// leaks a file descriptor each time the kernel refuses an attachment.
func probe(name string) error {
	_, err := netlink.LinkByName(name)
	if errors.As(err, new(netlink.LinkNotFoundError)) {
		return nil
	}
	if err != nil {
		return err
	}
	fd, err := attach(name, flagsPlain)
	if err != nil {
		return err
	}
	return unix.Close(fd)
}

var errNoOffload = errors.New("offloads refused")

// openOffload lets water provision the device, attaches to it with virtio
// headers and offloads, and ends its persistence.
func openOffload(cfg Config) (port, error) {
	dev, err := provision(cfg, true)
	if err != nil {
		return port{}, err
	}
	if err := dev.Close(); err != nil {
		return port{}, err
	}
	fd, err := attach(cfg.Name, flagsOffload)
	if err != nil {
		if !errors.Is(err, ErrBusy) {
			err = errors.Join(err, unprovision(cfg))
		}
		return port{}, err
	}
	if err := unix.IoctlSetInt(fd, unix.TUNSETPERSIST, 0); err != nil {
		return port{}, errors.Join(fmt.Errorf("end persistence: %w", err), unix.Close(fd))
	}
	// The unmonitored form starts no goroutines and no netlink socket. It owns
	// fd, also when it fails.
	native, _, err := wgtun.CreateUnmonitoredTUNFromFD(fd)
	if err != nil {
		return port{}, fmt.Errorf("%w: %w", errNoOffload, err)
	}
	return port{driver: Auto, file: native.File(), vnet: true, writer: native, close: native.Close}, nil
}

// openWater provisions the device and keeps water's own file.
func openWater(cfg Config) (port, error) {
	dev, err := provision(cfg, false)
	if err != nil {
		return port{}, err
	}
	file, ok := dev.ReadWriteCloser.(*os.File)
	if !ok {
		return port{}, errors.Join(errors.New("water's device is not a file"), dev.Close())
	}
	if err := plain(file); err != nil {
		return port{}, errors.Join(err, dev.Close())
	}
	return port{driver: Water, file: file, writer: singleWriter{file}, close: dev.Close}, nil
}

// plain clears offloads that an earlier holder left on the device, because
// without a virtio header their packets would be unreadable, and keeps the file
// from child processes.
func plain(file *os.File) error {
	raw, err := file.SyscallConn()
	if err != nil {
		return err
	}
	var ioctlErr error
	err = raw.Control(func(fd uintptr) {
		unix.CloseOnExec(int(fd))
		ioctlErr = unix.IoctlSetInt(int(fd), unix.TUNSETOFFLOAD, 0)
	})
	if err := errors.Join(err, ioctlErr); err != nil {
		return fmt.Errorf("clear offloads: %w", err)
	}
	return nil
}

func provision(cfg Config, persist bool) (*water.Interface, error) {
	params := water.PlatformSpecificParams{Name: cfg.Name, Persist: persist}
	if cfg.Owner != nil {
		params.Permissions = &water.DevicePermissions{Owner: cfg.Owner.UID, Group: cfg.Owner.GID}
	}
	dev, err := water.New(water.Config{DeviceType: water.TUN, PlatformSpecificParams: params})
	if err != nil {
		return nil, classify(err)
	}
	return dev, nil
}

// unprovision removes the persistent device that nothing is attached to.
func unprovision(cfg Config) error {
	dev, err := provision(cfg, false)
	if err != nil {
		return err
	}
	return dev.Close()
}

// attach opens the node and attaches to the device name exclusively.
func attach(name string, flags uint16) (int, error) {
	req, err := unix.NewIfreq(name)
	if err != nil {
		return -1, err
	}
	fd, err := unix.Open(nodePath, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, classify(err)
	}
	req.SetUint16(flags)
	if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, req); err != nil {
		return -1, errors.Join(classify(err), unix.Close(fd))
	}
	return fd, nil
}

// classify adds the cause that a caller can act on.
func classify(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, unix.EBUSY):
		return fmt.Errorf("%w: %w", ErrBusy, err)
	case errors.Is(err, unix.EINVAL):
		return fmt.Errorf("%w: %w", ErrNameTaken, err)
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("%w: %w", ErrPermission, err)
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, unix.ENODEV), errors.Is(err, unix.ENXIO):
		return fmt.Errorf("%w: %w", ErrNoDevice, err)
	default:
		return err
	}
}
