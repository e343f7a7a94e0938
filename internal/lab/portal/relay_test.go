package portal

import (
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"
)

func testRelay(n byte) Relay {
	return Relay{
		V4: netip.AddrPortFrom(netip.AddrFrom4([4]byte{203, 0, 113, n}), 3478), StampSecret: strings.Repeat("s", int(n)),
	}
}

func relayLogin() login {
	return login{path: "/relay/websocket", extra: url.Values{
		"ipv4": {"203.0.113.101"}, "ipv6": {"2001:db8::101"}, "external_id": nil, "public_key": nil,
	}}
}

func ids(t *testing.T, relays any) []string {
	t.Helper()
	var list []string
	for i := range relays.([]any) {
		list = append(list, text(t, relays, i, "id"))
	}
	return list
}

func TestRelaysOfInitCarryTheVectorCredentials(t *testing.T) {
	s := start(t, Config{})
	relay := Relay{
		V4: netip.MustParseAddrPort("203.0.113.101:3478"), V6: netip.MustParseAddrPort("[2001:db8::101]:3478"),
		StampSecret: vectorSecret,
	}
	if err := s.SetRelays([]Relay{relay}); err != nil {
		t.Fatal(err)
	}
	_, init := join(t, s, gatewayLogin(gatewayV2), "gateway")
	for i, addr := range []string{"203.0.113.101:3478", "[2001:db8::101]:3478"} {
		entry := at(t, init, "relays", i)
		if text(t, entry, "type") != "turn" || text(t, entry, "addr") != addr ||
			text(t, entry, "id") != "a8ae6e6e-e929-4bea-bafc-fc5258c8ccd6" ||
			text(t, entry, "username") != "2145916800:IHF707vzp8S20otOb0X8DnipWwBnjqx3vXEV53OMrpE" ||
			text(t, entry, "password") != "3oczJRrb56BGCE7qYTzzi2O8UNcuQcmiZL0JBkF+qNc" ||
			at(t, entry, "expires_at") != 2145916800.0 {
			t.Errorf("entry %d is %v", i, entry)
		}
	}
}

func TestExpiryOfOtherCredentials(t *testing.T) {
	now := time.Unix(1_700_000_000, 0)
	s := start(t, Config{V1Only: true, Now: func() time.Time { return now }, ClientSession: time.Hour})
	if err := s.SetRelays([]Relay{testRelay(1)}); err != nil {
		t.Fatal(err)
	}
	_, init := join(t, s, gatewayLogin(gatewayV1), "gateway")
	if got := at(t, init, "relays", 0, "expires_at"); got != float64(now.Unix()+90*24*3600) {
		t.Errorf("gateway at 1.4: %v", got)
	}
	_, init = join(t, s, clientLogin(clientV1), "client")
	if got := at(t, init, "relays", 0, "expires_at"); got != float64(now.Unix()+3600) {
		t.Errorf("client: %v", got)
	}
}

func TestPresenceAfterARelayIsReplaced(t *testing.T) {
	s := start(t, Config{RelayDebounce: time.Millisecond})
	a, b, c := testRelay(1), testRelay(2), testRelay(3)
	if err := s.SetRelays([]Relay{a, b}); err != nil {
		t.Fatal(err)
	}
	p, init := join(t, s, gatewayLogin(gatewayV2), "gateway")
	idOf := func(r Relay) string { return RelayID(r.StampSecret) }
	if got := ids(t, init["relays"]); !slices.Equal(got, []string{idOf(a), idOf(b)}) {
		t.Fatalf("relays %v", got)
	}
	if err := s.SetRelays([]Relay{c, b}); err != nil {
		t.Fatal(err)
	}
	presence := p.want("relays_presence")
	if got := presence["disconnected_ids"].([]any); !slices.Equal(got, []any{idOf(a)}) {
		t.Errorf("disconnected %v", got)
	}
	if got := ids(t, presence["connected"]); !slices.Equal(got, []string{idOf(b), idOf(c)}) {
		t.Errorf("connected %v, want the known relay first", got)
	}
	p.send("no_relays", struct{}{})
	presence = p.want("relays_presence")
	if got := presence["disconnected_ids"].([]any); len(got) != 0 {
		t.Errorf("disconnected %v", got)
	}
	s.PushRelaysPresence()
	p.want("relays_presence")
	p.wantQuiet()
}

func TestNoMoreThanTwoRelaysAndNoNeedlessPush(t *testing.T) {
	s := start(t, Config{RelayDebounce: time.Millisecond})
	if err := s.SetRelays([]Relay{testRelay(1), testRelay(2), testRelay(3)}); err != nil {
		t.Fatal(err)
	}
	_, init := join(t, s, gatewayLogin(gatewayV2), "gateway")
	if got := ids(t, init["relays"]); len(got) != 2 {
		t.Fatalf("relays %v", got)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	online := s.online()
	for sess := range s.sessions {
		if affected(sess, online) || !affected(sess, online[1:]) || affected(sess, online[:2]) {
			t.Error("wrong idea of who is affected")
		}
	}
}

func TestNoRelaysIsUnknownAt1_4(t *testing.T) {
	s := start(t, Config{V1Only: true})
	p, _ := join(t, s, gatewayLogin(gatewayV1), "gateway")
	for _, event := range []string{"no_relays", "set_snownet_capabilities"} {
		p.send(event, struct{}{})
		if why := p.wantReply("error"); why != "unknown_message" {
			t.Errorf("%s: reason %s", event, why)
		}
	}
}

func TestClientsMayAskForRelays(t *testing.T) {
	for _, path := range []string{clientV1, clientV2} {
		s := start(t, Config{})
		p, _ := join(t, s, clientLogin(path), "client")
		p.send("no_relays", struct{}{})
		if got := p.want("relays_presence")["connected"].([]any); len(got) != 0 {
			t.Errorf("%s: connected %v", path, got)
		}
		p.wantQuiet()
	}
	s := start(t, Config{V1Only: true})
	p, _ := join(t, s, clientLogin(clientV1), "client")
	p.send("no_relays", struct{}{})
	if why := p.wantReply("error"); why != "unknown_message" {
		t.Errorf("reason %s", why)
	}
}

func TestARelayLogsInAndLeaves(t *testing.T) {
	s := start(t, Config{RelayDebounce: time.Millisecond})
	gateway, init := join(t, s, gatewayLogin(gatewayV2), "gateway")
	if n := len(init["relays"].([]any)); n != 0 {
		t.Fatalf("%d relays", n)
	}
	relay := dial(t, s, relayLogin(), "relay") // no token at all
	relay.send("phx_join", map[string]string{"secret": "x"})
	if why := relay.wantReply("error"); why != "join crashed" {
		t.Errorf("reason %s", why)
	}
	relay.send("phx_join", map[string]string{"stamp_secret": vectorSecret})
	relay.wantReply("ok")
	relay.want("init")
	relay.wantQuiet()
	presence := gateway.want("relays_presence")
	for i, addr := range []string{"203.0.113.101:3478", "[2001:db8::101]:3478"} {
		if got := text(t, presence, "connected", i, "addr"); got != addr {
			t.Errorf("address %s", got)
		}
	}
	if e := wantEvent(t, s, PeerJoined, func(e Event) bool { return e.Role == RelayServer }); e.RelayID != RelayID(vectorSecret) {
		t.Errorf("event %+v", e)
	}
	relay.leave()
	presence = gateway.want("relays_presence")
	if got := presence["disconnected_ids"].([]any); !slices.Equal(got, []any{RelayID(vectorSecret)}) {
		t.Errorf("disconnected %v", got)
	}
}

func TestRelayLoginParameters(t *testing.T) {
	for _, c := range []struct{ name, query, bad string }{
		{"one family", "ipv4=192.0.2.1", ""},
		{"own port", "ipv6=2001:db8::1&port=3479", ""},
		{"no address", "port=3478", "ipv4"},
		{"family mixed up", "ipv6=192.0.2.1", "ipv6"},
		{"port zero", "ipv4=192.0.2.1&port=0", "port"},
		{"port too large", "ipv4=192.0.2.1&port=65536", "port"},
	} {
		t.Run(c.name, func(t *testing.T) {
			p, bad := parseQuery(RelayServer, c.query)
			if bad != c.bad {
				t.Fatalf("complains about %q", bad)
			}
			if c.name == "own port" && p.relay.V6.String() != "[2001:db8::1]:3479" {
				t.Errorf("address %s", p.relay.V6)
			}
		})
	}
}

func TestSetRelaysRefusesNonsense(t *testing.T) {
	s := start(t, Config{})
	v6 := netip.MustParseAddrPort("[2001:db8::1]:3478")
	for name, relays := range map[string][]Relay{
		"twice the same": {testRelay(1), testRelay(1)},
		"no secret":      {{V6: v6}},
		"no address":     {{StampSecret: "x"}},
		"wrong family":   {{V4: v6, StampSecret: "x"}},
		"bad id":         {{ID: "relay", V6: v6, StampSecret: "x"}},
	} {
		if err := s.SetRelays(relays); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}
