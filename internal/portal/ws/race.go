package ws

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
)

// maxAddresses bounds how many addresses of one name are dialled.
const maxAddresses = 16

// racer dials all addresses of a host at once.
type racer struct {
	resolver Resolver
	connect  func(ctx context.Context, network, address string) (net.Conn, error)
}

// dial returns the TCP connection that opens first. It has closed all others
// and ended all its goroutines when it returns.
func (r racer) dial(ctx context.Context, _, hostPort string) (net.Conn, error) {
	targets, err := r.resolve(ctx, hostPort)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, TCPTimeout)
	defer cancel()

	type result struct {
		conn net.Conn
		err  error
	}
	results := make(chan result, len(targets))
	for _, t := range targets {
		go func() {
			c, err := r.connect(ctx, "tcp", t.String())
			results <- result{c, err}
		}()
	}
	var winner net.Conn
	var errs []error
	for range targets {
		switch res := <-results; {
		case res.err != nil:
			errs = append(errs, res.err)
		case winner == nil:
			winner = res.conn
			cancel()
		default:
			res.conn.Close()
		}
	}
	if winner == nil {
		return nil, errors.Join(errs...)
	}
	return winner, nil
}

func (r racer) resolve(ctx context.Context, hostPort string) ([]netip.AddrPort, error) {
	host, portText, err := net.SplitHostPort(hostPort)
	if err != nil {
		return nil, err
	}
	port, err := strconv.ParseUint(portText, 10, 16)
	if err != nil {
		return nil, errors.New("port is not a number")
	}
	if a, err := netip.ParseAddr(host); err == nil {
		return []netip.AddrPort{netip.AddrPortFrom(a, uint16(port))}, nil
	}
	addrs, err := r.resolver.LookupNetIP(ctx, "ip", host)
	if err != nil {
		return nil, fmt.Errorf("look up %s: %w", host, err)
	}
	var out []netip.AddrPort
	seen := make(map[netip.Addr]bool)
	for _, a := range addrs {
		a = a.Unmap()
		if seen[a] || len(out) == maxAddresses {
			continue
		}
		seen[a] = true
		out = append(out, netip.AddrPortFrom(a, uint16(port)))
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("look up %s: no addresses", host)
	}
	return out, nil
}
