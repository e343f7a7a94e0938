package actors

import (
	"hash/fnv"
	"slices"

	"firezone-gateway/internal/transport/ice"
	"firezone-gateway/messages"
)

// Bounds on our own candidates. A gateway has four shared ones as a rule
// (transport §2.3); the rest is room for further relays, and for addresses that
// change while a connection lasts.
const (
	maxShared    = 12 // host and reflexive ones that are offered
	maxSignalled = 24 // remembered as known to one client
)

// offer is what follows from the candidates that exist for what the client
// knows.
type offer struct {
	known []ice.Candidate // what the client knows afterwards
	gone  []ice.Candidate // to take back
	fresh []ice.Candidate // to announce, best first
}

// newOffer compares what a client knows with current. Only relayed candidates
// are ever taken back (T-27): a host or reflexive address that has vanished from
// current may work on, and does when merely the relay that showed it is gone.
// With all set everything current is announced once more (T-28).
func newOffer(known, current []ice.Candidate, all bool) offer {
	var o offer
	for _, k := range known {
		if k.Type == ice.Relay && !contains(current, k) {
			o.gone = append(o.gone, k)
		} else {
			o.known = append(o.known, k)
		}
	}
	for _, c := range current {
		if !contains(o.known, c) {
			o.known = append(o.known, c)
			o.fresh = append(o.fresh, c)
		}
	}
	if all {
		o.fresh = current
	}
	for len(o.known) > maxSignalled {
		// There is one, because current is much smaller.
		i := slices.IndexFunc(o.known, func(k ice.Candidate) bool { return !contains(current, k) })
		o.known = slices.Delete(o.known, i, i+1)
	}
	return o
}

// localCandidates are the shared candidates of all relays and the relayed ones
// of the connection's own (transport §2.3), best first.
func localCandidates(relays messages.RelaysChanged, relayID string) []ice.Candidate {
	var out []ice.Candidate
	for _, r := range relays.Relays {
		for _, s := range r.Shared {
			if !contains(out, s) && len(out) < maxShared {
				out = append(out, s)
			}
		}
	}
	for _, r := range relays.Relays {
		if r.RelayID == relayID {
			for _, a := range r.Relayed {
				out = append(out, ice.Candidate{Type: ice.Relay, Addr: a, Base: r.Server})
			}
		}
	}
	ice.Prioritise(out)
	ice.Sort(out)
	return out
}

func usableRelay(relays messages.RelaysChanged, id string) bool {
	return slices.ContainsFunc(relays.Relays, func(r messages.RelayChanged) bool { return r.RelayID == id && r.Usable })
}

// pickRelay spreads clients over the usable relays; relays that have an
// allocation go first.
func pickRelay(relays messages.RelaysChanged, clientID string) (string, bool) {
	var ready, usable []string
	for _, r := range relays.Relays {
		if r.Usable {
			usable = append(usable, r.RelayID)
			if len(r.Relayed) > 0 {
				ready = append(ready, r.RelayID)
			}
		}
	}
	if len(ready) == 0 {
		ready = usable
	}
	if len(ready) == 0 {
		return "", false
	}
	h := fnv.New32a()
	_, _ = h.Write([]byte(clientID))
	return ready[int(h.Sum32()%uint32(len(ready)))], true
}

func marshal(cs []ice.Candidate, ufrag string) []string {
	out := make([]string, len(cs))
	for i, c := range cs {
		out[i] = c.Marshal(ufrag)
	}
	return out
}

func contains(cs []ice.Candidate, c ice.Candidate) bool {
	return slices.ContainsFunc(cs, func(o ice.Candidate) bool { return o.Key() == c.Key() })
}

func without(cs, gone []ice.Candidate) []ice.Candidate {
	return slices.DeleteFunc(slices.Clone(cs), func(c ice.Candidate) bool { return contains(gone, c) })
}
