// Package ws carries the frames of package portal over a websocket: it dials
// the portal and moves text frames in both directions. It holds no decision
// about the protocol except which login route a portal answers on.
package ws

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"syscall"
	"time"

	"github.com/gorilla/websocket"

	"firezone-gateway/internal/drop"
	"firezone-gateway/internal/portal"
)

// Time limits of one attempt (§1.3).
const (
	TCPTimeout     = 5 * time.Second  // for the address that answers first
	AttemptTimeout = 15 * time.Second // for name, TCP, TLS and HTTP together
)

// DefaultIdleTimeout is how long a connection may stay without a text frame.
// The portal answers a heartbeat every ten seconds, and the session gives up
// after 40 of silence; this limit holds when nobody drives a session.
const DefaultIdleTimeout = time.Minute

// Resolver looks a host name up; net.Resolver is one.
type Resolver interface {
	LookupNetIP(ctx context.Context, network, host string) ([]netip.Addr, error)
}

// DialConfig says where and how to connect. Only Endpoint is required.
type DialConfig struct {
	Endpoint portal.Endpoint

	// Preferred is the route to begin with, RouteV2 by default. A
	// portal.RouteMemory knows it.
	Preferred portal.Route

	// Control is applied to the TCP socket before it connects, for instance to
	// mark it.
	Control func(network, address string, c syscall.RawConn) error

	// Resolver defaults to the system's, which honours the hosts file.
	Resolver Resolver

	// TLS defaults to the roots of the system. It is not modified.
	TLS *tls.Config

	// Proxy defaults to the one that the environment names. Its scheme must be
	// http, which is asked for a tunnel, or socks5; either resolves the portal's
	// name itself.
	Proxy func(*http.Request) (*url.URL, error)

	// IdleTimeout defaults to DefaultIdleTimeout.
	IdleTimeout time.Duration

	// Drops, if set, counts frames that are not text as drop.FrameMalformed.
	Drops *drop.Counters
}

// HandshakeError says that the portal answered the upgrade with something else
// than an upgrade. Its text contains no secret.
type HandshakeError struct {
	Route   portal.Route
	Failure portal.Failure
}

// Error implements error.
func (e *HandshakeError) Error() string {
	return "portal refused the login on route " + e.Route.String() + ": " + e.Failure.String()
}

// FailureOf returns the classification of an error of Dial: that of a
// *HandshakeError, or the zero Failure, which is transient.
func FailureOf(err error) portal.Failure {
	var h *HandshakeError
	if errors.As(err, &h) {
		return h.Failure
	}
	return portal.Failure{}
}

// Dial connects to the portal and starts the connection. It tries the preferred
// route, and the others where the answer says that the portal does not know it
// (§5.5): another path after a 404, the token in the query if an old portal did
// not see the one in the header. Conn.Route says which route worked.
//
// The host name is looked up for every attempt and all its addresses are tried
// at once. ctx ends the attempt and not the connection. A portal that refuses
// yields a *HandshakeError; every other error is transient.
func Dial(ctx context.Context, cfg DialConfig) (*Conn, error) {
	if !cfg.Endpoint.IsValid() {
		return nil, errors.New("portal: endpoint without a public key")
	}
	route := cfg.Preferred
	if route == portal.RouteUnknown {
		route = portal.RouteV2
	}
	tried := map[portal.Route]bool{}
	for {
		tried[route] = true
		c, err := attempt(ctx, cfg, route)
		if err == nil {
			return c, nil
		}
		next := alternative(route, FailureOf(err))
		if next == portal.RouteUnknown || tried[next] {
			return nil, err
		}
		route = next
	}
}

// alternative returns the route to try after route was refused with f, or
// RouteUnknown.
func alternative(route portal.Route, f portal.Failure) portal.Route {
	switch {
	case f.Status == http.StatusNotFound && route == portal.RouteV2:
		return portal.RouteV1
	case f.Status == http.StatusNotFound:
		return portal.RouteV2
	case f.HeaderIgnored && route == portal.RouteV1:
		return portal.RouteV1Query
	default:
		return portal.RouteUnknown
	}
}

func attempt(ctx context.Context, cfg DialConfig, route portal.Route) (*Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, AttemptTimeout)
	defer cancel()
	req := cfg.Endpoint.Request(route)
	r := racer{resolver: cfg.Resolver, connect: (&net.Dialer{Control: cfg.Control}).DialContext}
	if r.resolver == nil {
		r.resolver = net.DefaultResolver
	}
	// The library dials what the URL names, and the port to dial is not always
	// the one of the URL.
	u := req.URL
	u.Host = req.Address
	proxy, err := proxyFor(cfg.Proxy, u)
	if err != nil {
		return nil, fmt.Errorf("connect to portal: %w", err)
	}
	// The library looks at ctx only until TCP is open; closing the socket is what
	// makes the rest of the handshake end with it.
	stop, limited := func() bool { return true }, &handshakeConn{left: handshakeLimit}
	d := websocket.Dialer{
		TLSClientConfig: cfg.TLS,
		NetDialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
			c, err := r.dialThrough(ctx, proxy, network, addr)
			if err != nil {
				return nil, err
			}
			stop = context.AfterFunc(ctx, func() { c.Close() })
			limited.Conn = c
			return limited, nil
		},
	}
	if proxy != nil && proxy.Scheme == "socks5" {
		d.Proxy = http.ProxyURL(proxy) // the library then dials the proxy and speaks to it
	}
	conn, resp, err := d.DialContext(ctx, u.String(), req.Header)
	if err != nil {
		if resp != nil && errors.Is(err, websocket.ErrBadHandshake) {
			body, _ := io.ReadAll(resp.Body)
			return nil, &HandshakeError{route, portal.ClassifyHTTP(resp.StatusCode, resp.Header, body, time.Now())}
		}
		// A cut-off attempt surfaces as whatever I/O error it caused.
		return nil, fmt.Errorf("connect to portal: %w", errors.Join(err, ctx.Err()))
	}
	if !stop() {
		conn.Close()
		return nil, fmt.Errorf("connect to portal: %w", ctx.Err())
	}
	limited.open()
	idle := cfg.IdleTimeout
	if idle <= 0 {
		idle = DefaultIdleTimeout
	}
	return start(conn, route, idle, cfg.Drops), nil
}
