package actors

import (
	"crypto/rand"
	"encoding/base32"
	"strings"

	"firezone-gateway/internal/actorkit"
	"firezone-gateway/internal/policy"
	"firezone-gateway/internal/portal"
	"firezone-gateway/messages"
)

// The messages of clients up to 1.3, which a portal sends to gateways that
// report a version below 1.5.0 (portal §5.2). They may carry a domain to set up.

// requestConnection makes a connection with credentials of ours, in place of any
// other, and grants its first resource (portal §3.4).
func (p *peer) requestConnection(ctx actorkit.Context, m messages.RequestConnection) {
	r := m.Request
	local := newICECredentials()
	p.admit(ctx, messages.Authorize{
		Authorization: portal.Authorize{
			Ref: r.Ref, Resource: r.Resource, Client: r.Client,
			ClientICE: r.ClientICE, GatewayICE: local, ExpiresAt: r.ExpiresAt,
		},
		Gateway: m.Gateway, Connection: m.Connection,
	}, false, portal.ConnectionReady{Ref: r.Ref, GatewayICE: local})
	p.legacySetUp(ctx, r.Resource.ID, r.Domain)
}

// allowAccess grants one more resource and is never answered. It may overtake
// the request that makes the connection, which then finds the grant (portal
// §3.5).
func (p *peer) allowAccess(ctx actorkit.Context, m messages.AllowAccess) {
	a := m.Access
	if c := &p.state.Client; c.IPv4 != a.IPv4 || c.IPv6 != a.IPv6 {
		p.disconnect()
		p.dropNAT(ctx)
		p.state.Grants = policy.Grants{} // another tunnel address is another peer (dataplane rule 43)
		*c = portal.Client{ID: a.ClientID, IPv4: a.IPv4, IPv6: a.IPv6}
	}
	p.state.Gateway = m.Gateway
	grants := p.state.Grants.Upsert(policy.Grant{Resource: policyResource(a.Resource), ExpiresAt: a.ExpiresAt})
	p.setGrants(ctx, grants, "")
	ctx.Logger().Info("access granted", "client_id", p.id, "resource_id", a.Resource.ID, "expires_at", a.ExpiresAt)
	p.legacySetUp(ctx, a.Resource.ID, a.Domain)
}

// newICECredentials makes credentials of the lengths that the portal uses: 4 and
// 22 characters (RFC 8445 §5.3 asks for 24 and 128 bits).
func newICECredentials() portal.ICECredentials {
	var b [20]byte
	_, _ = rand.Read(b[:]) // it never fails
	s := strings.ToLower(base32.StdEncoding.EncodeToString(b[:]))
	return portal.ICECredentials{Username: s[:4], Password: s[4:26]}
}
