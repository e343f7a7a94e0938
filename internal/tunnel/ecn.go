package tunnel

import (
	"encoding/binary"

	"github.com/tailscale/wireguard-go/device"

	"firezone-gateway/internal/packet"
	"firezone-gateway/internal/transport"
)

// The codepoints of the ECN field (RFC 3168 section 5). Congestion Experienced
// is all of its bits.
const (
	ecnMask = 0b11
	ecnCE   = 0b11
	notECT  = 0b00
)

// ecnBefore is how many bytes before a packet that the engine is to encrypt the
// bind looks for its ECN field: in the headroom that precedes the message, which
// the engine leaves alone.
const ecnBefore = device.MessageTransportHeaderSize + transport.ECNAhead

// The field must be within the headroom.
const _ = uint(headroom - transport.ECNAhead)

// exposeECN puts the ECN field of the packet at slab[at] where the bind finds it
// and copies it to the datagram (transport T-04).
func exposeECN(slab []byte, at int) { slab[at-ecnBefore] = ecn(slab[at:]) }

// ecn returns the ECN field of a packet of either version.
func ecn(pkt []byte) byte {
	if pkt[0]>>4 == 4 {
		return pkt[1] & ecnMask
	}
	return pkt[1] >> 4 & ecnMask
}

// markCongested does to packets at bufs[i][offset:] what a router would have done
// that marks their datagrams: those that take part in ECN get Congestion
// Experienced, the others stay as they are (transport §1.4).
func markCongested(bufs [][]byte, offset int) {
	for _, b := range bufs {
		pkt := b[offset:]
		if field := ecn(pkt); field == notECT || field == ecnCE {
			continue
		}
		if pkt[0]>>4 != 4 {
			pkt[1] |= ecnCE << 4
			continue
		}
		from := binary.BigEndian.Uint16(pkt)
		pkt[1] |= ecnCE
		sum := packet.Delta(0).Word(from, binary.BigEndian.Uint16(pkt)).Apply(binary.BigEndian.Uint16(pkt[10:]))
		binary.BigEndian.PutUint16(pkt[10:], sum)
	}
}
