package actorkit

import "github.com/asynkron/protoactor-go/actor"

// Stash sets messages aside, in order, until the actor can handle them. It is
// a field of the actor's value and ends with the incarnation.
type Stash struct {
	limit int
	items []item
}

// NewStash makes a Stash for at most limit messages.
func NewStash(limit int) *Stash { return &Stash{limit: limit} }

// Push sets the message being handled aside, with its sender and its span as
// parent. It reports false when the stash is full, and for lifecycle
// messages, which cannot wait. A message from a Gate has
// given its place back: the stash's own limit bounds it.
func (s *Stash) Push(ctx Context) bool {
	c := ctx.kit()
	if len(s.items) >= s.limit || isLifecycle(c.msg) {
		return false
	}
	kept := c.msg
	header := c.span.headerFor(c.msg)
	if sender := c.Sender(); header != nil || sender != nil {
		kept = &actor.MessageEnvelope{Header: header, Message: c.msg, Sender: sender}
	}
	s.items = append(s.items, item{kept, c.queuedAt})
	return true
}

// Len is the number of messages set aside.
func (s *Stash) Len() int { return len(s.items) }

// Release has all messages handled again, in their order and before those
// that wait in the mailbox.
func (s *Stash) Release(ctx Context) {
	if len(s.items) == 0 {
		return
	}
	ctx.kit().mailbox.prepend(s.items)
	s.items = nil
}

func isLifecycle(msg any) bool {
	switch msg.(type) {
	case *Started, *Stopping, *Stopped, *Restarting, *Terminated, *ChildGaveUp:
		return true
	}
	return false
}
