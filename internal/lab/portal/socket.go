package portal

import (
	"errors"
	"sync"
	"time"

	"github.com/gorilla/websocket"
)

// Limits of one websocket.
const (
	queueLen   = 256                     // frames waiting for one peer
	maxFrame   = 1 << 20                 // bytes in one received frame
	writeLimit = 10 * time.Second        // for one frame
	closeLimit = 1500 * time.Millisecond // for the peer's answer to our Close frame
	cutCode    = -1                      // end without a Close frame
)

// socket is one websocket: a queue of frames to send, and how it ends.
//
//	open --end(code)--> flush the queue, Close frame, wait for the peer's --> closed
//	open --end(cutCode)--> closed
type socket struct {
	out  chan []byte
	once sync.Once
	over chan struct{} // closed by end, after code is set
	code int

	readDone chan struct{} // closed when nothing is read any more
}

func newSocket() *socket {
	return &socket{
		out:      make(chan []byte, queueLen),
		over:     make(chan struct{}),
		readDone: make(chan struct{}),
	}
}

// send queues a frame. A peer that does not read for so long that its queue is
// full loses its connection, since frames must not be lost from the middle.
func (k *socket) send(b []byte) {
	select {
	case <-k.over:
	case k.out <- b:
	default:
		k.end(cutCode)
	}
}

// end ends the socket with a Close frame of that code after everything that is
// queued, or at once and without a Close frame for cutCode. Only the first
// call counts.
func (k *socket) end(code int) {
	k.once.Do(func() {
		k.code = code
		close(k.over)
	})
}

// write sends what is queued until the socket ends, then closes conn.
func (k *socket) write(conn *websocket.Conn) {
	defer conn.Close()
	for {
		select {
		case b := <-k.out:
			if !writeText(conn, b) {
				k.end(cutCode)
				return
			}
		case <-k.over:
			k.finish(conn)
			return
		}
	}
}

func (k *socket) finish(conn *websocket.Conn) {
	if k.code == cutCode {
		return
	}
	for {
		select {
		case b := <-k.out:
			if !writeText(conn, b) {
				return
			}
			continue
		default:
		}
		break
	}
	deadline := time.Now().Add(closeLimit)
	if conn.WriteControl(websocket.CloseMessage, websocket.FormatCloseMessage(k.code, ""), deadline) != nil {
		return
	}
	timer := time.NewTimer(closeLimit)
	defer timer.Stop()
	select {
	case <-k.readDone:
	case <-timer.C:
	}
}

// read passes text frames to handle until the connection ends or handle
// refuses one, then ends the socket. It returns the code that the peer closed
// with, 0 when it sent no Close frame.
func (k *socket) read(conn *websocket.Conn, idle time.Duration, handle func([]byte) bool) (peerCode int) {
	defer close(k.readDone)
	conn.SetReadLimit(maxFrame)
	alive := func() { conn.SetReadDeadline(time.Now().Add(idle)) }
	pong := conn.PingHandler()
	conn.SetPingHandler(func(data string) error { alive(); return pong(data) })
	conn.SetPongHandler(func(string) error { alive(); return nil })
	for {
		alive()
		kind, b, err := conn.ReadMessage()
		if err != nil {
			code, peerCode := closeCodes(err)
			k.end(code)
			return peerCode
		}
		if kind != websocket.TextMessage || !handle(b) {
			k.end(websocket.CloseInternalServerErr)
			return 0
		}
	}
}

// closeCodes returns the code to end the socket with and the one that the peer
// closed with. An idle peer gets 1002, as from the web server of the real portal.
func closeCodes(err error) (code, peerCode int) {
	var closed *websocket.CloseError
	var timeout interface{ Timeout() bool }
	switch {
	case errors.As(err, &closed) && closed.Code != websocket.CloseAbnormalClosure:
		return cutCode, closed.Code
	case errors.As(err, &timeout) && timeout.Timeout():
		return websocket.CloseProtocolError, 0
	}
	return cutCode, 0
}

func writeText(conn *websocket.Conn, b []byte) bool {
	conn.SetWriteDeadline(time.Now().Add(writeLimit))
	return conn.WriteMessage(websocket.TextMessage, b) == nil
}
