package tun

import (
	"bytes"
	"errors"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	wgtun "github.com/tailscale/wireguard-go/tun"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"firezone-gateway/internal/drop"
)

// startNamespace is where the tests were started and nothing may be changed.
var startNamespace netns.NsHandle

func TestMain(m *testing.M) {
	var err error
	if startNamespace, err = netns.Get(); err != nil {
		panic(err)
	}
	goleak.VerifyTestMain(m)
}

var _ wgtun.Device = (*Device)(nil)

func TestOpenCreatesTheDeviceAndCloseRemovesIt(t *testing.T) {
	eachDriver(t, func(t *testing.T, driver Driver) {
		d := open(t, driver)
		attrs := (&namespace{tb: t}).link(testName).Attrs()
		if attrs.MTU != 1280 || attrs.TxQLen != 10000 {
			t.Errorf("MTU %d, queue %d, want 1280 and 10000", attrs.MTU, attrs.TxQLen)
		}
		name, _ := d.Name()
		mtu, _ := d.MTU()
		if name != testName || mtu != 1280 || d.BatchSize() != 128 || d.File() == nil {
			t.Errorf("Name %q, MTU %d, BatchSize %d, File %v", name, mtu, d.BatchSize(), d.File())
		}
		if got := <-d.Events(); got != wgtun.EventUp {
			t.Errorf("first event %v, want EventUp", got)
		}
		for range 2 {
			if err := d.Close(); err != nil {
				t.Errorf("Close: %v", err)
			}
		}
		if _, ok := <-d.Events(); ok {
			t.Error("a second event came")
		}
		if _, err := netlink.LinkByName(testName); !errors.As(err, new(netlink.LinkNotFoundError)) {
			t.Errorf("device is still there after Close: %v", err)
		}
		select {
		case <-d.Gone():
			t.Error("Close fired Gone")
		default:
		}
	})
}

func TestOpenRefusesANameInUse(t *testing.T) {
	eachDriver(t, func(t *testing.T, driver Driver) {
		d := open(t, driver)
		for _, second := range []Driver{Auto, Water} {
			if _, err := Open(Config{Name: testName, Driver: second}); !errors.Is(err, ErrBusy) {
				t.Errorf("second Open with %v: %v, want ErrBusy", second, err)
			}
		}
		// The refusals must not have removed or detached the device.
		if _, err := d.Write([][]byte{udpPacket(addrPort(clientV4, 1), addrPort(gatewayV4, 2), nil, 16)}, 16); err != nil {
			t.Errorf("Write: %v", err)
		}

		if _, err := Open(Config{Name: "lo", Driver: driver}); !errors.Is(err, ErrNameTaken) {
			t.Errorf("Open of the loopback interface: %v, want ErrNameTaken", err)
		}
		if _, err := Open(Config{Name: strings.Repeat("x", unix.IFNAMSIZ)}); err == nil {
			t.Error("Open of an overlong name succeeded")
		}
	})
}

func TestOpenTakesOverAPersistentDeviceOfACrashedGateway(t *testing.T) {
	eachDriver(t, func(t *testing.T, driver Driver) {
		// A predecessor that died between provisioning and attaching, and one
		// that left offloads behind.
		dev, err := provision(Config{Name: testName}, true)
		if err != nil {
			t.Fatal(err)
		}
		dev.Close()
		fd, err := attach(testName, flagsOffload)
		if err != nil {
			t.Fatal(err)
		}
		if err := unix.IoctlSetInt(fd, unix.TUNSETOFFLOAD, unix.TUN_F_CSUM|unix.TUN_F_TSO4|unix.TUN_F_TSO6); err != nil {
			t.Fatal(err)
		}
		unix.Close(fd)

		d := openConfigured(t, driver)
		got := readOne(t, d.Device, func() { sendUDP(t, addrPort(clientV4, 9), []byte("hello")) })
		if problem := checkPacket(got); problem != "" || !bytes.HasSuffix(got, []byte("hello")) {
			t.Errorf("read % x: %s", got, problem)
		}
		d.Close()
		if _, err := netlink.LinkByName(testName); err == nil {
			t.Error("device outlives Close")
		}
	})
}

func TestOpenSetsTheOwner(t *testing.T) {
	eachDriver(t, func(t *testing.T, driver Driver) {
		d, err := Open(Config{Name: testName, Driver: driver, Owner: &Owner{UID: 1234, GID: 2345}})
		if err != nil {
			t.Fatal(err)
		}
		defer d.Close()
		link, ok := (&namespace{tb: t}).link(testName).(*netlink.Tuntap)
		if !ok || link.Owner != 1234 || link.Group != 2345 {
			t.Errorf("link %+v", link)
		}
	})
}

func TestCloseAndReadDeadlineWakeAWaitingRead(t *testing.T) {
	wake := map[string]func(d *Device) error{
		"Close":    (*Device).Close,
		"deadline": func(d *Device) error { return d.File().SetReadDeadline(time.Unix(1, 0)) },
	}
	for name, wake := range wake {
		t.Run(name, func(t *testing.T) {
			eachDriver(t, func(t *testing.T, driver Driver) {
				d := open(t, driver)
				result := make(chan error, 1)
				go func() {
					b := newBatchBuffer()
					_, err := d.Read(b.slab, b.packets)
					result <- err
				}()
				waitFor(t, "Read to wait", func() bool { return goroutineWaits("tun.(*reader).Read") })
				if err := wake(d.Device); err != nil {
					t.Fatal(err)
				}
				if err := <-result; !errors.Is(err, os.ErrClosed) {
					t.Errorf("Read = %v, want os.ErrClosed", err)
				}
				select {
				case <-d.Gone():
					t.Errorf("Gone fired: %v", d.Cause())
				default:
				}
			})
		})
	}
}

func TestDeletedLinkFiresGone(t *testing.T) {
	eachDriver(t, func(t *testing.T, driver Driver) {
		d := openConfigured(t, driver)
		result := make(chan error, 1)
		go func() {
			b := newBatchBuffer()
			_, err := d.Read(b.slab, b.packets)
			result <- err
		}()
		waitFor(t, "Read to wait", func() bool { return goroutineWaits("tun.(*reader).Read") })
		if d.Cause() != nil {
			t.Fatalf("Cause = %v before the loss", d.Cause())
		}
		if err := netlink.LinkDel((&namespace{tb: t}).link(testName)); err != nil {
			t.Fatal(err)
		}
		if err := <-result; !errors.Is(err, os.ErrClosed) {
			t.Errorf("Read = %v, want os.ErrClosed", err)
		}
		<-d.Gone()
		if !errors.Is(d.Cause(), unix.EBADFD) {
			t.Errorf("Cause = %v, want EBADFD", d.Cause())
		}
		pkt := udpPacket(addrPort(clientV4, 1), addrPort(gatewayV4, 2), nil, 16)
		if _, err := d.Write([][]byte{pkt}, 16); !errors.Is(err, os.ErrClosed) {
			t.Errorf("Write = %v, want os.ErrClosed", err)
		}
		d.Close()
		again := openConfigured(t, driver)
		got := readOne(t, again.Device, func() { sendUDP(t, addrPort(clientV4, 9), []byte("again")) })
		if !bytes.HasSuffix(got, []byte("again")) {
			t.Errorf("re-created device read % x", got)
		}
	})
}

func TestWriteFindsOutThatTheLinkIsDeleted(t *testing.T) {
	eachDriver(t, func(t *testing.T, driver Driver) {
		d := openConfigured(t, driver)
		if err := netlink.LinkDel((&namespace{tb: t}).link(testName)); err != nil {
			t.Fatal(err)
		}
		pkt := udpPacket(addrPort(clientV4, 1), addrPort(gatewayV4, 2), nil, 16)
		if _, err := d.Write([][]byte{pkt}, 16); !errors.Is(err, os.ErrClosed) {
			t.Errorf("Write = %v, want os.ErrClosed", err)
		}
		<-d.Gone()
	})
}

func TestWriteToALinkThatIsDownIsCounted(t *testing.T) {
	eachDriver(t, func(t *testing.T, driver Driver) {
		var log bytes.Buffer
		drops := new(drop.Counters)
		d, err := Open(Config{Name: testName, Driver: driver, Drops: drops, Logger: slog.New(slog.NewTextHandler(&log, nil))})
		if err != nil {
			t.Fatal(err)
		}
		defer d.Close()
		bufs := func() (bufs [][]byte) {
			for i := range 3 {
				bufs = append(bufs, udpPacket(addrPort(clientV4, uint16(i)), addrPort(gatewayV4, 2), []byte("x"), 16))
			}
			return bufs
		}
		for range 5 {
			if n, err := d.Write(bufs(), 16); n != 0 || err != nil {
				t.Fatalf("Write = %d, %v, want 0, nil", n, err)
			}
		}
		if got := drops.Load(drop.TUNWrite); got != 15 {
			t.Errorf("%d drops, want 15", got)
		}
		if got := strings.Count(log.String(), "level=WARN"); got != 1 {
			t.Errorf("%d warnings, want 1: %s", got, &log)
		}
		if _, err := Configure(Network{Link: testName, V4: gatewayV4, V6: gatewayV6}); err != nil {
			t.Fatal(err)
		}
		if n, err := d.Write(bufs(), 16); n != 3 || err != nil {
			t.Errorf("Write after the link came up = %d, %v, want 3, nil", n, err)
		}
	})
}

func TestEnsureNodeCreatesTheNode(t *testing.T) {
	if os.Geteuid() != 0 {
		missing(t, "root is needed to create a device node")
	}
	path := filepath.Join(t.TempDir(), "net", "tun")
	for range 2 {
		if err := ensureNode(path); err != nil {
			t.Fatal(err)
		}
	}
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		t.Fatal(err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFCHR || unix.Major(st.Rdev) != 10 || unix.Minor(st.Rdev) != 200 {
		t.Errorf("mode %o, device %d:%d", st.Mode, unix.Major(st.Rdev), unix.Minor(st.Rdev))
	}
	dir, err := os.Stat(filepath.Dir(path))
	if err != nil || dir.Mode().Perm() != 0o751 {
		t.Errorf("directory %v, %v", dir.Mode(), err)
	}
	blocked := filepath.Join(path, "below", "a", "node")
	if err := ensureNode(blocked); err == nil {
		t.Error("a node below a node could be created")
	}
}

func TestClassifyNamesTheCause(t *testing.T) {
	for _, tc := range []struct{ in, want error }{
		{unix.EBUSY, ErrBusy},
		{os.NewSyscallError("ioctl", unix.EINVAL), ErrNameTaken},
		{unix.EPERM, ErrPermission},
		{unix.EACCES, ErrPermission},
		{unix.ENOENT, ErrNoDevice},
		{unix.ENODEV, ErrNoDevice},
	} {
		if got := classify(tc.in); !errors.Is(got, tc.want) || !errors.Is(got, tc.in) {
			t.Errorf("classify(%v) = %v, want %v", tc.in, got, tc.want)
		}
	}
	if classify(nil) != nil || classify(unix.ENOMEM) != unix.ENOMEM {
		t.Error("other errors are changed")
	}
}

func TestDriverText(t *testing.T) {
	for _, d := range []Driver{Auto, Water} {
		var got Driver
		if err := got.UnmarshalText([]byte(d.String())); err != nil || got != d {
			t.Errorf("%v reads back as %v, %v", d, got, err)
		}
	}
	var d Driver
	if d.UnmarshalText([]byte("fire")) == nil || Driver(7).String() != "invalid" {
		t.Error("unknown drivers are accepted")
	}
}

func addrPort(a netip.Addr, port uint16) netip.AddrPort { return netip.AddrPortFrom(a, port) }

func sendUDP(t *testing.T, to netip.AddrPort, payload []byte) {
	t.Helper()
	if _, err := dialUDP(t, to).Write(payload); err != nil {
		t.Fatal(err)
	}
}

// readOne returns the first packet that is read after send.
func readOne(t *testing.T, d *Device, send func()) []byte {
	t.Helper()
	send()
	b := newBatchBuffer()
	if err := d.File().SetReadDeadline(time.Now().Add(deadline)); err != nil {
		t.Fatal(err)
	}
	n, err := d.Read(b.slab, b.packets)
	if err != nil {
		t.Fatal(err)
	}
	checkLayout(t, b.slab, b.packets[:n])
	return b.slab[b.packets[0].Offset:][:b.packets[0].Size]
}
