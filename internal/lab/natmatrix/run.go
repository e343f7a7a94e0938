package natmatrix

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"firezone-gateway/internal/lab/resource"
)

// Options choose what is run, and how.
type Options struct {
	Gateway   string // path of the daemon's executable
	TUNDriver string // of the daemon; "" is its default
	LogDir    string // a directory of logs for each cell; "" keeps none

	Cells []Cell
	Jobs  int   // cells at the same time; 0 means 1
	Size  int64 // bytes that each cell downloads
}

// DefaultSize is what a cell downloads, in bytes.
const DefaultSize = 10_000_000

// Result is what came of one cell.
type Result struct {
	Cell
	Theory   Way `json:"theory"`
	Observed Way `json:"observed"` // meaningful when there was a way at all
	// SetUp is from the client's request for access to the answer to its first
	// ping, in milliseconds. Settled is until its packets took the way observed.
	SetUp   float64 `json:"set_up_ms"`
	Settled float64 `json:"settled_ms"`

	Bytes      int64   `json:"bytes"`
	Rate       float64 `json:"bits_per_second"`
	Intact     bool    `json:"intact"`      // the checksums of both ends are equal
	RelayBytes uint64  `json:"relay_bytes"` // that the relay moved during the download

	Seconds float64 `json:"seconds"` // the whole cell, its deployment included
	OK      bool    `json:"ok"`
	Error   string  `json:"error,omitempty"`
}

const (
	cellLimit = 60 * time.Second
	// wayPatience bounds the wait for the way that theory says, or for any. It is
	// longer than the client takes to give up checks (transport §2.7).
	wayPatience  = 20 * time.Second
	pingPatience = 10 * time.Second
	pingRepeat   = 250 * time.Millisecond
	logLines     = 30
)

// Run runs the cells and calls ended, one call at a time, as each ends. Results
// are in the order of the cells; those that were not begun when ctx ended are
// left out.
func Run(ctx context.Context, o Options, ended func(Result)) []Result {
	results := make([]Result, len(o.Cells))
	begun := make([]bool, len(o.Cells))
	next := make(chan int)
	var mu sync.Mutex
	var jobs sync.WaitGroup
	for range max(o.Jobs, 1) {
		jobs.Go(func() {
			for i := range next {
				r := run(ctx, o.Cells[i], o)
				mu.Lock()
				results[i], begun[i] = r, true
				ended(r)
				mu.Unlock()
			}
		})
	}
	for i := range o.Cells {
		select {
		case next <- i:
		case <-ctx.Done():
		}
	}
	close(next)
	jobs.Wait()
	var done []Result
	for i, r := range results {
		if begun[i] {
			done = append(done, r)
		}
	}
	return done
}

// Held reports whether every cell is as theory says.
func Held(results []Result) bool {
	for _, r := range results {
		if !r.OK {
			return false
		}
	}
	return true
}

func run(ctx context.Context, cell Cell, o Options) Result {
	begin := time.Now()
	ctx, cancel := context.WithTimeout(ctx, cellLimit)
	defer cancel()
	r := Result{Cell: cell, Theory: cell.Theory()}
	w, err := newWorld(cell, o)
	if err == nil {
		err = r.measure(ctx, w)
	}
	if err != nil && w.gateway != nil {
		err = fmt.Errorf("%w\n%s", err, strings.Join(w.gateway.Tail(logLines), "\n"))
	}
	err = errors.Join(err, w.close())
	r.Seconds = time.Since(begin).Seconds()
	if err != nil {
		r.Error = err.Error()
	}
	r.OK = err == nil
	return r
}

func (r *Result) measure(ctx context.Context, w *world) error {
	if err := w.ready(ctx); err != nil {
		return err
	}
	if err := w.login(ctx); err != nil {
		return err
	}
	begin := time.Now()
	if err := w.reach(ctx); err != nil {
		return err
	}
	r.SetUp = milliseconds(time.Since(begin))
	if err := r.settle(ctx, w); err != nil {
		return err
	}
	r.Settled = milliseconds(time.Since(begin))

	before := forwarded(w)
	t, err := resource.Download(ctx, w.net.Clients[0].Host, w.server(), w.options.Size, 1)
	if err != nil {
		return err
	}
	r.Bytes, r.Rate, r.Intact, r.RelayBytes = t.Bytes, t.BitsPerSecond(), t.Intact(), forwarded(w)-before
	if !r.Intact || r.Bytes != w.options.Size {
		return fmt.Errorf("%d of %d bytes arrived, sent %s, received %s", r.Bytes, w.options.Size, t.Sent, t.Received)
	}
	return r.judge(w)
}

// reach asks for access and pings the resource until it answers.
func (w *world) reach(ctx context.Context) error {
	limited, cancel := context.WithTimeout(ctx, wayPatience)
	defer cancel()
	if err := w.client.Access(limited, w.files.ID, prefix(w.net.Resource.IPv4)); err != nil {
		return err
	}
	limited, cancel = context.WithTimeout(ctx, pingPatience)
	defer cancel()
	for {
		once, cancel := context.WithTimeout(limited, pingRepeat)
		reply, err := resource.Ping(once, w.net.Clients[0].Host, w.net.Resource.IPv4)
		cancel()
		switch {
		case err == nil && reply.Error == nil:
			return nil
		case limited.Err() != nil:
			return fmt.Errorf("the resource does not answer: %w", limited.Err())
		}
	}
}

// settle waits for the way that theory says. A client that has found one through
// the relay goes on to look for a better one.
func (r *Result) settle(ctx context.Context, w *world) error {
	ctx, cancel := context.WithTimeout(ctx, wayPatience)
	defer cancel()
	err := await(ctx, "", func() bool { return r.observe(w) && r.Observed == r.Theory })
	if err != nil {
		return fmt.Errorf("the way is %v, theory says %v", r.Observed, r.Theory)
	}
	return nil
}

// observe notes the way that the client's packets take; ok is false without one.
func (r *Result) observe(w *world) (ok bool) {
	_, relayed, ok := w.client.Path()
	if ok {
		r.Observed = Direct
		if relayed {
			r.Observed = Relayed
		}
	}
	return ok
}

// judge holds that the download went the way theory says, by the client's and by
// the relay's account.
func (r *Result) judge(w *world) error {
	if r.observe(w); r.Observed != r.Theory {
		return fmt.Errorf("the way became %v, theory says %v", r.Observed, r.Theory)
	}
	if through := r.RelayBytes >= uint64(r.Bytes); through != (r.Theory == Relayed) {
		return fmt.Errorf("the relay moved %d bytes during a %v download of %d", r.RelayBytes, r.Theory, r.Bytes)
	}
	return nil
}

// forwarded returns how many bytes the relay has moved.
func forwarded(w *world) uint64 {
	s := w.relay.Stats()
	return s.ToPeers.Bytes + s.FromPeers.Bytes
}

func milliseconds(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
