package labnet

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"firezone-gateway/internal/lab/natbox"
)

// box is a router's packet processing outside the kernel: a NAT and a line. The
// router's kernel passes every packet between its two sides through the box's
// TUN devices: what comes from the private side leaves the kernel through the
// inner device and comes back through the outer one, and the other way round.
//
// Each packet costs two system calls and some copying: a box forwards a TCP
// stream at about 1 Gbit/s on one core, the NAT of the kernel at ten times that.
type box struct {
	inner, outer *os.File
	router       netip.Addr // to complain from
	mtu          atomic.Int64
	outward      *lane
	inward       *lane
	wait         sync.WaitGroup

	mu  sync.Mutex
	nat *natbox.NAT // guarded by mu; nil routes
}

// lane is one direction through a box.
type lane struct {
	from, to *os.File
	decide   func(packet []byte, now time.Time) natbox.Verdict
	verdicts [natbox.Verdicts]atomic.Uint64
	lost     atomic.Uint64

	mu     sync.Mutex
	shapes bool          // guarded by mu
	wire   *natbox.Wire  // guarded by mu
	sent   chan struct{} // holds at most one: something is on the wire
	done   chan struct{}
}

// Devices of a box, and the routing tables that lead into them.
const (
	boxInner      = "box-in"
	boxOuter      = "box-out"
	boxInnerTable = 101
	boxOuterTable = 102
	boxQueue      = 4096 // packets that a device holds for the box
)

// addBox puts a box between the devices lan and wan of the router. It ends with
// the lab.
func (l *Lab) addBox(router Host, nat *natbox.NAT, lan, wan string) (*box, error) {
	b := &box{router: router.IPv4, nat: nat}
	b.mtu.Store(defaultMTU)
	err := router.Do(func() (err error) {
		if b.inner, err = openTUN(boxInner); err != nil {
			return err
		}
		b.outer, err = openTUN(boxOuter)
		return err
	})
	if err == nil {
		err = router.steer(lan, wan, nat != nil && router.IPv4.IsValid())
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("box of %s: %w", router.Name(), err), b.closeDevices())
	}
	b.outward = newLane(b.inner, b.outer, b.decideOutward)
	b.inward = newLane(b.outer, b.inner, b.decideInward)
	for _, ln := range []*lane{b.outward, b.inward} {
		b.wait.Go(ln.read)
		b.wait.Go(ln.write)
	}
	l.onClose(b.close)
	return b, nil
}

// set changes what the box's line does from the next packet on.
func (b *box) set(line natbox.Line) {
	mtu := line.MTU
	if mtu == 0 {
		mtu = defaultMTU
	}
	b.mtu.Store(int64(mtu))
	for _, ln := range []*lane{b.outward, b.inward} {
		ln.mu.Lock()
		ln.wire.SetLine(line)
		ln.shapes = line.Shapes()
		ln.mu.Unlock()
	}
}

func (b *box) close() error {
	err := b.closeDevices()
	for _, ln := range []*lane{b.outward, b.inward} {
		close(ln.done)
	}
	b.wait.Wait()
	return err
}

func (b *box) closeDevices() error {
	var errs []error
	for _, device := range []*os.File{b.inner, b.outer} {
		if device != nil {
			errs = append(errs, device.Close())
		}
	}
	return errors.Join(errs...)
}

// decideOutward and decideInward are called from two goroutines.
func (b *box) decideOutward(packet []byte, now time.Time) natbox.Verdict {
	if b.nat == nil {
		return natbox.Forward
	}
	// Once it is translated, the kernel would complain to itself.
	if answer := natbox.TooBig(packet, int(b.mtu.Load()), b.router); answer != nil {
		b.outward.deliver(b.inner, answer)
		return natbox.Filtered
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.nat.Outbound(packet, now)
}

func (b *box) decideInward(packet []byte, now time.Time) natbox.Verdict {
	if b.nat == nil {
		return natbox.Forward
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.nat.Inbound(packet, now)
}

func newLane(from, to *os.File, decide func([]byte, time.Time) natbox.Verdict) *lane {
	return &lane{
		from: from, to: to, decide: decide, wire: natbox.NewWire(natbox.Line{}, boxSeeds.Add(1)),
		sent: make(chan struct{}, 1), done: make(chan struct{}),
	}
}

// boxSeeds makes what is random differ from box to box, and a run resemble the
// one before.
var boxSeeds atomic.Uint64

// read takes packets from the device until it is closed.
func (ln *lane) read() {
	packet := make([]byte, 1<<16)
	for {
		n, err := ln.from.Read(packet)
		if err != nil {
			return
		}
		now := time.Now()
		verdict := ln.decide(packet[:n], now)
		ln.verdicts[verdict].Add(1)
		switch verdict {
		case natbox.Forward:
			ln.forward(packet[:n], now)
		case natbox.Local:
			ln.deliver(ln.from, packet[:n])
		}
	}
}

func (ln *lane) forward(packet []byte, now time.Time) {
	ln.mu.Lock()
	_, busy := ln.wire.Next()
	if !ln.shapes && !busy {
		ln.mu.Unlock()
		ln.deliver(ln.to, packet)
		return
	}
	kept := ln.wire.Send(slices.Clone(packet), now)
	ln.mu.Unlock()
	if !kept {
		ln.lost.Add(1)
		return
	}
	select {
	case ln.sent <- struct{}{}:
	default:
	}
}

// write delivers what arrives at the end of the wire.
func (ln *lane) write() {
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		timer.Reset(ln.deliverDue())
		select {
		case <-ln.sent:
		case <-timer.C:
		case <-ln.done:
			return
		}
	}
}

// deliverDue delivers what has arrived and returns how long the next is on its
// way.
func (ln *lane) deliverDue() time.Duration {
	for {
		now := time.Now()
		ln.mu.Lock()
		packet := ln.wire.Receive(now)
		due, ok := ln.wire.Next()
		ln.mu.Unlock()
		switch {
		case packet != nil:
			ln.deliver(ln.to, packet)
		case ok:
			return due.Sub(now)
		default:
			return time.Hour
		}
	}
}

// deliver gives a packet to the kernel, which refuses it when the device is
// closed or its queue is full.
func (ln *lane) deliver(to *os.File, packet []byte) {
	if _, err := to.Write(packet); err != nil {
		ln.lost.Add(1)
	}
}

// openTUN makes a TUN device in the calling thread's namespace and returns its
// end for packets, one for each read and write.
func openTUN(name string) (*os.File, error) {
	const device = "/dev/net/tun"
	fd, err := unix.Open(device, unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: device, Err: err}
	}
	request, err := unix.NewIfreq(name)
	if err == nil {
		request.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI)
		err = unix.IoctlIfreq(fd, unix.TUNSETIFF, request)
	}
	if err != nil {
		return nil, errors.Join(&os.PathError{Op: "create " + name, Path: device, Err: err}, unix.Close(fd))
	}
	return os.NewFile(uintptr(fd), name), nil
}
