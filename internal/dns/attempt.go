package dns

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/miekg/dns"
)

const (
	// upstreamBuffer holds a UDP answer. Of a longer one only header and
	// question count, because it does not fit into an answer to a client.
	upstreamBuffer = 1500
	// maxStrays is after how many datagrams that are not the answer an attempt
	// ends: somebody is guessing.
	maxStrays = 32
	// retryTimeout bounds the repetition over TCP of a truncated answer. Some
	// sites let name servers be reached over UDP only.
	retryTimeout = 2 * time.Second
)

var buffers = sync.Pool{New: func() any { return new([upstreamBuffer]byte) }}

// attempt asks one server once, from a new socket with a port that the kernel
// draws and with an identifier of its own, which are all that protects against
// forged answers. The reply has the identifier of query.
func (u *Upstreams) attempt(ctx context.Context, server netip.AddrPort, query *dns.Msg, wire []byte, overTCP bool) (reply, error) {
	asked := *query
	asked.Id = dns.Id()
	wire = withID(wire, asked.Id)
	r, err := u.transmit(ctx, server, &asked, wire, overTCP)
	if err != nil {
		u.note(err)
		return reply{}, err
	}
	binary.BigEndian.PutUint16(r.wire, query.Id)
	r.msg.Id = query.Id
	return r, nil
}

func (u *Upstreams) transmit(ctx context.Context, server netip.AddrPort, query *dns.Msg, wire []byte, overTCP bool) (reply, error) {
	if overTCP {
		return u.overTCP(ctx, server, query, wire)
	}
	short, err := u.overUDP(ctx, server, query, wire)
	// Whoever takes no more than the least has to come back over TCP anyway.
	if err != nil || !short.msg.Truncated || announced(query) == minUDPAnswer {
		return short, err
	}
	ctx, cancel := context.WithTimeout(ctx, retryTimeout)
	defer cancel()
	whole, err := u.overTCP(ctx, server, query, wire)
	if err != nil {
		return short, nil // the truncated answer is one, too
	}
	whole.fetched = true
	return whole, nil
}

func (u *Upstreams) overUDP(ctx context.Context, server netip.AddrPort, query *dns.Msg, wire []byte) (reply, error) {
	conn, err := u.dialer.DialUDP(ctx, "udp", netip.AddrPort{}, server)
	if err != nil {
		return reply{}, err
	}
	defer endWith(ctx, conn)()
	if _, err := conn.Write(wire); err != nil {
		return reply{}, err
	}
	buffer := buffers.Get().(*[upstreamBuffer]byte)
	defer buffers.Put(buffer)
	for range maxStrays {
		n, err := conn.Read(buffer[:])
		if err != nil {
			return reply{}, err
		}
		r := reply{wire: slices.Clone(buffer[:n])}
		r.msg, err = parseAnswer(r.wire, query, n == len(buffer))
		if errors.Is(err, errMismatch) {
			continue
		}
		return r, err
	}
	return reply{}, fmt.Errorf("%d datagrams: %w", maxStrays, errMismatch)
}

func (u *Upstreams) overTCP(ctx context.Context, server netip.AddrPort, query *dns.Msg, wire []byte) (reply, error) {
	conn, err := u.dialer.DialTCP(ctx, "tcp", netip.AddrPort{}, server)
	if err != nil {
		return reply{}, err
	}
	defer endWith(ctx, conn)()
	// A connection in TIME_WAIT keeps its port for a minute. Clients could use
	// all ports towards a name server up that way, so it ends with a reset.
	if err := conn.SetLinger(0); err != nil {
		return reply{}, err
	}
	if err := writeFramed(conn, wire); err != nil {
		return reply{}, err
	}
	var r reply
	if r.wire, err = readFramed(conn, dns.MaxMsgSize); err != nil {
		return reply{}, err
	}
	r.msg, err = parseAnswer(r.wire, query, false)
	return r, err
}

// endWith makes reads and writes of conn fail when ctx ends. The function it
// returns closes conn.
func endWith(ctx context.Context, conn net.Conn) func() {
	stop := context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })
	return func() {
		stop()
		conn.Close()
	}
}

// writeFramed writes a message with its length (RFC 1035 §4.2.2) in one write.
func writeFramed(w io.Writer, wire []byte) error {
	framed := binary.BigEndian.AppendUint16(make([]byte, 0, 2+len(wire)), uint16(len(wire)))
	_, err := w.Write(append(framed, wire...))
	return err
}

// readFramed reads a message of at most limit bytes. io.EOF says that there is
// no further one, errOversize that it is longer.
func readFramed(r io.Reader, limit int) ([]byte, error) {
	var prefix [2]byte
	if _, err := io.ReadFull(r, prefix[:]); err != nil {
		return nil, err
	}
	size := int(binary.BigEndian.Uint16(prefix[:]))
	if size > limit {
		return nil, errOversize
	}
	wire := make([]byte, size)
	if _, err := io.ReadFull(r, wire); err != nil {
		return nil, fmt.Errorf("message of %d bytes: %w", size, err)
	}
	return wire, nil
}
