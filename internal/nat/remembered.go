package nat

// queue holds ended sessions, the oldest first. Those that were forgotten
// early, because their outside was taken again, stay in it until they are the
// oldest.
type queue struct {
	sessions []*session
	first    int
}

// push appends s and returns the session to forget for it, nil if there is
// none. The queue never holds more than limit sessions.
func (q *queue) push(s *session, limit int) *session {
	var oldest *session
	if len(q.sessions)-q.first >= limit {
		oldest = q.sessions[q.first]
		q.sessions[q.first] = nil
		q.first++
		if oldest.state.Load()&forgotten != 0 {
			oldest = nil
		}
	}
	if q.first > 0 && len(q.sessions) == cap(q.sessions) {
		n := copy(q.sessions, q.sessions[q.first:])
		clear(q.sessions[n:])
		q.sessions, q.first = q.sessions[:n], 0
	}
	q.sessions = append(q.sessions, s)
	return oldest
}
