package tour

import (
	"fmt"
	"io"
	"net"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// idlePort is where a resource holds a connection that says nothing.
const idlePort = 4001

// TestTourDeliversAfterSilence promises that a packet from the resource's side
// reaches a client that was silent, with nothing sent twice. After half a minute
// both sides are idle (20 s without packets, transport §2.9) and check once in 25 s;
// after three minutes the session's keys are too old as well (180 s, §5.3), so
// that it takes a handshake that the gateway begins, through the client's NAT.
func TestTourDeliversAfterSilence(t *testing.T) {
	t.Parallel()
	for _, silence := range []time.Duration{30 * time.Second, 190 * time.Second} {
		t.Run(fmt.Sprintf("of %.0f s", silence.Seconds()), func(t *testing.T) {
			t.Parallel()
			if testing.Short() && silence > time.Minute {
				t.Skip("takes more than three minutes, -short")
			}
			w := newWorld(t, original())
			settle(t, w)
			w.awaitDirect(t, pathPatience)
			server, client := w.quietConnection(t)
			if err := pause(t.Context(), silence); err != nil {
				t.Fatal(err)
			}

			begin := time.Now()
			if _, err := io.WriteString(server, "knock"); err != nil {
				t.Fatal(err)
			}
			if err := client.SetReadDeadline(begin.Add(stepLimit)); err != nil {
				t.Fatal(err)
			}
			if _, err := io.ReadFull(client, make([]byte, len("knock"))); err != nil {
				t.Fatal(err)
			}
			took, again := time.Since(begin), retransmissions(t, server)
			t.Logf("arrived after %s, %d segments sent again", milliseconds(took), again)
			// The first repetition is due after 200 ms: a busy machine may cause
			// it, a lost packet cannot do without.
			if again > 0 && took >= 200*time.Millisecond {
				t.Error("the first packet did not arrive")
			}
			require(t, w, pingAnswered, gatewayLeaves)
		})
	}
}

// quietConnection returns both ends of a TCP connection that the client opened.
func (w *World) quietConnection(t *testing.T) (server, client net.Conn) {
	t.Helper()
	at := netip.AddrPortFrom(places[files4].address, idlePort).String()
	listener, err := w.net.Resource.Listen("tcp4", at)
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	if client, err = w.host(0).DialContext(within(t, stepLimit), "tcp4", at); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { client.Close() })
	if server, err = listener.Accept(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { server.Close() })
	for _, c := range []net.Conn{server, client} {
		if err := c.(*net.TCPConn).SetKeepAlive(false); err != nil { // it would not be silent
			t.Fatal(err)
		}
	}
	return server, client
}

func retransmissions(t *testing.T, c net.Conn) uint32 {
	t.Helper()
	raw, err := c.(*net.TCPConn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var info *unix.TCPInfo
	var infoErr error
	if err := raw.Control(func(fd uintptr) {
		info, infoErr = unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO)
	}); err != nil || infoErr != nil {
		t.Fatal(err, infoErr)
	}
	return info.Total_retrans
}
