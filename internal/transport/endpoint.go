package transport

import (
	"net/netip"
	"sync/atomic"

	"github.com/tailscale/wireguard-go/conn"
)

var _ conn.Endpoint = (*Endpoint)(nil)

// messageResponse is the first byte of a WireGuard handshake response.
const messageResponse = 2

// Endpoint is the engine's endpoint of one client, pinned for the client's
// life. It points at the path of the last authenticated packet and, for handshake
// responses alone, at the path of the last initiation: that one is set before the
// initiation is verified, so data must not follow it. All methods may be called
// concurrently.
type Endpoint struct {
	path       atomic.Pointer[Path]
	initiation atomic.Pointer[Path]
	congested  atomic.Bool
	changed    func(*Path)
}

// NewEndpoint returns an Endpoint without a path. onPathChange may be nil; it is
// called with each path that differs from the one before, from a goroutine of the
// engine, and must not block. Calls may be concurrent.
func NewEndpoint(onPathChange func(*Path)) *Endpoint {
	return &Endpoint{changed: onPathChange}
}

// Path returns the path of the last authenticated packet, nil before the first.
func (e *Endpoint) Path() *Path { return e.path.Load() }

// Move leads what goes to the client to p, where the client has nominated a pair
// and the one in use is dead: a client that only receives sends nothing to follow
// (T-19). Before the first authenticated packet it does nothing.
func (e *Endpoint) Move(p *Path) {
	if e.path.Load() != nil {
		e.follow(p)
	}
}

// Congested reports whether the datagrams of the packets that the engine is
// handing over came marked with Congestion Experienced. It is meant for that call
// alone: the engine authenticates and hands over the packets of one client on one
// goroutine, batch by batch.
func (e *Endpoint) Congested() bool { return e.congested.Load() }

// ClearSrc does nothing: the source is part of the path.
func (e *Endpoint) ClearSrc() {}

// SrcToString returns our end of the current path, or an empty string.
func (e *Endpoint) SrcToString() string {
	if p := e.path.Load(); p != nil {
		return p.SrcToString()
	}
	return ""
}

// DstToString returns the peer's end of the current path, or an empty string.
func (e *Endpoint) DstToString() string {
	if p := e.path.Load(); p != nil {
		return p.DstToString()
	}
	return ""
}

// DstToBytes returns address and port of the peer, nil without a path.
func (e *Endpoint) DstToBytes() []byte {
	if p := e.path.Load(); p != nil {
		return p.DstToBytes()
	}
	return nil
}

// DstIP returns the address of the peer, invalid without a path.
func (e *Endpoint) DstIP() netip.Addr {
	if p := e.path.Load(); p != nil {
		return p.DstIP()
	}
	return netip.Addr{}
}

// SrcIP returns the address of our end, invalid without a path.
func (e *Endpoint) SrcIP() netip.Addr {
	if p := e.path.Load(); p != nil {
		return p.SrcIP()
	}
	return netip.Addr{}
}

func (e *Endpoint) follow(p *Path) {
	if e.path.Load() == p {
		return
	}
	if old := e.path.Swap(p); e.changed != nil && !p.Same(old) {
		e.changed(p)
	}
}

func (e *Endpoint) note(congested bool) {
	if e.congested.Load() != congested {
		e.congested.Store(congested)
	}
}

// route returns the path for a message with this first byte, nil if there is
// none.
func (e *Endpoint) route(first byte) *Path {
	if first == messageResponse {
		if p := e.initiation.Load(); p != nil {
			return p
		}
	}
	return e.path.Load()
}
