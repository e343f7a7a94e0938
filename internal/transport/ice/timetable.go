package ice

import (
	"container/heap"
	"sync"
	"time"
)

// timetable says which agent has something to do next. An agent is in it once at
// most. All methods may be called concurrently.
type timetable struct {
	mu    sync.Mutex
	rows  rows
	alarm time.Duration // when take is called next, if nobody asks for more
}

// row is the place of an agent in the timetable, embedded in it.
type row struct {
	at    time.Duration
	index int // in rows, -1: not there
}

type rows []*agent

// put enters a, or moves it, and reports whether take has to be called earlier
// than at the time that it returned.
func (t *timetable) put(a *agent, at time.Duration) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	a.row.at = at
	if a.row.index < 0 {
		heap.Push(&t.rows, a)
	} else {
		heap.Fix(&t.rows, a.row.index)
	}
	return at < t.alarm
}

func (t *timetable) remove(a *agent) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if a.row.index >= 0 {
		heap.Remove(&t.rows, a.row.index)
	}
}

// take removes an agent whose time has come, after which it has to be called
// again; if there is none it says when the first one's will.
func (t *timetable) take(now time.Duration) (*agent, time.Duration) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.alarm = never
	if len(t.rows) > 0 {
		t.alarm = t.rows[0].row.at
	}
	if t.alarm > now {
		return nil, t.alarm
	}
	return heap.Pop(&t.rows).(*agent), now
}

func (r rows) Len() int           { return len(r) }
func (r rows) Less(i, j int) bool { return r[i].row.at < r[j].row.at }

func (r rows) Swap(i, j int) {
	r[i], r[j] = r[j], r[i]
	r[i].row.index, r[j].row.index = i, j
}

func (r *rows) Push(x any) {
	a := x.(*agent)
	a.row.index = len(*r)
	*r = append(*r, a)
}

func (r *rows) Pop() any {
	last := len(*r) - 1
	a := (*r)[last]
	(*r)[last], *r = nil, (*r)[:last]
	a.row.index = -1
	return a
}
