package client

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"

	"github.com/miekg/dns"
)

// dnsPort is where gateways answer queries about DNS resources other than for
// addresses (dataplane §6).
const dnsPort = 53535

// GatewayInterface returns the tunnel addresses of the gateway that the client
// is connected to; ok is false while there is none.
func (c *Client) GatewayInterface() (i Interface, ok bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, n := range c.gateways {
		return Interface{IPv4: n.auth.GatewayIPv4, IPv6: n.auth.GatewayIPv6}, true
	}
	return Interface{}, false
}

// DialDNS connects to the gateway's DNS service, through the tunnel. The network
// is udp4, udp6, tcp4 or tcp6.
func (c *Client) DialDNS(ctx context.Context, network string) (*dns.Conn, error) {
	i, ok := c.GatewayInterface()
	if !ok {
		return nil, errors.New("DNS service: no gateway")
	}
	address := i.IPv4
	if strings.HasSuffix(network, "6") {
		address = i.IPv6
	}
	if err := c.wg.route([]netip.Prefix{netip.PrefixFrom(address, address.BitLen())}); err != nil {
		return nil, err
	}
	var conn net.Conn
	err := c.wg.ns.Do(func() (err error) {
		conn, err = new(net.Dialer).DialContext(ctx, network, netip.AddrPortFrom(address, dnsPort).String())
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("DNS service: %w", err)
	}
	return &dns.Conn{Conn: conn, UDPSize: dns.MaxMsgSize}, nil
}

// Query asks the gateway's DNS service and returns its answer, of any code. It
// asks once: without an answer it fails when ctx ends.
func (c *Client) Query(ctx context.Context, network string, query *dns.Msg) (*dns.Msg, error) {
	conn, err := c.DialDNS(ctx, network)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	if err := conn.WriteMsg(query); err != nil {
		return nil, fmt.Errorf("DNS query: %w", err)
	}
	for {
		answer, err := conn.ReadMsg()
		if err != nil {
			return nil, fmt.Errorf("DNS query: %w", errors.Join(ctx.Err(), err))
		}
		if answer.Id == query.Id {
			return answer, nil
		}
	}
}
