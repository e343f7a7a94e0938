package labnet

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"strings"
)

// Listen opens a stream listener inside the namespace. The address must be a
// literal: name resolution would leave the namespace's thread.
func (n *Namespace) Listen(network, address string) (net.Listener, error) {
	if err := literal(network, address); err != nil {
		return nil, err
	}
	// Plain TCP: Go's default of multipath TCP would be one more thing measured.
	var config net.ListenConfig
	config.SetMultipathTCP(false)
	var listener net.Listener
	err := n.Do(func() (err error) {
		listener, err = config.Listen(context.Background(), network, address)
		return err
	})
	return listener, err
}

// ListenPacket opens a datagram socket inside the namespace. The networks are
// those of net.ListenPacket, raw IP ("ip4:icmp") among them; the address must
// be a literal.
func (n *Namespace) ListenPacket(network, address string) (net.PacketConn, error) {
	if err := literal(network, address); err != nil {
		return nil, err
	}
	var conn net.PacketConn
	err := n.Do(func() (err error) {
		conn, err = net.ListenPacket(network, address)
		return err
	})
	return conn, err
}

// ListenUDP opens a UDP socket inside the namespace, of the address family of
// the given address.
func (n *Namespace) ListenUDP(address netip.AddrPort) (*net.UDPConn, error) {
	network := "udp6"
	if address.Addr().Is4() {
		network = "udp4"
	}
	var conn *net.UDPConn
	err := n.Do(func() (err error) {
		conn, err = net.ListenUDP(network, net.UDPAddrFromAddrPort(address))
		return err
	})
	return conn, err
}

// DialContext connects from inside the namespace. The address must be a
// literal.
func (n *Namespace) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	if err := literal(network, address); err != nil {
		return nil, err
	}
	var dialer net.Dialer
	dialer.SetMultipathTCP(false)
	var conn net.Conn
	err := n.Do(func() (err error) {
		conn, err = dialer.DialContext(ctx, network, address)
		return err
	})
	return conn, err
}

// literal refuses addresses that need a resolver, whose goroutines would run
// in the process's own namespace.
func literal(network, address string) error {
	host := address
	if !strings.HasPrefix(network, "ip") {
		var port string
		var err error
		if host, port, err = net.SplitHostPort(address); err != nil {
			return err
		}
		if strings.Trim(port, "0123456789") != "" {
			return fmt.Errorf("port %q is not a number", port)
		}
	}
	if host == "" {
		return nil
	}
	if _, err := netip.ParseAddr(host); err != nil {
		return fmt.Errorf("address is not a literal: %w", err)
	}
	return nil
}
