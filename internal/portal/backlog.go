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

// Forget removes what is held for one client.
func (b *Backlog) Forget(clientID string) {
	delete(b.clients, clientID)
	if i := slices.Index(b.order, clientID); i >= 0 {
		b.order = slices.Delete(b.order, i, i+1)
	}
}

// Drain empties b and returns the messages that bring the portal up to date,
// withdrawals of a client before its announcements.
func (b *Backlog) Drain() []Outgoing {
	var out []Outgoing
	for _, id := range b.order {
		c := b.clients[id]
		if len(c.remove) > 0 {
			out = append(out, BroadcastInvalidatedICECandidates{ClientIDs: []string{id}, Candidates: c.remove})
		}
		if len(c.add) > 0 {
			out = append(out, BroadcastICECandidates{ClientIDs: []string{id}, Candidates: c.add})
		}
	}
	b.order, b.clients = nil, nil
	return out
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
