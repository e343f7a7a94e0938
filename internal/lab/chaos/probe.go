package chaos

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"sync"
	"time"

	labnet "firezone-gateway/internal/lab/net"
	"firezone-gateway/internal/lab/resource"
)

const (
	probePort   = 4000
	probePace   = 20 * time.Millisecond // below the rate of ICMP answers
	probeSize   = 64
	pingWait    = 200 * time.Millisecond
	pingPause   = 20 * time.Millisecond
	usePatience = 10 * time.Second
)

// probe sends datagrams from a client to one private address without a pause, and
// knows for each that arrives when it was sent. One that was sent and arrives while
// that is forbidden is a leak.
type probe struct {
	name string
	at   netip.Addr

	mu        sync.Mutex
	sent      int
	arrived   int
	latest    time.Time  // sending of the latest that arrived
	forbidden []interval // the last one may have no end yet
	leaks     []time.Time
}

type interval struct{ from, to time.Time }

// contains reports whether something was sent and arrived in the interval. What
// arrives after its end may have waited on the way, and passed then.
func (i interval) contains(sent, arrived time.Time) bool {
	return sent.After(i.from) && (i.to.IsZero() || arrived.Before(i.to))
}

// Access is what came of a probe.
type Access struct {
	Sent    int `json:"sent"`
	Arrived int `json:"arrived"`
	Leaks   int `json:"leaks"` // arrived though they were sent while it was forbidden
}

// start sends until ctx ends; the function returned waits for the end.
func (p *probe) start(ctx context.Context, from, site *labnet.Namespace) (func(), error) {
	to := netip.AddrPortFrom(p.at, probePort)
	receiver, err := site.ListenUDP(to)
	if err != nil {
		return nil, err
	}
	conn, err := from.DialContext(ctx, "udp", to.String())
	if err != nil {
		return nil, errors.Join(err, receiver.Close())
	}
	var running sync.WaitGroup
	running.Go(func() { p.receive(receiver) })
	running.Go(func() {
		p.send(ctx, conn)
		conn.Close()
		time.Sleep(pingWait) // what is on its way
		receiver.Close()
	})
	return running.Wait, nil
}

func (p *probe) send(ctx context.Context, conn net.Conn) {
	tick := time.NewTicker(probePace)
	defer tick.Stop()
	packet := make([]byte, probeSize)
	for ctx.Err() == nil {
		binary.LittleEndian.PutUint64(packet, uint64(time.Now().UnixNano()))
		_, _ = conn.Write(packet) // the errors are about refusals, which are what is wanted
		p.mu.Lock()
		p.sent++
		p.mu.Unlock()
		select {
		case <-tick.C:
		case <-ctx.Done():
		}
	}
}

func (p *probe) receive(conn *net.UDPConn) {
	buffer := make([]byte, 2*probeSize)
	for {
		n, err := conn.Read(buffer)
		switch {
		case err == nil && n == probeSize:
			p.note(time.Unix(0, int64(binary.LittleEndian.Uint64(buffer))), time.Now())
		case err != nil && closed(err):
			return
		}
	}
}

func (p *probe) note(sent, arrived time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.arrived++
	if sent.After(p.latest) {
		p.latest = sent
	}
	for _, f := range p.forbidden {
		if f.contains(sent, arrived) {
			p.leaks = append(p.leaks, sent)
			return
		}
	}
}

// forbid says that nothing may arrive of what is sent from now on.
func (p *probe) forbid() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.forbidden = append(p.forbidden, interval{from: time.Now()})
}

// admit ends that.
func (p *probe) admit() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if n := len(p.forbidden); n > 0 {
		p.forbidden[n-1].to = time.Now()
	}
}

// passes reports whether a datagram arrived that was sent after t.
func (p *probe) passes(t time.Time) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.latest.After(t)
}

func (p *probe) account() Access {
	p.mu.Lock()
	defer p.mu.Unlock()
	return Access{Sent: p.sent, Arrived: p.arrived, Leaks: len(p.leaks)}
}

// Cycles is what came of granting and revoking a resource again and again.
type Cycles struct {
	Done int `json:"done"`
	// Retried counts requests for access that had to be made again.
	Retried int `json:"access_retried"`
	// Slowest is the longest time from a revocation to its effect.
	Slowest float64 `json:"slowest_revocation_ms"`
	// SlowestAccess is the longest time from a request to the first packet.
	SlowestAccess float64 `json:"slowest_access_ms"`
	Error         string  `json:"error,omitempty"`
}

// revocationLimit is how long a revocation may take while everything fails: a
// portal actor that has to join again learns of it from the init that follows.
const revocationLimit = 5 * time.Second

// cycle grants, uses and revokes a resource until ctx ends. Between the moment
// that a revocation is seen in force and the next grant nothing may pass.
func (w *world) cycle(ctx context.Context, p *probe, chance *rand.Rand) (c Cycles) {
	p.forbid()
	for ctx.Err() == nil {
		begin := time.Now()
		p.admit()
		if err := w.portal.Grant("", w.cycled.ID, longAccess); err != nil {
			c.Error = err.Error()
			return c
		}
		retries, err := w.use(ctx, p, w.cycled.ID)
		c.Retried += retries
		if ctx.Err() != nil {
			return c
		}
		if err != nil {
			c.Error = err.Error()
			return c
		}
		c.SlowestAccess = max(c.SlowestAccess, ms(time.Since(begin)))
		// Not in step with the faults.
		_ = pause(ctx, time.Duration(chance.IntN(200))*time.Millisecond)
		revoked := time.Now()
		if err := w.portal.Revoke("", w.cycled.ID); err != nil {
			c.Error = err.Error()
			return c
		}
		refused, err := w.untilRefused(ctx, p.at)
		if ctx.Err() != nil {
			return c
		}
		if err != nil {
			c.Error = err.Error()
			return c
		}
		p.forbid()
		c.Slowest = max(c.Slowest, ms(refused.Sub(revoked)))
		c.Done++
		_ = pause(ctx, time.Duration(500+chance.IntN(1000))*time.Millisecond)
	}
	return c
}

// use asks for a resource until its probe passes.
func (w *world) use(ctx context.Context, p *probe, id string) (retries int, err error) {
	begin := time.Now()
	for {
		limited, cancel := context.WithTimeout(ctx, 2*time.Second)
		err := w.clients[0].Access(limited, id, private)
		if err == nil {
			err = await(limited, func() bool { return p.passes(begin) })
		}
		cancel()
		switch {
		case err == nil:
			return retries, nil
		case ctx.Err() != nil:
			return retries, ctx.Err()
		case time.Since(begin) > usePatience+w.slack():
			return retries, fmt.Errorf("no access to %s for %v: %w", p.name, usePatience+w.slack(), err)
		}
		retries++
		_ = pause(ctx, 100*time.Millisecond)
	}
}

// untilRefused repeats echo requests until one is refused as prohibited.
func (w *world) untilRefused(ctx context.Context, at netip.Addr) (time.Time, error) {
	begin := time.Now()
	for {
		limited, cancel := context.WithTimeout(ctx, pingWait)
		reply, err := resource.Ping(limited, w.host(0), at)
		cancel()
		switch {
		case err == nil && reply.Error != nil && reply.Error.Prohibited():
			return time.Now(), nil
		case ctx.Err() != nil:
			return time.Time{}, ctx.Err()
		case time.Since(begin) > revocationLimit+w.slack():
			return time.Time{}, fmt.Errorf("a revocation had no effect within %v", revocationLimit+w.slack())
		}
		_ = pause(ctx, pingPause)
	}
}

// awaitPing repeats echo requests of client i until one is answered.
func (w *world) awaitPing(ctx context.Context, i int, at netip.Addr) error {
	for {
		limited, cancel := context.WithTimeout(ctx, pingWait)
		reply, err := resource.Ping(limited, w.host(i), at)
		cancel()
		switch {
		case err == nil && reply.Error == nil:
			return nil
		case ctx.Err() != nil:
			return fmt.Errorf("%s: no traffic: %w", clientID(i), context.Cause(ctx))
		}
		_ = pause(ctx, pingPause)
	}
}
