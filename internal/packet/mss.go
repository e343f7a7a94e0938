package packet

import (
	"encoding/binary"
	"math/bits"
)

const (
	tcpFlagsAt = 13
	tcpFlagSYN = 0x02

	tcpOptionEnd  = 0
	tcpOptionNone = 1
	tcpOptionMSS  = 2 // with a length of 4 (RFC 9293 §3.2)
)

// LimitMSS lowers the maximum segment size that a TCP packet with SYN announces to
// most, if it announces a larger one, and corrects the checksum. Other packets, and
// options that make no sense, stay as they are.
func (v *View) LimitMSS(most uint16) {
	if v.Kind != KindTCP || v.B[v.Transport+tcpFlagsAt]&tcpFlagSYN == 0 {
		return
	}
	end := v.Transport + int(v.B[v.Transport+12]>>4)*4
	for at := v.Transport + tcpMinHeader; at < end && v.B[at] != tcpOptionEnd; {
		if v.B[at] == tcpOptionNone {
			at++
			continue
		}
		if at+2 > end || v.B[at+1] < 2 || at+int(v.B[at+1]) > end {
			return
		}
		if v.B[at] == tcpOptionMSS && v.B[at+1] == 4 {
			v.limit(at+2, most)
		}
		at += int(v.B[at+1])
	}
}

// limit lowers the number at offset at of the transport header to most.
func (v *View) limit(at int, most uint16) {
	from, to := binary.BigEndian.Uint16(v.B[at:]), most
	if from <= to {
		return
	}
	binary.BigEndian.PutUint16(v.B[at:], to)
	if (at-v.Transport)%2 != 0 { // half of it in each of two words
		from, to = bits.ReverseBytes16(from), bits.ReverseBytes16(to)
	}
	v.correct(v.checksumField(), Delta(0).Word(from, to))
}
