package resource

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"
)

// Reply is the answer to a Ping.
type Reply struct {
	RTT  time.Duration
	From netip.Addr // who answered: the target, or who refused
	// Error is the refusal, nil for an echo reply.
	Error *ICMPError
}

// ICMPError is an ICMP error message (RFC 792, RFC 4443).
type ICMPError struct {
	IPv6       bool
	Type, Code uint8
}

// Prohibited reports whether the error says that communication is
// administratively prohibited: type 3 code 13 in IPv4, type 1 code 1 in IPv6.
func (e ICMPError) Prohibited() bool {
	if e.IPv6 {
		return e.Type == 1 && e.Code == 1
	}
	return e.Type == 3 && e.Code == 13
}

// Error says what was refused in words.
func (e ICMPError) Error() string {
	if e.Prohibited() {
		return "administratively prohibited"
	}
	return fmt.Sprintf("ICMP type %d code %d", e.Type, e.Code)
}

// Ping sends one echo request to target and returns the first answer to it: a
// reply or an ICMP error, which is a result and not a failure. Without an
// answer it fails when ctx ends, so ctx should have a deadline. It needs
// CAP_NET_RAW in the network's namespace.
func Ping(ctx context.Context, n Network, target netip.Addr) (Reply, error) {
	target = target.Unmap()
	reply, err := ping(ctx, n, target)
	if err != nil {
		return reply, fmt.Errorf("ping %v: %w", target, err)
	}
	return reply, nil
}

func ping(ctx context.Context, n Network, target netip.Addr) (Reply, error) {
	network, any := "ip4:icmp", "0.0.0.0"
	if target.Is6() {
		network, any = "ip6:ipv6-icmp", "::"
	}
	conn, err := n.ListenPacket(network, any)
	if err != nil {
		return Reply{}, err
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()

	// A raw socket sees the whole namespace's ICMP: identifier and sequence
	// number, drawn together, tell this request from others.
	var id [4]byte
	rand.Read(id[:])
	begin := time.Now()
	if _, err := conn.WriteTo(echoRequest(target.Is6(), id), &net.IPAddr{IP: target.AsSlice()}); err != nil {
		return Reply{}, err
	}
	buffer := make([]byte, 1500)
	for {
		size, from, err := conn.ReadFrom(buffer)
		if err != nil {
			if ctx.Err() != nil {
				err = ctx.Err()
			}
			return Reply{}, err
		}
		answer, err := parseICMP(buffer[:size], target.Is6())
		if err != nil || answer.id != id || (answer.refusal != nil && answer.about != target) {
			continue
		}
		sender, err := addressOf(from)
		if err != nil {
			return Reply{}, err
		}
		if answer.refusal == nil && sender != target {
			continue
		}
		return Reply{RTT: time.Since(begin), From: sender, Error: answer.refusal}, nil
	}
}

const (
	echoRequest4, echoReply4 = 8, 0
	echoRequest6, echoReply6 = 128, 129
	icmpHeader               = 8
)

// echoRequest returns an echo request with 56 bytes of payload, as ping sends.
// The kernel fills in the checksum of ICMPv6.
func echoRequest(v6 bool, id [4]byte) []byte {
	packet := make([]byte, icmpHeader+56)
	copy(packet[4:8], id[:])
	if v6 {
		packet[0] = echoRequest6
		return packet
	}
	packet[0] = echoRequest4
	binary.BigEndian.PutUint16(packet[2:], checksum(packet))
	return packet
}

// icmpAnswer is an echo reply, or an error about an echo request.
type icmpAnswer struct {
	id      [4]byte    // identifier and sequence number of the request
	refusal *ICMPError // nil for a reply
	about   netip.Addr // destination of the refused request
}

var errNoAnswer = errors.New("neither an echo reply nor an error about a request")

// parseICMP reads an ICMP message without its IP header.
func parseICMP(b []byte, v6 bool) (icmpAnswer, error) {
	if len(b) < icmpHeader {
		return icmpAnswer{}, errNoAnswer
	}
	reply := byte(echoReply4)
	if v6 {
		reply = echoReply6
	}
	if b[0] == reply {
		return icmpAnswer{id: [4]byte(b[4:8])}, nil
	}
	about, request := refused(b, v6)
	if request == nil {
		return icmpAnswer{}, errNoAnswer
	}
	return icmpAnswer{
		id:      [4]byte(request[4:8]),
		refusal: &ICMPError{IPv6: v6, Type: b[0], Code: b[1]},
		about:   about,
	}, nil
}

// refused returns the destination and the echo request that an ICMP error
// quotes, nil when b is no error about an echo request.
func refused(b []byte, v6 bool) (netip.Addr, []byte) {
	quoted := b[icmpHeader:]
	if v6 {
		// Errors have the highest bit of the type clear (RFC 4443 §2.1).
		if b[0] >= 128 || len(quoted) < 40+icmpHeader || quoted[0]>>4 != 6 || quoted[6] != 58 || quoted[40] != echoRequest6 {
			return netip.Addr{}, nil
		}
		return netip.AddrFrom16([16]byte(quoted[24:40])), quoted[40:]
	}
	switch b[0] {
	case 3, 11, 12: // unreachable, time exceeded, parameter problem
	default:
		return netip.Addr{}, nil
	}
	if len(quoted) < 20 || quoted[0]>>4 != 4 || quoted[9] != 1 {
		return netip.Addr{}, nil
	}
	header := int(quoted[0]&0xf) * 4
	if header < 20 || len(quoted) < header+icmpHeader || quoted[header] != echoRequest4 {
		return netip.Addr{}, nil
	}
	return netip.AddrFrom4([4]byte(quoted[16:20])), quoted[header:]
}

// checksum returns the Internet checksum (RFC 1071) of an even number of bytes.
func checksum(b []byte) uint16 {
	var sum uint32
	for i := 0; i+1 < len(b); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}

func addressOf(a net.Addr) (netip.Addr, error) {
	ip, ok := a.(*net.IPAddr)
	if !ok {
		return netip.Addr{}, fmt.Errorf("sender is a %T", a)
	}
	address, ok := netip.AddrFromSlice(ip.IP)
	if !ok {
		return netip.Addr{}, errors.New("sender has no address")
	}
	return address.Unmap(), nil
}
