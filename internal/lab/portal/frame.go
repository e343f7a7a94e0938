package portal

import (
	"encoding/json"
	"errors"
	"fmt"
)

// Phoenix event names that the portal understands or sends itself.
const (
	eventJoin      = "phx_join"
	eventLeave     = "phx_leave"
	eventReply     = "phx_reply"
	eventClose     = "phx_close"
	eventHeartbeat = "heartbeat"

	topicPhoenix = "phoenix"
)

var errFrame = errors.New("not a V1 frame")

// frame is one message of the Phoenix V1 JSON serializer as a peer sends it
// (portal-protocol §1.4). Payload and Ref hold raw JSON and may be "null".
type frame struct {
	Topic   string
	Event   string
	Payload json.RawMessage
	Ref     json.RawMessage
}

// outFrame is one message of the V1 serializer as the portal sends it. A nil
// Ref becomes null.
type outFrame struct {
	Topic   string          `json:"topic"`
	Event   string          `json:"event"`
	Payload any             `json:"payload"`
	Ref     json.RawMessage `json:"ref"`
}

// reply is the payload of phx_reply.
type reply struct {
	Status   string `json:"status"`
	Response any    `json:"response"`
}

// reason is the response of an error reply and the payload of disconnect.
type reason struct {
	Reason string `json:"reason"`
}

// decodeFrame parses a text frame. All four keys must be present; the
// serializer of the real portal raises otherwise and the peer loses its
// connection. Unknown keys, join_ref among them, are ignored.
func decodeFrame(b []byte) (frame, error) {
	var (
		keys map[string]json.RawMessage
		f    frame
	)
	if err := json.Unmarshal(b, &keys); err != nil {
		// The text of the error may quote the input, which may hold secrets.
		return f, fmt.Errorf("%w: no JSON object", errFrame)
	}
	for _, key := range []struct {
		name string
		to   *string
	}{{"topic", &f.Topic}, {"event", &f.Event}} {
		raw, ok := keys[key.name]
		if !ok || len(raw) == 0 || raw[0] != '"' || json.Unmarshal(raw, key.to) != nil {
			return frame{}, fmt.Errorf("%w: %s is not a string", errFrame, key.name)
		}
	}
	var ok bool
	if f.Payload, ok = keys["payload"]; !ok {
		return frame{}, fmt.Errorf("%w: no payload", errFrame)
	}
	if f.Ref, ok = keys["ref"]; !ok {
		return frame{}, fmt.Errorf("%w: no ref", errFrame)
	}
	return f, nil
}

// encode renders the frame for the wire.
func (f outFrame) encode() ([]byte, error) {
	if f.Payload == nil {
		f.Payload = struct{}{}
	}
	b, err := json.Marshal(f)
	if err != nil {
		return nil, fmt.Errorf("encode %s: %w", f.Event, err)
	}
	return b, nil
}
