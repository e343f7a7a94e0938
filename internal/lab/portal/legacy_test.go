package portal

import (
	"encoding/json"
	"testing"
)

// answered is the gateway's answer to request_connection, as in
// portal-protocol §4.2.
func answered(ref string) json.RawMessage {
	return json.RawMessage(`{"ref":"` + ref + `","gateway_payload":{"ConnectionAccepted":{"ice_parameters":{"username":"Kx3d","password":"0pZ8kq2WJYc1mS5tVnLrQe"}}}}`)
}

// legacyPeers are a portal with both peers joined.
func legacyPeers(t *testing.T, order Legacy) (s *Server, gateway, client *peer) {
	s = lab(t, Config{V1Only: true, Legacy: order})
	gateway, _ = join(t, s, gatewayLogin(gatewayV1), "gateway")
	l := clientLogin(clientV1)
	l.query = "token"
	client, _ = join(t, s, l, "client")
	return s, gateway, client
}

// wantFlows reads flow_created for both resources, in any order, and returns
// the gateway's credentials in them.
func wantFlows(t *testing.T, client *peer) (ice map[string]any) {
	t.Helper()
	seen := make(map[string]bool)
	for range 2 {
		flow := client.want("flow_created")
		seen[text(t, flow, "resource_id")] = true
		ice = at(t, flow, "gateway_ice_credentials").(map[string]any)
	}
	if !seen[cidrID] || !seen[dnsID] {
		t.Errorf("flows are for %v", seen)
	}
	return ice
}

func TestLegacyMessagesInOrder(t *testing.T) {
	_, gateway, client := legacyPeers(t, LegacyInOrder)
	client.send("create_flow", asking(cidrID))
	request := gateway.want("request_connection")
	for _, path := range [][]any{
		{"ref"}, {"client", "id"}, {"client", "peer", "ipv4"}, {"client", "peer", "ipv6"}, {"client", "peer", "preshared_key"},
		{"client", "payload", "ice_parameters", "username"}, {"client", "payload", "ice_parameters", "password"},
	} {
		if text(t, request, path...) == "" {
			t.Errorf("%v is empty", path)
		}
	}
	if got := text(t, request, "client", "peer", "public_key"); got != clientKey {
		t.Errorf("key %s", got)
	}
	client.wantQuiet() // nothing before the gateway's answer
	gateway.send("connection_ready", answered(text(t, request, "ref")))
	gateway.wantReply("ok")
	flow := client.want("flow_created")
	if got := text(t, flow, "gateway_ice_credentials", "username"); got != "Kx3d" {
		t.Errorf("credentials of the gateway are not its own but %s", got)
	}
	if got, want := text(t, flow, "preshared_key"), text(t, request, "client", "peer", "preshared_key"); got != want {
		t.Error("the preshared keys differ")
	}

	client.send("create_flow", map[string]any{"resource_id": dnsID, "connected_gateway_ids": []string{text(t, flow, "gateway_id")}})
	access := gateway.want("allow_access")
	if text(t, access, "client_id") != text(t, request, "client", "id") || text(t, access, "client_ipv4") == "" ||
		text(t, access, "resource", "id") != dnsID {
		t.Errorf("allow_access is %v", access)
	}
	if got := text(t, client.want("flow_created"), "gateway_ice_credentials", "username"); got != "Kx3d" {
		t.Errorf("second flow has the credentials of %s", got)
	}

	// A client without connection to the gateway needs a new one.
	client.send("create_flow", asking(cidrID))
	again := gateway.want("request_connection")
	if text(t, again, "client", "peer", "preshared_key") == text(t, request, "client", "peer", "preshared_key") {
		t.Error("two connections have one preshared key")
	}
}

func TestLegacyMessagesOvertaken(t *testing.T) {
	s, gateway, client := legacyPeers(t, LegacyOvertaken)
	client.send("create_flow", asking(cidrID))
	gateway.wantQuiet() // held back
	client.send("create_flow", asking(dnsID))
	if got := text(t, gateway.want("allow_access"), "resource", "id"); got != dnsID {
		t.Errorf("allow_access is for %s", got)
	}
	request := gateway.want("request_connection")
	if got := text(t, request, "resource", "id"); got != cidrID {
		t.Errorf("request_connection is for %s", got)
	}
	gateway.send("connection_ready", answered(text(t, request, "ref")))
	gateway.wantReply("ok")
	if got := wantFlows(t, client)["username"]; got != "Kx3d" {
		t.Errorf("credentials of %v", got)
	}
	if n := len(s.State().Authorizations); n != 2 {
		t.Errorf("%d authorizations", n)
	}
	gateway.send("connection_ready", answered(text(t, request, "ref"))) // once more
	gateway.wantReply("ok")
	wantEvent(t, s, LateAck, nil)
}

func TestLegacyAnswersThatDoNotFit(t *testing.T) {
	_, gateway, client := legacyPeers(t, LegacyInOrder)
	client.send("create_flow", asking(cidrID))
	ref := text(t, gateway.want("request_connection"), "ref")
	for _, c := range []struct {
		name, why string
		payload   any
	}{
		{"no ref", "unknown_message", struct{}{}},
		{"foreign ref", "invalid_ref", answered("x")},
		{"no credentials", "invalid_ref", map[string]any{"ref": ref}},
	} {
		gateway.send("connection_ready", c.payload)
		if why := gateway.wantReply("error"); why != c.why {
			t.Errorf("%s: reason %q, want %q", c.name, why, c.why)
		}
	}
	client.wantQuiet()
}

func TestLegacyRequestWithoutAnswerIsMadeAgain(t *testing.T) {
	s, gateway, client := legacyPeers(t, LegacyInOrder)
	client.send("create_flow", asking(cidrID))
	first := text(t, gateway.want("request_connection"), "ref")
	if err := s.Revoke("", cidrID); err != nil {
		t.Fatal(err)
	}
	gateway.want("reject_access")
	client.send("create_flow", asking(dnsID))
	if again := text(t, gateway.want("request_connection"), "ref"); again == first {
		t.Error("the ref is the same")
	}
}

func TestLegacyNeedsTheOlderGeneration(t *testing.T) {
	if s, err := New(Config{Addr: "127.0.0.1:0", Legacy: LegacyInOrder}); err == nil {
		s.Close()
		t.Error("no error")
	}
}
