package portal

import (
	"bytes"
	"cmp"
	"slices"
)

// rememberedSends is how many of the messages written last are remembered, for
// their refusal to be understood: as many as can be written in one go.
const rememberedSends = QueueLimit

// outbox holds the application messages of a session: those that wait to be
// written, and the last ones that were.
type outbox struct {
	waiting []queued  // refused ones first, by the ref they had
	written []written // by ref
}

type queued struct {
	event   string
	payload []byte
	refused uint64 // the ref under which it was refused; zero, a join's, if it was not
}

type written struct {
	ref uint64
	queued
}

// add appends a message, or merges it with an exact duplicate that waits. Of
// changes of candidates the last one has to stay the last, so that they are not
// merged across one of the other kind.
func (o *outbox) add(event string, payload []byte) error {
	changes := changesCandidates(event)
	for _, q := range slices.Backward(o.waiting) {
		if q.event == event && bytes.Equal(q.payload, payload) {
			return nil
		}
		if changes && q.event != event && changesCandidates(q.event) {
			break
		}
	}
	if o.room() == 0 {
		return ErrQueueFull
	}
	o.waiting = append(o.waiting, queued{event: event, payload: payload})
	return nil
}

func (o *outbox) room() int { return QueueLimit - len(o.waiting) }

// take removes the next message, which is written with ref.
func (o *outbox) take(ref uint64) queued {
	q := o.waiting[0]
	o.waiting = slices.Delete(o.waiting, 0, 1)
	if len(o.written) == rememberedSends {
		o.written = slices.Delete(o.written, 0, 1)
	}
	w := written{ref, q}
	if !changesCandidates(q.event) {
		w.payload = nil
	}
	o.written = append(o.written, w)
	return q
}

// answered forgets the message that was written with ref and returns it.
func (o *outbox) answered(ref uint64) (w written, ok bool) {
	i, ok := slices.BinarySearchFunc(o.written, ref, func(w written, ref uint64) int { return cmp.Compare(w.ref, ref) })
	if !ok {
		return written{}, false
	}
	w = o.written[i]
	o.written = slices.Delete(o.written, i, i+1)
	return w, true
}

// repeat puts a message that the channel missed in front of all that wait, but
// behind those that were written before it. It does so once for each message,
// only for changes of candidates, which mean the same on every channel, and only
// if there is room.
func (o *outbox) repeat(w written) bool {
	if !changesCandidates(w.event) || w.refused != 0 || o.room() == 0 {
		return false
	}
	w.refused = w.ref
	i := slices.IndexFunc(o.waiting, func(q queued) bool { return q.refused == 0 || q.refused > w.ref })
	if i < 0 {
		i = len(o.waiting)
	}
	o.waiting = slices.Insert(o.waiting, i, w.queued)
	return true
}

func changesCandidates(event string) bool {
	return event == BroadcastICECandidates{}.Event() || event == BroadcastInvalidatedICECandidates{}.Event()
}
