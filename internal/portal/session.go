package portal

import (
	"errors"
	"slices"
	"time"
)

// Timing and bounds of a Session (§1.5, §1.7).
const (
	JoinTimeout       = 5 * time.Second
	HeartbeatInterval = 10 * time.Second
	QueueLimit        = 256 // application messages held at a time

	missedHeartbeats = 3 // more than these unanswered end the session
)

// Errors of Session.Send.
var (
	ErrQueueFull = errors.New("portal: queue full")
	ErrEnded     = errors.New("portal: session ended")
)

// Session is the machine of one websocket connection, from the upgrade to its
// end:
//
//	joining --reply ok--> joined --unmatched topic--> joining
//	   any --cause of an Ended event--> ended
//
// Inputs are Receive, Tick and Send. After each of them, write every frame of
// PollFrame in order and handle every event of PollEvent. Call Tick no later
// than NextTimeout. An ended session ignores inputs and has no frames; the owner
// closes the websocket and makes a new Session for the next one.
type Session struct {
	state         sessionState
	joined        bool // at least once
	join          uint64
	joinDeadline  time.Time
	nextHeartbeat time.Time
	heartbeats    []uint64 // refs without a reply
	nextRef       uint64
	control       []Frame // joins and heartbeats to write
	outbox        outbox  // application messages, to write once joined
	events        []Event
}

type sessionState uint8

const (
	stateJoining sessionState = iota
	stateJoined
	stateEnded
)

// NewSession returns the session of a websocket that opened at now. Its first
// frame is the join, with ref 0 (rule 7).
func NewSession(now time.Time) *Session {
	s := &Session{nextHeartbeat: now.Add(HeartbeatInterval)}
	s.startJoin(now)
	return s
}

// Send hands m over. It is written as soon as the session is joined, after all
// messages sent before it (rules 8 and 28); an exact duplicate of a message that
// still waits is merged with it. Changes of candidates that a channel missed,
// because the portal had closed it (rule 11), are written once more after the
// next join, before all that waits; anything else dies with the channel. On
// ErrQueueFull and ErrEnded m was dropped. Any other error is of m's payload.
func (s *Session) Send(m Outgoing) error {
	if s.state == stateEnded {
		return ErrEnded
	}
	payload, err := m.Payload()
	if err != nil {
		return err
	}
	return s.outbox.add(m.Event(), payload)
}

// Room returns how many more messages Send takes before ErrQueueFull, none of an
// ended session. PollFrame makes room while the session is joined.
func (s *Session) Room() int {
	if s.state == stateEnded {
		return 0
	}
	return s.outbox.room()
}

// Receive handles one text frame of the portal, of which s keeps nothing. A
// frame that is malformed leads to a Dropped event and never ends the session
// (rule 23).
func (s *Session) Receive(frame []byte, now time.Time) {
	if s.state == stateEnded {
		return
	}
	f, err := DecodeFrame(frame)
	if err != nil {
		s.dropped(err)
		return
	}
	switch f.Event {
	case EventReply:
		s.reply(f, now)
	case EventClose:
		s.end(Ended{Cause: ChannelClosed})
	case EventError:
		// The channel crashed; the portal closes the socket by itself (§1.6).
	default:
		s.push(f)
	}
}

// Tick handles what is due at now.
func (s *Session) Tick(now time.Time) {
	if s.state == stateEnded {
		return
	}
	if s.state == stateJoining && !now.Before(s.joinDeadline) {
		s.end(Ended{Cause: JoinTimedOut})
		return
	}
	if now.Before(s.nextHeartbeat) {
		return
	}
	// After a suspension one heartbeat is enough; the missed ones had no chance
	// of an answer.
	s.nextHeartbeat = s.nextHeartbeat.Add(HeartbeatInterval)
	if !now.Before(s.nextHeartbeat) {
		s.nextHeartbeat = now.Add(HeartbeatInterval)
	}
	f := s.request(TopicPhoenix, EventHeartbeat, []byte("{}"))
	s.heartbeats = append(s.heartbeats, f.Ref)
	if len(s.heartbeats) > missedHeartbeats {
		s.end(Ended{Cause: HeartbeatsMissed})
		return
	}
	s.control = append(s.control, f)
}

// NextTimeout returns when Tick is due, or the zero time if the session ended.
func (s *Session) NextTimeout() time.Time {
	switch {
	case s.state == stateEnded:
		return time.Time{}
	case s.state == stateJoining && s.joinDeadline.Before(s.nextHeartbeat):
		return s.joinDeadline
	default:
		return s.nextHeartbeat
	}
}

// Joined reports whether application messages are written at once.
func (s *Session) Joined() bool { return s.state == stateJoined }

// PollFrame returns the next frame to write as a text message, which the caller
// owns. ok is false if there is none.
func (s *Session) PollFrame() (frame []byte, ok bool) {
	if len(s.control) > 0 {
		f := s.control[0]
		s.control = slices.Delete(s.control, 0, 1)
		return encode(f), true
	}
	if s.state != stateJoined || len(s.outbox.waiting) == 0 {
		return nil, false
	}
	q := s.outbox.take(s.nextRef)
	return encode(s.request(TopicGateway, q.event, q.payload)), true
}

// PollEvent returns the next event. ok is false if there is none.
func (s *Session) PollEvent() (e Event, ok bool) {
	if len(s.events) == 0 {
		return nil, false
	}
	e = s.events[0]
	s.events = slices.Delete(s.events, 0, 1)
	return e, true
}

func (s *Session) reply(f Frame, now time.Time) {
	r, err := DecodeReply(f)
	if err != nil {
		s.dropped(err)
		return
	}
	if !f.HasRef {
		return
	}
	if i := slices.Index(s.heartbeats, f.Ref); i >= 0 {
		s.heartbeats = slices.Delete(s.heartbeats, i, i+1)
		return
	}
	if s.state == stateJoining && f.Ref == s.join {
		s.joinReply(r)
		return
	}
	m, known := s.outbox.answered(f.Ref)
	if !known || r.OK {
		return
	}
	missed := r.Reason == reasonUnmatchedTopic
	s.events = append(s.events, Refused{Event: m.event, Reason: r.Reason, Again: missed && s.outbox.repeat(m)})
	// Messages that left before the join are refused together; the first
	// refusal has already led to that join.
	if missed && s.state == stateJoined && f.Ref > s.join {
		s.startJoin(now)
	}
}

func (s *Session) joinReply(r Reply) {
	if !r.OK {
		s.end(Ended{Cause: JoinRefused, Detail: r.Reason})
		return
	}
	s.state = stateJoined
	s.events = append(s.events, Joined{Again: s.joined})
	s.joined = true
}

func (s *Session) push(f Frame) {
	m, skipped, err := Decode(f)
	if err != nil {
		s.dropped(err)
		return
	}
	if d, ok := m.(Disconnect); ok && d.Reason == TokenExpired {
		s.end(Ended{Cause: TokenRevoked, Detail: d.Reason})
		return
	}
	s.events = append(s.events, Received{Message: m, Skipped: skipped})
}

func (s *Session) dropped(err error) {
	var d *DecodeError
	if errors.As(err, &d) {
		s.events = append(s.events, Dropped{Reason: d.Reason, Err: err})
	}
}

func (s *Session) startJoin(now time.Time) {
	f := s.request(TopicGateway, EventJoin, nil)
	s.state, s.join, s.joinDeadline = stateJoining, f.Ref, now.Add(JoinTimeout)
	s.control = append(s.control, f)
}

func (s *Session) end(e Ended) {
	s.state = stateEnded
	s.control, s.outbox, s.heartbeats = nil, outbox{}, nil
	s.events = append(s.events, e)
}

func (s *Session) request(topic, event string, payload []byte) Frame {
	f := Frame{Topic: topic, Event: event, Payload: payload, Ref: s.nextRef, HasRef: true}
	s.nextRef++
	return f
}

// encode can not fail: every payload in a session was made by the JSON package
// or is a constant.
func encode(f Frame) []byte {
	b, err := f.Encode()
	if err != nil {
		panic("portal: payload is not JSON: " + f.Event)
	}
	return b
}
