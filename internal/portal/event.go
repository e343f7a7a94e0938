package portal

import "firezone-gateway/internal/drop"

// Event is what a Session reports: one of Joined, Received, Refused, Dropped and
// Ended. Ended is the last one.
type Event interface{ sessionEvent() }

// Joined says that the portal accepted the join.
type Joined struct {
	Again bool // on a socket that had been joined before
}

// Received carries a push. Disconnect arrives here only with reasons that mean
// nothing; the socket's end follows.
type Received struct {
	Message Message
	Skipped Skipped
}

// Refused says that the portal answered a message of ours with an error.
type Refused struct {
	Event  string // of our message
	Reason string // printable, bounded, may be empty
	Again  bool   // the session sends the message once more, after its next join
}

// ReasonUnknownMessage is the reason of Refused for an event that the portal
// does not know. For no_relays it means that a re-connect has to bring the
// relays (§5.5).
const ReasonUnknownMessage = "unknown_message"

const reasonUnmatchedTopic = "unmatched topic"

// Dropped says that a frame was discarded. Err contains no payload.
type Dropped struct {
	Reason drop.Reason
	Err    error
}

// Ended says that the session is over and the websocket has to be closed.
type Ended struct {
	Cause  Cause
	Detail string // what the portal said, printable, bounded, may be empty
}

// Cause is the reason for the end of a session.
type Cause uint8

// The causes. All but the last two ask for a re-connect.
const (
	JoinTimedOut     Cause = iota + 1 // no join reply in time (rule 9)
	HeartbeatsMissed                  // too many unanswered heartbeats (rule 13)
	ChannelClosed                     // phx_close (rule 21)
	JoinRefused                       // error reply to the join (rule 10)
	TokenRevoked                      // disconnect with token_expired (rule 20)
)

// Fatal reports whether the process has to end.
func (c Cause) Fatal() bool { return c == JoinRefused || c == TokenRevoked }

// String returns the cause as it appears in metrics and logs.
func (c Cause) String() string {
	switch c {
	case JoinTimedOut:
		return "join_timed_out"
	case HeartbeatsMissed:
		return "heartbeats_missed"
	case ChannelClosed:
		return "channel_closed"
	case JoinRefused:
		return "join_refused"
	case TokenRevoked:
		return "token_expired"
	default:
		return "unknown"
	}
}

func (Joined) sessionEvent()   {}
func (Received) sessionEvent() {}
func (Refused) sessionEvent()  {}
func (Dropped) sessionEvent()  {}
func (Ended) sessionEvent()    {}
