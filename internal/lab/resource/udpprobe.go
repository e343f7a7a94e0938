package resource

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// EchoLoad is a stream of equal datagrams towards a UDP echo service.
type EchoLoad struct {
	BitsPerSecond float64       // of UDP payload, each way
	Duration      time.Duration // of sending
	Size          int           // bytes of payload, at least MinEchoSize
	// Patience is how long after the last arrival the stream is waited for;
	// 0 means one second.
	Patience time.Duration
}

// EchoReport is what came of an EchoLoad.
type EchoReport struct {
	Sent     int
	Received int           // distinct datagrams that came back intact
	Lost     int           // Sent - Received
	Repeated int           // datagrams that came back more than once
	Foreign  int           // datagrams that were not what was sent
	Elapsed  time.Duration // of sending; the rate kept is Sent*Size over this
	// Round-trip times of the received datagrams, 0 without any.
	Min, Median, P99, Max time.Duration
}

// MinEchoSize is the smallest payload that UDPEcho can follow, in bytes: a
// sequence number, a time and a mark.
const MinEchoSize = 24

const (
	// maxBurst is how many datagrams may leave back to back when the sender
	// has fallen behind its schedule. What it cannot catch up with so is made
	// up by sending later, not faster.
	maxBurst = 4
	// maxEchoes bounds the bookkeeping of one run: 8 bytes for each datagram.
	maxEchoes = 16 << 20
	echoMark  = 0x66697265_7a6f6e65
)

// UDPEcho sends datagrams at an even pace to the echo service at server and
// accounts for each of them. It ends when all came back, or when nothing came
// for Patience after the last was sent, or with ctx.
func UDPEcho(ctx context.Context, n Network, server netip.AddrPort, load EchoLoad) (EchoReport, error) {
	interval, count, err := load.schedule()
	if err != nil {
		return EchoReport{}, err
	}
	conn, err := n.DialContext(ctx, "udp", server.String())
	if err != nil {
		return EchoReport{}, fmt.Errorf("UDP echo: %w", err)
	}
	defer conn.Close()
	if udp, ok := conn.(*net.UDPConn); ok {
		_ = udp.SetReadBuffer(socketBuffer)
	}
	defer context.AfterFunc(ctx, func() { conn.Close() })()

	begin := time.Now()
	receiver := &echoReceiver{begin: begin, seen: make([]time.Duration, count), size: load.Size}
	allBack := make(chan error, 1)
	go func() { allBack <- receiver.run(conn) }()

	sent, err := sendPaced(ctx, conn, begin, interval, load.Size, count)
	elapsed := time.Since(begin)
	err = errors.Join(err, receiver.finish(conn, sent, load.patience(), allBack))
	if ctx.Err() != nil {
		err = ctx.Err()
	}
	report := receiver.report(sent)
	report.Elapsed = elapsed
	if err != nil {
		return report, fmt.Errorf("UDP echo: %w", err)
	}
	return report, nil
}

func (l EchoLoad) schedule() (interval time.Duration, count int, err error) {
	if l.Size < MinEchoSize || l.Size > 65507 || l.BitsPerSecond <= 0 {
		return 0, 0, fmt.Errorf("UDP echo: size %d or rate %.0f bit/s out of range", l.Size, l.BitsPerSecond)
	}
	interval = time.Duration(float64(l.Size) * 8 / l.BitsPerSecond * float64(time.Second))
	count = int(l.Duration / max(interval, 1))
	if count < 1 || count > maxEchoes {
		return 0, 0, fmt.Errorf("UDP echo: %d datagrams, must be 1 to %d", count, maxEchoes)
	}
	return interval, count, nil
}

func (l EchoLoad) patience() time.Duration {
	if l.Patience > 0 {
		return l.Patience
	}
	return time.Second
}

// sendPaced returns how many datagrams the kernel took.
func sendPaced(ctx context.Context, conn net.Conn, begin time.Time, interval time.Duration, size, count int) (int, error) {
	// The kernel's own sleep is exact to some 50 µs; the runtime's timers to
	// a millisecond, which would make bursts. It holds the thread.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	packet := make([]byte, size)
	next := time.Duration(0)
	for i := range count {
		now := time.Since(begin)
		if wait := next - now; wait > 0 {
			if ctx.Err() != nil {
				return i, ctx.Err()
			}
			pause := unix.NsecToTimespec(int64(wait))
			_ = unix.Nanosleep(&pause, nil) // woken early, it sends early
			now = time.Since(begin)
		}
		next = max(next, now-maxBurst*interval) + interval
		binary.LittleEndian.PutUint64(packet, uint64(i))
		binary.LittleEndian.PutUint64(packet[8:], uint64(now))
		binary.LittleEndian.PutUint64(packet[16:], echoMark)
		if _, err := conn.Write(packet); err != nil && !transient(err) {
			return i, err
		}
	}
	return count, nil
}

// echoReceiver accounts for what comes back. It belongs to the goroutine that
// runs it until that has ended.
type echoReceiver struct {
	begin             time.Time
	size              int
	seen              []time.Duration // round-trip time by sequence number, 0 while missing
	received          int
	repeated, foreign int
}

// run ends with nil when all came back, else with the error of the socket.
func (r *echoReceiver) run(conn net.Conn) error {
	buffer := make([]byte, r.size+1)
	for r.received < len(r.seen) {
		n, err := conn.Read(buffer)
		switch {
		case err == nil:
			r.account(buffer[:n])
		case !transient(err):
			return err
		}
	}
	return nil
}

func (r *echoReceiver) account(packet []byte) {
	if len(packet) != r.size || binary.LittleEndian.Uint64(packet[16:]) != echoMark {
		r.foreign++
		return
	}
	sequence := binary.LittleEndian.Uint64(packet)
	sent := time.Duration(binary.LittleEndian.Uint64(packet[8:]))
	rtt := time.Since(r.begin) - sent
	switch {
	case sequence >= uint64(len(r.seen)) || rtt <= 0:
		r.foreign++
	case r.seen[sequence] != 0:
		r.repeated++
	default:
		r.seen[sequence] = rtt
		r.received++
	}
}

// finish waits for the receiver, which reads on for the given time after
// the last datagram was sent.
func (r *echoReceiver) finish(conn net.Conn, sent int, patience time.Duration, ended <-chan error) error {
	if sent < len(r.seen) {
		patience = 0
	}
	if err := conn.SetReadDeadline(time.Now().Add(patience)); err != nil {
		conn.Close()
		<-ended
		return err
	}
	if err := <-ended; err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
		return err
	}
	return nil
}

func (r *echoReceiver) report(sent int) EchoReport {
	report := EchoReport{
		Sent: sent, Received: r.received, Lost: sent - r.received,
		Repeated: r.repeated, Foreign: r.foreign,
	}
	times := slices.DeleteFunc(r.seen, func(d time.Duration) bool { return d == 0 })
	if len(times) == 0 {
		return report
	}
	slices.Sort(times)
	report.Min, report.Max = times[0], times[len(times)-1]
	report.Median, report.P99 = times[len(times)/2], times[len(times)*99/100]
	return report
}

// transient errors lose one datagram: an ICMP error about an earlier one, or a
// full queue.
func transient(err error) bool {
	return errors.Is(err, unix.ECONNREFUSED) || errors.Is(err, unix.EHOSTUNREACH) || errors.Is(err, unix.EACCES) ||
		errors.Is(err, unix.ENETUNREACH) || errors.Is(err, unix.ENOBUFS) || errors.Is(err, unix.EAGAIN)
}
