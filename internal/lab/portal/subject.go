package portal

import (
	"crypto/sha256"
	"time"
)

// The one actor of the lab's account.
const (
	actorName  = "Lab User"
	actorEmail = "user@lab.invalid"
)

func (s *Server) actorID() string {
	return uuidFrom(sha256.Sum256([]byte("actor|" + s.cfg.AccountSlug)))
}

func (s *Server) subject() subject {
	sub := subject{ActorID: s.actorID(), ActorEmail: actorEmail}
	if s.cfg.V1Only {
		sub.IdentityID = uuidFrom(sha256.Sum256([]byte("identity|" + s.cfg.AccountSlug)))
		sub.IdentityName = actorName
	} else {
		sub.ActorName, sub.ActorType = actorName, "account_user"
	}
	return sub
}

// peerOf renders the client as WireGuard peer of the gateway.
func peerOf(client *session, psk string) gatewayPeer {
	return gatewayPeer{
		ID:              client.dev.id,
		PublicKey:       client.publicKey,
		PresharedKey:    psk,
		tunnelAddresses: client.dev.tunnelAddresses(),
		Version:         optional(client.agent.Version),
		OSName:          optional(client.agent.OSName),
		OSVersion:       optional(client.agent.OSVersion),
	}
}

func (s *Server) claims(client, gateway *session, r Resource, id string, end time.Time) ingestClaims {
	now := s.cfg.Now()
	return ingestClaims{
		AccountID:              s.accountID,
		IssuedAt:               now.Unix(),
		ExpiresAt:              end.Add(ingestGrace).Unix(),
		UploadsEnabled:         s.cfg.FlowLogs.UploadsEnabled,
		InitiatorDeviceID:      client.dev.id,
		ResponderDeviceID:      gateway.dev.id,
		AuthorizationID:        id,
		PolicyID:               s.policyID,
		ResourceID:             r.ID,
		ResourceName:           r.Name,
		ResourceAddress:        r.Address,
		ActorID:                s.actorID(),
		ActorName:              actorName,
		ActorEmail:             actorEmail,
		ClientVersion:          client.agent.Version,
		DeviceOSName:           client.agent.OSName,
		DeviceOSVersion:        client.agent.OSVersion,
		AuthorizedAt:           rfc3339(now),
		AuthorizationExpiresAt: rfc3339(end),
	}
}

// as returns the claims for one side of the authorization.
func (c ingestClaims) as(role string) ingestClaims {
	c.Role = role
	return c
}

func optional(text string) *string {
	if text == "" {
		return nil
	}
	return &text
}
