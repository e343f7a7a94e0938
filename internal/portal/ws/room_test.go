package ws

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/gorilla/websocket"
)

// fill writes to a portal that reads nothing until there is no room.
func fill(t *testing.T, c *Conn) {
	t.Helper()
	frame := []byte(strings.Repeat("x", 1<<16))
	waitFor(t, "full queue", func() bool {
		for c.Room() > 0 {
			if err := c.Write(frame); err != nil {
				t.Fatal(err)
			}
		}
		return errors.Is(c.Write(frame), ErrQueueFull)
	})
}

func isClosed(ch <-chan struct{}) bool {
	select {
	case <-ch:
		return true
	default:
		return false
	}
}

func TestConnTellsWhenThereIsRoomAgain(t *testing.T) {
	t.Run("an empty queue needs no waiting", func(t *testing.T) {
		c, _ := connect(t, DialConfig{}, func(s *websocket.Conn) { _, _, _ = s.ReadMessage() })
		if c.Room() != WriteQueue || !isClosed(c.Drained()) {
			t.Errorf("room for %d", c.Room())
		}
	})
	t.Run("a full queue is waited for until half of it is free", func(t *testing.T) {
		read := make(chan struct{})
		c, _ := connect(t, DialConfig{}, func(s *websocket.Conn) {
			<-read
			for {
				if _, _, err := s.ReadMessage(); err != nil {
					return
				}
			}
		})
		fill(t, c)
		drained := c.Drained()
		if isClosed(drained) {
			t.Fatalf("room for %d is told of", c.Room())
		}
		close(read)
		// Once more and more often while the queue moves, so that the writer meets
		// every step of asking.
		for n := range 200 {
			select {
			case <-drained:
			case <-time.After(patience):
				t.Fatalf("room for %d is not told of", c.Room())
			}
			if c.Room() < WriteQueue/2 {
				t.Fatalf("room for %d after %d times", c.Room(), n)
			}
			for range c.Room() {
				if err := c.Write([]byte("{}")); err != nil {
					t.Fatal(err)
				}
			}
			drained = c.Drained()
		}
	})
	t.Run("all who wait are told", func(t *testing.T) {
		read := make(chan struct{})
		c, _ := connect(t, DialConfig{}, func(s *websocket.Conn) {
			<-read
			for {
				if _, _, err := s.ReadMessage(); err != nil {
					return
				}
			}
		})
		fill(t, c)
		first, second := c.Drained(), c.Drained()
		close(read)
		for _, ch := range []<-chan struct{}{first, second} {
			select {
			case <-ch:
			case <-time.After(patience):
				t.Fatal("not told")
			}
		}
	})
	t.Run("the end of the connection ends the waiting", func(t *testing.T) {
		release := make(chan struct{})
		c, _ := connect(t, DialConfig{}, func(*websocket.Conn) { <-release })
		defer close(release)
		fill(t, c)
		before := c.Drained()
		c.Abort()
		select {
		case <-before:
		case <-time.After(patience):
			t.Fatal("still waiting")
		}
		if !isClosed(c.Drained()) {
			t.Error("waiting for a connection that has ended")
		}
	})
}
