package ws

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/gorilla/websocket"

	"firezone-gateway/internal/drop"
	"firezone-gateway/internal/portal"
)

const patience = 10 * time.Second

func TestConnMovesFrames(t *testing.T) {
	c, _ := connect(t, DialConfig{}, func(s *websocket.Conn) {
		for {
			kind, b, err := s.ReadMessage()
			if err != nil {
				return
			}
			if err := s.WriteMessage(kind, append([]byte("echo "), b...)); err != nil {
				return
			}
		}
	})
	for i := range 50 {
		if err := c.Write(fmt.Append(nil, i)); err != nil {
			t.Fatal(err)
		}
	}
	for i := range 50 {
		if got, want := string(receive(t, c)), fmt.Sprint("echo ", i); got != want {
			t.Fatalf("got %q, want %q", got, want)
		}
	}
	if c.Err() != nil {
		t.Error(c.Err())
	}
	c.Close(CloseNormal, patience)
	if !errors.Is(c.Err(), ErrClosed) || !errors.Is(c.Write(nil), ErrClosed) {
		t.Errorf("after Close: %v, %v", c.Err(), c.Write(nil))
	}
	c.Close(CloseNormal, patience)
	c.Abort()
}

func TestConnAndSession(t *testing.T) {
	var seen []string
	c, server := connect(t, DialConfig{}, func(s *websocket.Conn) {
		for {
			_, b, err := s.ReadMessage()
			if err != nil {
				return
			}
			f, err := portal.DecodeFrame(b)
			if err != nil {
				seen = append(seen, err.Error())
				return
			}
			seen = append(seen, f.Event)
			reply := portal.Frame{Topic: f.Topic, Event: portal.EventReply, Payload: []byte(`{"status":"ok","response":{}}`), Ref: f.Ref, HasRef: f.HasRef}
			out, err := reply.Encode()
			if err != nil || s.WriteMessage(websocket.TextMessage, out) != nil {
				return
			}
		}
	})
	s := portal.NewSession(time.Now())
	flush := func() {
		for f, ok := s.PollFrame(); ok; f, ok = s.PollFrame() {
			if err := c.Write(f); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := s.Send(portal.Authorize{Generation: c.Route().Generation(), Ref: "r"}.Acknowledge()); err != nil {
		t.Fatal(err)
	}
	flush()
	s.Receive(receive(t, c), time.Now())
	if e, _ := s.PollEvent(); e != (portal.Joined{}) {
		t.Fatalf("event %v", e)
	}
	flush()
	s.Receive(receive(t, c), time.Now())
	s.Tick(time.Now().Add(portal.HeartbeatInterval))
	flush()
	s.Receive(receive(t, c), time.Now())
	c.Close(CloseNormal, patience)
	<-server
	if want := []string{"phx_join", "authorization_created", "heartbeat"}; !slices.Equal(seen, want) {
		t.Errorf("portal saw %v", seen)
	}
}

func TestConnEnds(t *testing.T) {
	t.Run("rule 22: a Close of the portal is answered with the same code and reported", func(t *testing.T) {
		answer := make(chan error, 1)
		c, _ := connect(t, DialConfig{}, func(s *websocket.Conn) {
			_ = s.WriteControl(websocket.CloseMessage, websocket.FormatCloseMessage(CloseServiceRestart, "deploy"), time.Now().Add(patience))
			_, _, err := s.ReadMessage()
			answer <- err
		})
		waitEnd(t, c)
		var e *CloseError
		if !errors.As(c.Err(), &e) || e.Code != CloseServiceRestart || e.Text != "deploy" {
			t.Errorf("error %v", c.Err())
		}
		var got *websocket.CloseError
		if err := <-answer; !errors.As(err, &got) || got.Code != CloseServiceRestart || got.Text != "deploy" {
			t.Errorf("the portal got %v", err)
		}
	})
	t.Run("rule 41: Close flushes, says 1000 and waits for the answer", func(t *testing.T) {
		var frames int
		var last error
		c, server := connect(t, DialConfig{}, func(s *websocket.Conn) {
			for last == nil {
				if _, _, last = s.ReadMessage(); last == nil {
					frames++
				}
			}
		})
		for range 100 {
			if err := c.Write([]byte("{}")); err != nil {
				t.Fatal(err)
			}
		}
		c.Close(CloseNormal, patience)
		<-server
		if frames != 100 || !websocket.IsCloseError(last, CloseNormal) {
			t.Errorf("%d frames, then %v", frames, last)
		}
	})
	t.Run("Close does not wait for a portal that never answers", func(t *testing.T) {
		release := make(chan struct{})
		c, _ := connect(t, DialConfig{}, func(*websocket.Conn) { <-release })
		defer close(release)
		began := time.Now()
		c.Close(CloseNormal, 50*time.Millisecond)
		if d := time.Since(began); d > patience/2 {
			t.Errorf("took %v", d)
		}
		waitEnd(t, c)
	})
	t.Run("Close works while nobody receives frames", func(t *testing.T) {
		c, _ := connect(t, DialConfig{}, func(s *websocket.Conn) {
			for range 4 * ReadQueue {
				if s.WriteMessage(websocket.TextMessage, []byte("{}")) != nil {
					return
				}
			}
			_, _, _ = s.ReadMessage()
		})
		waitFor(t, "a full read queue", func() bool { return len(c.frames) == ReadQueue })
		c.Close(CloseNormal, patience)
		if !errors.Is(c.Err(), ErrClosed) {
			t.Error(c.Err())
		}
	})
	t.Run("Abort ends a connection that nobody receives from", func(t *testing.T) {
		c, _ := connect(t, DialConfig{}, func(s *websocket.Conn) {
			for s.WriteMessage(websocket.TextMessage, []byte("{}")) == nil {
			}
		})
		waitFor(t, "a full read queue", func() bool { return len(c.frames) == ReadQueue })
		c.Abort()
		// Not drained on purpose: a reader that hangs is found by the leak check.
		if !errors.Is(c.Err(), ErrClosed) {
			t.Error(c.Err())
		}
	})
	t.Run("a half-open connection ends after the idle time-out", func(t *testing.T) {
		release := make(chan struct{})
		c, _ := connect(t, DialConfig{IdleTimeout: 50 * time.Millisecond}, func(*websocket.Conn) { <-release })
		defer close(release)
		waitEnd(t, c)
		var e net.Error
		if !errors.As(c.Err(), &e) || !e.Timeout() {
			t.Errorf("error %v", c.Err())
		}
	})
	t.Run("a connection that is cut ends with the I/O error", func(t *testing.T) {
		c, _ := connect(t, DialConfig{}, func(s *websocket.Conn) { s.NetConn().Close() })
		waitEnd(t, c)
		var e *CloseError
		if err := c.Err(); err == nil || errors.As(err, &e) || errors.Is(err, ErrClosed) {
			t.Errorf("error %v", err)
		}
	})
	t.Run("a connection that is cut while frames are written ends", func(t *testing.T) {
		c, server := connect(t, DialConfig{}, func(s *websocket.Conn) {
			_, _, _ = s.ReadMessage()
			s.NetConn().Close()
		})
		for !errors.Is(c.Write([]byte("{}")), ErrClosed) {
			select {
			case <-server:
			case <-c.failed:
			}
		}
		waitEnd(t, c)
		if err := c.Err(); err == nil || errors.Is(err, ErrClosed) {
			t.Errorf("error %v", err)
		}
	})
	t.Run("bytes that are no websocket frame end the connection", func(t *testing.T) {
		c, _ := connect(t, DialConfig{}, func(s *websocket.Conn) {
			_, _ = s.NetConn().Write(bytes.Repeat([]byte{0xff}, 64))
			_, _, _ = s.ReadMessage()
		})
		waitEnd(t, c)
		if c.Err() == nil {
			t.Error("no error")
		}
	})
	t.Run("a frame above the read limit ends the connection", func(t *testing.T) {
		c, _ := connect(t, DialConfig{}, func(s *websocket.Conn) {
			_ = s.WriteMessage(websocket.TextMessage, make([]byte, ReadLimit+1))
			_, _, _ = s.ReadMessage()
		})
		waitEnd(t, c)
		if err := c.Err(); !errors.Is(err, websocket.ErrReadLimit) || !strings.Contains(err.Error(), "more than 16777216 bytes") {
			t.Errorf("error %v", err)
		}
	})
	t.Run("a frame at the read limit is received", func(t *testing.T) {
		c, _ := connect(t, DialConfig{}, func(s *websocket.Conn) {
			_ = s.WriteMessage(websocket.TextMessage, make([]byte, ReadLimit))
			_, _, _ = s.ReadMessage()
		})
		if n := len(receive(t, c)); n != ReadLimit {
			t.Errorf("%d bytes", n)
		}
	})
}

// TestTheLargestInitIsRead is about a limit that would otherwise end each
// connection of a large site right after its join.
func TestTheLargestInitIsRead(t *testing.T) {
	const grants = 100_000 // what the decoder takes of one list
	id := "3abd725a-733b-4801-ac16-72f26cd98a24"
	grant := `{"client_id":"` + id + `","resource_id":"` + id + `","expires_at":1783425600},`
	frame := `{"topic":"gateway","event":"init","ref":null,"payload":{"interface":{"ipv4":"100.64.0.1","ipv6":"fd00::1"},"authorizations":[` +
		strings.TrimSuffix(strings.Repeat(grant, grants), ",") + `]}}`
	c, _ := connect(t, DialConfig{}, func(s *websocket.Conn) {
		_ = s.WriteMessage(websocket.TextMessage, []byte(frame))
		_, _, _ = s.ReadMessage()
	})
	f, err := portal.DecodeFrame(receive(t, c))
	if err != nil {
		t.Fatal(err)
	}
	m, skipped, err := portal.Decode(f)
	if err != nil || skipped != (portal.Skipped{}) || len(m.(portal.Init).Authorizations) != grants {
		t.Errorf("skipped %+v, error %v", skipped, err)
	}
}

func TestConnIgnoresOtherFrames(t *testing.T) {
	var drops drop.Counters
	ponged := make(chan string, 1)
	c, _ := connect(t, DialConfig{Drops: &drops}, func(s *websocket.Conn) {
		s.SetPongHandler(func(data string) error { ponged <- data; return nil })
		_ = s.WriteMessage(websocket.BinaryMessage, []byte("binary"))
		_ = s.WriteControl(websocket.PingMessage, []byte("p"), time.Now().Add(patience))
		_ = s.WriteMessage(websocket.TextMessage, []byte("text"))
		_, _, _ = s.ReadMessage()
	})
	if got := string(receive(t, c)); got != "text" {
		t.Errorf("got %q", got)
	}
	if n := drops.Load(drop.FrameMalformed); n != 1 {
		t.Errorf("%d dropped", n)
	}
	c.Close(CloseNormal, patience)
	if got := <-ponged; got != "p" {
		t.Errorf("pong %q", got)
	}
}

func TestConnWriteQueueIsBounded(t *testing.T) {
	release := make(chan struct{})
	c, _ := connect(t, DialConfig{}, func(*websocket.Conn) { <-release })
	defer close(release)
	frame := []byte(strings.Repeat("x", 1<<16))
	// More than the socket buffers of both ends and the queue can hold.
	var err error
	for range 100_000 {
		if err = c.Write(frame); err != nil {
			break
		}
		if len(c.out) > WriteQueue {
			t.Fatal("queue above its bound")
		}
	}
	if !errors.Is(err, ErrQueueFull) {
		t.Fatalf("error %v", err)
	}
	began := time.Now()
	c.Close(CloseNormal, 50*time.Millisecond)
	if d := time.Since(began); d > patience/2 {
		t.Errorf("Close with a stuck writer took %v", d)
	}
}

func TestConnConcurrentUse(t *testing.T) {
	c, _ := connect(t, DialConfig{}, func(s *websocket.Conn) {
		for {
			if _, _, err := s.ReadMessage(); err != nil {
				return
			}
			if s.WriteMessage(websocket.TextMessage, []byte("{}")) != nil {
				return
			}
		}
	})
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for range 100 {
				_ = c.Write([]byte("{}"))
				_ = c.Err()
			}
		})
	}
	wg.Go(func() {
		for range c.Frames() {
		}
	})
	for range 2 {
		wg.Go(func() { c.Close(CloseNormal, patience) })
	}
	wg.Wait()
	if !errors.Is(c.Err(), ErrClosed) {
		t.Error(c.Err())
	}
}

// connect returns a connection to a portal that runs serve on its side. The
// channel is closed when serve has returned.
func connect(t *testing.T, cfg DialConfig, serve func(*websocket.Conn)) (*Conn, <-chan struct{}) {
	t.Helper()
	done := make(chan struct{})
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		defer close(done)
		c, err := (&websocket.Upgrader{}).Upgrade(w, r, nil)
		if err != nil {
			t.Error(err)
			return
		}
		defer c.Close()
		serve(c)
	}))
	t.Cleanup(func() {
		<-done
		s.Close()
	})
	cfg.Endpoint = endpoint(t, s.URL)
	c, err := Dial(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Abort)
	return c, done
}

func receive(t *testing.T, c *Conn) []byte {
	t.Helper()
	select {
	case f, ok := <-c.Frames():
		if !ok {
			t.Fatalf("connection ended: %v", c.Err())
		}
		return f
	case <-time.After(patience):
		t.Fatal("no frame")
		return nil
	}
}

func waitEnd(t *testing.T, c *Conn) {
	t.Helper()
	deadline := time.After(patience)
	for {
		select {
		case _, ok := <-c.Frames():
			if !ok {
				return
			}
		case <-deadline:
			t.Fatal("connection does not end")
		}
	}
}

func waitFor(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("no %s", what)
		}
	}
}
