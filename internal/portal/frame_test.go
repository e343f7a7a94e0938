package portal

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"

	"firezone-gateway/internal/drop"
)

func TestFrameEncode(t *testing.T) {
	tests := []struct {
		name string
		f    Frame
		want string
	}{
		{"rule 7: a join has a null payload",
			Frame{Topic: TopicGateway, Event: EventJoin, HasRef: true},
			`{"topic":"gateway","event":"phx_join","payload":null,"ref":0}`},
		{"rule 38: a heartbeat has an object for payload",
			Frame{Topic: TopicPhoenix, Event: EventHeartbeat, Payload: []byte("{}"), Ref: 7, HasRef: true},
			`{"topic":"phoenix","event":"heartbeat","payload":{},"ref":7}`},
		{"rule 6: a push has a null ref",
			Frame{Topic: TopicGateway, Event: "init", Payload: []byte(`{"a":1}`)},
			`{"topic":"gateway","event":"init","payload":{"a":1},"ref":null}`},
		{"rule 43: a large ref stays a number",
			Frame{Topic: TopicPhoenix, Event: EventReply, Ref: 1<<64 - 1, HasRef: true},
			`{"topic":"phoenix","event":"phx_reply","payload":null,"ref":18446744073709551615}`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := tt.f.Encode()
			if err != nil || string(got) != tt.want {
				t.Fatalf("got %s, %v, want %s", got, err, tt.want)
			}
		})
	}
	if _, err := (Frame{Event: "x", Payload: []byte("{")}).Encode(); err == nil {
		t.Error("a payload that is not JSON was encoded")
	}
}

func TestDecodeFrame(t *testing.T) {
	tests := []struct {
		name, in string
		want     Frame
	}{
		{"a reply echoes a number", `{"topic":"gateway","event":"phx_reply","ref":12,"payload":{}}`,
			Frame{Topic: "gateway", Event: "phx_reply", Payload: []byte("{}"), Ref: 12, HasRef: true}},
		{"a push has no ref", `{"topic":"gateway","event":"init","ref":null,"payload":{}}`,
			Frame{Topic: "gateway", Event: "init", Payload: []byte("{}")}},
		{"a join_ref is tolerated", `{"join_ref":"1","topic":"gateway","event":"x","ref":3,"payload":null}`,
			Frame{Topic: "gateway", Event: "x", Payload: []byte("null"), Ref: 3, HasRef: true}},
		{"a textual ref counts as none", `{"topic":"gateway","event":"x","ref":"3","payload":1}`,
			Frame{Topic: "gateway", Event: "x", Payload: []byte("1")}},
		{"a negative ref counts as none", `{"topic":"gateway","event":"x","ref":-3,"payload":1}`,
			Frame{Topic: "gateway", Event: "x", Payload: []byte("1")}},
		{"a payload may be missing", `{"topic":"gateway","event":"x"}`, Frame{Topic: "gateway", Event: "x"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := DecodeFrame([]byte(tt.in))
			if err != nil {
				t.Fatal(err)
			}
			if got.Topic != tt.want.Topic || got.Event != tt.want.Event || got.Ref != tt.want.Ref ||
				got.HasRef != tt.want.HasRef || string(got.Payload) != string(tt.want.Payload) {
				t.Errorf("got %+v, want %+v", got, tt.want)
			}
		})
	}
	for _, bad := range []string{"", "{", "null", "[]", `"x"`, `{"topic":"gateway"}`, `{"event":1}`, "{\"event\":\"\xff\"}", `{"event":"x"} trailing`} {
		_, err := DecodeFrame([]byte(bad))
		var d *DecodeError
		if !errors.As(err, &d) || d.Reason != drop.FrameMalformed {
			t.Errorf("%q: error %v", bad, err)
		}
	}
}

func TestDecodeReply(t *testing.T) {
	tests := []struct {
		name, payload string
		want          Reply
		bad           bool
	}{
		{"ok", `{"status":"ok","response":{}}`, Reply{OK: true}, false},
		{"an error has a reason", `{"status":"error","response":{"reason":"unmatched topic"}}`, Reply{Reason: "unmatched topic"}, false},
		{"an error without reason is an error", `{"status":"error"}`, Reply{}, false},
		{"an error with a textual response is an error", `{"status":"error","response":"no"}`, Reply{}, false},
		{"a reason is made printable and bounded", `{"status":"error","response":{"reason":"a\nb` + strings.Repeat("x", 200) + `"}}`,
			Reply{Reason: "ab" + strings.Repeat("x", 126)}, false},
		{"another status is malformed", `{"status":"maybe"}`, Reply{}, true},
		{"null is malformed", `null`, Reply{}, true},
		{"nothing is malformed", ``, Reply{}, true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := DecodeReply(Frame{Event: EventReply, Payload: json.RawMessage(tt.payload)})
			if got != tt.want || (err != nil) != tt.bad {
				t.Errorf("got %+v, %v", got, err)
			}
		})
	}
}
