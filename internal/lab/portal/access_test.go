package portal

import (
	"encoding/json"
	"slices"
	"testing"
	"time"
)

func TestRevocation(t *testing.T) {
	for _, gen := range generations {
		t.Run(gen.name, func(t *testing.T) {
			s := lab(t, Config{V1Only: gen.v1Only})
			gateway, _ := join(t, s, gatewayLogin(gen.gateway), "gateway")
			client, _ := join(t, s, clientLogin(gen.client), "client")
			grant, _ := authorized(t, gen, gateway, client, cidrID)
			if err := s.Revoke("", cidrID); err != nil {
				t.Fatal(err)
			}
			reject := gateway.want("reject_access")
			if reject["client_id"] != at(t, grant, "client", "id") || reject["resource_id"] != cidrID {
				t.Errorf("reject_access %v", reject)
			}
			var id string
			if err := json.Unmarshal(client.wantRaw("resource_deleted"), &id); err != nil || id != cidrID {
				t.Errorf("resource_deleted carries %q, %v", id, err)
			}
			client.send(gen.request, asking(cidrID))
			if why := text(t, client.want(gen.fails), "reason"); why != "not_found" {
				t.Errorf("reason %s", why)
			}
			gateway.wantQuiet()
			if auths := s.State().Authorizations; len(auths) != 0 {
				t.Errorf("authorizations %v", auths)
			}
			if err := s.Revoke("", cidrID); err == nil {
				t.Error("revoked twice")
			}
		})
	}
}

func TestRevocationDuringARequest(t *testing.T) {
	s := lab(t, Config{})
	gen := generations[2]
	gateway, _ := join(t, s, gatewayLogin(gen.gateway), "gateway")
	client, _ := join(t, s, clientLogin(gen.client), "client")
	client.send(gen.request, asking(cidrID))
	grant := gateway.want(gen.push)
	if err := s.RemoveResource(cidrID); err != nil {
		t.Fatal(err)
	}
	gateway.want("reject_access")
	client.want(gen.fails)
	client.wantRaw("resource_deleted")
	gateway.send(gen.ack, map[string]any{"ref": grant["ref"]})
	gateway.wantReply("ok")
	client.wantQuiet()
	if st := s.State(); len(st.Resources) != 1 || len(st.Grants) != 1 || st.Pending != 0 {
		t.Errorf("state %+v", st)
	}
}

func TestInitListsWhatIsGranted(t *testing.T) {
	now := time.Now()
	clock := make(chan time.Time, 1)
	clock <- now
	s := lab(t, Config{Now: func() time.Time { n := <-clock; clock <- n; return n }})
	gen := generations[2]
	gateway, init := join(t, s, gatewayLogin(gen.gateway), "gateway")
	if n := len(init["authorizations"].([]any)); n != 0 {
		t.Fatalf("%d authorizations at first", n)
	}
	client, _ := join(t, s, clientLogin(gen.client), "client")
	grant, _ := authorized(t, gen, gateway, client, cidrID)
	gateway.leave()
	gateway, init = join(t, s, gatewayLogin(gen.gateway), "gateway")
	if at(t, init, "authorizations", 0, "client_id") != at(t, grant, "client", "id") ||
		at(t, init, "authorizations", 0, "resource_id") != cidrID ||
		at(t, init, "authorizations", 0, "expires_at") != grant["expires_at"] {
		t.Errorf("authorizations %v", init["authorizations"])
	}
	<-clock
	clock <- now.Add(2 * time.Hour)
	if err := s.PushInit(""); err != nil {
		t.Fatal(err)
	}
	if n := len(gateway.want("init")["authorizations"].([]any)); n != 0 {
		t.Errorf("%d authorizations after their end", n)
	}
	if err := s.Revoke("", cidrID); err != nil {
		t.Fatal(err)
	}
	gateway.wantQuiet() // what has ended is not rejected
}

func TestGrantsForOneClient(t *testing.T) {
	s := start(t, Config{})
	if _, err := s.AddResource(Resource{ID: cidrID, Type: CIDR, Address: "172.20.0.0/16"}); err != nil {
		t.Fatal(err)
	}
	const raw = "4694E56C-7643-4A15-9DF3-638E5B05F570"
	mine, other := clientLogin(clientV2), clientLogin(clientV2)
	mine.externalID = ExternalID(raw)
	other.externalID = "somebody"
	client, _ := join(t, s, mine, "client")
	stranger, _ := join(t, s, other, "client")
	if err := s.Grant(raw, cidrID, time.Hour); err != nil {
		t.Fatal(err)
	}
	if id := text(t, client.want("resource_created_or_updated"), "id"); id != cidrID {
		t.Errorf("resource %s", id)
	}
	stranger.wantQuiet()
	stranger.send("request_authorization", asking(cidrID))
	if why := text(t, stranger.want("authorization_creation_failed"), "reason"); why != "not_found" {
		t.Errorf("reason %s", why)
	}
	for name, err := range map[string]error{
		"no time":          s.Grant(raw, cidrID, 0),
		"unknown resource": s.Grant(raw, dnsID, time.Hour),
	} {
		if err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func TestOverlappingGrantsAt1_4MoveTheExpiry(t *testing.T) {
	s := lab(t, Config{V1Only: true})
	gen := generations[0]
	gateway, _ := join(t, s, gatewayLogin(gen.gateway), "gateway")
	client, _ := join(t, s, clientLogin(gen.client), "client")
	authorized(t, gen, gateway, client, cidrID)
	if err := s.Grant("client-1", cidrID, 30*time.Hour); err != nil {
		t.Fatal(err)
	}
	client.want("resource_created_or_updated")
	left := func() time.Duration {
		t.Helper()
		moved := gateway.want("access_authorization_expiry_updated")
		return time.Until(time.Unix(int64(moved["expires_at"].(float64)), 0))
	}
	if d := left(); d < 29*time.Hour {
		t.Errorf("expires in %s", d)
	}
	if err := s.Revoke("client-1", cidrID); err != nil {
		t.Fatal(err)
	}
	if d := left(); d > time.Hour {
		t.Errorf("expires in %s", d)
	}
	gateway.wantQuiet()
	client.wantQuiet()
}

func TestOverlappingGrantsAt1_6AreRejectedAndAskedForAgain(t *testing.T) {
	s := lab(t, Config{})
	gen := generations[2]
	gateway, _ := join(t, s, gatewayLogin(gen.gateway), "gateway")
	client, _ := join(t, s, clientLogin(gen.client), "client")
	if err := s.Grant("client-1", cidrID, 30*time.Hour); err != nil {
		t.Fatal(err)
	}
	client.want("resource_created_or_updated")
	authorized(t, gen, gateway, client, cidrID)
	if err := s.Revoke("client-1", cidrID); err != nil {
		t.Fatal(err)
	}
	gateway.want("reject_access")
	client.wantQuiet() // the other grant keeps the resource visible
	authorized(t, gen, gateway, client, cidrID)
}

func TestResourceUpdates(t *testing.T) {
	s := lab(t, Config{})
	gen := generations[2]
	gateway, _ := join(t, s, gatewayLogin(gen.gateway), "gateway")
	client, _ := join(t, s, clientLogin(gen.client), "client")
	authorized(t, gen, gateway, client, dnsID)

	change := Resource{ID: dnsID, Type: DNS, Name: "web", Address: "*.lab.test", Filters: []Filter{Ports(UDP, 53, 54)}}
	if _, err := s.UpdateResource(change); err != nil {
		t.Fatal(err)
	}
	updated := gateway.want("resource_updated")
	if updated["id"] != dnsID || at(t, updated, "filters", 0, "port_range_end") != 54.0 {
		t.Errorf("resource_updated %v", updated)
	}
	client.want("resource_created_or_updated")

	for _, breaking := range []Resource{
		{ID: dnsID, Type: DNS, Name: "web", Address: "**.lab.test"},
		{ID: dnsID, Type: DNS, Name: "web", Address: "**.lab.test", IPStack: "ipv4_only"},
		{ID: dnsID, Type: CIDR, Name: "web", Address: "10.9.0.0/16"},
	} {
		if _, err := s.UpdateResource(breaking); err != nil {
			t.Fatal(err)
		}
		gateway.want("reject_access")
		client.wantRaw("resource_deleted")
		if got := text(t, client.want("resource_created_or_updated"), "address"); got != breaking.Address {
			t.Errorf("address %s", got)
		}
		authorized(t, gen, gateway, client, dnsID)
	}
	for name, bad := range map[string]Resource{
		"unknown id":   {ID: "00000000-0000-4000-8000-000000000000", Type: CIDR, Address: "10.0.0.0/8"},
		"unknown site": {ID: dnsID, Type: CIDR, Address: "10.0.0.0/8", SiteID: "nowhere"},
	} {
		if _, err := s.UpdateResource(bad); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	gateway.wantQuiet()
}

func TestInternetResourceHasNoAddress(t *testing.T) {
	s := start(t, Config{})
	r, err := s.AddResource(Resource{Type: Internet})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Grant("", r.ID, time.Hour); err != nil {
		t.Fatal(err)
	}
	gen := generations[2]
	gateway, _ := join(t, s, gatewayLogin(gen.gateway), "gateway")
	client, init := join(t, s, clientLogin(gen.client), "client")
	if at(t, init, "resources", 0, "can_be_disabled") != true {
		t.Errorf("resources %v", init["resources"])
	}
	grant, _ := authorized(t, gen, gateway, client, r.ID)
	if resource := grant["resource"].(map[string]any); len(resource) != 2 || resource["type"] != "internet" {
		t.Errorf("resource %v", resource)
	}
}

func TestCandidatesAreForwardedBothWays(t *testing.T) {
	s := lab(t, Config{})
	gen := generations[1]
	gateway, _ := join(t, s, gatewayLogin(gen.gateway), "gateway")
	client, _ := join(t, s, clientLogin(gen.client), "client")
	grant, done := authorized(t, gen, gateway, client, cidrID)
	clientID, gatewayID := text(t, grant, "client", "id"), text(t, done, "gateway_id")
	nobody := "00000000-0000-4000-8000-000000000000"
	candidates := []any{"candidate:1 1 udp 2130706431 10.0.0.5 52625 typ host", "no candidate"}

	for _, c := range []struct {
		sent     string
		from, to *peer
		ids      map[string]any
		arrives  string
		key, id  string
	}{
		{"broadcast_ice_candidates", client, gateway, map[string]any{"gateway_ids": []string{nobody, gatewayID, clientID}},
			"ice_candidates", "client_id", clientID},
		{"broadcast_invalidated_ice_candidates", client, gateway, map[string]any{"gateway_ids": []string{gatewayID, gatewayID}},
			"invalidate_ice_candidates", "client_id", clientID},
		{"new_gateway_ice_candidates", client, gateway, map[string]any{"gateway_id": gatewayID},
			"ice_candidates", "client_id", clientID},
		{"invalidate_gateway_ice_candidates", client, gateway, map[string]any{"gateway_id": gatewayID},
			"invalidate_ice_candidates", "client_id", clientID},
		{"broadcast_ice_candidates", gateway, client, map[string]any{"client_ids": []string{clientID, nobody, gatewayID}},
			"ice_candidates", "gateway_id", gatewayID},
		{"broadcast_invalidated_ice_candidates", gateway, client, map[string]any{"client_ids": []string{clientID}},
			"invalidate_ice_candidates", "gateway_id", gatewayID},
	} {
		t.Run(c.sent+" from "+c.from.topic, func(t *testing.T) {
			c.ids["candidates"] = candidates
			c.from.send(c.sent, c.ids)
			got := c.to.want(c.arrives)
			if got[c.key] != c.id || !slices.Equal(got["candidates"].([]any), candidates) {
				t.Errorf("got %v", got)
			}
			c.from.wantQuiet() // no reply
			c.to.wantQuiet()   // once, and nowhere else
		})
	}
	e := wantEvent(t, s, CandidatesAdded, func(e Event) bool { return e.Role == Gateway })
	if e.ClientID != clientID || e.GatewayID != gatewayID || len(e.Candidates) != 2 {
		t.Errorf("event %+v", e)
	}
}

func TestNothingReachesAPeerThatHasNotJoined(t *testing.T) {
	s := lab(t, Config{})
	gateway, _ := join(t, s, gatewayLogin(gatewayV2), "gateway")
	client := dial(t, s, clientLogin(clientV2), "client")
	id := wantEvent(t, s, PeerConnected, func(e Event) bool { return e.Role == Client }).ClientID
	gateway.send("broadcast_ice_candidates", map[string]any{"client_ids": []string{id}, "candidates": []string{"x"}})
	gateway.wantQuiet()
	if err := s.Grant("client-1", cidrID, time.Hour); err != nil {
		t.Fatal(err)
	}
	s.PushRelaysPresence()
	gateway.want("relays_presence")
	client.wantQuiet()
}

func TestARequestEndsWithItsClient(t *testing.T) {
	s := lab(t, Config{})
	gen := generations[2]
	gateway, _ := join(t, s, gatewayLogin(gen.gateway), "gateway")
	client, _ := join(t, s, clientLogin(gen.client), "client")
	client.send(gen.request, asking(cidrID))
	grant := gateway.want(gen.push)
	client.leave()
	if n := s.State().Pending; n != 0 {
		t.Errorf("%d requests are pending", n)
	}
	client, _ = join(t, s, clientLogin(gen.client), "client")
	gateway.send(gen.ack, map[string]any{"ref": grant["ref"]})
	gateway.wantReply("ok")
	client.wantQuiet()
}
