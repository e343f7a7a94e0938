package tunnel

import (
	"errors"
	"net"
	"testing"
	"time"

	"github.com/tailscale/wireguard-go/conn"
	"github.com/tailscale/wireguard-go/device"

	"firezone-gateway/internal/transport"
)

// fakeBind takes what is sent and uses the headroom, as a relayed path does.
type fakeBind struct {
	conn.Bind
	err  error
	sent int
	to   conn.Endpoint
}

func (f *fakeBind) Send(bufs [][]byte, ep conn.Endpoint, offset int) error {
	for _, b := range bufs {
		clear(b[:offset])
	}
	f.sent, f.to = f.sent+len(bufs), ep
	return f.err
}

// message returns what the engine would send for an inner packet of 48 bytes,
// with this mark in the headroom.
func message(typ byte, size int, mark uint64) []byte {
	b := make([]byte, headroom+size)
	b[headroom] = typ
	putMark(b, markBefore, mark)
	return b
}

func TestBindKnowsWhenTheGoodbyeLeft(t *testing.T) {
	const transportSize = 16 + 48 + 16
	tun, fake := plainTunnel(), &fakeBind{}
	bind := &clientBind{Bind: fake, tunnel: tun}
	c := connect(t, tun, configOf(1, newHeardBy()))
	tun.part(c)
	left := func() bool {
		select {
		case <-c.goodbye:
			return true
		default:
			return false
		}
	}
	lookalike := func() []byte { return message(device.MessageTransportType, transportSize, 0) }
	goodbye := func() []byte { return message(device.MessageTransportType, transportSize, c.mark.Load()) }

	if err := bind.Send([][]byte{lookalike(), lookalike()}, c.endpoint, headroom); err != nil || left() {
		t.Errorf("%v; a packet from before was taken for the goodbye: %v", err, left())
	}
	for _, refusal := range []struct{ from, want error }{{conn.ErrWrongEndpointType, conn.ErrWrongEndpointType}, {net.ErrClosed, nil}} {
		fake.err = refusal.from
		if err := bind.Send([][]byte{goodbye()}, c.endpoint, headroom); !errors.Is(err, refusal.want) || left() {
			t.Errorf("%v; a goodbye that was refused counts: %v", err, left())
		}
	}
	fake.err = nil
	for range 2 {
		if err := bind.Send([][]byte{lookalike(), goodbye()}, c.endpoint, headroom); err != nil || !left() {
			t.Errorf("%v; the goodbye left: %v", err, left())
		}
	}
	if fake.sent != 8 || fake.to != c.endpoint.Endpoint {
		t.Errorf("sent %d messages, the last to %v", fake.sent, fake.to)
	}
}

func TestBindNotesAnsweredHandshakes(t *testing.T) {
	tun, fake := plainTunnel(), &fakeBind{}
	bind := &clientBind{Bind: fake, tunnel: tun}
	c := connect(t, tun, configOf(1, newHeardBy()))
	for _, m := range [][]byte{
		message(device.MessageInitiationType, device.MessageInitiationSize, 0),
		message(device.MessageTransportType, device.MessageResponseSize, 0),
	} {
		if err := bind.Send([][]byte{m}, c.endpoint, headroom); err != nil || c.Counters().LastHandshake.Load() != 0 {
			t.Errorf("%v; message of type %d counts as an answered handshake", err, m[headroom])
		}
	}
	response := message(device.MessageResponseType, device.MessageResponseSize, 0)
	if err := bind.Send([][]byte{response}, c.endpoint, headroom); err != nil || c.Counters().LastHandshake.Load() == 0 {
		t.Errorf("%v; the answered handshake is not noted", err)
	}
	// A cookie reply goes to a path, not to a client.
	path := &transport.Path{}
	if err := bind.Send([][]byte{response}, path, headroom); err != nil || fake.to != conn.Endpoint(path) {
		t.Errorf("%v; sent to %v", err, fake.to)
	}
}

// Two handshakes that cross can leave both sides with different keys.
func TestBindLetsTheClientBeginTheHandshakeOnANewPath(t *testing.T) {
	tun, fake := plainTunnel(), &fakeBind{}
	bind := &clientBind{Bind: fake, tunnel: tun}
	c := connect(t, tun, configOf(1, newHeardBy()))
	send := func(typ byte, size int) int {
		t.Helper()
		before := fake.sent
		if err := bind.Send([][]byte{message(typ, size, 0)}, c.endpoint, headroom); err != nil {
			t.Fatal(err)
		}
		return fake.sent - before
	}
	initiation := func() int { return send(device.MessageInitiationType, device.MessageInitiationSize) }
	if initiation() != 1 {
		t.Error("no initiation on a path that stays")
	}
	c.moved.Store(time.Now().UnixNano())
	if initiation() != 0 {
		t.Error("an initiation right after a nomination")
	}
	if send(device.MessageResponseType, device.MessageResponseSize) != 1 || send(device.MessageTransportType, device.MessageInitiationSize) != 1 {
		t.Error("something else waits, too")
	}
	c.moved.Store(time.Now().Add(-yieldFor).UnixNano())
	if initiation() != 1 {
		t.Error("no initiation a second after a nomination")
	}
}
