package tour

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"time"

	labnet "firezone-gateway/internal/lab/net"
	"firezone-gateway/internal/lab/resource"
)

// probePort is where a client's first packet is expected.
const probePort = 4000

// firstDelivery sends a datagram from client i to a private address and returns
// when it arrived at the resource.
func (w *World) firstDelivery(ctx context.Context, i int, target netip.Addr) (time.Time, error) {
	receiver, err := w.net.Resource.ListenUDP(netip.AddrPortFrom(target, probePort))
	if err != nil {
		return time.Time{}, err
	}
	defer receiver.Close()
	defer context.AfterFunc(ctx, func() { receiver.Close() })()
	sender, err := w.host(i).DialContext(ctx, "udp", netip.AddrPortFrom(target, probePort).String())
	if err != nil {
		return time.Time{}, err
	}
	defer sender.Close()
	if _, err := io.WriteString(sender, "knock"); err != nil {
		return time.Time{}, err
	}
	if _, _, err := receiver.ReadFromUDPAddrPort(make([]byte, 64)); err != nil {
		return time.Time{}, fmt.Errorf("the first inner packet did not arrive: %w", errors.Join(ctx.Err(), err))
	}
	return time.Now(), nil
}

// refusedTCP connects to an IPv4 target and returns the ICMP error that the
// attempt met.
func refusedTCP(ctx context.Context, from *labnet.Namespace, target netip.AddrPort) (resource.ICMPError, error) {
	errors4, err := from.ListenPacket("ip4:icmp", "0.0.0.0")
	if err != nil {
		return resource.ICMPError{}, err
	}
	defer errors4.Close()
	defer context.AfterFunc(ctx, func() { errors4.Close() })()

	dialed := make(chan error, 1)
	go func() {
		conn, err := from.DialContext(ctx, "tcp4", target.String())
		if err == nil {
			conn.Close()
			errors4.Close()
		}
		dialed <- err
	}()
	buffer := make([]byte, 1500)
	for {
		n, _, err := errors4.ReadFrom(buffer)
		if err != nil {
			if <-dialed == nil {
				return resource.ICMPError{}, fmt.Errorf("connection to %v was accepted", target)
			}
			return resource.ICMPError{}, fmt.Errorf("no answer to a connection to %v: %w", target, errors.Join(ctx.Err(), err))
		}
		if refusal, ok := aboutTCP(buffer[:n], target); ok {
			<-dialed
			return refusal, nil
		}
	}
}

// aboutTCP reads an ICMP error (RFC 792) about a TCP segment to target.
func aboutTCP(message []byte, target netip.AddrPort) (resource.ICMPError, bool) {
	const header, tcp = 8, 6
	if len(message) < header+20 || message[0] != 3 {
		return resource.ICMPError{}, false
	}
	quoted := message[header:]
	length := int(quoted[0]&0xf) * 4
	if quoted[0]>>4 != 4 || quoted[9] != tcp || length < 20 || len(quoted) < length+4 {
		return resource.ICMPError{}, false
	}
	about := netip.AddrPortFrom(netip.AddrFrom4([4]byte(quoted[16:20])), binary.BigEndian.Uint16(quoted[length+2:]))
	return resource.ICMPError{Type: message[0], Code: message[1]}, about == target
}

// ping sends one echo request from client i and waits at most pingPatience.
func (w *World) ping(ctx context.Context, i int, target netip.Addr) (resource.Reply, error) {
	return w.pingWithin(ctx, i, target, pingPatience)
}

func (w *World) pingWithin(ctx context.Context, i int, target netip.Addr, patience time.Duration) (resource.Reply, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	return resource.Ping(ctx, w.host(i), target)
}

// reaches returns the round-trip time of an answered echo request.
func (w *World) reaches(ctx context.Context, i int, target netip.Addr) (time.Duration, error) {
	reply, err := w.ping(ctx, i, target)
	if err != nil {
		return 0, err
	}
	if reply.Error != nil {
		return 0, fmt.Errorf("ping %v: %w", target, *reply.Error)
	}
	return reply.RTT, nil
}

// refused returns nil when an echo request is answered with "administratively
// prohibited".
func (w *World) refused(ctx context.Context, i int, target netip.Addr) error {
	reply, err := w.ping(ctx, i, target)
	switch {
	case err != nil:
		return err
	case reply.Error == nil:
		return fmt.Errorf("ping %v was answered, not refused", target)
	case !reply.Error.Prohibited():
		return fmt.Errorf("ping %v: %w", target, *reply.Error)
	}
	return nil
}

// untilRefused repeats echo requests until one is refused as prohibited, and
// returns when that was. A request without an answer is repeated: when access
// ends between request and reply, the reply is what is cut.
func (w *World) untilRefused(ctx context.Context, i int, target netip.Addr) (time.Time, error) {
	for {
		reply, err := w.pingWithin(ctx, i, target, pingRepeat)
		switch {
		case ctx.Err() != nil:
			return time.Time{}, err
		case err != nil && !errors.Is(err, context.DeadlineExceeded):
			return time.Time{}, err
		case err != nil || reply.Error == nil:
		case reply.Error.Prohibited():
			return time.Now(), nil
		default:
			return time.Time{}, fmt.Errorf("ping %v: %w", target, *reply.Error)
		}
		if err := pause(ctx, pingInterval); err != nil {
			return time.Time{}, err
		}
	}
}

const (
	pingPatience = 2 * time.Second
	pingInterval = 10 * time.Millisecond
	pingRepeat   = 50 * time.Millisecond
)

// await repeats condition until it is true.
func await(ctx context.Context, what string, condition func() bool) error {
	for !condition() {
		if err := pause(ctx, time.Millisecond); err != nil {
			return fmt.Errorf("%s: %w", what, err)
		}
	}
	return nil
}

func pause(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
