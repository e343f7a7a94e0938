package portal

import (
	"encoding/json"
	"testing"
)

func TestDecodeFrame(t *testing.T) {
	for _, c := range []struct {
		name, text string
		ok         bool
		ref        string
	}{
		{"numeric ref", `{"topic":"gateway","event":"phx_join","payload":null,"ref":0}`, true, "0"},
		{"ref of another type", `{"topic":"gateway","event":"x","payload":{},"ref":"7","join_ref":1}`, true, `"7"`},
		{"null ref", `{"topic":"gateway","event":"x","payload":{},"ref":null}`, true, "null"},
		{"no payload", `{"topic":"gateway","event":"x","ref":1}`, false, ""},
		{"no ref", `{"topic":"gateway","event":"x","payload":{}}`, false, ""},
		{"no topic", `{"event":"x","payload":{},"ref":1}`, false, ""},
		{"null event", `{"topic":"gateway","event":null,"payload":{},"ref":1}`, false, ""},
		{"keys in capitals", `{"Topic":"gateway","Event":"x","Payload":{},"Ref":1}`, false, ""},
		{"V2 serializer", `["1","1","gateway","phx_join",{}]`, false, ""},
		{"null", `null`, false, ""},
		{"truncated", `{"topic":"gateway"`, false, ""},
		{"empty", ``, false, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			f, err := decodeFrame([]byte(c.text))
			if (err == nil) != c.ok || string(f.Ref) != c.ref {
				t.Errorf("got %+v, %v", f, err)
			}
		})
	}
}

func FuzzDecodeFrame(f *testing.F) {
	f.Add([]byte(`{"topic":"gateway","event":"phx_join","payload":null,"ref":0}`))
	f.Add([]byte(`{"topic":"phoenix","event":"heartbeat","payload":{},"ref":18446744073709551616}`))
	f.Add([]byte(`{"topic":"client","event":"create_flow","payload":{"resource_id":"x"},"ref":"\ud800"}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		in, err := decodeFrame(b)
		if err != nil {
			return
		}
		out, err := outFrame{Topic: in.Topic, Event: in.Event, Payload: in.Payload, Ref: in.Ref}.encode()
		if err != nil {
			t.Fatalf("accepted frame does not encode: %v", err)
		}
		again, err := decodeFrame(out)
		if err != nil {
			t.Fatalf("own frame is refused: %v", err)
		}
		if again.Topic != in.Topic || again.Event != in.Event || !sameJSON(t, in.Ref, again.Ref) {
			t.Fatalf("%+v became %+v", in, again)
		}
	})
}

func FuzzLogin(f *testing.F) {
	f.Add("external_id=a&name=b&public_key=uMBCkAxTewfSgypIyxdQ18uCi84HLtKmQJy0wvQrYWY%3D", "Linux/6 gateway/1.6.0")
	f.Add("ipv4=192.0.2.1&port=3478", "relay/1.0.0")
	f.Fuzz(func(t *testing.T, query, ua string) {
		for _, role := range []Role{Gateway, Client, RelayServer} {
			p, bad := parseQuery(role, query)
			if bad == "" && role != RelayServer && (len(p.publicKey) != 44 || p.externalID == "" || p.name == "") {
				t.Fatalf("accepted %+v", p)
			}
			if bad == "" && role == RelayServer && !p.relay.V4.IsValid() && !p.relay.V6.IsValid() {
				t.Fatal("accepted a relay without address")
			}
		}
		agent := parseUserAgent(ua)
		compatible(agent, agent)
	})
}

func sameJSON(t *testing.T, a, b json.RawMessage) bool {
	t.Helper()
	var compact [2]any
	for i, raw := range []json.RawMessage{a, b} {
		if err := json.Unmarshal(raw, &compact[i]); err != nil {
			// Numbers too large for a float are kept, but not comparable this way.
			return string(a) == string(b)
		}
	}
	x, errX := json.Marshal(compact[0])
	y, errY := json.Marshal(compact[1])
	return errX == nil && errY == nil && string(x) == string(y)
}
