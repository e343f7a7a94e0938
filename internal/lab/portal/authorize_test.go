package portal

import (
	"testing"
	"time"
)

const (
	cidrID = "73037362-715d-4a83-a749-f18eadd970e6"
	dnsID  = "03000143-e25e-45c7-aafb-144990e57dcd"
)

// generation names the events of a pair of peers in the words of the spec, so
// that a typing mistake in grantNames cannot hide.
type generation struct {
	name                                      string
	v1Only                                    bool
	gateway, client                           string
	request, push, ack, wrongAck, done, fails string
	site                                      string
}

var generations = []generation{
	{"1.4 portal", true, gatewayV1, clientV1, "create_flow", "authorize_flow", "flow_authorized",
		"authorization_created", "flow_created", "flow_creation_failed", "gateway_group_id"},
	{"V1 peers", false, gatewayV1, clientV1, "create_flow", "authorize_flow", "flow_authorized",
		"authorization_created", "flow_created", "flow_creation_failed", "gateway_group_id"},
	{"V2 peers", false, gatewayV2, clientV2, "request_authorization", "create_authorization", "authorization_created",
		"flow_authorized", "authorization_created", "authorization_creation_failed", "site_id"},
	{"V1 gateway and V2 client", false, gatewayV1, clientV2, "request_authorization", "authorize_flow", "flow_authorized",
		"authorization_created", "authorization_created", "authorization_creation_failed", "site_id"},
}

// lab is a portal with one resource of each kind, granted to everybody.
func lab(t *testing.T, cfg Config) *Server {
	t.Helper()
	s := start(t, cfg)
	for _, r := range []Resource{
		{ID: cidrID, Type: CIDR, Name: "lab", Address: "172.20.0.0/16", Filters: []Filter{Ports(TCP, 443, 443), {Protocol: ICMP}}},
		{ID: dnsID, Type: DNS, Name: "web", Address: "*.lab.test"},
	} {
		if _, err := s.AddResource(r); err != nil {
			t.Fatal(err)
		}
		if err := s.Grant("", r.ID, time.Hour); err != nil {
			t.Fatal(err)
		}
	}
	return s
}

func asking(resource string) map[string]any {
	return map[string]any{"resource_id": resource, "connected_gateway_ids": []string{}}
}

// authorized brings a client to a resource and returns what both sides got.
func authorized(t *testing.T, gen generation, gateway, client *peer, resource string) (forGateway, forClient map[string]any) {
	t.Helper()
	client.send(gen.request, asking(resource))
	forGateway = gateway.want(gen.push)
	gateway.send(gen.ack, map[string]any{"ref": forGateway["ref"]})
	gateway.wantReply("ok")
	return forGateway, client.want(gen.done)
}

func TestAuthorization(t *testing.T) {
	for _, gen := range generations {
		t.Run(gen.name, func(t *testing.T) {
			s := lab(t, Config{V1Only: gen.v1Only})
			gateway, gatewayInit := join(t, s, gatewayLogin(gen.gateway), "gateway")
			client, clientInit := join(t, s, clientLogin(gen.client), "client")

			client.send(gen.request, asking(cidrID))
			grant := gateway.want(gen.push)
			client.wantQuiet() // nothing before the acknowledgement
			gateway.send(gen.wrongAck, map[string]any{"ref": grant["ref"]})
			if why := gateway.wantReply("error"); why != "unknown_message" {
				t.Errorf("wrong name of the acknowledgement: %s", why)
			}
			client.wantQuiet()
			gateway.send(gen.ack, map[string]any{"ref": grant["ref"]})
			gateway.wantReply("ok")
			done := client.want(gen.done)

			if got, want := at(t, grant, "client", "ipv4"), at(t, clientInit, "interface", "ipv4"); got != want {
				t.Errorf("client address %v, init said %v", got, want)
			}
			if got, want := done["gateway_ipv6"], at(t, gatewayInit, "interface", "ipv6"); got != want {
				t.Errorf("gateway address %v, init said %v", got, want)
			}
			for _, key := range []string{"client_ice_credentials", "gateway_ice_credentials"} {
				if text(t, grant, key, "password") != text(t, done, key, "password") ||
					text(t, grant, key, "username") != text(t, done, key, "username") {
					t.Errorf("the sides disagree on %s", key)
				}
			}
			clientICE, _ := DeriveICE(
				Endpoint{text(t, grant, "client", "id"), clientKey}, Endpoint{text(t, done, "gateway_id"), gatewayKey})
			if text(t, grant, "client_ice_credentials", "password") != clientICE.Password {
				t.Error("ICE credentials are not the derived ones")
			}
			if text(t, grant, "client", "preshared_key") != text(t, done, "preshared_key") {
				t.Error("the sides disagree on the preshared key")
			}
			if text(t, done, gen.site) != DefaultSiteID || text(t, done, "gateway_public_key") != gatewayKey {
				t.Errorf("client was told %v", done)
			}
			if text(t, grant, "resource", "address") != "172.20.0.0/16" ||
				at(t, grant, "resource", "filters", 0, "port_range_start") != 443.0 ||
				text(t, grant, "resource", "filters", 1, "protocol") != "icmp" {
				t.Errorf("resource %v", grant["resource"])
			}
			if text(t, grant, "client", "version") == "" || text(t, grant, "client", "device_os_name") != "Ubuntu" {
				t.Errorf("client %v", at(t, grant, "client", "version"))
			}
			expires := at(t, grant, "expires_at").(float64)
			if d := time.Until(time.Unix(int64(expires), 0)); d < 50*time.Minute || d > time.Hour {
				t.Errorf("expires in %s", d)
			}
			if gen.v1Only {
				if _, ok := grant["flow_logs_ingest_token"]; ok {
					t.Error("a 1.4 portal has no ingest tokens")
				}
			} else {
				checkJWT(t, text(t, grant, "flow_logs_ingest_token"), roleResponder)
				checkJWT(t, text(t, done, "flow_logs_ingest_token"), roleInitiator)
				if grant["use_iceless"] != false || done["use_iceless"] != false {
					t.Error("iceless without capability")
				}
			}
			checkTrail(t, s)
		})
	}
}

// checkTrail checks that one authorization left its events, in order.
func checkTrail(t *testing.T, s *Server) {
	t.Helper()
	requested := wantEvent(t, s, AuthorizationRequested, nil)
	last := requested
	for _, kind := range []EventKind{AuthorizationPushed, AuthorizationAcked, AuthorizationGranted} {
		e := wantEvent(t, s, kind, func(e Event) bool { return e.AuthorizationID == requested.AuthorizationID })
		if e.Seq <= last.Seq || e.At.Before(last.At) || e.ClientID == "" || e.GatewayID == "" || e.ResourceID != cidrID {
			t.Errorf("%+v after %+v", e, last)
		}
		last = e
	}
}

func TestRepeatedAuthorizationKeepsTheSecretsAndChangesTheRef(t *testing.T) {
	s := lab(t, Config{})
	gen := generations[2]
	gateway, _ := join(t, s, gatewayLogin(gen.gateway), "gateway")
	client, _ := join(t, s, clientLogin(gen.client), "client")
	first, _ := authorized(t, gen, gateway, client, cidrID)
	second, _ := authorized(t, gen, gateway, client, dnsID)
	if first["ref"] == second["ref"] {
		t.Error("refs repeat")
	}
	if text(t, first, "client", "preshared_key") != text(t, second, "client", "preshared_key") ||
		text(t, first, "gateway_ice_credentials", "password") != text(t, second, "gateway_ice_credentials", "password") {
		t.Error("secrets of the pair change")
	}
	if text(t, second, "resource", "address") != "*.lab.test" {
		t.Errorf("resource %v", second["resource"])
	}
}

func TestRefusedRequests(t *testing.T) {
	for _, gen := range generations {
		t.Run(gen.name, func(t *testing.T) {
			now := time.Now()
			clock := make(chan time.Time, 1)
			clock <- now
			s := lab(t, Config{V1Only: gen.v1Only, Now: func() time.Time { n := <-clock; clock <- n; return n }})
			client, _ := join(t, s, clientLogin(gen.client), "client")
			refused := func(resource, want string) {
				t.Helper()
				client.send(gen.request, asking(resource))
				if got := text(t, client.want(gen.fails), "reason"); got != want {
					t.Errorf("reason %s, want %s", got, want)
				}
			}
			refused("00000000-0000-4000-8000-000000000000", "not_found")
			refused(cidrID, "offline")
			old := gatewayLogin(gen.gateway)
			old.agent = "Debian/12 gateway/1.2.0"
			gateway, _ := join(t, s, old, "gateway")
			if gen.v1Only {
				refused(cidrID, "offline")
			} else {
				refused(cidrID, "version_mismatch")
			}
			gateway.leave()
			<-clock
			clock <- now.Add(2 * time.Hour)
			refused(cidrID, "forbidden")
			client.send(gen.request, map[string]any{"resource": 1})
			if why := client.wantReply("error"); why != "unknown_message" {
				t.Errorf("reason %s", why)
			}
		})
	}
}

func TestUnacknowledgedRequestFailsAndALateAcknowledgementIsDropped(t *testing.T) {
	for _, gen := range generations {
		t.Run(gen.name, func(t *testing.T) {
			s := lab(t, Config{V1Only: gen.v1Only, AckTimeout: 20 * time.Millisecond})
			gateway, _ := join(t, s, gatewayLogin(gen.gateway), "gateway")
			client, _ := join(t, s, clientLogin(gen.client), "client")
			client.send(gen.request, asking(cidrID))
			grant := gateway.want(gen.push)
			if why := text(t, client.want(gen.fails), "reason"); why != "offline" {
				t.Errorf("reason %s", why)
			}
			gateway.send(gen.ack, map[string]any{"ref": grant["ref"]})
			gateway.wantReply("ok")
			wantEvent(t, s, LateAck, nil)
			client.wantQuiet()
		})
	}
}

func TestForeignRefsAreInvalid(t *testing.T) {
	s := lab(t, Config{})
	gen := generations[2]
	gateway, _ := join(t, s, gatewayLogin(gen.gateway), "gateway")
	other := gatewayLogin(gen.gateway)
	other.externalID, other.key, other.agent = "gw-0", clientKey, "Debian/12 gateway/1.5.0"
	thief, _ := join(t, s, other, "gateway")
	client, _ := join(t, s, clientLogin(gen.client), "client")
	client.send(gen.request, asking(cidrID))
	grant := gateway.want(gen.push) // the higher version is preferred
	for _, attempt := range []struct {
		by  *peer
		ref any
	}{{gateway, "invented"}, {thief, grant["ref"]}} {
		attempt.by.send(gen.ack, map[string]any{"ref": attempt.ref})
		if why := attempt.by.wantReply("error"); why != "invalid_ref" {
			t.Errorf("reason %s", why)
		}
	}
	client.wantQuiet()
	gateway.send(gen.ack, map[string]any{"ref": grant["ref"]})
	gateway.wantReply("ok")
	client.want(gen.done)
}

func TestTheClientsGatewayIsPreferred(t *testing.T) {
	s := lab(t, Config{})
	gen := generations[2]
	low := gatewayLogin(gen.gateway)
	low.externalID, low.key, low.agent = "gw-0", clientKey, "Debian/12 gateway/1.5.0"
	older, _ := join(t, s, low, "gateway")
	join(t, s, gatewayLogin(gen.gateway), "gateway")
	id := wantEvent(t, s, PeerJoined, func(e Event) bool { return e.ExternalID == "gw-0" }).GatewayID
	client, _ := join(t, s, clientLogin(gen.client), "client")
	client.send(gen.request, map[string]any{"resource_id": cidrID, "connected_gateway_ids": []string{id}})
	older.want(gen.push)
}

func TestGatewaysServeTheirSiteOnly(t *testing.T) {
	s := lab(t, Config{GatewayToken: "token"})
	gen := generations[2]
	site, err := s.AddSite(Site{Name: "far", GatewayToken: "far"})
	if err != nil {
		t.Fatal(err)
	}
	l := gatewayLogin(gen.gateway)
	l.header = "far"
	gateway, _ := join(t, s, l, "gateway")
	client, _ := join(t, s, clientLogin(gen.client), "client")
	client.send(gen.request, asking(cidrID))
	if why := text(t, client.want(gen.fails), "reason"); why != "offline" {
		t.Errorf("reason %s", why)
	}
	if _, err := s.UpdateResource(Resource{ID: cidrID, Type: CIDR, Name: "lab", Address: "172.20.0.0/16", SiteID: site.ID}); err != nil {
		t.Fatal(err)
	}
	client.wantRaw("resource_deleted")
	if id := text(t, client.want("resource_created_or_updated"), "sites", 0, "id"); id != site.ID {
		t.Errorf("site %s", id)
	}
	authorized(t, gen, gateway, client, cidrID)
}

func TestIcelessNeedsBothSidesAndTheFlag(t *testing.T) {
	for _, c := range []struct {
		name                  string
		flag, gateway, client bool
	}{
		{"all", true, true, true}, {"no flag", false, true, true},
		{"no gateway", true, false, true}, {"no client", true, true, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := lab(t, Config{Iceless: c.flag})
			gen := generations[2]
			gateway, _ := join(t, s, gatewayLogin(gen.gateway), "gateway")
			client, _ := join(t, s, clientLogin(gen.client), "client")
			gateway.send("set_snownet_capabilities", map[string]any{"iceless": c.gateway})
			client.send("set_snownet_capabilities", map[string]any{"iceless": c.client, "more": 1})
			gateway.wantQuiet()
			client.wantQuiet()
			grant, done := authorized(t, gen, gateway, client, cidrID)
			want := c.flag && c.gateway && c.client
			if grant["use_iceless"] != want || done["use_iceless"] != want {
				t.Errorf("%v and %v, want %v", grant["use_iceless"], done["use_iceless"], want)
			}
		})
	}
}
