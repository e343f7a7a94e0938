package portal

import (
	"context"
	"slices"
	"sync"
	"time"
)

// EventKind names what happened.
type EventKind string

// The kinds of events.
const (
	ConnectRefused EventKind = "connect_refused" // Status, Detail: the error's code
	PeerConnected  EventKind = "peer_connected"  // websocket is open
	PeerJoined     EventKind = "peer_joined"     // topic joined, init pushed
	PeerLeft       EventKind = "peer_left"       // Status: close code sent by the peer, 0 for none
	Heartbeat      EventKind = "heartbeat"
	Capabilities   EventKind = "capabilities" // Detail: "iceless" or ""
	NoRelays       EventKind = "no_relays"
	UnknownMessage EventKind = "unknown_message" // Detail: the event's name

	AuthorizationRequested EventKind = "authorization_requested" // by a client
	AuthorizationPushed    EventKind = "authorization_pushed"    // queued for the gateway; Detail: the event's name, for Config.Legacy
	AuthorizationAcked     EventKind = "authorization_acked"     // by the gateway
	AuthorizationGranted   EventKind = "authorization_granted"   // queued for the client
	AuthorizationFailed    EventKind = "authorization_failed"    // Detail: the reason told to the client
	InvalidRef             EventKind = "invalid_ref"             // acknowledgement with a bad ref
	LateAck                EventKind = "late_ack"                // acknowledgement of something that is over
	AccessRejected         EventKind = "access_rejected"         // reject_access queued for the gateway

	CandidatesAdded       EventKind = "candidates_added"       // Role: the sender's
	CandidatesInvalidated EventKind = "candidates_invalidated" // Role: the sender's

	RelaysPushed EventKind = "relays_pushed" // relays_presence queued
)

// Event is one thing the portal saw or did. Fields that do not apply are
// empty. Events hold no secrets.
type Event struct {
	Seq  uint64    `json:"seq"` // starts at 1, without gaps
	At   time.Time `json:"at"`  // real clock, with a monotonic reading
	Kind EventKind `json:"kind"`
	Role Role      `json:"role,omitempty"` // of the peer on whose socket it happened

	// AuthorizationID joins the events of one request.
	AuthorizationID string `json:"authorization_id,omitempty"`
	GatewayID       string `json:"gateway_id,omitempty"`
	ClientID        string `json:"client_id,omitempty"`
	ResourceID      string `json:"resource_id,omitempty"`
	RelayID         string `json:"relay_id,omitempty"`

	Path       string   `json:"path,omitempty"`        // of the websocket, on connect and join
	ExternalID string   `json:"external_id,omitempty"` // same
	UserAgent  string   `json:"user_agent,omitempty"`  // same
	PublicKey  string   `json:"public_key,omitempty"`  // same
	Candidates []string `json:"candidates,omitempty"`  // those that are strings
	Status     int      `json:"status,omitempty"`
	Detail     string   `json:"detail,omitempty"`
}

// eventsKept bounds the event log; the oldest events are forgotten first.
const eventsKept = 8192

// eventLog is a bounded log that can be waited on.
type eventLog struct {
	mu      sync.Mutex
	events  []Event // consecutive by Seq
	last    uint64
	changed chan struct{} // closed and replaced by each append
}

// Events returns the events after sequence number after, oldest first; zero
// means from the start. At most 8192 are kept.
func (s *Server) Events(after uint64) []Event {
	events, _ := s.events.since(after)
	return events
}

// WaitEvent returns the first event after sequence number after that match
// accepts, waiting for it until ctx is done.
func (s *Server) WaitEvent(ctx context.Context, after uint64, match func(Event) bool) (Event, error) {
	for {
		events, changed := s.events.since(after)
		for _, e := range events {
			if match(e) {
				return e, nil
			}
			after = e.Seq
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return Event{}, ctx.Err()
		}
	}
}

func (l *eventLog) append(e Event) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.last++
	e.Seq, e.At = l.last, time.Now()
	if len(l.events) >= eventsKept {
		l.events = slices.Delete(l.events, 0, eventsKept/8)
	}
	l.events = append(l.events, e)
	if l.changed != nil {
		close(l.changed)
		l.changed = nil
	}
}

func (l *eventLog) since(after uint64) ([]Event, <-chan struct{}) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.changed == nil {
		l.changed = make(chan struct{})
	}
	if after >= l.last {
		return nil, l.changed
	}
	first := l.last - uint64(len(l.events)) // sequence number before the oldest
	return slices.Clone(l.events[max(after, first)-first:]), l.changed
}
