package client

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/pion/stun/v3"
	"golang.zx2c4.com/wireguard/conn"
)

const (
	allocationPatience = 3 * time.Second
	// renewInterval is below the lifetime of a permission and a channel, and
	// below half of an allocation's (transport §4).
	renewInterval  = 4 * time.Minute
	channelHeader  = 4
	firstChannel   = 0x4000
	lastChannel    = 0x4fff
	turnAttempts   = 3 // of one request: without credentials, with a nonce, with a fresh one
	requestedIPv6  = 2 // address family in REQUESTED-ADDRESS-FAMILY
	transportOfUDP = 17
)

// allocation is a relayed address of the client's own (RFC 8656). Data takes
// channels only, as the strict relay wants it.
type allocation struct {
	bind       *sharedBind
	server     netip.AddrPort
	username   string
	password   string
	relayed    netip.AddrPort
	ctx        context.Context // ends with the client
	background func(func())    // runs what the client waits for

	requests sync.Mutex // one transaction at a time
	control  *stunConn  // guarded by requests
	realm    stun.Realm // guarded by requests
	nonce    stun.Nonce // guarded by requests

	mu       sync.Mutex
	channels map[netip.AddrPort]uint16 // guarded by mu; 0 while it is being bound
	peers    map[uint16]netip.AddrPort // guarded by mu
}

// allocate asks a relay for an address of the relay's own family, from ours of
// that family. The allocation is kept up until ctx ends.
func (c *Client) allocate(ctx context.Context, r relay, own netip.Addr) (*allocation, error) {
	a := &allocation{
		ctx: ctx, background: c.wait.Go, bind: c.wg.bind, server: r.Addr, username: r.Username, password: r.Password, control: c.wg.bind.leg(own),
		channels: make(map[netip.AddrPort]uint16), peers: make(map[uint16]netip.AddrPort),
	}
	setters := []stun.Setter{stun.RawAttribute{Type: stun.AttrRequestedTransport, Value: []byte{transportOfUDP, 0, 0, 0}}}
	if own.Is6() {
		setters = append(setters, stun.RawAttribute{Type: stun.AttrRequestedAddressFamily, Value: []byte{requestedIPv6, 0, 0, 0}})
	}
	limited, cancel := context.WithTimeout(ctx, allocationPatience)
	defer cancel()
	m, err := a.request(limited, stun.MethodAllocate, setters...)
	var relayed stun.XORMappedAddress
	if err == nil {
		err = relayed.GetFromAs(m, stun.AttrXORRelayedAddress)
	}
	if err != nil {
		a.bind.drop(a.control)
		return nil, fmt.Errorf("allocate at %v: %w", r.Addr, err)
	}
	ip, _ := netip.AddrFromSlice(relayed.IP)
	a.relayed = netip.AddrPortFrom(ip.Unmap(), uint16(relayed.Port))
	c.wait.Go(func() {
		defer a.bind.drop(a.control)
		a.renew(ctx)
	})
	return a, nil
}

// leg returns the part of the allocation that ICE sees.
func (a *allocation) leg() *stunConn {
	c := &stunConn{bind: a.bind, via: a, local: a.relayed, in: make(chan stunDatagram, 256), closed: make(chan struct{})}
	a.bind.mu.Lock()
	defer a.bind.mu.Unlock()
	a.bind.legs = append(a.bind.legs, c)
	return c
}

// send relays packets to a peer. What is sent before the channel is bound goes
// after that, in no hurry: its sender repeats it.
func (a *allocation) send(packets [][]byte, to netip.AddrPort) error {
	a.mu.Lock()
	number, known := a.channels[to]
	if !known {
		a.channels[to] = 0
	}
	a.mu.Unlock()
	switch {
	case number != 0:
		return a.frame(packets, number)
	case !known:
		first := append([]byte(nil), packets[0]...)
		a.background(func() {
			ctx, cancel := context.WithTimeout(a.ctx, allocationPatience)
			defer cancel()
			if number, err := a.openChannel(ctx, to); err == nil {
				_ = a.frame([][]byte{first}, number)
			}
		})
	}
	return nil
}

// frame sends packets as ChannelData, without padding (transport T-40).
func (a *allocation) frame(packets [][]byte, number uint16) error {
	framed := make([][]byte, len(packets))
	for i, p := range packets {
		b := make([]byte, channelHeader, channelHeader+len(p))
		binary.BigEndian.PutUint16(b, number)
		binary.BigEndian.PutUint16(b[2:], uint16(len(p)))
		framed[i] = append(b, p...)
	}
	return a.bind.sendDirectly(framed, &conn.StdNetEndpoint{AddrPort: a.server})
}

// openChannel binds a channel to a peer; after an error the next packet tries
// again.
func (a *allocation) openChannel(ctx context.Context, peer netip.AddrPort) (uint16, error) {
	a.mu.Lock()
	number := uint16(firstChannel + len(a.peers))
	if number <= lastChannel {
		a.peers[number] = peer
	}
	a.mu.Unlock()
	err := errors.New("no channel is left")
	if number <= lastChannel {
		err = a.bindChannel(ctx, number, peer)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if err != nil {
		delete(a.channels, peer)
		return 0, err
	}
	a.channels[peer] = number
	return number, nil
}

func (a *allocation) bindChannel(ctx context.Context, number uint16, peer netip.AddrPort) error {
	_, err := a.request(ctx, stun.MethodChannelBind,
		stun.RawAttribute{Type: stun.AttrChannelNumber, Value: []byte{byte(number >> 8), byte(number), 0, 0}},
		peerAddress{IP: peer.Addr().AsSlice(), Port: int(peer.Port())})
	return err
}

// unwrap returns what a datagram from the relay carries, and who sent that.
func (a *allocation) unwrap(b []byte) (payload []byte, peer netip.AddrPort, ok bool) {
	if len(b) < channelHeader || int(binary.BigEndian.Uint16(b[2:])) != len(b)-channelHeader {
		return nil, netip.AddrPort{}, false
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	peer, ok = a.peers[binary.BigEndian.Uint16(b)]
	return b[channelHeader:], peer, ok
}

// renew keeps the allocation and its channels until ctx ends.
func (a *allocation) renew(ctx context.Context) {
	tick := time.NewTicker(renewInterval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		limited, cancel := context.WithTimeout(ctx, allocationPatience)
		// A relay that does not answer is one that checks find dead.
		_, _ = a.request(limited, stun.MethodRefresh)
		a.mu.Lock()
		bound := make(map[netip.AddrPort]uint16, len(a.channels))
		for peer, number := range a.channels {
			bound[peer] = number
		}
		a.mu.Unlock()
		for peer, number := range bound {
			if number != 0 {
				_ = a.bindChannel(limited, number, peer)
			}
		}
		cancel()
	}
}

// request does one transaction, with new attempts where the relay asks for
// credentials or another nonce (transport §4.5).
func (a *allocation) request(ctx context.Context, method stun.Method, attributes ...stun.Setter) (*stun.Message, error) {
	a.requests.Lock()
	defer a.requests.Unlock()
	var refused stun.ErrorCodeAttribute
	for range turnAttempts {
		setters := append([]stun.Setter{stun.TransactionID, stun.NewType(method, stun.ClassRequest)}, attributes...)
		if len(a.nonce) > 0 {
			setters = append(setters, stun.NewUsername(a.username), a.realm, a.nonce,
				stun.NewLongTermIntegrity(a.username, a.realm.String(), a.password))
		}
		m, err := stun.Build(setters...)
		if err != nil {
			return nil, err
		}
		answer, err := transact(ctx, a.control, m, a.server)
		if err != nil {
			return nil, err
		}
		if answer.Type.Class == stun.ClassSuccessResponse {
			return answer, nil
		}
		if err := refused.GetFrom(answer); err != nil {
			return nil, fmt.Errorf("%v: %w", method, err)
		}
		if refused.Code != stun.CodeUnauthorized && refused.Code != stun.CodeStaleNonce {
			break
		}
		if err := errors.Join(a.realm.GetFrom(answer), a.nonce.GetFrom(answer)); err != nil {
			return nil, fmt.Errorf("%v: %w", method, err)
		}
	}
	return nil, fmt.Errorf("%v: refused with %v", method, refused.Code)
}

// transact sends a request until it is answered.
func transact(ctx context.Context, leg *stunConn, m *stun.Message, server netip.AddrPort) (*stun.Message, error) {
	repeat := time.NewTicker(250 * time.Millisecond)
	defer repeat.Stop()
	for {
		if _, err := leg.WriteTo(m.Raw, net.UDPAddrFromAddrPort(server)); err != nil {
			return nil, err
		}
	wait:
		for {
			select {
			case d := <-leg.in:
				answer := &stun.Message{Raw: d.data}
				if answer.Decode() == nil && answer.TransactionID == m.TransactionID {
					return answer, nil
				}
			case <-repeat.C:
				break wait
			case <-leg.closed:
				return nil, net.ErrClosed
			case <-ctx.Done():
				return nil, fmt.Errorf("no answer from relay: %w", ctx.Err())
			}
		}
	}
}

type peerAddress stun.XORMappedAddress

// AddTo implements stun.Setter.
func (p peerAddress) AddTo(m *stun.Message) error {
	return stun.XORMappedAddress(p).AddToAs(m, stun.AttrXORPeerAddress)
}

// allocateAll makes an allocation at each relay, over the first family that the
// client has an address of, and closes allocated.
func (c *Client) allocateAll(ctx context.Context, relays []relay, allocated chan struct{}) {
	defer close(allocated)
	done := map[string]bool{}
	for _, r := range relays {
		for _, own := range c.addresses() {
			if done[r.ID] || own.Is4() != r.Addr.Addr().Is4() {
				continue
			}
			done[r.ID] = true
			a, err := c.allocate(ctx, r, own)
			if err != nil {
				c.log.Debug("allocation", "error", err)
				continue
			}
			c.mu.Lock()
			c.allocations = append(c.allocations, a)
			c.mu.Unlock()
		}
	}
}
