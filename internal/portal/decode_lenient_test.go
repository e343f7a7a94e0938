package portal

import (
	"encoding/json"
	"reflect"
	"strings"
	"testing"
)

// TestDecodeKeepsMessagesWithBadOptionalParts compares with the message whose
// part is missing or null. Nothing in these parts decides about access.
func TestDecodeKeepsMessagesWithBadOptionalParts(t *testing.T) {
	const iface = `"interface":{"ipv4":"100.64.0.1","ipv6":"fd00::1"}`
	request := func(domain string) string {
		return strings.Replace(requestConnection, `{"name":"x","proxy_ips":["100.96.0.1"]}`, domain, 1)
	}
	allow := func(payload string) string {
		return strings.Replace(allowAccess, `"expires_at"`, `"payload":`+payload+`,"expires_at"`, 1)
	}
	grant := func(rest string) string { return authorizeJSON(dnsResource, clientJSON, `,"expires_at":1`+rest) }
	named := func(name string) string { return strings.Replace(cidrResource, `"lab"`, name, 1) }
	tests := []struct {
		name, event, bad, good string
		skipped                int
	}{
		{"an account slug that is a number", "init", `{"account_slug":7,` + iface + `}`, `{` + iface + `}`, 1},
		{"an account slug that is an object", "init", `{"account_slug":{"a":[1,{"b":null}]},` + iface + `}`, `{` + iface + `}`, 1},
		{"relays that are no list", "init", `{"relays":{"a":1},` + iface + `,"authorizations":[]}`, `{` + iface + `}`, 1},
		{"a configuration that is none", "init", `{"config":7,"flow_logs":"x",` + iface + `}`, `{` + iface + `}`, 0},
		{"use_iceless that is text", "create_authorization", grant(`,"use_iceless":"x"`), grant(``), 1},
		{"parts for flow logs of any type", "create_authorization", grant(`,"subject":7,"flow_logs_ingest_token":[]`), grant(``), 0},
		{"a resource whose name is a number", "resource_updated", named(`7`), named(`""`), 1},
		{"a granted resource whose name is a list", "authorize_flow", authorizeJSON(named(`["x"]`), clientJSON, `,"expires_at":1`), authorizeJSON(named(`""`), clientJSON, `,"expires_at":1`), 1},
		{"the Internet resource with an address of another type", "resource_updated", `{"address":7,"id":"r","type":"internet"}`, `{"id":"r","type":"internet"}`, 0},
		{"allow_access with an empty payload", "allow_access", allow(`{}`), allow(`null`), 1},
		{"allow_access with a payload without a name", "allow_access", allow(`{"proxy_ips":["100.96.0.1"]}`), allow(`null`), 1},
		{"allow_access with a payload that is text", "allow_access", allow(`"x"`), allow(`null`), 1},
		{"request_connection with a domain without a name", "request_connection", request(`{}`), request(`null`), 1},
		{"request_connection with proxy addresses that are no list", "request_connection", request(`{"name":"x","proxy_ips":"100.96.0.1"}`), request(`null`), 1},
		{"disconnect with a reason that is a number", "disconnect", `{"reason":7}`, `{}`, 1},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, skipped, err := Decode(Frame{Event: tt.event, Payload: json.RawMessage(tt.bad)})
			if err != nil || skipped != (Skipped{Elements: tt.skipped}) {
				t.Fatalf("skipped %+v, error %v", skipped, err)
			}
			want, skipped, err := Decode(Frame{Event: tt.event, Payload: json.RawMessage(tt.good)})
			if err != nil || skipped != (Skipped{}) {
				t.Fatalf("without it: skipped %+v, error %v", skipped, err)
			}
			if !reflect.DeepEqual(got, want) {
				t.Errorf("got %+v, want %+v", got, want)
			}
		})
	}
	t.Run("a syntax error in an optional part is none of its type", func(t *testing.T) {
		if m, skipped, err := Decode(Frame{Event: "init", Payload: json.RawMessage(`{"account_slug":[1,},` + iface + `}`)}); err == nil || skipped != (Skipped{}) {
			t.Errorf("got %+v, %+v", m, skipped)
		}
	})
}

func TestDecodeICECredentials(t *testing.T) {
	long := strings.Repeat("x", 256)
	tests := []struct {
		name, username, password string
		client, gateway          bool // whether they can be theirs
	}{
		{"as the portal makes them", "sim3", "ceqc5rlg6ueluoxqoa56ze", true, true},
		{"with marks that RFC 8839 does not have", "s-i_m!", "ceqc5rlg6ueluoxqoa56z=", true, true},
		{"as long as can be", long, long, true, true},
		{"as short as the gateway's ICE agent takes its own", "abc", "0123456789abcdef", true, true},
		{"a short username", "ab", "0123456789abcdef", true, false},
		{"a short password", "abc", "0123456789abcde", true, false},
		{"one character each", "a", "b", true, false},
		{"no username", "", "0123456789abcdef", false, false},
		{"no password", "abcd", "", false, false},
		{"a username that is too long", long + "x", "0123456789abcdef", false, false},
		{"a password that is too long", "abcd", long + "x", false, false},
		{"a colon, which separates usernames", "ab:d", "0123456789abcdef", false, false},
		{"a blank, which separates the parts of a candidate", "ab d", "0123456789abcdef", false, false},
		{"a control character", "abcd", `0123456789ab\ndef`, false, false},
		{"a letter outside of ASCII", "abcd", "0123456789abcdeü", false, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			for key, want := range map[string]bool{"client_ice_credentials": tt.client, "gateway_ice_credentials": tt.gateway} {
				payload := authorizeJSON(dnsResource, clientJSON, `,"expires_at":1,"`+key+`":{"username":"`+tt.username+`","password":"`+tt.password+`"}`)
				m, _, err := Decode(Frame{Event: "authorize_flow", Payload: json.RawMessage(payload)})
				if (err == nil) != want {
					t.Errorf("%s: error %v", key, err)
				}
				if err != nil {
					if tt.password != "" && tt.password != "b" && strings.Contains(err.Error(), tt.password) || !strings.Contains(err.Error(), key) {
						t.Errorf("%s: error %v", key, err)
					}
					continue
				}
				got := m.(Authorize).ClientICE
				if key == "gateway_ice_credentials" {
					got = m.(Authorize).GatewayICE
				}
				if got.Username != tt.username || got.Password != tt.password {
					t.Errorf("%s: got %s", key, got.Username)
				}
			}
		})
	}
}
