package ws

import (
	"errors"
	"math"
	"net"
)

// handshakeLimit bounds the bytes that a portal, or a proxy before it, may send
// until the websocket is open: certificates, header and body of an answer. The
// library reads lines of any length.
const handshakeLimit = 256 << 10

var errHandshakeTooLong = errors.New("the answer has no end")

// handshakeConn is a connection on which little is read until it is opened.
type handshakeConn struct {
	net.Conn
	left int // bytes; read by one goroutine at a time
}

// Read implements net.Conn.
func (c *handshakeConn) Read(b []byte) (int, error) {
	if c.left == 0 {
		return 0, errHandshakeTooLong
	}
	n, err := c.Conn.Read(b[:min(len(b), c.left)])
	if c.left != math.MaxInt {
		c.left -= n
	}
	return n, err
}

// open ends the limit.
func (c *handshakeConn) open() { c.left = math.MaxInt }
