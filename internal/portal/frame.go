package portal

import (
	"encoding/json"
	"errors"
	"strconv"
	"unicode/utf8"

	"firezone-gateway/internal/drop"
)

// Topics and events of the Phoenix layer (§1.5 to §1.7).
const (
	TopicGateway = "gateway"
	TopicPhoenix = "phoenix"

	EventJoin      = "phx_join"
	EventReply     = "phx_reply"
	EventClose     = "phx_close"
	EventError     = "phx_error"
	EventHeartbeat = "heartbeat"
)

// Frame is one envelope of the Phoenix V1 serializer (§1.4). Its textual forms
// leave the payload out.
type Frame struct {
	Topic   string
	Event   string
	Payload json.RawMessage // nil stands for null
	Ref     uint64          // meaningful if HasRef
	HasRef  bool            // false encodes as null, which is what pushes carry
}

// Encode returns f as one JSON object that always has the keys topic, event,
// payload and ref; Phoenix ends the connection over a missing one. The error is
// that of a Payload that is not JSON.
func (f Frame) Encode() ([]byte, error) {
	w := wireFrame{Topic: f.Topic, Event: f.Event, Payload: f.Payload, Ref: json.RawMessage("null")}
	if f.HasRef {
		w.Ref = strconv.AppendUint(nil, f.Ref, 10)
	}
	return json.Marshal(w)
}

// DecodeFrame parses one text frame. A ref that is not an unsigned JSON number
// counts as absent, unknown keys such as join_ref are ignored and a missing
// payload is null. Of a key that repeats the last one counts. The error is a
// *DecodeError with drop.FrameMalformed. The Payload of the result is a part of
// b.
func DecodeFrame(b []byte) (Frame, error) {
	if !utf8.Valid(b) {
		return Frame{}, &DecodeError{Reason: drop.FrameMalformed, Err: errNotUTF8}
	}
	s := scanner{b: b}
	var f Frame
	for key := range s.fields {
		switch string(key) {
		case "topic":
			f.Topic = s.name()
		case "event":
			f.Event = s.name()
		case "payload":
			f.Payload = s.raw()
		case "ref":
			f.Ref, f.HasRef = requestRef(s.raw())
		default:
			s.skip()
		}
	}
	err := s.end()
	if err == nil && f.Event == "" {
		err = errors.New("no event")
	}
	if err != nil {
		return Frame{}, &DecodeError{Reason: drop.FrameMalformed, Err: err}
	}
	return f, nil
}

// Reply is the payload of phx_reply (§1.6).
type Reply struct {
	OK     bool
	Reason string // of an error reply, printable and bounded; may be empty
}

// DecodeReply parses the payload of a phx_reply. The error is a *DecodeError
// with drop.PayloadMalformed.
func DecodeReply(f Frame) (Reply, error) {
	s := scanner{b: f.Payload}
	var status, reason string
	for key := range s.fields {
		switch string(key) {
		case "status":
			status = s.name()
		case "response":
			reason = s.reason()
		default:
			s.skip()
		}
	}
	if err := s.end(); err != nil {
		return Reply{}, malformed(f.Event, err)
	}
	switch status {
	case "ok":
		return Reply{OK: true}, nil
	case "error":
		return Reply{Reason: reason}, nil
	default:
		return Reply{}, malformed(f.Event, errors.New("status is neither ok nor error"))
	}
}

// DecodeError says why a frame or its payload was refused. Its text holds
// nothing of the payload but names of fields.
type DecodeError struct {
	Reason drop.Reason // FrameMalformed or PayloadMalformed
	Event  string      // empty if the frame itself was refused
	Err    error
}

// Error implements error.
func (e *DecodeError) Error() string {
	if e.Event == "" {
		return e.Reason.String() + ": " + e.Err.Error()
	}
	return e.Reason.String() + ": " + e.Event + ": " + e.Err.Error()
}

// Unwrap returns the cause.
func (e *DecodeError) Unwrap() error { return e.Err }

type wireFrame struct {
	Topic   string          `json:"topic"`
	Event   string          `json:"event"`
	Payload json.RawMessage `json:"payload"`
	Ref     json.RawMessage `json:"ref"`
}

// maxText bounds texts of the portal that end up in events and errors.
const maxText = 128

var errNotUTF8 = errors.New("not UTF-8")

func malformed(event string, err error) error {
	return &DecodeError{Reason: drop.PayloadMalformed, Event: printable(event, maxText), Err: err}
}

// requestRef returns false for anything but a number that a request of ours can
// have had.
func requestRef(value []byte) (ref uint64, ok bool) {
	if string(value) == "null" { // nearly always; an error costs memory
		return 0, false
	}
	n, err := strconv.ParseUint(string(value), 10, 64)
	if err != nil {
		return 0, false
	}
	return n, true
}

// reason reads the response of a reply. One without a textual reason is a
// refusal all the same.
func (s *scanner) reason() string {
	m := s.mark()
	var reason []byte
	for key := range s.fields {
		if string(key) == "reason" {
			reason = s.text()
		} else {
			s.skip()
		}
	}
	if s.err != nil {
		s.reset(m)
		s.skip()
		return ""
	}
	return printable(string(reason), maxText)
}

// printable returns at most limit bytes of s, with everything but printable
// ASCII removed.
func printable(s string, limit int) string {
	if len(s) <= limit && isPrintable(s) {
		return s
	}
	b := make([]byte, 0, min(len(s), limit))
	for i := range len(s) {
		if len(b) == limit {
			break
		}
		if isPrintable(s[i : i+1]) {
			b = append(b, s[i])
		}
	}
	return string(b)
}

func isPrintable(s string) bool {
	for i := range len(s) {
		if c := s[i]; c < 0x20 || c >= 0x7f {
			return false
		}
	}
	return true
}
