package portal

import (
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"testing"
	"time"

	"firezone-gateway/internal/drop"
)

var epoch = time.Date(2026, 8, 1, 12, 0, 0, 0, time.UTC)

func TestSessionJoin(t *testing.T) {
	t.Run("rules 6 and 7: the first frame is a join with ref 0", func(t *testing.T) {
		s := NewSession(epoch)
		wantFrames(t, s, `{"topic":"gateway","event":"phx_join","payload":null,"ref":0}`)
		wantEvents(t, s)
	})
	t.Run("rule 8: application messages wait for the join reply, heartbeats do not", func(t *testing.T) {
		s := NewSession(epoch)
		frames(s)
		send(t, s, NoRelays{})
		s.Receive([]byte(`{"topic":"gateway","event":"init","ref":null,"payload":{"interface":{"ipv4":"100.64.0.1","ipv6":"fd00::1"}}}`), epoch)
		wantFrames(t, s)
		if s.Joined() {
			t.Error("joined before the reply")
		}
		events(s)
		join(t, s)
		wantFrames(t, s, `{"topic":"gateway","event":"no_relays","payload":{},"ref":1}`)
	})
	t.Run("rule 8: a reply to another ref is not the join reply", func(t *testing.T) {
		s := NewSession(epoch)
		frames(s)
		send(t, s, NoRelays{})
		s.Receive([]byte(okReply(9)), epoch)
		s.Receive([]byte(`{"topic":"gateway","event":"phx_reply","ref":null,"payload":{"status":"ok"}}`), epoch)
		s.Receive([]byte(`{"topic":"gateway","event":"phx_reply","ref":"0","payload":{"status":"ok"}}`), epoch)
		wantFrames(t, s)
		wantEvents(t, s)
	})
	t.Run("rule 9: no reply for 5 s ends the session", func(t *testing.T) {
		s := NewSession(epoch)
		frames(s)
		if got := s.NextTimeout(); !got.Equal(epoch.Add(5 * time.Second)) {
			t.Errorf("next timeout %v", got)
		}
		s.Tick(epoch.Add(5*time.Second - 1))
		wantEvents(t, s)
		s.Tick(epoch.Add(5 * time.Second))
		wantEvents(t, s, Ended{Cause: JoinTimedOut})
		if JoinTimedOut.Fatal() {
			t.Error("fatal")
		}
	})
	t.Run("rule 10: an error reply is fatal", func(t *testing.T) {
		s := NewSession(epoch)
		frames(s)
		s.Receive([]byte(errorReply(0, "unauthorized")), epoch)
		wantEvents(t, s, Ended{Cause: JoinRefused, Detail: "unauthorized"})
		if !JoinRefused.Fatal() {
			t.Error("not fatal")
		}
	})
	t.Run("rule 11: unmatched topic leads to one join on the same socket", func(t *testing.T) {
		s := joinedSession(t)
		send(t, s, Acknowledge{V2, "a"})
		send(t, s, Acknowledge{V2, "b"})
		frames(s)
		s.Receive([]byte(errorReply(1, "unmatched topic")), epoch.Add(time.Second))
		s.Receive([]byte(errorReply(2, "unmatched topic")), epoch.Add(time.Second))
		wantEvents(t, s, Refused{Event: "authorization_created", Reason: "unmatched topic"}, Refused{Event: "authorization_created", Reason: "unmatched topic"})
		send(t, s, NoRelays{})
		wantFrames(t, s, `{"topic":"gateway","event":"phx_join","payload":null,"ref":3}`)
		if got := s.NextTimeout(); !got.Equal(epoch.Add(6 * time.Second)) {
			t.Errorf("next timeout %v", got)
		}
		s.Receive([]byte(okReply(3)), epoch.Add(2*time.Second))
		wantEvents(t, s, Joined{Again: true})
		wantFrames(t, s, `{"topic":"gateway","event":"no_relays","payload":{},"ref":4}`)
	})
	t.Run("rule 39: no join is followed by a capability that the gateway lacks", func(t *testing.T) {
		s := joinedSession(t)
		wantFrames(t, s)
		send(t, s, NoRelays{})
		wantFrames(t, s, `{"topic":"gateway","event":"no_relays","payload":{},"ref":1}`)
		s.Receive([]byte(errorReply(1, "unmatched topic")), epoch)
		wantFrames(t, s, `{"topic":"gateway","event":"phx_join","payload":null,"ref":2}`)
		s.Receive([]byte(okReply(2)), epoch)
		wantFrames(t, s)
	})
	t.Run("rule 11: a late refusal of a message sent before the join does not repeat it", func(t *testing.T) {
		s := joinedSession(t)
		send(t, s, Acknowledge{V2, "a"})
		send(t, s, Acknowledge{V2, "b"})
		frames(s)
		s.Receive([]byte(errorReply(1, "unmatched topic")), epoch)
		frames(s)
		s.Receive([]byte(okReply(3)), epoch)
		s.Receive([]byte(errorReply(2, "unmatched topic")), epoch)
		wantFrames(t, s)
		if !s.Joined() {
			t.Error("not joined any more")
		}
	})
}

func TestSessionHeartbeats(t *testing.T) {
	t.Run("rule 12: every 10 s, whatever else is sent", func(t *testing.T) {
		s := joinedSession(t)
		var beats []time.Duration
		for at := time.Duration(0); at <= 25*time.Second; at += time.Second {
			send(t, s, BroadcastICECandidates{[]string{"c"}, []string{fmt.Sprint(at)}})
			s.Tick(epoch.Add(at))
			for _, f := range frames(s) {
				if f.Event == EventHeartbeat {
					beats = append(beats, at)
					if f.Topic != TopicPhoenix || string(f.Payload) != "{}" {
						t.Errorf("rules 38 and 43: %+v", f)
					}
					s.Receive([]byte(okReply(f.Ref)), epoch.Add(at))
				}
			}
		}
		if !reflect.DeepEqual(beats, []time.Duration{10 * time.Second, 20 * time.Second}) {
			t.Errorf("heartbeats at %v", beats)
		}
	})
	t.Run("rule 13: the fourth without an answer ends the session", func(t *testing.T) {
		s := joinedSession(t)
		for i := 1; i <= 3; i++ {
			s.Tick(epoch.Add(time.Duration(i) * HeartbeatInterval))
			f := frames(s)
			if len(f) != 1 {
				t.Fatalf("%d frames", len(f))
			}
			s.Receive([]byte(okReply(f[0].Ref+1000)), epoch) // rule 13: a wrong ref does not count
			wantEvents(t, s)
		}
		s.Tick(epoch.Add(4 * HeartbeatInterval))
		wantEvents(t, s, Ended{Cause: HeartbeatsMissed})
	})
	t.Run("rule 13: answers that arrive late still count", func(t *testing.T) {
		s := joinedSession(t)
		var late []uint64
		for i := 1; i <= 100; i++ {
			s.Tick(epoch.Add(time.Duration(i) * HeartbeatInterval))
			late = append(late, frames(s)[0].Ref)
			if len(late) == 3 {
				s.Receive([]byte(okReply(late[0])), epoch)
				late = late[1:]
			}
		}
		wantEvents(t, s)
	})
	t.Run("rule 14: the session is never silent for 37 s", func(t *testing.T) {
		s := joinedSession(t)
		last := epoch
		for range 100 {
			now := s.NextTimeout()
			s.Tick(now)
			for _, f := range frames(s) {
				if now.Sub(last) > 11*time.Second {
					t.Fatalf("silent for %v", now.Sub(last))
				}
				last = now
				s.Receive([]byte(okReply(f.Ref)), now)
			}
		}
		if last.Sub(epoch) != 100*HeartbeatInterval {
			t.Errorf("last heartbeat after %v", last.Sub(epoch))
		}
	})
	t.Run("a suspended machine sends one heartbeat, not all it missed", func(t *testing.T) {
		s := joinedSession(t)
		now := epoch.Add(time.Hour)
		s.Tick(now)
		s.Tick(now)
		if n := len(frames(s)); n != 1 {
			t.Errorf("%d frames", n)
		}
		if got := s.NextTimeout(); !got.Equal(now.Add(HeartbeatInterval)) {
			t.Errorf("next timeout %v", got)
		}
	})
}

func TestSessionControlEvents(t *testing.T) {
	tests := []struct {
		name, frame string
		want        []Event
	}{
		{"rule 20: an expired token is fatal", `{"topic":"gateway","event":"disconnect","ref":null,"payload":{"reason":"token_expired"}}`,
			[]Event{Ended{Cause: TokenRevoked, Detail: "token_expired"}}},
		{"another reason to disconnect is not acted upon", `{"topic":"gateway","event":"disconnect","ref":null,"payload":{"reason":"certificate_revoked"}}`,
			[]Event{Received{Message: Disconnect{"certificate_revoked"}}}},
		{"rule 21: phx_close asks for a re-connect", `{"topic":"gateway","event":"phx_close","ref":null,"payload":{}}`, []Event{Ended{Cause: ChannelClosed}}},
		{"rule 21: phx_error is ignored", `{"topic":"gateway","event":"phx_error","ref":null,"payload":{"reason":"channel_crash"}}`, nil},
		{"rule 23: an unknown event is shown", `{"topic":"gateway","event":"brand_new","ref":null,"payload":{}}`, []Event{Received{Message: Unknown{"brand_new"}}}},
		{"a message with skipped parts is delivered", `{"topic":"gateway","event":"ice_candidates","ref":null,"payload":{"client_id":"c","candidates":["x"]}}`,
			[]Event{Received{ICECandidates{ClientID: "c", Candidates: []string{}}, Skipped{Candidates: 1}}}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := joinedSession(t)
			s.Receive([]byte(tt.frame), epoch)
			wantEvents(t, s, tt.want...)
		})
	}

	bad := []struct {
		name, frame string
		reason      drop.Reason
	}{
		{"rule 23: a frame that is not JSON is dropped", `{`, drop.FrameMalformed},
		{"rule 23: a payload that does not fit is dropped", `{"topic":"gateway","event":"init","ref":null,"payload":[]}`, drop.PayloadMalformed},
		{"rule 23: a reply without status is dropped", `{"topic":"gateway","event":"phx_reply","ref":0,"payload":{}}`, drop.PayloadMalformed},
	}
	for _, tt := range bad {
		t.Run(tt.name, func(t *testing.T) {
			s := joinedSession(t)
			s.Receive([]byte(tt.frame), epoch)
			es := events(s)
			if len(es) != 1 {
				t.Fatalf("events %v", es)
			}
			if d, ok := es[0].(Dropped); !ok || d.Reason != tt.reason || d.Err == nil {
				t.Errorf("got %+v", es[0])
			}
			if !s.Joined() {
				t.Error("the session is not joined any more")
			}
		})
	}

	t.Run("a refusal names the message it refuses", func(t *testing.T) {
		s := joinedSession(t)
		send(t, s, NoRelays{})
		frames(s)
		s.Receive([]byte(errorReply(1, ReasonUnknownMessage)), epoch)
		s.Receive([]byte(errorReply(1, ReasonUnknownMessage)), epoch)
		wantEvents(t, s, Refused{Event: "no_relays", Reason: ReasonUnknownMessage})
	})
	t.Run("an ended session ignores everything", func(t *testing.T) {
		s := joinedSession(t)
		send(t, s, NoRelays{})
		s.Receive([]byte(`{"topic":"gateway","event":"phx_close","payload":{}}`), epoch)
		events(s)
		s.Receive([]byte(`{`), epoch)
		s.Tick(epoch.Add(time.Hour))
		if err := s.Send(NoRelays{}); !errors.Is(err, ErrEnded) {
			t.Errorf("send: %v", err)
		}
		wantFrames(t, s)
		wantEvents(t, s)
		if !s.NextTimeout().IsZero() {
			t.Error("a timeout is due")
		}
	})
}

func TestSessionRepeatsCandidatesThatTheChannelMissed(t *testing.T) {
	announce := func(c string) Outgoing { return BroadcastICECandidates{[]string{"c"}, []string{c}} }
	withdraw := func(c string) Outgoing { return BroadcastInvalidatedICECandidates{[]string{"c"}, []string{c}} }
	frame := func(m Outgoing, ref uint64) string {
		p, err := m.Payload()
		if err != nil {
			t.Fatal(err)
		}
		b, err := Frame{Topic: TopicGateway, Event: m.Event(), Payload: p, Ref: ref, HasRef: true}.Encode()
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	// refuse sends messages on a joined session and lets the portal refuse all.
	refuse := func(t *testing.T, s *Session, messages ...Outgoing) (join uint64) {
		t.Helper()
		var refs []uint64
		for _, m := range messages {
			send(t, s, m)
			for _, f := range frames(s) {
				refs = append(refs, f.Ref)
			}
		}
		for _, ref := range refs {
			s.Receive([]byte(errorReply(ref, "unmatched topic")), epoch)
		}
		fs := frames(s)
		if len(fs) != 1 || fs[0].Event != EventJoin {
			t.Fatalf("frames %+v", fs)
		}
		return fs[0].Ref
	}

	t.Run("after the next join, in order and before what was sent meanwhile", func(t *testing.T) {
		s := joinedSession(t)
		join := refuse(t, s, announce("x"), withdraw("x"), announce("y"))
		wantEvents(t, s, Refused{"broadcast_ice_candidates", "unmatched topic", true},
			Refused{"broadcast_invalidated_ice_candidates", "unmatched topic", true}, Refused{"broadcast_ice_candidates", "unmatched topic", true})
		send(t, s, announce("z"))
		wantFrames(t, s)
		s.Receive([]byte(okReply(join)), epoch)
		wantFrames(t, s, frame(announce("x"), join+1), frame(withdraw("x"), join+2), frame(announce("y"), join+3), frame(announce("z"), join+4))
		wantFrames(t, s)
	})
	t.Run("acknowledgements and requests die with the channel", func(t *testing.T) {
		s := joinedSession(t)
		join := refuse(t, s, Acknowledge{V2, "r"}, ConnectionReady{Ref: "r"}, NoRelays{}, announce("x"))
		wantEvents(t, s, Refused{"authorization_created", "unmatched topic", false}, Refused{"connection_ready", "unmatched topic", false},
			Refused{"no_relays", "unmatched topic", false}, Refused{"broadcast_ice_candidates", "unmatched topic", true})
		s.Receive([]byte(okReply(join)), epoch)
		wantFrames(t, s, frame(announce("x"), join+1))
	})
	t.Run("once, however often the portal refuses", func(t *testing.T) {
		s := joinedSession(t)
		join := refuse(t, s, announce("x"))
		s.Receive([]byte(okReply(join)), epoch)
		wantFrames(t, s, frame(announce("x"), join+1))
		events(s)
		s.Receive([]byte(errorReply(join+1, "unmatched topic")), epoch)
		wantEvents(t, s, Refused{"broadcast_ice_candidates", "unmatched topic", false})
		frames(s)
		s.Receive([]byte(okReply(join+2)), epoch)
		wantFrames(t, s)
	})
	t.Run("what was refused for another reason is not repeated", func(t *testing.T) {
		s := joinedSession(t)
		send(t, s, announce("x"))
		frames(s)
		s.Receive([]byte(errorReply(1, ReasonUnknownMessage)), epoch)
		wantEvents(t, s, Refused{"broadcast_ice_candidates", ReasonUnknownMessage, false})
		wantFrames(t, s)
	})
	t.Run("a refusal that comes after the join is repeated at once, before what waits", func(t *testing.T) {
		s := joinedSession(t)
		send(t, s, announce("x"))
		send(t, s, announce("y"))
		frames(s)
		s.Receive([]byte(errorReply(1, "unmatched topic")), epoch)
		wantFrames(t, s, `{"topic":"gateway","event":"phx_join","payload":null,"ref":3}`)
		s.Receive([]byte(okReply(3)), epoch)
		send(t, s, announce("z"))
		s.Receive([]byte(errorReply(2, "unmatched topic")), epoch)
		wantFrames(t, s, frame(announce("x"), 4), frame(announce("y"), 5), frame(announce("z"), 6))
	})
	t.Run("as many as the queue holds", func(t *testing.T) {
		s := joinedSession(t)
		for i := range QueueLimit {
			send(t, s, announce(fmt.Sprint(i)))
		}
		sent := frames(s)
		for i := range QueueLimit / 2 {
			send(t, s, announce(fmt.Sprint("later", i)))
		}
		for _, f := range sent {
			s.Receive([]byte(errorReply(f.Ref, "unmatched topic")), epoch)
		}
		again := 0
		for _, e := range events(s) {
			if e.(Refused).Again {
				again++
			}
		}
		if again != QueueLimit/2 || s.Room() != 0 {
			t.Errorf("%d are sent again, room for %d", again, s.Room())
		}
		join := frames(s)[0]
		s.Receive([]byte(okReply(join.Ref)), epoch)
		got := frames(s)
		if len(got) != QueueLimit || string(got[0].Payload) != string(sent[0].Payload) || string(got[again-1].Payload) != string(sent[again-1].Payload) {
			t.Errorf("%d frames", len(got))
		}
	})
}

func TestSessionSend(t *testing.T) {
	t.Run("rule 28: messages keep their order across the join", func(t *testing.T) {
		s := NewSession(epoch)
		frames(s)
		send(t, s, Authorize{Generation: V1, Ref: "r"}.Acknowledge())
		send(t, s, BroadcastICECandidates{[]string{"c"}, []string{"x"}})
		join(t, s)
		send(t, s, BroadcastInvalidatedICECandidates{[]string{"c"}, []string{"x"}})
		wantFrames(t, s,
			`{"topic":"gateway","event":"flow_authorized","payload":{"ref":"r"},"ref":1}`,
			`{"topic":"gateway","event":"broadcast_ice_candidates","payload":{"client_ids":["c"],"candidates":["x"]},"ref":2}`,
			`{"topic":"gateway","event":"broadcast_invalidated_ice_candidates","payload":{"client_ids":["c"],"candidates":["x"]},"ref":3}`)
	})
	t.Run("a heartbeat goes before application messages", func(t *testing.T) {
		s := joinedSession(t)
		send(t, s, NoRelays{})
		s.Tick(epoch.Add(HeartbeatInterval))
		fs := frames(s)
		if len(fs) != 2 || fs[0].Event != EventHeartbeat || fs[0].Ref == fs[1].Ref {
			t.Errorf("frames %+v", fs)
		}
	})
	t.Run("an exact duplicate of a waiting message is merged", func(t *testing.T) {
		s := joinedSession(t)
		send(t, s, NoRelays{})
		send(t, s, NoRelays{})
		if n := len(frames(s)); n != 1 {
			t.Errorf("%d frames", n)
		}
		send(t, s, NoRelays{})
		if n := len(frames(s)); n != 1 {
			t.Errorf("%d frames after the first was written", n)
		}
	})
	t.Run("the queue is bounded", func(t *testing.T) {
		s := NewSession(epoch)
		for i := range QueueLimit {
			send(t, s, Acknowledge{V2, Ref(fmt.Sprint(i))})
		}
		if err := s.Send(NoRelays{}); !errors.Is(err, ErrQueueFull) {
			t.Errorf("error %v", err)
		}
		frames(s)
		join(t, s)
		if n := len(frames(s)); n != QueueLimit {
			t.Errorf("%d frames", n)
		}
	})
	t.Run("the room is what the queue still takes", func(t *testing.T) {
		s := NewSession(epoch)
		for i := range QueueLimit {
			if got := s.Room(); got != QueueLimit-i {
				t.Fatalf("room for %d after %d", got, i)
			}
			send(t, s, Acknowledge{V2, Ref(fmt.Sprint(i))})
		}
		if s.Room() != 0 {
			t.Errorf("room for %d in a full queue", s.Room())
		}
		frames(s)
		join(t, s)
		s.PollFrame()
		if s.Room() != 1 {
			t.Errorf("room for %d after one was polled", s.Room())
		}
		s.Receive([]byte(`{"topic":"gateway","event":"phx_close","payload":{}}`), epoch)
		if s.Room() != 0 {
			t.Errorf("room for %d in an ended session", s.Room())
		}
	})
	t.Run("an announcement is not merged with one that was withdrawn since", func(t *testing.T) {
		s := NewSession(epoch)
		frames(s)
		announce, withdraw := BroadcastICECandidates{[]string{"c"}, []string{"x"}}, BroadcastInvalidatedICECandidates{[]string{"c"}, []string{"x"}}
		for _, m := range []Outgoing{announce, withdraw, announce, announce} {
			send(t, s, m)
		}
		join(t, s)
		var got []string
		for _, f := range frames(s) {
			got = append(got, f.Event)
		}
		if want := []string{announce.Event(), withdraw.Event(), announce.Event()}; !reflect.DeepEqual(got, want) {
			t.Errorf("got %v", got)
		}
	})
	t.Run("messages without a reply are not remembered for ever", func(t *testing.T) {
		s := joinedSession(t)
		for i := range 10 * rememberedSends {
			send(t, s, BroadcastICECandidates{[]string{"c"}, []string{fmt.Sprint(i)}})
			frames(s)
		}
		if n := len(s.outbox.written); n != rememberedSends {
			t.Errorf("%d remembered", n)
		}
	})
}

func joinedSession(t *testing.T) *Session {
	t.Helper()
	s := NewSession(epoch)
	frames(s)
	join(t, s)
	return s
}

func join(t *testing.T, s *Session) {
	t.Helper()
	s.Receive([]byte(okReply(0)), epoch)
	wantEvents(t, s, Joined{})
}

func send(t *testing.T, s *Session, m Outgoing) {
	t.Helper()
	if err := s.Send(m); err != nil {
		t.Fatal(err)
	}
}

func okReply(ref uint64) string {
	return fmt.Sprintf(`{"topic":"gateway","event":"phx_reply","ref":%d,"payload":{"status":"ok","response":{}}}`, ref)
}

func errorReply(ref uint64, reason string) string {
	return fmt.Sprintf(`{"topic":"gateway","event":"phx_reply","ref":%d,"payload":{"status":"error","response":{"reason":%q}}}`, ref, reason)
}

func frames(s *Session) (out []Frame) {
	for b, ok := s.PollFrame(); ok; b, ok = s.PollFrame() {
		f, err := DecodeFrame(b)
		if err != nil || !json.Valid(b) || !f.HasRef {
			panic(fmt.Sprintf("frame %s: %v", b, err))
		}
		out = append(out, f)
	}
	return out
}

func events(s *Session) (out []Event) {
	for e, ok := s.PollEvent(); ok; e, ok = s.PollEvent() {
		out = append(out, e)
	}
	return out
}

func wantFrames(t *testing.T, s *Session, want ...string) {
	t.Helper()
	var got []string
	for b, ok := s.PollFrame(); ok; b, ok = s.PollFrame() {
		got = append(got, string(b))
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("frames\n got %s\nwant %s", got, want)
	}
}

func wantEvents(t *testing.T, s *Session, want ...Event) {
	t.Helper()
	if got := events(s); !reflect.DeepEqual(got, want) {
		t.Errorf("events\n got %+v\nwant %+v", got, want)
	}
}

func TestCauseNames(t *testing.T) {
	seen := map[string]bool{"unknown": true}
	for c := JoinTimedOut; c <= TokenRevoked; c++ {
		if seen[c.String()] {
			t.Errorf("cause %d has no name of its own: %s", c, c)
		}
		seen[c.String()] = true
	}
	if Cause(0).String() != "unknown" {
		t.Error("the zero cause has a name")
	}
}
