package client

import (
	"errors"
	"fmt"
	"net"

	"golang.org/x/sys/unix"
)

// Raw puts IP packets into the tunnel as they are, whatever they say about
// themselves: control packets, and what only a hostile client sends. They pass
// the engine, which encrypts what goes to an address that a gateway has.
type Raw struct {
	fd    int
	index int
}

// OpenRaw opens a Raw. It is to be closed.
func (c *Client) OpenRaw() (*Raw, error) {
	r := &Raw{}
	err := c.wg.ns.Do(func() error {
		link, err := net.InterfaceByName(c.wg.name)
		if err != nil {
			return err
		}
		r.index = link.Index
		// Protocol 0: it receives nothing.
		r.fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("packet socket on %s: %w", c.wg.name, err)
	}
	return r, nil
}

// Send puts one packet into the tunnel. One that the device has no room for is
// lost, as on any line.
func (r *Raw) Send(packet []byte) error {
	protocol := uint16(unix.ETH_P_IPV6)
	if len(packet) > 0 && packet[0]>>4 == 4 {
		protocol = unix.ETH_P_IP
	}
	err := unix.Sendto(r.fd, packet, 0, &unix.SockaddrLinklayer{Protocol: protocol<<8 | protocol>>8, Ifindex: r.index})
	if err != nil && !errors.Is(err, unix.ENOBUFS) {
		return fmt.Errorf("packet of %d bytes: %w", len(packet), err)
	}
	return nil
}

// Close ends it.
func (r *Raw) Close() error { return unix.Close(r.fd) }
