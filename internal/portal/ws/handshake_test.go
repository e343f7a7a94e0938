package ws

import (
	"errors"
	"net"
	"strings"
	"testing"
	"time"
)

// A portal cannot make the gateway read for ever, whatever it is that has no
// end.
func TestAnAnswerWithoutEndIsGivenUp(t *testing.T) {
	for name, start := range map[string]string{
		"a status line": "HTTP/1.1 200 ",
		"a header":      "HTTP/1.1 200 OK\r\nX: ",
		"headers":       "HTTP/1.1 200 OK\r\n",
	} {
		t.Run(name, func(t *testing.T) {
			l, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			sent := make(chan int, 1)
			go func() {
				c, err := l.Accept()
				if err != nil {
					sent <- 0
					return
				}
				defer c.Close()
				more, total := strings.Repeat("a", 1000), 0
				if name == "headers" {
					more = "X: " + more + "\r\n"
				}
				_, _ = c.Write([]byte(start))
				for {
					n, err := c.Write([]byte(more))
					if total += n; err != nil {
						sent <- total
						return
					}
				}
			}()
			began := time.Now()
			_, err = Dial(t.Context(), DialConfig{Endpoint: endpoint(t, "ws://"+l.Addr().String())})
			if !errors.Is(err, errHandshakeTooLong) {
				t.Errorf("error %v", err)
			}
			if took := time.Since(began); took > AttemptTimeout/2 {
				t.Errorf("took %v", took)
			}
			// What the kernel's buffers took was not read by us.
			if total := <-sent; total > 64<<20 {
				t.Errorf("%d bytes were sent", total)
			}
		})
	}
}
