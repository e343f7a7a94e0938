package resource_test

import (
	"context"
	"errors"
	"net"
	"testing"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// host is the network of the process itself.
type host struct{}

func (host) Listen(network, address string) (net.Listener, error) {
	return net.Listen(network, address)
}

func (host) ListenPacket(network, address string) (net.PacketConn, error) {
	return net.ListenPacket(network, address)
}

func (host) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	return new(net.Dialer).DialContext(ctx, network, address)
}

var errNoSocket = errors.New("no socket today")

// broken fails to open UDP sockets.
type broken struct{ host }

func (broken) ListenPacket(string, string) (net.PacketConn, error) { return nil, errNoSocket }
