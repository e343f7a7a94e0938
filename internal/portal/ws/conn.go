package ws

import (
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/gorilla/websocket"

	"firezone-gateway/internal/drop"
	"firezone-gateway/internal/portal"
)

// Bounds of a connection.
const (
	ReadLimit   = 16 << 20 // bytes of one text frame; an init with all the grants that portal.Decode takes has 13 MB
	ReadQueue   = 64       // frames read ahead of the receiver
	WriteQueue  = 512      // frames waiting for the socket
	writeLimit  = 10 * time.Second
	answerLimit = time.Second // to answer a Close
)

// Close codes (RFC 6455 §7.4.1).
const (
	CloseNormal         = websocket.CloseNormalClosure
	CloseGoingAway      = websocket.CloseGoingAway
	CloseServiceRestart = websocket.CloseServiceRestart
)

// Errors of Conn.
var (
	ErrClosed    = errors.New("portal connection is closed")
	ErrQueueFull = errors.New("portal connection does not keep up with writing")
)

// CloseError says that the portal closed the connection. The Close has been
// answered.
type CloseError struct {
	Code int    // 1005 if there was none
	Text string // at most 123 bytes
}

// Error implements error.
func (e *CloseError) Error() string {
	return fmt.Sprintf("portal closed the connection with code %d: %q", e.Code, e.Text)
}

// Conn is one websocket to the portal. Two goroutines serve it from Dial to its
// end, a reader and a writer; whatever ends one ends both. All methods may be
// called concurrently.
//
//	open --Close--> closing --answer or time-out--> ended
//	open --Abort, portal's Close, I/O error, silence--> ended
type Conn struct {
	ws    *websocket.Conn
	route portal.Route
	idle  time.Duration
	drops *drop.Counters

	frames chan []byte // closed by the reader as its last act
	out    chan []byte

	closing  chan struct{} // closed by Close
	closeOne sync.Once
	code     int       // set before closing is closed
	deadline time.Time // set before closing is closed

	failed  chan struct{} // closed by fail
	failOne sync.Once
	err     error // set before failed is closed

	written chan struct{} // closed when the writer has ended

	mu      sync.Mutex
	drained chan struct{} // what Drained returned and is still open, else nil
}

func start(ws *websocket.Conn, route portal.Route, idle time.Duration, drops *drop.Counters) *Conn {
	c := &Conn{
		ws: ws, route: route, idle: idle, drops: drops,
		frames:  make(chan []byte, ReadQueue),
		out:     make(chan []byte, WriteQueue),
		closing: make(chan struct{}),
		failed:  make(chan struct{}),
		written: make(chan struct{}),
	}
	// The limit of the library counts bytes on the wire; read applies it again
	// to the message, in case a portal compresses without being asked to.
	ws.SetReadLimit(ReadLimit)
	ws.SetCloseHandler(c.answerClose)
	go c.read()
	go c.write()
	return c
}

// Route returns the login route that worked.
func (c *Conn) Route() portal.Route { return c.route }

// Frames returns the text frames of the portal in order. The receiver owns each
// frame. The channel is closed when the connection has ended and both its
// goroutines are done; Err says why. A slow receiver slows the portal down and
// loses nothing.
func (c *Conn) Frames() <-chan []byte { return c.frames }

// Err returns why the connection ended, or nil while it has not: ErrClosed after
// Close or Abort, a *CloseError if the portal closed it, else an I/O error.
func (c *Conn) Err() error {
	select {
	case <-c.failed:
		return c.err
	default:
		return nil
	}
}

// Write queues one text frame, which must not be modified afterwards. It never
// blocks. On ErrQueueFull the frame was dropped: the socket has taken nothing
// for a while, and ending the connection is the sensible reaction.
func (c *Conn) Write(frame []byte) error {
	select {
	case <-c.closing:
		return ErrClosed
	case <-c.failed:
		return ErrClosed
	default:
	}
	select {
	case c.out <- frame:
		return nil
	default:
		return ErrQueueFull
	}
}

// Room returns how many frames Write takes before ErrQueueFull. It is a lower
// bound for a caller that is the only one to write.
func (c *Conn) Room() int { return cap(c.out) - len(c.out) }

// Drained returns a channel that is closed once at least half of the queue of
// Write is free, or the connection has ended. If one of them is so already, the
// channel is closed, so that no moment can be missed: call Drained after Room
// was zero, wait, and go on. A channel tells of one moment only.
func (c *Conn) Drained() <-chan struct{} {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.drained == nil {
		c.drained = make(chan struct{})
	}
	ch := c.drained
	c.wake()
	return ch
}

// Close writes what is queued and a Close frame with the given code, waits for
// the portal's answer and ends the connection. It returns when both goroutines
// are done, after timeout at the latest. Frames that arrive in the meantime are
// discarded. Calls after the first wait for it.
func (c *Conn) Close(code int, timeout time.Duration) {
	c.closeOne.Do(func() {
		c.code, c.deadline = code, time.Now().Add(timeout)
		close(c.closing)
	})
	timer := time.NewTimer(time.Until(c.deadline))
	defer timer.Stop()
	for {
		select {
		case _, open := <-c.frames:
			if !open {
				return
			}
		case <-timer.C:
			c.fail(ErrClosed)
		}
	}
}

// Abort ends the connection at once and without a Close frame. It does not wait
// for the goroutines; Frames is closed when they are done.
func (c *Conn) Abort() { c.fail(ErrClosed) }

func (c *Conn) read() {
	defer close(c.frames)
	for {
		frame, err := c.next()
		if err != nil {
			c.fail(c.reason(err))
			break
		}
		select {
		case c.frames <- frame:
			continue
		case <-c.closing:
			continue // discarded; the portal's Close is what matters
		case <-c.failed:
		}
		break
	}
	<-c.written
}

// next returns the next text frame. The library forbids reading again after an
// error.
func (c *Conn) next() ([]byte, error) {
	for {
		if err := c.ws.SetReadDeadline(time.Now().Add(c.idle)); err != nil {
			return nil, err
		}
		kind, r, err := c.ws.NextReader()
		if err != nil {
			return nil, err
		}
		if kind != websocket.TextMessage {
			if c.drops != nil {
				c.drops.Add(drop.FrameMalformed, 1)
			}
			continue
		}
		frame, err := io.ReadAll(io.LimitReader(r, ReadLimit+1))
		if err != nil {
			return nil, err
		}
		if len(frame) > ReadLimit {
			return nil, websocket.ErrReadLimit
		}
		return frame, nil
	}
}

func (c *Conn) write() {
	defer close(c.written)
	for {
		select {
		case frame := <-c.out:
			c.taken()
			if err := c.writeFrame(frame, time.Now().Add(writeLimit)); err != nil {
				c.fail(fmt.Errorf("write to portal: %w", err))
				return
			}
		case <-c.closing:
			c.finish()
			return
		case <-c.failed:
			return
		}
	}
}

// finish flushes the queue and starts the closing handshake. The reader ends the
// connection when the answer arrives; Close does so when it does not.
func (c *Conn) finish() {
	for {
		select {
		case frame := <-c.out:
			c.taken()
			if err := c.writeFrame(frame, c.deadline); err != nil {
				c.fail(ErrClosed)
				return
			}
			continue
		default:
		}
		break
	}
	if err := c.ws.WriteControl(websocket.CloseMessage, websocket.FormatCloseMessage(c.code, ""), c.deadline); err != nil {
		c.fail(ErrClosed)
	}
}

func (c *Conn) writeFrame(frame []byte, deadline time.Time) error {
	if err := c.ws.SetWriteDeadline(deadline); err != nil {
		return err
	}
	return c.ws.WriteMessage(websocket.TextMessage, frame)
}

// taken follows each frame that leaves the queue, and the end.
func (c *Conn) taken() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.wake()
}

// wake closes the open channel of Drained if it is time. mu is held.
func (c *Conn) wake() {
	if c.drained == nil || (c.Err() == nil && c.Room() < cap(c.out)/2) {
		return
	}
	close(c.drained)
	c.drained = nil
}

// answerClose sends the portal's Close back (rule 22). An answer that can not
// be written changes nothing: the connection is over either way.
func (c *Conn) answerClose(code int, text string) error {
	_ = c.ws.WriteControl(websocket.CloseMessage, websocket.FormatCloseMessage(code, text), time.Now().Add(answerLimit))
	return nil
}

// reason translates an error of reading for Err.
func (c *Conn) reason(err error) error {
	select {
	case <-c.closing:
		return ErrClosed
	default:
	}
	var e *websocket.CloseError
	// The library reports a missing Close as code 1006.
	if errors.As(err, &e) && e.Code != websocket.CloseAbnormalClosure {
		return &CloseError{Code: e.Code, Text: e.Text}
	}
	if errors.Is(err, websocket.ErrReadLimit) {
		return fmt.Errorf("read from portal: a frame of more than %d bytes: %w", ReadLimit, err)
	}
	return fmt.Errorf("read from portal: %w", err)
}

// fail ends the connection for the first reason given.
func (c *Conn) fail(err error) {
	c.failOne.Do(func() {
		c.err = err
		close(c.failed)
		// Closing the socket is what wakes both goroutines. TLS is passed by,
		// because its farewell can block for seconds on a full socket. The error
		// tells nothing that err does not.
		socket := c.ws.NetConn()
		if t, ok := socket.(*tls.Conn); ok {
			socket = t.NetConn()
		}
		_ = socket.Close()
		c.taken()
	})
}
