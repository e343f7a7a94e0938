package chaos

import (
	"context"
	"encoding/binary"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"firezone-gateway/internal/lab/resource"
)

const (
	echoSize = 200 // bytes of payload
	// late is when an echo counts as lost, though it may still come.
	late = time.Second
	// catchUp is how many datagrams may leave back to back after the machine kept
	// the sender waiting.
	catchUp = 8
	// disturbed is how late an echo of the control flow, or the sender itself, has
	// to be for the machine to be the cause of what happens meanwhile.
	disturbed = 100 * time.Millisecond
)

// echoFlow sends datagrams to an echo service at an even pace and accounts for
// each of them.
type echoFlow struct {
	begin time.Time
	pace  time.Duration

	mu    sync.Mutex
	sent  []time.Duration // since begin; guarded by mu
	trips []time.Duration // 0: not back; guarded by mu
}

// Echo is what came of a flow of datagrams.
type Echo struct {
	Sent int `json:"sent"`
	// Lost did not come back within a second.
	Lost int `json:"lost"`
	// Excused are those among the lost that the control flow, which does not
	// go through the gateway, has lost at the same time, or had to wait for.
	Excused int     `json:"excused"`
	Late    int     `json:"late"` // among the lost: came after all
	Median  float64 `json:"rtt_median_ms"`
	P99     float64 `json:"rtt_p99_ms"`
	Max     float64 `json:"rtt_max_ms"` // of those that came back in time
	// Stall is the longest time during which nothing that was sent came back.
	Stall float64 `json:"longest_stall_ms"`
}

// Share returns how much of what was sent is lost without excuse.
func (e Echo) Share() float64 { return float64(e.Lost-e.Excused) / float64(max(e.Sent, 1)) }

// startEcho sends from ctx's begin to its end; the function returned waits for
// the last echoes.
func startEcho(ctx context.Context, n resource.Network, to netip.AddrPort, perSecond int) (*echoFlow, func(), error) {
	conn, err := n.DialContext(ctx, "udp", to.String())
	if err != nil {
		return nil, nil, err
	}
	if udp, ok := conn.(*net.UDPConn); ok {
		_ = udp.SetReadBuffer(1 << 20) // refusal costs capacity, not correctness
	}
	f := &echoFlow{begin: time.Now(), pace: time.Second / time.Duration(perSecond)}
	var running sync.WaitGroup
	running.Go(func() { f.receive(conn) })
	running.Go(func() {
		f.send(ctx, conn)
		// Those that are on their way.
		time.Sleep(late)
		conn.Close()
	})
	return f, running.Wait, nil
}

func (f *echoFlow) send(ctx context.Context, conn net.Conn) {
	packet := make([]byte, echoSize)
	next, burst := time.Duration(0), 0
	for ctx.Err() == nil {
		now := time.Since(f.begin)
		if wait := next - now; wait > 0 {
			burst = 0
			time.Sleep(wait)
			continue
		}
		if burst++; burst > catchUp {
			next, burst = now, 0 // what was missed is not sent at all
		}
		next += f.pace
		f.mu.Lock()
		number := len(f.sent)
		f.sent = append(f.sent, now)
		f.trips = append(f.trips, 0)
		f.mu.Unlock()
		binary.LittleEndian.PutUint64(packet, uint64(number))
		if _, err := conn.Write(packet); err != nil {
			// The error is about an earlier datagram. A second one loses this.
			_, _ = conn.Write(packet)
		}
	}
}

func (f *echoFlow) receive(conn net.Conn) {
	buffer := make([]byte, 2*echoSize)
	for {
		n, err := conn.Read(buffer)
		switch {
		case err == nil && n == echoSize:
			f.back(binary.LittleEndian.Uint64(buffer))
		case err != nil && closed(err):
			return
		}
	}
}

func (f *echoFlow) back(number uint64) {
	now := time.Since(f.begin)
	f.mu.Lock()
	defer f.mu.Unlock()
	if number < uint64(len(f.sent)) && f.trips[number] == 0 {
		f.trips[number] = max(now-f.sent[number], 1)
	}
}

// span is a time during which the machine did not do what it should.
type span struct{ from, to time.Time }

// disturbances returns when the machine kept the flow or its sender waiting.
func (f *echoFlow) disturbances() []span {
	f.mu.Lock()
	defer f.mu.Unlock()
	var spans []span
	add := func(from, to time.Duration) {
		s := span{f.begin.Add(from - disturbed), f.begin.Add(to + disturbed)}
		if n := len(spans); n > 0 && !s.from.After(spans[n-1].to) {
			s.from = spans[n-1].from
			spans = spans[:n-1]
		}
		spans = append(spans, s)
	}
	for i, sent := range f.sent {
		if i > 0 && sent-f.sent[i-1] > f.pace+disturbed {
			add(f.sent[i-1], sent)
		}
		switch trip := f.trips[i]; {
		case trip == 0:
			add(sent, sent+late)
		case trip > disturbed:
			add(sent, sent+trip)
		}
	}
	return spans
}

// account sums the flow up. Losses within the given spans are excused.
func (f *echoFlow) account(spans []span) Echo {
	spans = append(spans, f.gaps()...)
	f.mu.Lock()
	defer f.mu.Unlock()
	e := Echo{Sent: len(f.sent)}
	var times, arrivals []time.Duration
	for i, sent := range f.sent {
		trip := f.trips[i]
		if trip > 0 {
			arrivals = append(arrivals, sent+trip)
		}
		if trip > 0 && trip <= late {
			times = append(times, trip)
			continue
		}
		e.Lost++
		if trip > 0 {
			e.Late++
		}
		at := f.begin.Add(sent)
		if slices.ContainsFunc(spans, func(s span) bool { return !at.Before(s.from) && !at.After(s.to) }) {
			e.Excused++
		}
	}
	if len(times) > 0 {
		slices.Sort(times)
		e.Median, e.P99, e.Max = ms(times[len(times)/2]), ms(times[len(times)*99/100]), ms(times[len(times)-1])
	}
	e.Stall = ms(longestStall(f.sent, arrivals))
	return e
}

// gaps returns when the sender itself was kept waiting.
func (f *echoFlow) gaps() []span {
	f.mu.Lock()
	defer f.mu.Unlock()
	var spans []span
	for i := 1; i < len(f.sent); i++ {
		if f.sent[i]-f.sent[i-1] > f.pace+disturbed {
			spans = append(spans, span{f.begin.Add(f.sent[i-1] - disturbed), f.begin.Add(f.sent[i] + disturbed)})
		}
	}
	return spans
}

// longestStall returns the longest time without an arrival while there was
// something to arrive. sent is in order.
func longestStall(sent, arrivals []time.Duration) (longest time.Duration) {
	if len(sent) == 0 {
		return 0
	}
	slices.Sort(arrivals)
	last, next := sent[0], 0
	for _, at := range append(arrivals, sent[len(sent)-1]) {
		// The wait begins with the first datagram after the last arrival.
		for next < len(sent) && sent[next] < last {
			next++
		}
		if next < len(sent) {
			longest = max(longest, at-max(last, sent[next]))
		}
		last = max(last, at)
	}
	return longest
}

func ms(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
