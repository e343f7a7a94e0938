// Package dns is the gateway's edge towards the site's name servers: layer-4
// servers on the tunnel addresses that forward what clients ask, and the
// resolver that finds the addresses of DNS resources.
//
// [Upstreams] knows the name servers of the host and asks the healthiest of
// them. A [Forwarder] bounds the queries that a set of [Server] values, one for
// each address and transport, hands to it. A [Resolver] looks up both families
// of a domain, bounded, merged per domain, with vetted addresses.
//
// The package holds no decisions: when to bind, to bind again or to close, and
// what a client is told, is for its owner. [Listen] binds, and when it returns
// the server is ready. [Server.Serve] runs on a goroutine of the owner and ends
// with the reason. [Server.Close] returns when everything has ended.
//
// Sockets belong to the network namespace of the process. What needs neither
// socket nor clock is in files of its own: resolvconf.go, hosts.go, names.go,
// message.go, health.go, addresses.go, schedule.go and vet.go.
package dns

import "time"

// Limits of forwarding (dataplane §6.2).
const (
	MaxForwarded   = 1000 // queries at once over all servers of a Forwarder
	ForwardTimeout = 5 * time.Second
	MaxUDPAnswer   = 1200 // bytes towards a client over UDP; more comes back truncated

	maxQuery     = 2000 // bytes, over TCP too
	minUDPAnswer = 512  // bytes that a client without EDNS takes (RFC 1035 §4.2.1)
)

// Limits of the resolver (dataplane §3.2, §3.3).
const (
	MaxResolving   = 1000 // requests at once
	ResolveTimeout = 10 * time.Second
	MaxAddresses   = 64 // addresses of one family that are kept, the lowest ones
)

// Limits of one TCP server. An answer is at most 64 KiB and a connection has
// at most MaxPipelined of them in memory, so clients that never read what they
// asked for hold 64 MiB at most, and one of them alone 4 MiB.
const (
	MaxConns          = 128
	MaxConnsPerClient = 8
	MaxPipelined      = 8 // queries of one connection at once; the next is read when one is answered
	IdleTimeout       = 30 * time.Second

	writeTimeout = 5 * time.Second
)
