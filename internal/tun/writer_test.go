package tun

import (
	"bytes"
	"errors"
	"log/slog"
	"os"
	"strings"
	"sync/atomic"
	"testing"

	wgtun "github.com/tailscale/wireguard-go/tun"
	"golang.org/x/sys/unix"

	"firezone-gateway/internal/drop"
)

// fakeKernel stands for the engine's device in place of a writable file.
type fakeKernel struct {
	wgtun.GRODevice // nil: only what is overridden may be called
	written         int
	err             error
	tcpOff, udpOff  int
}

func (k *fakeKernel) Write([][]byte, int) (int, error) { return k.written, k.err }
func (k *fakeKernel) DisableTCPGRO()                   { k.tcpOff++ }
func (k *fakeKernel) DisableUDPGRO()                   { k.udpOff++ }

// plainKernel cannot merge.
type plainKernel struct{ err error }

func (k plainKernel) Write([][]byte, int) (int, error) { return 0, k.err }

func TestWriteHandlesWhatTheKernelRefuses(t *testing.T) {
	valid := append(make([]byte, 16), 0x45, 0, 0, 20)
	invalid := append(make([]byte, 16), 0x15, 0, 0, 20)
	nested := errors.Join(errors.Join(unix.EIO, unix.EIO), unix.ENOMEM)
	for _, tc := range []struct {
		name    string
		bufs    [][]byte
		written int
		err     error
		closed  bool

		n        int
		want     error
		drops    uint64
		disabled bool
		lost     bool
	}{
		{name: "all is well", bufs: [][]byte{valid, valid}, written: 40, n: 2},
		{name: "a merged packet is invalid", bufs: [][]byte{valid, valid, valid}, written: 20, err: errors.Join(unix.EINVAL), n: 2, drops: 1, disabled: true},
		{name: "a single packet is invalid", bufs: [][]byte{valid}, err: errors.Join(unix.EINVAL), drops: 1},
		{name: "a packet that is not IP is invalid", bufs: [][]byte{valid, invalid}, written: 20, err: errors.Join(unix.EINVAL), n: 1, drops: 1},
		{name: "an empty packet is invalid", bufs: [][]byte{valid, make([]byte, 16)}, err: unix.EINVAL, drops: 2},
		{name: "the link is down", bufs: [][]byte{valid, valid}, err: errors.Join(unix.EIO), drops: 2},
		{name: "some calls fail", bufs: [][]byte{valid, valid, valid, valid}, written: 20, err: nested, n: 1, drops: 3},
		{name: "more errors than packets", bufs: [][]byte{valid, valid}, written: 20, err: nested, drops: 2},
		{name: "the device is gone", bufs: [][]byte{valid, valid}, written: 0, err: os.ErrClosed, want: os.ErrClosed, drops: 2, lost: true},
		{name: "the device was closed meanwhile", bufs: [][]byte{valid}, err: errors.New("use of closed file"), closed: true, want: os.ErrClosed},
	} {
		t.Run(tc.name, func(t *testing.T) {
			kernel := &fakeKernel{written: tc.written, err: tc.err}
			var drops drop.Counters
			var closed atomic.Bool
			closed.Store(tc.closed)
			lost := false
			w := newWriter(kernel, slog.New(slog.DiscardHandler), &drops, &closed, func(error) { lost = true })
			n, err := w.Write(tc.bufs, 16)
			if n != tc.n || !errors.Is(err, tc.want) || (tc.want == nil && err != nil) {
				t.Errorf("Write = %d, %v, want %d, %v", n, err, tc.n, tc.want)
			}
			if got := drops.Load(drop.TUNWrite); got != tc.drops {
				t.Errorf("%d drops, want %d", got, tc.drops)
			}
			if disabled := kernel.tcpOff == 1 && kernel.udpOff == 1; disabled != tc.disabled {
				t.Errorf("merging disabled: TCP %d, UDP %d times", kernel.tcpOff, kernel.udpOff)
			}
			if lost != tc.lost {
				t.Errorf("lost = %v", lost)
			}
		})
	}
}

func TestWriteStopsMergingOnce(t *testing.T) {
	var log bytes.Buffer
	kernel := &fakeKernel{written: 1, err: unix.EINVAL}
	var closed atomic.Bool
	w := newWriter(kernel, slog.New(slog.NewTextHandler(&log, nil)), new(drop.Counters), &closed, func(error) {})
	pkt := append(make([]byte, 16), 0x60)
	for range 3 {
		if _, err := w.Write([][]byte{pkt, pkt}, 16); err != nil {
			t.Fatal(err)
		}
	}
	if kernel.tcpOff != 1 || kernel.udpOff != 1 || strings.Count(log.String(), "no longer merging") != 1 {
		t.Errorf("disabled %d and %d times: %s", kernel.tcpOff, kernel.udpOff, &log)
	}
}

func TestWriteWithoutMergingBlamesNothing(t *testing.T) {
	var closed atomic.Bool
	var drops drop.Counters
	w := newWriter(plainKernel{unix.EINVAL}, slog.New(slog.DiscardHandler), &drops, &closed, func(error) {})
	pkt := append(make([]byte, 16), 0x60)
	if n, err := w.Write([][]byte{pkt, pkt}, 16); n != 0 || err != nil || drops.Load(drop.TUNWrite) != 2 {
		t.Errorf("Write = %d, %v, %d drops", n, err, drops.Load(drop.TUNWrite))
	}
}

func TestWriteCountsPacketsThatAreNotIP(t *testing.T) {
	eachDriver(t, func(t *testing.T, driver Driver) {
		d := openConfigured(t, driver)
		bad := append(make([]byte, 16), bytes.Repeat([]byte{0x13}, 40)...)
		good := udpPacket(addrPort(clientV4, 1), addrPort(gatewayV4, 2), []byte("x"), 16)
		if n, err := d.Write([][]byte{bad, good}, 16); n != 1 || err != nil {
			t.Errorf("Write = %d, %v, want 1, nil", n, err)
		}
		if got := d.drops.Load(drop.TUNWrite); got != 1 {
			t.Errorf("%d drops, want 1", got)
		}
		if driver == Auto && !d.writer.merging.Load() {
			t.Error("a packet that is not IP switched merging off")
		}
	})
}
