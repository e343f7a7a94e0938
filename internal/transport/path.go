package transport

import (
	"encoding/binary"
	"net/netip"
	"sync/atomic"

	"github.com/tailscale/wireguard-go/conn"
)

var (
	_ conn.Endpoint                = (*Path)(nil)
	_ conn.InitiationAwareEndpoint = (*Path)(nil)
	_ conn.PeerAwareEndpoint       = (*Path)(nil)
)

// Path is one way to a remote: direct, from one local address, or through one
// channel of a relay. It is immutable apart from a cache of the client that uses
// it, may be shared freely, and holds what sending needs in the kernel's form.
// Two Paths may describe the same way; compare them with Same.
//
// Path implements conn.Endpoint: the engine gets one with each received packet.
type Path struct {
	local   netip.AddrPort
	remote  netip.AddrPort
	relay   *Relay
	channel uint16
	family  Family // of the socket, which for a relay is that of its server

	to          sockaddr
	info        [infoSpace]byte
	infoLen     int
	remoteBytes []byte

	peers     *Peers
	owner     atomic.Pointer[member]
	received  atomic.Bool
	congested congestedPath
}

// Local returns our end: the local address and port of the socket, or the
// relayed address. The address is invalid when it is left to the kernel.
func (p *Path) Local() netip.AddrPort { return p.local }

// Remote returns the address of the peer, also when a relay is between.
func (p *Path) Remote() netip.AddrPort { return p.remote }

// Relay returns the relay, nil for a direct path.
func (p *Path) Relay() *Relay { return p.relay }

// Channel returns the channel number, 0 for a direct path.
func (p *Path) Channel() uint16 { return p.channel }

// TakeReceived reports whether data arrived through the channel of a relayed
// path since the last call.
func (p *Path) TakeReceived() bool { return p.received.Swap(false) }

// Same reports whether p and o are the same way. Either may be nil.
func (p *Path) Same(o *Path) bool {
	if p == nil || o == nil {
		return p == o
	}
	return p == o || p.local == o.local && p.remote == o.remote && p.relay == o.relay && p.channel == o.channel
}

// String returns both ends, for logs at debug level.
func (p *Path) String() string {
	if p.relay != nil {
		return p.local.String() + " (relayed) to " + p.remote.String()
	}
	return p.local.String() + " to " + p.remote.String()
}

// FromPeer is called by the engine after it authenticated a packet of the
// client with this key: the client's Endpoint follows to this path.
func (p *Path) FromPeer(key [32]byte) { p.authenticated(key, false) }

func (p *Path) authenticated(key [32]byte, congested bool) {
	m := p.owner.Load()
	if m == nil || m.key != key || m.removed.Load() {
		if m = p.peers.lookup(key); m == nil {
			return
		}
		p.owner.Store(m)
	}
	m.endpoint.follow(p)
	m.endpoint.note(congested)
}

// InitiationMessagePublicKey is called by the engine for an initiation whose
// sender claims key, before that is verified. Only the response goes here.
func (p *Path) InitiationMessagePublicKey(key [32]byte) {
	if m := p.peers.lookup(key); m != nil {
		m.endpoint.initiation.Store(p)
	}
}

// DstIP returns the address of the peer, which the engine limits handshakes by.
func (p *Path) DstIP() netip.Addr { return p.remote.Addr() }

// DstToBytes returns address and port of the peer, which a cookie is bound to.
// The caller must not change them.
func (p *Path) DstToBytes() []byte { return p.remoteBytes }

// DstToString returns address and port of the peer.
func (p *Path) DstToString() string { return p.remote.String() }

// SrcIP returns the address of our end.
func (p *Path) SrcIP() netip.Addr { return p.local.Addr() }

// SrcToString returns address and port of our end.
func (p *Path) SrcToString() string { return p.local.String() }

// ClearSrc does nothing: the source is part of the path.
func (p *Path) ClearSrc() {}

func newDirectPath(peers *Peers, local, remote netip.AddrPort) *Path {
	p := newPath(peers, local, remote, remote)
	p.infoLen = putPacketInfo(p.info[:], p.local.Addr())
	return p
}

func newRelayedPath(peers *Peers, r *Relay, channel uint16, server, relayed, peer netip.AddrPort) *Path {
	p := newPath(peers, relayed, peer, server)
	p.relay, p.channel = r, channel
	return p
}

func newPath(peers *Peers, local, remote, to netip.AddrPort) *Path {
	local, remote, to = unmap(local), unmap(remote), unmap(to)
	p := &Path{local: local, remote: remote, family: FamilyOf(to.Addr()), peers: peers}
	p.congested.Path = p
	p.to.set(to)
	p.remoteBytes = binary.BigEndian.AppendUint16(remote.Addr().WithZone("").AsSlice(), remote.Port())
	return p
}

func unmap(ap netip.AddrPort) netip.AddrPort {
	return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())
}
