package actorkit

import "time"

// Timers are the timers of one incarnation of an actor: a field of the actor's
// value, ready to use. Each key names at most one timer. A tick arrives as the
// message that was given; a tick of a timer that was cancelled, armed again,
// or belonged to an earlier incarnation never arrives. All timers end with the
// incarnation.
type Timers struct {
	owner *shell
	byKey map[any]*timer
}

// timer is one arming. Its live flag, which only the actor's turn touches, is
// what makes a tick stale, so each arming is a generation of its own.
type timer struct {
	timers *Timers
	cell   *cell
	key    any
	msg    any
	period time.Duration // zero for one-shot timers
	due    time.Time     // of the next tick, for periodic timers
	live   bool
	clock  *time.Timer
}

// tick is what a timer puts into the mailbox.
type tick struct{ timer *timer }

// After delivers msg after d and replaces the timer of that key.
func (t *Timers) After(ctx Context, key any, d time.Duration, msg any) {
	t.arm(ctx, &timer{key: key, msg: msg}, d)
}

// Every delivers msg after each period d, and replaces the timer of that key.
// A tick that is late delays none of the others, and ticks that were missed
// are skipped. It panics if d is not positive.
func (t *Timers) Every(ctx Context, key any, d time.Duration, msg any) {
	if d <= 0 {
		panic("actorkit: period of a timer must be positive")
	}
	t.arm(ctx, &timer{key: key, msg: msg, period: d, due: time.Now().Add(d)}, d)
}

// Cancel ends the timer of that key, if there is one.
func (t *Timers) Cancel(key any) {
	if old := t.byKey[key]; old != nil {
		old.end()
	}
}

// CancelAll ends all timers.
func (t *Timers) CancelAll() {
	for _, old := range t.byKey {
		old.end()
	}
}

// Armed reports whether the timer of that key is waiting.
func (t *Timers) Armed(key any) bool { return t.byKey[key] != nil }

func (t *Timers) arm(ctx Context, n *timer, d time.Duration) {
	c := ctx.kit()
	if c.current == nil || c.phase() != phaseRunning {
		return
	}
	if t.owner != c.current {
		t.CancelAll()
		t.owner = c.current
		t.byKey = make(map[any]*timer)
		c.timers = append(c.timers, t)
	}
	t.Cancel(n.key)
	n.timers, n.cell, n.live = t, c, true
	t.byKey[n.key] = n
	n.clock = time.AfterFunc(d, func() { c.mailbox.PostUserMessage(&tick{n}) })
}

// fired precedes the handling of a tick. A one-shot timer is over, so that
// its handler may arm the key again.
func (n *timer) fired() {
	if n.period == 0 {
		n.end()
	}
}

// rearm follows the handling of a tick, so that a slow actor never has more
// than one tick of a timer in its mailbox.
func (n *timer) rearm() {
	if !n.live {
		return
	}
	now := time.Now()
	if late := now.Sub(n.due); late >= 0 {
		missed := int64(late/n.period) + 1
		n.due = n.due.Add(time.Duration(missed) * n.period)
	}
	n.clock.Reset(n.due.Sub(now))
}

func (n *timer) end() {
	n.live = false
	n.clock.Stop()
	delete(n.timers.byKey, n.key)
}
