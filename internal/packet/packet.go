// Package packet reads, checks, rewrites and builds the IP packets that travel
// inside a client's tunnel.
//
// It is pure: bytes in, bytes and verdicts out. Nothing on the per-packet path
// allocates. A View is the parsed form of one packet; everything that follows
// parsing (policy, NAT, ICMP answers) relies on the length checks that
// View.Parse has made.
//
// The rules come from dataplane §1 (packet model), §2.4 (answers) and §3.1
// (control packets).
package packet

import "strconv"

// MaxSize is the largest packet that travels inside a tunnel, in bytes. It is
// the MTU of the TUN device as well (dataplane §1.1).
const MaxSize = 1280

// Protocol is an IP protocol number as assigned by IANA. For IPv6 it is the
// number of the header that follows the last extension header.
type Protocol uint8

// The protocol numbers that this package treats specially.
const (
	ICMP    Protocol = 1
	TCP     Protocol = 6
	UDP     Protocol = 17
	ICMPv6  Protocol = 58
	Control Protocol = 255 // Firezone control packets (dataplane §3.1)
)

// IPv6 extension headers that are walked (dataplane §1.2). AH and ESP are not
// among them: packets with those count as an opaque protocol.
const (
	hopByHop     Protocol = 0
	routing      Protocol = 43
	fragment     Protocol = 44
	destination  Protocol = 60
	mobility     Protocol = 135
	hostIdentity Protocol = 139
	shim6        Protocol = 140
	experiment1  Protocol = 253
	experiment2  Protocol = 254
)

// String returns the name of a protocol that this package knows, else its
// number in decimal.
func (p Protocol) String() string {
	switch p {
	case ICMP:
		return "icmp"
	case TCP:
		return "tcp"
	case UDP:
		return "udp"
	case ICMPv6:
		return "icmpv6"
	case Control:
		return "control"
	}
	return strconv.Itoa(int(p))
}

// Kind says what filters and NAT can do with a packet (dataplane §1.3).
type Kind uint8

// The kinds. The zero value is the one that can do least.
const (
	KindOther     Kind = iota // a protocol that is carried without being understood
	KindTCP                   // ports are known
	KindUDP                   // ports are known
	KindEcho                  // ICMP echo request or reply with code 0; the identifier stands for both ports
	KindICMPError             // ICMP error that quotes a packet this gateway can map back (dataplane §1.7)
	KindICMPOther             // any other ICMP or ICMPv6 message
)

// String returns the kind as it appears in traces.
func (k Kind) String() string {
	switch k {
	case KindOther:
		return "other"
	case KindTCP:
		return "tcp"
	case KindUDP:
		return "udp"
	case KindEcho:
		return "echo"
	case KindICMPError:
		return "icmp_error"
	case KindICMPOther:
		return "icmp_other"
	}
	return "invalid"
}
