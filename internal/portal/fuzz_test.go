package portal

import (
	"encoding/json"
	"errors"
	"net"
	"net/url"
	"reflect"
	"strings"
	"testing"
	"time"

	"firezone-gateway/internal/drop"
	"firezone-gateway/internal/hammer"
)

// events of the protocol, so that a fuzzer needs no luck to find them.
var fuzzEvents = []string{
	"init", "authorize_flow", "create_authorization", "request_connection", "allow_access", "reject_access", "ice_candidates",
	"invalidate_ice_candidates", "relays_presence", "resource_updated", "access_authorization_expiry_updated", "disconnect", "other",
}

// FuzzDecode checks what a consumer relies on: an accepted message has usable
// ids, keys and addresses, a refused one has a reason, and filters that were
// present never turn into "allow everything".
func FuzzDecode(f *testing.F) { fuzzDecode(f) }

func TestHammerDecode(t *testing.T) { hammer.Test(t, "FuzzDecode", fuzzDecode) }

func fuzzDecode(f hammer.F) {
	f.Add(uint8(0), []byte(`{"interface":{"ipv4":"100.64.0.1","ipv6":"fd00::1"},"relays":[`+turn4+`,`+turn6+`],"authorizations":[{"client_id":"a","resource_id":"b","expires_at":1}]}`))
	f.Add(uint8(1), []byte(authorizeJSON(cidrResource, clientJSON, `,"expires_at":1783425600`)))
	f.Add(uint8(2), []byte(authorizeJSON(dnsResource, clientJSON, ``)))
	f.Add(uint8(3), []byte(requestConnection))
	f.Add(uint8(4), []byte(allowAccess))
	f.Add(uint8(6), []byte(`{"client_id":"c","candidates":["candidate:1 1 udp 1 10.0.0.5 1 typ host",null]}`))
	f.Add(uint8(0), []byte(`{"account_slug":7,"interface":{"ipv4":"100.64.0.1","ipv6":"fd00::1"},"relays":{},"authorizations":[{"client_id":"a","resource_id":"b","expires_at":null}]}`))
	f.Add(uint8(4), []byte(strings.Replace(allowAccess, `{`, `{"payload":{},`, 1)))
	f.Add(uint8(8), []byte(`{"disconnected_ids":["a"],"connected":[`+turn6+`]}`))
	f.Add(uint8(9), []byte(`{"id":"r","type":"dns","address":"a","filters":[{"protocol":"sctp"}]}`))
	f.Add(uint8(10), []byte(`{"client_id":"a","resource_id":"b","expires_at":1}`))
	f.Add(uint8(11), []byte(`{"reason":"token_expired"}`))
	f.Fuzz(func(t *testing.T, event uint8, payload []byte) {
		name := fuzzEvents[int(event)%len(fuzzEvents)]
		m, skipped, err := Decode(Frame{Event: name, Payload: payload})
		if err != nil {
			var d *DecodeError
			if !errors.As(err, &d) || d.Reason != drop.PayloadMalformed || d.Event != name || m != nil {
				t.Fatalf("%v with error %#v", m, err)
			}
			return
		}
		if skipped.Elements < 0 || skipped.Candidates < 0 {
			t.Fatalf("skipped %+v", skipped)
		}
		check := checker{t}
		switch m := m.(type) {
		case Init:
			check.addresses(m.IPv4.Is4(), m.IPv6.Is6())
			check.relays(m.Relays)
			never := 0
			for _, a := range m.Authorizations {
				check.ids(a.ClientID, a.ResourceID)
				if a.ExpiresAt.IsZero() {
					never++
				}
			}
			if n := strings.Count(string(payload), "null"); never > n {
				t.Fatalf("%d never end and there are %d nulls", never, n)
			}
		case Authorize:
			check.ids(m.Client.ID)
			check.resource(m.Resource, payload)
			check.addresses(m.Client.IPv4.Is4(), m.Client.IPv6.Is6())
			if m.Ref == "" || m.ClientICE.Username == "" || m.ClientICE.Password == "" ||
				len(m.GatewayICE.Username) < 3 || len(m.GatewayICE.Password) < 16 || strings.ContainsAny(m.ClientICE.Username+m.GatewayICE.Username, ": \n") || (m.Generation == V1) != (name == "authorize_flow") {
				t.Fatalf("%+v", m)
			}
		case RequestConnection:
			check.ids(m.Client.ID)
			check.resource(m.Resource, payload)
		case AllowAccess:
			check.ids(m.ClientID)
			check.resource(m.Resource, payload)
			check.addresses(m.IPv4.Is4(), m.IPv6.Is6())
		case RejectAccess:
			check.ids(m.ClientID, m.ResourceID)
		case ICECandidates:
			check.ids(m.ClientID)
			check.candidates(m.Candidates)
		case InvalidateICECandidates:
			check.ids(m.ClientID)
			check.candidates(m.Candidates)
		case RelaysPresence:
			check.ids(m.DisconnectedIDs...)
			check.relays(m.Connected)
		case ResourceUpdated:
			check.resource(m.Resource, payload)
		case ExpiryUpdated:
			check.ids(m.ClientID, m.ResourceID)
			check.end(m.ExpiresAt)
		case Disconnect:
		case Unknown:
			if name != "other" {
				t.Fatalf("%s is unknown", name)
			}
		default:
			t.Fatalf("unexpected %T", m)
		}
	})
}

type checker struct{ t *testing.T }

func (c checker) ids(ids ...string) {
	for _, id := range ids {
		if id == "" || len(id) > 64 || strings.ContainsAny(id, "/ \n\x00\"") {
			c.t.Fatalf("id %q", id)
		}
	}
}

func (c checker) addresses(is4, is6 bool) {
	if !is4 || !is6 {
		c.t.Fatal("address of the wrong family")
	}
}

func (c checker) end(at time.Time) {
	if at.IsZero() {
		c.t.Fatal("a required end is missing")
	}
}

func (c checker) candidates(cs []string) {
	for _, s := range cs {
		if !strings.HasPrefix(s, "candidate:") || len(s) > maxCandidate || strings.ContainsAny(s, "\r\n") {
			c.t.Fatalf("candidate %q", s)
		}
	}
}

func (c checker) relays(rs []Relay) {
	for _, r := range rs {
		c.ids(r.ID)
		if !r.Addr.IsValid() || r.Addr.Port() == 0 || r.Addr.Addr().Is4In6() || r.Username == "" || r.Password == "" {
			c.t.Fatalf("relay %v", r)
		}
	}
	for _, d := range MergeRelays(rs) {
		if (d.V4.IsValid() && !d.V4.Addr().Is4()) || (d.V6.IsValid() && !d.V6.Addr().Is6()) || !(d.V4.IsValid() || d.V6.IsValid()) {
			c.t.Fatalf("relay %v", d)
		}
	}
}

func (c checker) resource(r Resource, payload []byte) {
	c.ids(r.ID)
	if r.Type == ResourceCIDR && (!r.Network.IsValid() || r.Network != r.Network.Masked()) {
		c.t.Fatalf("network %v", r.Network)
	}
	if r.Type == ResourceDNS && r.Address == "" {
		c.t.Fatal("DNS resource without a pattern")
	}
	for _, f := range r.Filters {
		if f.First > f.Last || (f.Protocol == FilterNone && len(r.Filters) != 1) {
			c.t.Fatalf("filters %v", r.Filters)
		}
	}
	// If everything is allowed, some empty list has to say so.
	compact := strings.Join(strings.Fields(string(payload)), "")
	if len(r.Filters) == 0 && r.Type != ResourceInternet && !strings.Contains(compact, "[]") {
		c.t.Fatalf("filters were lost: %s", payload)
	}
}

// FuzzFrame checks that a decoded frame survives being encoded and decoded.
func FuzzFrame(f *testing.F) { fuzzFrame(f) }

func TestHammerFrame(t *testing.T) { hammer.Test(t, "FuzzFrame", fuzzFrame) }

func fuzzFrame(f hammer.F) {
	f.Add([]byte(`{"topic":"gateway","event":"phx_reply","ref":12,"payload":{"status":"error","response":{"reason":"unmatched topic"}}}`))
	f.Add([]byte(`{"topic":"gateway","event":"init","ref":null,"join_ref":"3","payload":null}`))
	f.Add([]byte(`{"event":"x","ref":1e3}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		in, err := DecodeFrame(b)
		if err != nil {
			var d *DecodeError
			if !errors.As(err, &d) || d.Reason != drop.FrameMalformed {
				t.Fatalf("error %#v", err)
			}
			return
		}
		_, _ = DecodeReply(in)
		encoded, err := in.Encode()
		if err != nil {
			t.Fatal(err)
		}
		var keys map[string]json.RawMessage
		if err := json.Unmarshal(encoded, &keys); err != nil || len(keys) != 4 {
			t.Fatalf("rule 6: %s", encoded)
		}
		out, err := DecodeFrame(encoded)
		if err != nil || out.Topic != in.Topic || out.Event != in.Event || out.Ref != in.Ref || out.HasRef != in.HasRef {
			t.Fatalf("%+v became %+v, %v", in, out, err)
		}
	})
}

// FuzzSession feeds a session frames, time and messages, and checks what holds
// for every input: the join is first, refs never repeat, application frames are
// only written while joined, an end is the last event and outputs are bounded.
func FuzzSession(f *testing.F) { fuzzSession(f) }

func TestHammerSession(t *testing.T) { hammer.Test(t, "FuzzSession", fuzzSession) }

func fuzzSession(f hammer.F) {
	f.Add([]byte("r0\ns\nt\nr1\n{\"topic\":\"gateway\",\"event\":\"phx_close\"}"))
	f.Add([]byte("s\nr0\nu1\nr2\ns\nt\nt\nt\nt\nt"))
	f.Add([]byte(`{"topic":"gateway","event":"disconnect","payload":{"reason":"token_expired"}}`))
	f.Fuzz(func(t *testing.T, script []byte) {
		now := epoch
		s := NewSession(now)
		refs := map[uint64]bool{}
		ended := false
		for n, line := range strings.Split(string(script), "\n") {
			switch {
			case line == "s":
				if err := s.Send(Acknowledge{V2, Ref("r")}); err != nil && !errors.Is(err, ErrEnded) {
					t.Fatal(err)
				}
			case line == "t":
				if next := s.NextTimeout(); !next.IsZero() {
					if !next.After(now) && n > 0 {
						t.Fatalf("timeout %v is not after %v", next, now)
					}
					now = next
				}
				s.Tick(now)
			case strings.HasPrefix(line, "r") && len(line) == 2:
				s.Receive([]byte(okReply(uint64(line[1]-'0'))), now)
			case strings.HasPrefix(line, "u") && len(line) == 2:
				s.Receive([]byte(errorReply(uint64(line[1]-'0'), "unmatched topic")), now)
			default:
				s.Receive([]byte(line), now)
			}
			fs := frames(s)
			if len(fs) > QueueLimit+2 {
				t.Fatalf("%d frames", len(fs))
			}
			for _, f := range fs {
				if len(refs) == 0 && (f.Event != EventJoin || f.Ref != 0) {
					t.Fatalf("first frame %+v", f)
				}
				if refs[f.Ref] {
					t.Fatalf("ref %d repeats", f.Ref)
				}
				refs[f.Ref] = true
				if f.Event != EventJoin && f.Event != EventHeartbeat && !s.Joined() {
					t.Fatalf("%s while not joined", f.Event)
				}
			}
			es := events(s)
			if len(es) > 2 || (ended && len(es)+len(fs) > 0) {
				t.Fatalf("events %v, frames %v, ended %v", es, fs, ended)
			}
			for _, e := range es {
				_, ended = e.(Ended)
			}
		}
	})
}

// FuzzClassifyHTTP checks that only 401 is fatal and delays are bounded.
func FuzzClassifyHTTP(f *testing.F) { fuzzClassifyHTTP(f) }

func TestHammerClassifyHTTP(t *testing.T) { hammer.Test(t, "FuzzClassifyHTTP", fuzzClassifyHTTP) }

func fuzzClassifyHTTP(f hammer.F) {
	f.Add(503, "1", "text/plain", []byte("busy"))
	f.Add(401, "Sat, 01 Aug 2026 12:00:30 GMT", "application/problem+json", []byte(`{"code":"invalid_token"}`))
	f.Fuzz(func(t *testing.T, status int, retryAfter, contentType string, body []byte) {
		got := ClassifyHTTP(status, map[string][]string{"Retry-After": {retryAfter}, "Content-Type": {contentType}}, body, epoch)
		if got.Fatal != (status == 401) || got.RetryAfter < 0 || got.RetryAfter > MaxRetryAfter {
			t.Fatalf("%#v", got)
		}
		if len(got.Code) > maxText || len(got.Detail) > maxText || printable(got.String(), 1000) != got.String() {
			t.Fatalf("%q", got)
		}
	})
}

// FuzzParseRetryAfter checks the bounds of the delay, that it never grows while
// time passes, and that what is not understood is no delay.
func FuzzParseRetryAfter(f *testing.F) { fuzzParseRetryAfter(f) }

func TestHammerParseRetryAfter(t *testing.T) {
	hammer.Test(t, "FuzzParseRetryAfter", fuzzParseRetryAfter)
}

func fuzzParseRetryAfter(f hammer.F) {
	f.Add("30", int64(0))
	f.Add("Sat, 01 Aug 2026 12:00:30 GMT", int64(29))
	f.Add("Saturday, 01-Aug-26 12:00:30 GMT", int64(31))
	f.Add("Sat Aug  1 12:00:30 2026", int64(-1))
	f.Fuzz(func(t *testing.T, value string, seconds int64) {
		now := epoch.Add(time.Duration(seconds%1e9) * time.Second)
		delay, ok := ParseRetryAfter(value, now)
		if delay < 0 || delay > MaxRetryAfter || (!ok && delay != 0) {
			t.Fatalf("%q: %v, %v", value, delay, ok)
		}
		later, again := ParseRetryAfter(value, now.Add(time.Second))
		if again != ok || later > delay || delay-later > time.Second {
			t.Fatalf("%q: %v, a second later %v", value, delay, later)
		}
		if ok && strings.TrimSpace(value) == "" {
			t.Fatalf("%q is a delay of %v", value, delay)
		}
	})
}

// FuzzLoginURL checks that an accepted login leads to requests that carry
// exactly its values (rules 1 to 5), and never shows its token elsewhere.
func FuzzLoginURL(f *testing.F) { fuzzLoginURL(f) }

func TestHammerLoginURL(t *testing.T) { hammer.Test(t, "FuzzLoginURL", fuzzLoginURL) }

func fuzzLoginURL(f hammer.F) {
	f.Add("wss://api.example.org/", "token", "gw-1", "gw-1", "Debian/12 gateway/1.6.0")
	f.Add("http://[2001:db8::1]:8081/a%2Fb/?x=1#y", " .SFMy\nNTY.abc ", rawID, "gäteway & co", "ü")
	f.Fuzz(func(t *testing.T, base, token, id, name, agent string) {
		l, err := NewLoginURL(Login{BaseURL: base, Token: token, ID: id, Name: name, UserAgent: agent})
		if err != nil {
			return
		}
		bare := strings.Join(strings.Fields(token), "")
		e := l.Connect(testKey(t))
		for _, route := range []Route{RouteV2, RouteV1, RouteV1Query} {
			r := e.Request(route)
			parsed, err := url.Parse(r.URL.String())
			if err != nil || (parsed.Scheme != "ws" && parsed.Scheme != "wss") || parsed.Fragment != "" {
				t.Fatalf("%s: %v", r, err)
			}
			if _, port, err := net.SplitHostPort(r.Address); err != nil || port == "" {
				t.Fatalf("address %q: %v", r.Address, err)
			}
			want := url.Values{"external_id": {ExternalID(id)}, "name": {name}, "public_key": {testKey(t).String()}}
			if route == RouteV1Query {
				want.Set("token", bare)
			}
			if q, err := url.ParseQuery(parsed.RawQuery); err != nil || !reflect.DeepEqual(q, want) {
				t.Fatalf("query %v, want %v, %v", q, want, err)
			}
			if got := first(r.Header["X-Authorization"]); got != "Bearer "+bare {
				t.Fatalf("header %q", got)
			}
			for key, values := range r.Header {
				if strings.ContainsAny(values[0], "\r\n\x00") {
					t.Fatalf("%s: %q", key, values)
				}
			}
		}
	})
}
