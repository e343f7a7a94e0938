package actors

import (
	"maps"
	"slices"
	"sync"
)

// inbox holds what peers has passed on about grants and clients' actors have not
// begun to handle: when peers fails, its children end, and their mailboxes with
// them. A revocation must not.
type inbox struct {
	mu sync.Mutex
	m  map[string]*box
}

// box is about one client: what its actor has set aside, and then what waits in its
// mailbox, in order.
type box struct{ held, queued []any }

func newInbox() *inbox { return &inbox{m: map[string]*box{}} }

// push adds a message that is sent to the actor of a client.
func (i *inbox) push(id string, msg any) {
	i.mu.Lock()
	defer i.mu.Unlock()
	b := i.box(id)
	b.queued = append(b.queued, msg)
}

// begin takes the first message out, because its actor begins to handle it. One that
// fails in that does not get it again.
func (i *inbox) begin(id string) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if b := i.m[id]; b != nil && len(b.queued) > 0 {
		b.queued = b.queued[1:]
		i.tidy(id)
	}
}

// hold notes that the actor has set aside the message it had begun.
func (i *inbox) hold(id string, msg any) {
	i.mu.Lock()
	defer i.mu.Unlock()
	b := i.box(id)
	b.held = append(b.held, msg)
}

// release notes that what was set aside comes again, before the rest.
func (i *inbox) release(id string) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if b := i.m[id]; b != nil {
		b.queued, b.held = slices.Concat(b.held, b.queued), nil
	}
}

// lost takes out what an incarnation of the actor had set aside, which went with it.
func (i *inbox) lost(id string) []any {
	i.mu.Lock()
	defer i.mu.Unlock()
	b := i.m[id]
	if b == nil {
		return nil
	}
	held := b.held
	b.held = nil
	i.tidy(id)
	return held
}

// all returns everything about a client, which from now on waits to be begun.
func (i *inbox) all(id string) []any {
	i.release(id)
	i.mu.Lock()
	defer i.mu.Unlock()
	if b := i.m[id]; b != nil {
		return slices.Clone(b.queued)
	}
	return nil
}

func (i *inbox) delete(id string) {
	i.mu.Lock()
	defer i.mu.Unlock()
	delete(i.m, id)
}

func (i *inbox) clear() {
	i.mu.Lock()
	defer i.mu.Unlock()
	clear(i.m)
}

func (i *inbox) ids() []string {
	i.mu.Lock()
	defer i.mu.Unlock()
	return slices.Sorted(maps.Keys(i.m))
}

// box returns that of a client. The caller holds mu.
func (i *inbox) box(id string) *box {
	b := i.m[id]
	if b == nil {
		b = &box{}
		i.m[id] = b
	}
	return b
}

// tidy lets go of an empty box. The caller holds mu.
func (i *inbox) tidy(id string) {
	if b := i.m[id]; len(b.held)+len(b.queued) == 0 {
		delete(i.m, id)
	}
}
