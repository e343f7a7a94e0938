package actors

import (
	"time"

	"firezone-gateway/internal/actorkit"
)

// rest waits until no actor has anything to do and no goroutine is out.
func (r *modelRun) rest() {
	r.t.Helper()
	eventually(r.t, func() bool {
		before, idle := r.handled()
		// Whoever was in the middle of a message is through after these turns,
		// and what follows from it shows.
		turns := r.turns()
		after, still := r.handled()
		return idle && still && after-before == turns
	}, "the actors rest")
}

// handled counts the messages that were handled, and says whether none waits.
func (r *modelRun) handled() (n uint64, idle bool) {
	stats := r.system.Stats()
	idle = stats.Goroutines == 0
	for _, a := range stats.Actors {
		n += a.Handled
		idle = idle && a.Pending == 0 && a.Phase == "running"
	}
	return n, idle
}

// turns waits for one turn of peers and of each peer, and counts them.
func (r *modelRun) turns() uint64 {
	var pids []actorkit.PID
	r.look(r.pid, func(ctx actorkit.Context) { pids = ctx.Children() })
	for _, pid := range pids {
		done := make(chan struct{})
		r.system.Send(pid, act(func(actorkit.Context) { close(done) }))
		select {
		case <-done:
		case <-time.After(100 * time.Millisecond): // it has just ended
		}
	}
	return uint64(1 + len(pids))
}
