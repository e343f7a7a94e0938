package transport

import (
	"encoding/binary"

	"golang.org/x/sys/unix"
)

// ECNAhead is how many bytes before a message Bind.Send finds the ECN field of
// the packet that is encrypted in it, in the two low bits of one byte.
const ECNAhead = 8

// The codepoints of the ECN field (RFC 3168 section 5).
const (
	ecnMask = 0b11
	ecnCE   = 0b11
)

// messageTransport is the first byte of a WireGuard transport message.
const messageTransport = 4

// congestedPath stands for its Path with packets whose datagrams a router marked
// with Congestion Experienced. The engine carries nothing but the endpoint from
// the socket to the decrypted packet, so the endpoint has to tell. A batch never
// mixes the two: the last packet speaks for all of one client.
type congestedPath struct{ *Path }

// FromPeer is Path.FromPeer for packets that were marked.
func (c *congestedPath) FromPeer(key [32]byte) { c.authenticated(key, true) }

// ecnOf returns the ECN field for the datagram of the message that begins at
// b[at]: that of the inner packet for data, zero for everything else (spec
// transport §1.4). Keepalives have a recycled buffer and nothing inside.
func ecnOf(b []byte, at int) byte {
	if at < ECNAhead || len(b) <= at+minTransportLength || b[at] != messageTransport {
		return 0
	}
	return b[at-ECNAhead] & ecnMask
}

// requestECN makes the kernel tell the TOS or traffic class of each message.
func requestECN(fd int, f Family) error {
	if f == IPv4 {
		return unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_RECVTOS, 1)
	}
	return unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_RECVTCLASS, 1)
}

// putECN writes the control message that sets the ECN field of a message's
// datagrams, the rest of TOS or traffic class being zero, and returns its padded
// length.
func putECN(b []byte, f Family, ecn byte) int {
	level, kind := int32(unix.IPPROTO_IP), int32(unix.IP_TOS)
	if f == IPv6 {
		level, kind = unix.IPPROTO_IPV6, unix.IPV6_TCLASS
	}
	binary.NativeEndian.PutUint32(putHeader(b, level, kind, 4), uint32(ecn))
	return unix.CmsgSpace(4)
}
