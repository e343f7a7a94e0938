package tunnel

import (
	"bytes"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
	"weak"

	"github.com/tailscale/wireguard-go/conn"
	"github.com/tailscale/wireguard-go/device"
	enginetun "github.com/tailscale/wireguard-go/tun"

	"firezone-gateway/internal/drop"
	"firezone-gateway/internal/transport"
)

// clientIdleDeath is how long an idle client waits for a gateway that does not
// answer (transport §2.7).
const clientIdleDeath = 100 * time.Second

// cable joins the gateway's engine and that of one client without sockets, so
// that bubbles of testing/synctest let hours pass at once.
type cable struct {
	path *transport.Path // what both take for the other's address

	mu      sync.Mutex
	gateway *plug
	client  *plug
	sent    []byte // first byte of each message of the gateway
}

// plug is one end of a cable, the Bind of an engine.
type plug struct {
	*cable
	in     chan []byte
	closed chan struct{}

	train atomic.Int32         // how many messages the engine gets at a time, 0: one
	slabs []weak.Pointer[byte] // which the engine received into
}

func newPlug(c *cable) *plug { return &plug{cable: c, in: make(chan []byte, 1024)} }

func (p *plug) Open(uint16) ([]conn.ReceiveFunc, uint16, error) {
	closed := make(chan struct{})
	p.closed = closed
	return []conn.ReceiveFunc{func(slab []byte, packets []conn.ReceivedPacket) (n int, err error) {
		for at := 0; n == 0 || n < int(p.train.Load()); n++ {
			select {
			case b := <-p.in:
				packets[n] = conn.ReceivedPacket{Offset: at, Size: copy(slab[at:], b), Endpoint: p.path}
				at += len(b)
			case <-closed:
				return 0, net.ErrClosed
			}
		}
		p.slabs = append(p.slabs, weak.Make(&slab[0]))
		return n, nil
	}}, 1, nil
}

func (p *plug) Close() error {
	if p.closed != nil {
		close(p.closed)
		p.closed = nil
	}
	return nil
}

func (p *plug) Send(bufs [][]byte, _ conn.Endpoint, offset int) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	to := p.cable.gateway
	if p == to {
		to = p.client
	}
	for _, b := range bufs {
		if p == p.cable.gateway {
			p.sent = append(p.sent, b[offset])
		}
		if to != nil {
			to.in <- bytes.Clone(b[offset:])
		}
	}
	return nil
}

func (p *plug) SetMark(uint32) error                        { return nil }
func (p *plug) ParseEndpoint(string) (conn.Endpoint, error) { return p.path, nil }
func (p *plug) BatchSize() int                              { return batchSize }

// cabledTUN is the device of a client's engine, which waits for the end of events.
type cabledTUN struct {
	gatewayTUN
	events chan enginetun.Event
}

func (d cabledTUN) Events() <-chan enginetun.Event { return d.events }
func (d cabledTUN) Close() error {
	d.once.Do(func() { close(d.closed); close(d.events) })
	return nil
}

// take returns the first bytes of what the gateway sent since it was asked last.
func (c *cable) take() []byte {
	c.mu.Lock()
	defer c.mu.Unlock()
	taken := c.sent
	c.sent = nil
	return taken
}

// unplug has what the gateway sends go nowhere.
func (c *cable) unplug() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.client = nil
}

// newCabledRig is newRig within a bubble. Clients are made by connectCable.
func newCabledRig(t *testing.T) (*rig, *cable) {
	t.Helper()
	silent := slog.New(slog.DiscardHandler)
	r := &rig{tun: newGatewayTUN(), key: newKey(t), lost: make(chan error, 8)}
	peers := new(transport.Peers)
	var err error
	if r.sockets, err = transport.Open(transport.Config{Logger: silent, Peers: peers}); err != nil {
		t.Fatal(err)
	}
	c := &cable{path: r.sockets.Path(netip.Addr{}, netip.MustParseAddrPort("192.0.2.1:1"))}
	c.gateway = newPlug(c)
	r.Tunnel, err = New(Config{
		PrivateKey: [32]byte(r.key.Bytes()), Bind: c.gateway, Peers: peers, Logger: silent,
		OnDeviceLost: func(err error) { r.lost <- err },
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.close)
	r.AttachTUN(r.tun)
	return r, c
}

// plugIn gives client m an engine at the end of the cable, in place of the one
// that was there.
func (c *cable) plugIn(t *testing.T, r *rig, m *remote, psk byte) {
	t.Helper()
	p := newPlug(c)
	tun := newGatewayTUN()
	m.tun = remoteTUN{memoryTUN: tun.memoryTUN}
	engine := device.NewDevice(cabledTUN{tun, make(chan enginetun.Event)}, p, device.NewLogger(device.LogLevelSilent, ""))
	t.Cleanup(engine.Close)
	secret := preshared(psk)
	if err := engine.IpcSet(fmt.Sprintf(
		"private_key=%x\npublic_key=%x\npreshared_key=%x\nendpoint=x\nallowed_ip=0.0.0.0/0\nallowed_ip=::/0\n",
		m.key.Bytes(), r.key.PublicKey().Bytes(), secret[:])); err != nil {
		t.Fatal(err)
	}
	c.mu.Lock()
	c.client = p
	c.mu.Unlock()
	if err := engine.Up(); err != nil {
		t.Fatal(err)
	}
}

// joinCabled admits client 1 and gives it an engine.
func (r *rig) joinCabled(t *testing.T, c *cable) *remote {
	t.Helper()
	m := &remote{n: 1, key: newKey(t), heard: newHeardBy()}
	r.admit(t, m, 1, usualGrants()...)
	c.plugIn(t, r, m, 1)
	return m
}

// settled is long enough for all that follows an exchange: keepalives, and a
// handshake if an engine takes the answer for older than the question.
const settled = time.Minute

func TestT58AnIdleSessionIsSilent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, c := newCabledRig(t)
		m := r.joinCabled(t, c)
		for round := range uint16(3) {
			r.exchange(t, m, round)
			synctest.Wait()
			if got := c.take(); len(got) == 0 {
				t.Fatal("the exchange is not seen")
			}
			time.Sleep(settled)
			c.take()
			time.Sleep(12 * time.Hour)
			synctest.Wait()
			if got := c.take(); len(got) != 0 {
				t.Errorf("messages of types %v while nothing happened", got)
			}
		}
	})
}

// What comes from the network for a client that was idle for longer than a session
// lasts is kept until the client answered the gateway's handshake.
func TestAPacketForAnIdleClientWakesItsSession(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, c := newCabledRig(t)
		m := r.joinCabled(t, c)
		r.exchange(t, m, 1)
		for id, idle := range []time.Duration{190 * time.Second, 5 * time.Minute, 8 * time.Minute} {
			time.Sleep(idle)
			begin, first, second := time.Now(), m.reply(uint16(2*id)), m.reply(uint16(2*id+1))
			r.tun.send(t, first)
			r.tun.send(t, second)
			m.tun.expect(t, first)
			m.tun.expect(t, second)
			if took := time.Since(begin); took > time.Second {
				t.Errorf("after %v it took %v", idle, took)
			}
		}
		wantDrops(t, "client", m.client.Drops(), nil)

		time.Sleep(time.Hour) // the keys are wiped, and the client counts as gone
		r.tun.send(t, m.reply(1))
		synctest.Wait()
		wantDrops(t, "client", m.client.Drops(), map[drop.Reason]uint64{drop.NotConnected: 1})
	})
}

func TestT56NothingIsSentToAClientThatWasNotHeard(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, c := newCabledRig(t)
		m := &remote{n: 1, key: newKey(t), heard: newHeardBy()}
		r.admit(t, m, 1, usualGrants()...)
		for id := range uint16(10) {
			r.tun.send(t, m.reply(id))
			time.Sleep(time.Minute)
		}
		if got := c.take(); len(got) != 0 {
			t.Errorf("messages of types %v", got)
		}
		if got := m.client.Drops().Load(drop.NotConnected); got != 10 {
			t.Errorf("%d packets dropped", got)
		}
		c.plugIn(t, r, m, 1)
		r.exchange(t, m, 1)
	})
}

// TestT30AClientThatLostItsStateComesBack has the client's engine replaced by a
// fresh one with the same keys, while the gateway's session lives and later.
func TestT30AClientThatLostItsStateComesBack(t *testing.T) {
	for name, pause := range map[string]time.Duration{
		"at once": 0, "after ten seconds": 10 * time.Second, "when its session has expired": 5 * time.Minute,
		"when its session was wiped": time.Hour,
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r, c := newCabledRig(t)
				m := r.joinCabled(t, c)
				client := m.client
				for round := range uint16(3) {
					r.exchange(t, m, round)
					c.unplug()
					r.tun.send(t, m.reply(99)) // is lost
					time.Sleep(time.Second + pause)
					c.plugIn(t, r, m, 1)
				}
				r.exchange(t, m, 4)
				if now, ok := r.Lookup(client.PublicKey()); !ok || now != client || client.Session() != SessionEstablished {
					t.Errorf("the client is another one, or its session is %v", client.Session())
				}
			})
		})
	}
}

// TestT34ASessionOutlivesTheClientsPatience is about the engine; the agent has a
// test of its own.
func TestT34ASessionOutlivesTheClientsPatience(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, c := newCabledRig(t)
		m := r.joinCabled(t, c)
		r.exchange(t, m, 1)
		c.unplug()
		heard := time.Now()
		ended := func() time.Duration {
			for m.client.Session() != SessionNone {
				time.Sleep(time.Second)
				if time.Since(heard) > time.Hour {
					t.Fatal("the session never ends")
				}
			}
			return time.Since(heard)
		}()
		if ended < clientIdleDeath {
			t.Errorf("given up after %v", ended)
		}
		t.Logf("the session ends after %v", ended)
	})
}
