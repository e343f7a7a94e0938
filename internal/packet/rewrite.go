package packet

import (
	"encoding/binary"
	"net/netip"
)

const (
	sourceAt4      = 12
	sourceAt6      = 8
	destinationAt4 = 16
	destinationAt6 = 24
	checksumAt4    = 10
)

// SetSource writes a new source address into the packet and corrects the IPv4
// header checksum and the transport checksum by the difference. A wrong
// checksum stays wrong by the same amount and a UDP checksum of 0 stays 0. It
// returns false and changes nothing if a is of the other family.
func (v *View) SetSource(a netip.Addr) bool {
	return v.setAddr(&v.Src, sourceAt4, sourceAt6, a)
}

// SetDestination writes a new destination address, like SetSource.
func (v *View) SetDestination(a netip.Addr) bool {
	return v.setAddr(&v.Dst, destinationAt4, destinationAt6, a)
}

// SetSourcePort writes a new source port into a TCP or UDP packet, or a new
// identifier into an echo message, and corrects the transport checksum. It
// returns false and changes nothing for any other kind.
func (v *View) SetSourcePort(port uint16) bool {
	switch v.Kind {
	case KindTCP, KindUDP:
		v.setWord(v.Transport, port)
		v.SrcPort = port
		return true
	case KindEcho:
		return v.setIdentifier(port)
	}
	return false
}

// SetDestinationPort writes a new destination port, like SetSourcePort. An echo
// message has one identifier, so both methods change the same field.
func (v *View) SetDestinationPort(port uint16) bool {
	switch v.Kind {
	case KindTCP, KindUDP:
		v.setWord(v.Transport+2, port)
		v.DstPort = port
		return true
	case KindEcho:
		return v.setIdentifier(port)
	}
	return false
}

func (v *View) setIdentifier(id uint16) bool {
	v.setWord(v.Transport+4, id)
	v.SrcPort, v.DstPort = id, id
	return true
}

// setAddr replaces the address that field mirrors.
func (v *View) setAddr(field *netip.Addr, at4, at6 int, a netip.Addr) bool {
	if a.BitLen() != field.BitLen() {
		return false
	}
	d := Delta(0).Addr(*field, a)
	if a.Is4() {
		b := a.As4()
		copy(v.B[at4:], b[:])
		v.correct(checksumAt4, d)
	} else {
		b := a.As16()
		copy(v.B[at6:], b[:])
	}
	// ICMPv4 is the one transport without a pseudo header.
	if v.Protocol != ICMP {
		v.correct(v.checksumField(), d)
	}
	*field = a.WithZone("")
	return true
}

// setWord replaces one 16-bit word of the transport header.
func (v *View) setWord(at int, to uint16) {
	d := Delta(0).Word(binary.BigEndian.Uint16(v.B[at:]), to)
	binary.BigEndian.PutUint16(v.B[at:], to)
	v.correct(v.checksumField(), d)
}

// correct applies d to the checksum at offset at; 0 means that there is none.
func (v *View) correct(at int, d Delta) {
	if at != 0 {
		binary.BigEndian.PutUint16(v.B[at:], d.Apply(binary.BigEndian.Uint16(v.B[at:])))
	}
}
