package portal

import "slices"

// Bounds of a Backlog.
const (
	BacklogClients    = 4096 // clients with pending changes
	BacklogCandidates = 64   // pending changes of one client
)

// Backlog holds changes of local ICE candidates while no joined connection can
// carry them (§1.8, rule 40). It keeps the net change only: taking back a
// candidate that was never sent sends nothing, and announcing one again cancels
// a withdrawal that was never sent. The zero value is empty and ready.
type Backlog struct {
	order   []string // client ids in order of their first change
	clients map[string]*change
}

type change struct {
	add, remove []string
}

// Announce records candidates of one client, highest priority first. It returns
// how many were left out because a bound was reached.
func (b *Backlog) Announce(clientID string, candidates []string) (dropped int) {
	c := b.of(clientID)
	if c == nil {
		return len(candidates)
	}
	return move(&c.add, &c.remove, candidates)
}

// Withdraw records that candidates of one client are no longer valid. It returns
// how many were left out because a bound was reached.
func (b *Backlog) Withdraw(clientID string, candidates []string) (dropped int) {
	c := b.of(clientID)
	if c == nil {
		return len(candidates)
	}
	return move(&c.remove, &c.add, candidates)
}

// Empty reports whether nothing is held.
func (b *Backlog) Empty() bool { return len(b.order) == 0 }

// Next takes the changes of the client that waits longest and returns them as
// messages, two at most, its withdrawals before its announcements. It returns
// none when b is empty; changes that cancelled out are skipped.
func (b *Backlog) Next() []Outgoing {
	for len(b.order) > 0 {
		id := b.order[0]
		c := b.clients[id]
		b.order = b.order[1:]
		delete(b.clients, id)
		var out []Outgoing
		if len(c.remove) > 0 {
			out = append(out, BroadcastInvalidatedICECandidates{ClientIDs: []string{id}, Candidates: c.remove})
		}
		if len(c.add) > 0 {
			out = append(out, BroadcastICECandidates{ClientIDs: []string{id}, Candidates: c.add})
		}
		if len(out) > 0 {
			return out
		}
	}
	return nil
}

func (b *Backlog) of(clientID string) *change {
	if c, ok := b.clients[clientID]; ok {
		return c
	}
	if len(b.order) >= BacklogClients {
		return nil
	}
	if b.clients == nil {
		b.clients = make(map[string]*change)
	}
	c := &change{}
	b.clients[clientID] = c
	b.order = append(b.order, clientID)
	return c
}

// move takes each candidate out of from, where the two changes cancel out, or
// else puts it into to.
func move(to, from *[]string, candidates []string) (dropped int) {
	for _, s := range candidates {
		if i := slices.Index(*from, s); i >= 0 {
			*from = slices.Delete(*from, i, i+1)
			continue
		}
		if slices.Contains(*to, s) {
			continue
		}
		if len(*to) >= BacklogCandidates {
			dropped++
			continue
		}
		*to = append(*to, s)
	}
	return dropped
}
