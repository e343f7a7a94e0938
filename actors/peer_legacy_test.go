package actors

import (
	"slices"
	"strings"
	"testing"

	"firezone-gateway/internal/portal"
	"firezone-gateway/messages"
)

func requestConnection(c, n byte) messages.RequestConnection {
	a := authorization(c, n)
	return messages.RequestConnection{Gateway: ownAddresses, Connection: 7, Request: portal.RequestConnection{
		Ref: a.Ref, Resource: a.Resource, Client: a.Client, ClientICE: a.ClientICE, ExpiresAt: a.ExpiresAt,
	}}
}

func allowAccess(c, n byte) messages.AllowAccess {
	a := authorization(c, n)
	return messages.AllowAccess{Gateway: ownAddresses, Access: portal.AllowAccess{
		ClientID: a.Client.ID, IPv4: a.Client.IPv4, IPv6: a.Client.IPv6, Resource: a.Resource, ExpiresAt: a.ExpiresAt,
	}}
}

// Rule 32.
func TestAllowAccessMayOvertakeTheRequestForTheConnection(t *testing.T) {
	r := newPeerRig(t)
	r.tell(allowAccess(1, 10))
	if out := r.sent(); len(out) != 0 {
		t.Errorf("allow_access was answered: %T", out[0].Message)
	}
	if got := r.grants(); !slices.Equal(got, []string{resourceID(10)}) {
		t.Errorf("grants after allow_access: %v", got)
	}
	r.tell(requestConnection(1, 11))
	if got := r.grants(); !slices.Equal(got, []string{resourceID(10), resourceID(11)}) {
		t.Errorf("grants after the request: %v", got)
	}
	if r.client() == nil {
		t.Fatal("the client was not admitted")
	}
}

func TestARequestedConnectionIsAnsweredWithCredentialsOfOurs(t *testing.T) {
	r := newPeerRig(t)
	seen := map[portal.ICECredentials]bool{}
	for range 2 { // a repeated request replaces the connection
		r.tell(requestConnection(1, 10))
		out := r.sent()
		if len(out) != 2 {
			t.Fatalf("%d messages to the portal, want 2", len(out))
		}
		ready, ok := out[0].Message.(portal.ConnectionReady)
		if !ok || ready.Ref != authorization(1, 10).Ref || out[0].Connection != 7 {
			t.Fatalf("first message is %T on connection %d", out[0].Message, out[0].Connection)
		}
		local := ready.GatewayICE
		if len(local.Username) != 4 || len(local.Password) != 22 || seen[local] {
			t.Errorf("credentials of %d and %d characters, seen before: %v", len(local.Username), len(local.Password), seen[local])
		}
		seen[local] = true
		lines := out[1].Message.(portal.BroadcastICECandidates).Candidates
		if len(lines) == 0 || !strings.HasSuffix(lines[0], " ufrag "+local.Username) {
			t.Errorf("candidates do not belong to the credentials: %v", lines)
		}
	}
}

func TestAllowAccessWithOtherTunnelAddressesStartsOver(t *testing.T) {
	r := newPeerRig(t)
	r.granted()
	other := allowAccess(1, 11)
	other.Access.IPv4 = other.Access.IPv4.Next()
	r.tell(other)
	if got := r.grants(); !slices.Equal(got, []string{resourceID(11)}) {
		t.Errorf("grants of the old addresses were kept: %v", got)
	}
	if r.client() != nil {
		t.Error("the connection of the old addresses was kept")
	}
}
