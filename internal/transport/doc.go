// Package transport is the UDP edge of the gateway: the two sockets, the
// demultiplexer and the conn.Bind that the WireGuard engine sends and receives
// through.
//
// Sockets own the descriptors. A Bind lends them to the engine and can be given
// other Sockets while it lives. A Path is one way to a remote, either direct or
// through a channel of a Relay; an Endpoint is what the engine keeps for a
// client and points at the Path on which the client was last authenticated.
//
// Nothing on the way of a datagram allocates, and no lock is held while a batch
// is in the kernel.
package transport
