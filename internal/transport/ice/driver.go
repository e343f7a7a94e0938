package ice

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	pion "github.com/pion/ice/v2"

	"firezone-gateway/internal/drop"
)

const (
	gatherTimeout = 5 * time.Second
	// minRestart keeps a client that shows ever new addresses from keeping the
	// agent busy with forgetting them.
	minRestart = 10 * time.Second
)

// agent drives the ICE library. Its goroutine is the only one that calls the
// library; what is wanted is written down under mu and done on wake.
type agent struct {
	cfg      Config
	log      *slog.Logger
	view     *view
	lib      *pion.Agent
	ctx      context.Context
	cancel   context.CancelFunc
	wake     chan struct{}
	done     chan struct{}
	gathered chan struct{} // the library has made candidates of all addresses

	mu      sync.Mutex
	pause   time.Duration // between restarts for crowded, minRestart but in tests
	remotes remotes
	added   []Candidate // of remotes, not yet given to the library
	locals  []netip.AddrPort
	restart bool

	crowded atomic.Bool // the view met too many addresses

	selected atomic.Pointer[pair]
	previous atomic.Pointer[pair] // what was selected before a restart
	lastSeen time.Time            // last check on the selected pair; library's task loop only
	punches  []punch              // agent's goroutine only
	tie      [8]byte
}

func newAgent(cfg Config) (*agent, error) {
	log := cfg.Logger
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	a := &agent{
		cfg: cfg, log: log, locals: normalise(cfg.Locals), pause: minRestart,
		wake: make(chan struct{}, 1), done: make(chan struct{}), gathered: make(chan struct{}, 1),
	}
	a.ctx, a.cancel = context.WithCancel(context.Background())
	a.view = newView(cfg.Mux, cfg.LocalUfrag+":"+cfg.RemoteUfrag, cfg.LocalPwd, cfg.RemotePwd, a.locals, a.forgetRemotes)
	a.drawTie()
	err := a.guard(a.create)
	if err != nil {
		a.cancel()
		_ = a.view.Close()
		return nil, fmt.Errorf("ice agent: %w", err)
	}
	go a.run()
	return a, nil
}

func (a *agent) AddRemote(c Candidate) {
	c.Addr = unmap(c.Addr)
	if !Usable(c.Addr) || int(c.Type) >= len(typePreference) {
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.remotes.index(c.Key()) >= 0 {
		return
	}
	if len(a.remotes) == MaxRemotes {
		a.cfg.Mux.drops.Add(drop.CandidateUnusable, 1)
		return
	}
	a.view.unblock(c.Addr)
	a.remotes = append(a.remotes, c)
	a.added = append(a.added, c)
	a.poke()
}

func (a *agent) RemoveRemote(c Candidate) {
	c.Addr = unmap(c.Addr)
	a.mu.Lock()
	defer a.mu.Unlock()
	i := a.remotes.index(c.Key())
	if i < 0 {
		return
	}
	a.remotes = slices.Delete(a.remotes, i, i+1)
	if !a.remotes.hasAddr(c.Addr) {
		a.view.block(c.Addr)
	}
	a.restart = true
	a.poke()
}

func (a *agent) SetLocals(locals []netip.AddrPort) {
	locals = normalise(locals)
	a.mu.Lock()
	defer a.mu.Unlock()
	if slices.Equal(locals, a.locals) {
		return
	}
	a.locals = locals
	a.restart = true
	a.poke()
}

func (a *agent) Close()                { a.cancel() }
func (a *agent) Done() <-chan struct{} { return a.done }

// forgetRemotes asks for a restart, because the library remembers every address
// that a request came from. It runs under the view's lock.
func (a *agent) forgetRemotes() {
	if !a.crowded.Swap(true) {
		a.poke()
	}
}

func (a *agent) poke() {
	select {
	case a.wake <- struct{}{}:
	default:
	}
}

// run is the agent's goroutine.
func (a *agent) run() {
	var accept sync.WaitGroup
	defer close(a.done)
	defer accept.Wait()
	defer func() { _ = a.guard(a.lib.Close) }()
	defer func() { _ = a.view.Close() }()
	defer a.cancel()

	if err := a.guard(a.gather); err != nil {
		a.log.Warn("gathering candidates", "error", err)
	}
	accept.Go(func() {
		_ = a.guard(func() error {
			_, err := a.lib.Accept(a.ctx, a.cfg.RemoteUfrag, a.cfg.RemotePwd)
			return err
		})
	})
	started := time.Now()
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		select {
		case <-a.ctx.Done():
			return
		case <-a.wake:
		case <-timer.C:
		}
		// An agent that is being closed may have left a gathering behind, which a
		// restart would race with.
		if a.ctx.Err() != nil {
			return
		}
		now := time.Now()
		restart, again := a.takeRestart(now, started)
		if restart {
			started = now
			if err := a.guard(a.restartLibrary); err != nil {
				a.log.Warn("restarting the agent", "error", err)
			}
		}
		a.giveRemotes(now)
		next := a.punch(now)
		if again > 0 {
			next = min(next, again)
		}
		timer.Reset(next)
	}
}

// takeRestart reports whether a restart is wanted and allowed; if it is only a
// matter of time, again says when to ask.
func (a *agent) takeRestart(now, last time.Time) (restart bool, again time.Duration) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.crowded.Load() && !a.restart {
		if wait := a.pause - now.Sub(last); wait > 0 {
			return false, wait
		}
		a.restart = true
	}
	restart = a.restart
	if restart {
		a.restart = false
		a.added = slices.Clone(a.remotes)
		a.view.setLocals(a.locals)
	}
	return restart, 0
}

// restartLibrary is the silent restart: the same credentials, new candidates
// (transport §7.3).
func (a *agent) restartLibrary() error {
	if before := a.selected.Swap(nil); before != nil {
		a.previous.Store(before)
	}
	a.view.settled.Store(false)
	defer a.crowded.Store(false)
	if err := a.lib.Restart(a.cfg.LocalUfrag, a.cfg.LocalPwd); err != nil {
		return err
	}
	if err := a.lib.SetRemoteCredentials(a.cfg.RemoteUfrag, a.cfg.RemotePwd); err != nil {
		return err
	}
	return a.gather()
}

// gather makes candidates of the view's addresses and waits until the library
// is through: a restart in the middle would leave it unable to gather again.
func (a *agent) gather() error {
	select {
	case <-a.gathered: // of a gathering that took too long
	default:
	}
	if err := a.lib.GatherCandidates(); err != nil {
		return err
	}
	timeout := time.NewTimer(gatherTimeout)
	defer timeout.Stop()
	select {
	case <-a.gathered:
		return nil
	case <-a.ctx.Done():
		return nil
	case <-timeout.C:
		return context.DeadlineExceeded
	}
}

// giveRemotes hands new candidates to the library.
func (a *agent) giveRemotes(now time.Time) {
	a.mu.Lock()
	added := a.added
	a.added = nil
	a.mu.Unlock()
	for _, c := range added {
		err := a.guard(func() error {
			lc, err := libraryCandidate(c)
			if err != nil {
				return err
			}
			return a.lib.AddRemoteCandidate(lc)
		})
		if err != nil {
			a.log.Debug("adding a remote candidate", "error", err)
			continue
		}
		a.schedulePunch(c.Addr, now)
	}
}
