package dns

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"time"

	"github.com/miekg/dns"
)

// exchange is one query on its way to several name servers. All but what the
// attempts do runs on one goroutine.
type exchange struct {
	u       *Upstreams
	health  *health // guarded by u.mu
	ctx     context.Context
	query   *dns.Msg
	wire    []byte
	overTCP bool

	schedule schedule
	attempts []attempt
	waiting  int           // attempts that have not ended
	delay    time.Duration // between the last attempt and the next
	outcomes chan outcome
	running  sync.WaitGroup
}

// attempt is one sending of the query to one server.
type attempt struct {
	server netip.Addr
	began  time.Time
	ended  bool
}

// outcome is how an attempt ended.
type outcome struct {
	attempt int // index in exchange.attempts
	reply   reply
	err     error
}

// run returns the first answer that is not a refusal, or if there is none the
// first refusal.
func (x *exchange) run() (reply, error) {
	x.begin()
	timer := time.NewTimer(x.delay)
	defer timer.Stop()
	var refused reply
	err := errUnanswered
	for x.waiting > 0 {
		select {
		case <-timer.C:
		case o := <-x.outcomes:
			x.judge(o)
			switch {
			case o.err != nil:
				err = fmt.Errorf("%w: %w", errUnanswered, o.err)
			case !refusal(o.reply.msg):
				return o.reply, nil
			case refused.msg == nil:
				refused = o.reply
			}
		case <-x.ctx.Done():
			x.abandon()
			return refused.or(fmt.Errorf("%w: %w", errUnanswered, x.ctx.Err()))
		}
		x.send()
		timer.Reset(x.delay)
	}
	return refused.or(err)
}

// or returns the reply, or err if there is none.
func (r reply) or(err error) (reply, error) {
	if r.msg == nil {
		return reply{}, err
	}
	return r, nil
}

func (x *exchange) begin() {
	x.u.mu.Lock()
	x.schedule = schedule{servers: x.health.order(time.Now()), repeat: !x.overTCP}
	x.u.mu.Unlock()
	x.send()
}

// send starts the next attempt, if there is one. Without answers the pauses
// become longer.
func (x *exchange) send() {
	server, ok := x.schedule.take()
	if !ok {
		return
	}
	now := time.Now()
	x.u.mu.Lock()
	x.delay = min(max(x.health.hedge(server, now), 2*x.delay), hedgeMax)
	x.u.mu.Unlock()
	index := len(x.attempts)
	x.attempts = append(x.attempts, attempt{server: server, began: now})
	x.waiting++
	x.running.Go(func() {
		r, err := x.u.attempt(x.ctx, netip.AddrPortFrom(server, x.u.port), x.query, x.wire, x.overTCP)
		if err != nil && x.ctx.Err() != nil {
			return // of no interest any more, and no fault of the server
		}
		select {
		case x.outcomes <- outcome{index, r, err}:
		case <-x.ctx.Done():
		}
	})
}

// judge notes that an attempt ended and tells health what that says about its
// server, and about those that were asked before.
func (x *exchange) judge(o outcome) {
	a := &x.attempts[o.attempt]
	a.ended = true
	x.waiting--
	now := time.Now()
	x.u.measured.attempt(x.overTCP, o.reply, o.err, now.Sub(a.began))
	x.u.mu.Lock()
	defer x.u.mu.Unlock()
	switch {
	case o.err != nil || o.reply.msg.Rcode == dns.RcodeRefused:
		x.health.failed(a.server, now)
	case !refusal(o.reply.msg):
		x.health.answered(a.server, now.Sub(a.began), now)
		x.overtake(a, now)
		return
	}
	x.schedule.failed(a.server)
}

// overtake tells health who was asked before a and has not answered.
func (x *exchange) overtake(a *attempt, now time.Time) {
	for _, other := range x.attempts {
		if !other.ended && other.server != a.server && other.began.Before(a.began) {
			x.health.overtaken(other.server, now.Sub(other.began), now)
		}
	}
}

// abandon tells health who had not answered when time was up. A query that its
// sender gave up says nothing.
func (x *exchange) abandon() {
	if !errors.Is(x.ctx.Err(), context.DeadlineExceeded) {
		return
	}
	now := time.Now()
	x.u.mu.Lock()
	defer x.u.mu.Unlock()
	for _, a := range x.attempts {
		if !a.ended {
			x.u.measured.attempt(x.overTCP, reply{}, context.DeadlineExceeded, now.Sub(a.began))
			x.health.failed(a.server, now)
		}
	}
}
