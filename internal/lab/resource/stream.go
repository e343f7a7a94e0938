package resource

import (
	"encoding/binary"
	"io"
	"net"
)

// echo returns what it receives until the client has sent everything.
func echo(conn *net.TCPConn) {
	_, _ = io.Copy(conn, conn)
}

// sink swallows the stream up to its end and answers with the number of bytes
// in eight bytes, big endian: what arrived counts, not what was sent.
func sink(conn *net.TCPConn) {
	n, err := io.CopyBuffer(struct{ io.Writer }{io.Discard}, struct{ io.Reader }{conn}, make([]byte, chunk))
	if err != nil {
		return
	}
	_, _ = conn.Write(binary.BigEndian.AppendUint64(nil, uint64(n)))
}

// source sends zeroes until the client closes the connection.
func source(conn *net.TCPConn) {
	zeroes := make([]byte, chunk)
	for {
		if _, err := conn.Write(zeroes); err != nil {
			return
		}
	}
}
