package portal

import (
	"bytes"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/netip"
	"strings"
	"testing"
)

func TestSecretsAreRedacted(t *testing.T) {
	relay := Relay{ID: "r", Addr: netip.MustParseAddrPort("192.0.2.1:3478"), Username: "relay-user", Password: "s3cret-password"}
	ice := ICECredentials{"ufrag", "s3cret-password"}
	client := Client{ID: "c"}
	copy(client.PresharedKey[:], strings.Repeat("s3cret", 6))
	login, err := NewLoginURL(Login{BaseURL: "wss://p.example.org", Token: "s3cret-token", ID: "i", Name: "n"})
	if err != nil {
		t.Fatal(err)
	}
	endpoint := login.Connect(PublicKey{})
	session := NewSession(epoch)
	if err := session.Send(Acknowledge{V2, "s3cret-ref"}); err != nil {
		t.Fatal(err)
	}
	values := map[string]any{
		"Ref":               Ref("s3cret-ref"),
		"PresharedKey":      client.PresharedKey,
		"ICECredentials":    ice,
		"Relay":             relay,
		"DualStackRelay":    MergeRelays([]Relay{relay})[0],
		"Login":             Login{BaseURL: "wss://u:s3cret@p", Token: "s3cret-token", Name: "n"},
		"Frame":             Frame{Payload: []byte(`{"ref":"s3cret-ref"}`)},
		"Session":           session,
		"Authorize":         Authorize{Ref: "s3cret-ref", Client: client, ClientICE: ice, GatewayICE: ice},
		"RequestConnection": RequestConnection{Ref: "s3cret-ref", Client: client, ClientICE: ice},
		"Acknowledge":       Acknowledge{Ref: "s3cret-ref"},
		"ConnectionReady":   ConnectionReady{Ref: "s3cret-ref", GatewayICE: ice},
		"Init":              Init{Relays: []Relay{relay}},
		"RelaysPresence":    RelaysPresence{Connected: []Relay{relay}},
		"DualStackRelays":   MergeRelays([]Relay{relay}),
		"Received":          Received{Message: Authorize{Ref: "s3cret-ref", Client: client, ClientICE: ice}},
		"LoginURL":          login,
		"Endpoint":          endpoint,
		"nested Endpoint":   struct{ E Endpoint }{endpoint},
		"Request":           endpoint.Request(RouteV1Query),
	}
	for name, v := range values {
		t.Run(name, func(t *testing.T) {
			var out bytes.Buffer
			for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x"} {
				fmt.Fprintf(&out, verb+"\n", v)
			}
			slog.New(slog.NewTextHandler(&out, nil)).Info("text", "v", v)
			slog.New(slog.NewJSONHandler(&out, nil)).Info("json", "v", v)
			if err := json.NewEncoder(&out).Encode(v); err != nil {
				t.Fatal(err)
			}
			for _, s := range []string{"s3cret", "733363726574", "relay-user", "0x73, 0x33", "115 51 99", "115,51,99"} {
				if i := strings.Index(out.String(), s); i >= 0 {
					t.Errorf("shows %q: …%s", s, out.String()[max(0, i-60):i])
				}
			}
		})
	}
}

func TestPublicKeysAreReadable(t *testing.T) {
	const text = "uMBCkAxTewfSgypIyxdQ18uCi84HLtKmQJy0wvQrYWY="
	key := testKey(t)
	b, err := key.MarshalText()
	if key.String() != text || string(b) != text || err != nil || key.LogValue().String() != text {
		t.Errorf("%v, %s, %v", key, b, err)
	}
}
