package tun

import (
	"errors"
	"log/slog"
	"os"
	"sync/atomic"
	"syscall"
	"time"

	wgtun "github.com/tailscale/wireguard-go/tun"
	"golang.org/x/sys/unix"

	"firezone-gateway/internal/drop"
)

// warnInterval bounds how often lost writes are logged.
const warnInterval = 10 * time.Second

// batchWriter is the kernel side of Write. It returns bytes, not packets, and
// one joined error per failed system call; os.ErrClosed means that the device
// no longer exists.
type batchWriter interface {
	Write(bufs [][]byte, offset int) (int, error)
}

// writer counts what the kernel refuses. It may be used concurrently.
type writer struct {
	kernel batchWriter
	gro    wgtun.GRODevice // nil if nothing is merged
	drops  *drop.Counters
	log    *slog.Logger
	lost   func(cause error)
	closed *atomic.Bool

	merging  atomic.Bool
	lastWarn atomic.Int64 // nanoseconds since start, 0 for never
	start    time.Time
}

func newWriter(kernel batchWriter, log *slog.Logger, drops *drop.Counters, closed *atomic.Bool, lost func(error)) *writer {
	w := &writer{kernel: kernel, log: log, drops: drops, closed: closed, lost: lost, start: time.Now()}
	if gro, ok := kernel.(wgtun.GRODevice); ok {
		w.gro = gro
		w.merging.Store(true)
	}
	return w
}

// Write implements [wgtun.Device]. It returns the number of packets the kernel
// took; refused ones are counted as drop.TUNWrite and are no error.
func (w *writer) Write(bufs [][]byte, offset int) (int, error) {
	n, err := w.kernel.Write(bufs, offset)
	if err == nil {
		return len(bufs), nil
	}
	return w.refused(bufs, offset, n, err)
}

func (w *writer) refused(bufs [][]byte, offset, written int, err error) (int, error) {
	if w.closed.Load() {
		return 0, os.ErrClosed
	}
	// A failed call may stand for several merged packets: the number is exact
	// if nothing was written and a lower bound otherwise.
	failed := min(leaves(err), len(bufs))
	if written == 0 {
		failed = len(bufs)
	}
	w.drops.Add(drop.TUNWrite, uint64(failed))

	switch {
	case errors.Is(err, os.ErrClosed):
		w.lost(unix.EBADFD)
		return len(bufs) - failed, os.ErrClosed
	case errors.Is(err, unix.EINVAL) && w.blameMerging(bufs, offset):
		if w.merging.CompareAndSwap(true, false) {
			w.gro.DisableTCPGRO()
			w.gro.DisableUDPGRO()
			w.log.Warn("TUN device refuses merged packets, no longer merging", "error", err)
		}
	default:
		w.warn(failed, err)
	}
	return len(bufs) - failed, nil
}

// blameMerging reports whether EINVAL can only come from a merged packet. The
// kernel's other reason is a packet that is neither IPv4 nor IPv6, which a
// sender must not be able to use to switch merging off.
func (w *writer) blameMerging(bufs [][]byte, offset int) bool {
	if !w.merging.Load() || len(bufs) < 2 {
		return false
	}
	for _, b := range bufs {
		if offset >= len(b) || (b[offset]>>4 != 4 && b[offset]>>4 != 6) {
			return false
		}
	}
	return true
}

func (w *writer) warn(failed int, err error) {
	now := int64(time.Since(w.start))
	last := w.lastWarn.Load()
	if last != 0 && now-last < int64(warnInterval) || !w.lastWarn.CompareAndSwap(last, max(now, 1)) {
		return
	}
	w.log.Warn("TUN device refused packets", "packets", failed, "error", err)
}

// leaves counts the errors joined in err.
func leaves(err error) int {
	joined, ok := err.(interface{ Unwrap() []error })
	if !ok {
		return 1
	}
	n := 0
	for _, e := range joined.Unwrap() {
		n += leaves(e)
	}
	return n
}

// singleWriter writes one packet per call through water's file.
type singleWriter struct {
	file *os.File
}

func (s singleWriter) Write(bufs [][]byte, offset int) (int, error) {
	var errs error
	total := 0
	for _, b := range bufs {
		if offset < 0 || offset >= len(b) {
			errs = errors.Join(errs, unix.EINVAL)
			continue
		}
		n, err := s.file.Write(b[offset:])
		if errors.Is(err, syscall.EBADFD) {
			return total, os.ErrClosed
		}
		errs = errors.Join(errs, err)
		total += n
	}
	return total, errs
}
