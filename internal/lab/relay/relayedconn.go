package relay

import (
	"net"
	"net/netip"
	"sync"
)

// relayedConn is the relayed socket of one allocation. pion closes it when the
// allocation ends.
type relayedConn struct {
	net.PacketConn
	front    *front
	client   netip.AddrPort
	families families
	once     sync.Once
}

// ReadFrom counts what peers send, before pion judges it.
func (c *relayedConn) ReadFrom(p []byte) (int, net.Addr, error) {
	n, from, err := c.PacketConn.ReadFrom(p)
	if err == nil {
		c.front.server.stats.fromPackets.Add(1)
		c.front.server.stats.fromByteCount.Add(uint64(n))
	}
	return n, from, err
}

// WriteTo counts what goes to peers.
func (c *relayedConn) WriteTo(p []byte, to net.Addr) (int, error) {
	n, err := c.PacketConn.WriteTo(p, to)
	if err != nil {
		c.front.server.stats.rejected.Add(1)
		return n, err
	}
	c.front.server.stats.toPackets.Add(1)
	c.front.server.stats.toBytes.Add(uint64(n))
	return n, nil
}

// Close ends the allocation's socket; further calls do nothing. It reports no
// error, because pion would leave other allocations open on one.
func (c *relayedConn) Close() error {
	c.once.Do(func() {
		c.PacketConn.Close()
		c.front.forget(c)
		c.front.server.stats.open.Add(-1)
		c.front.server.relayed.Done()
	})
	return nil
}
