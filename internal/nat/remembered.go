package nat

// queue holds ended sessions, the oldest first. Those that were forgotten
// early, because their outside was taken again, stay in it until they are the
// oldest.
type queue struct {
	sessions []*session
	first    int

	pushed, popped uint64 // ever
	marks          []mark // the oldest first
}

// mark says how many sessions had ever been pushed at a time.
type mark struct {
	at     int64
	pushed uint64
}

// push appends s and returns the session to forget for it, nil if there is
// none. The queue never holds more than limit sessions.
func (q *queue) push(s *session, limit int) *session {
	var oldest *session
	if len(q.sessions)-q.first >= limit {
		oldest = q.pop()
	}
	if q.first > 0 && len(q.sessions) == cap(q.sessions) {
		n := copy(q.sessions, q.sessions[q.first:])
		clear(q.sessions[n:])
		q.sessions, q.first = q.sessions[:n], 0
	}
	q.sessions = append(q.sessions, s)
	q.pushed++
	return oldest
}

// pop removes the oldest session, and returns it unless it was forgotten early.
func (q *queue) pop() *session {
	s := q.sessions[q.first]
	q.sessions[q.first] = nil
	q.first++
	q.popped++
	if q.first == len(q.sessions) {
		q.sessions, q.first = q.sessions[:0], 0
	}
	if s.state.Load()&forgotten != 0 {
		return nil
	}
	return s
}

// note sets a mark for what was pushed since the last one.
func (q *queue) note(now int64) {
	if n := len(q.marks); q.pushed > q.popped && (n == 0 || q.marks[n-1].pushed < q.pushed) {
		q.marks = append(q.marks, mark{now, q.pushed})
	}
}

// stale calls forget for the sessions that were pushed before a mark which is
// not younger than age.
func (q *queue) stale(now, age int64, forget func(*session)) {
	due := 0
	for due < len(q.marks) && now-q.marks[due].at >= age {
		for q.popped < q.marks[due].pushed {
			if s := q.pop(); s != nil {
				forget(s)
			}
		}
		due++
	}
	if due > 0 {
		q.marks = append(q.marks[:0], q.marks[due:]...)
	}
}
