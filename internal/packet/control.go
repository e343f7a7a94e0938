package packet

import "encoding/binary"

// ControlType is the event type of a control packet (dataplane §3.1).
type ControlType uint8

// The event types. Receivers ignore others.
const (
	AssignedIPs  ControlType = 0 // client to gateway, body AssignedIPsEvent
	DomainStatus ControlType = 1 // gateway to client, body DomainStatusEvent
	Goodbye      ControlType = 2 // both ways, no body
)

// String returns the name of a known event type, else "unknown".
func (t ControlType) String() string {
	switch t {
	case AssignedIPs:
		return "assigned_ips"
	case DomainStatus:
		return "domain_status"
	case Goodbye:
		return "goodbye"
	}
	return "unknown"
}

const (
	controlHeader = 8

	// MaxControlBody is the largest body of a control packet in bytes.
	MaxControlBody = MaxSize - ipv6Header - controlHeader
)

// IsControl reports whether b is a control packet: IPv6, next header 255, from
// :: to ::, with an event header of eight bytes. Length fields are not looked
// at; View.Parse has checked them.
func IsControl(b []byte) bool {
	if len(b) < ipv6Header+controlHeader || b[0]>>4 != 6 || Protocol(b[6]) != Control {
		return false
	}
	addresses := b[sourceAt6:ipv6Header]
	return binary.NativeEndian.Uint64(addresses[0:])|binary.NativeEndian.Uint64(addresses[8:])|
		binary.NativeEndian.Uint64(addresses[16:])|binary.NativeEndian.Uint64(addresses[24:]) == 0
}

// ParseControl returns event type and body of the control packet b. The body
// points into b. The result is false if b is not a control packet.
func ParseControl(b []byte) (t ControlType, body []byte, ok bool) {
	if !IsControl(b) {
		return 0, nil, false
	}
	return ControlType(b[ipv6Header]), b[ipv6Header+controlHeader:], true
}

// AppendControl appends a control packet of type t with the given body to dst
// and returns the extended slice. It returns dst as it was if the body is
// longer than MaxControlBody. body must not overlap the free room of dst.
func AppendControl(dst []byte, t ControlType, body []byte) []byte {
	if len(body) > MaxControlBody {
		return dst
	}
	var h [ipv6Header + controlHeader]byte
	h[0] = 0x60
	binary.BigEndian.PutUint16(h[4:], uint16(controlHeader+len(body)))
	h[6] = byte(Control)
	h[ipv6Header] = byte(t)
	return append(append(dst, h[:]...), body...)
}

// AppendGoodbye appends the 48-byte control packet that ends a connection.
func AppendGoodbye(dst []byte) []byte {
	return AppendControl(dst, Goodbye, nil)
}
