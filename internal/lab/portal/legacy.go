package portal

import (
	"crypto/rand"
	"encoding/base64"
	"time"
)

// Legacy is the order in which the portal sends gateways the messages that it
// has for clients before 1.4 (portal-protocol §3.4, §3.5): request_connection
// for a client's first resource, allow_access for each further one. Clients of
// the lab do not know that they are taken for such: they ask with create_flow,
// and the portal puts what the gateway answers into flow_created. Unlike the
// real portal it asks gateways of any version so.
type Legacy uint8

const (
	// LegacyOff asks with authorize_flow and create_authorization.
	LegacyOff Legacy = iota
	// LegacyInOrder sends request_connection at once.
	LegacyInOrder
	// LegacyOvertaken holds request_connection back until the client asks for
	// another resource, whose allow_access goes first.
	LegacyOvertaken
)

// introduction is the connection of a client to a gateway in the legacy manner.
//
//	[held] --next request--> asked --connection_ready--> ready
type introduction struct {
	ref        string // of its request_connection
	psk        string
	clientICE  ICECredentials
	gatewayICE ICECredentials     // when ready
	held       *requestConnection // not sent yet
	ready      bool
}

type requestConnection struct {
	Ref       string          `json:"ref"`
	ExpiresAt int64           `json:"expires_at"`
	Resource  gatewayResource `json:"resource"`
	Client    legacyClient    `json:"client"`
}

type legacyClient struct {
	ID      string        `json:"id"`
	Peer    legacyPeer    `json:"peer"`
	Payload legacyPayload `json:"payload"`
}

type legacyPeer struct {
	tunnelAddresses
	PersistentKeepalive int    `json:"persistent_keepalive"`
	PublicKey           string `json:"public_key"`
	PresharedKey        string `json:"preshared_key"`
}

// legacyPayload is what the client hands to the gateway, and the gateway in its
// answer to the client, without the domain of DNS resources.
type legacyPayload struct {
	ICE ICECredentials `json:"ice_parameters"`
}

type allowAccess struct {
	Ref        string          `json:"ref"`
	ClientID   string          `json:"client_id"`
	ClientIPv4 string          `json:"client_ipv4"`
	ClientIPv6 string          `json:"client_ipv6"`
	ExpiresAt  int64           `json:"expires_at"`
	Payload    *legacyPayload  `json:"payload"` // null: the resource has no name to resolve
	Resource   gatewayResource `json:"resource"`
}

// introduce is authorize in the legacy manner. connected says that the client
// has a connection to the gateway by its own account.
func (s *Server) introduce(client, gateway *session, r Resource, id string, end time.Time, connected bool) {
	n := client.introductions[gateway]
	first := n == nil || n.ready && !connected || !n.ready && s.pending[n.ref] == nil
	ref, addresses := s.refs.issue(), client.dev.tunnelAddresses()
	if first {
		n = newIntroduction(client, gateway, ref)
		if client.introductions == nil {
			client.introductions = make(map[*session]*introduction)
		}
		client.introductions[gateway] = n
	}
	s.forgetExpired()
	s.auths[authKey{client.dev.id, gateway.dev.id, r.ID}] = authorization{id, end}
	req := &request{
		id: id, session: client, gateway: gateway.dev, resource: r, timer: s.expect(ref),
		payload: granted{
			ResourceID: r.ID, GatewayID: gateway.dev.id, GatewayGroupID: r.SiteID, GatewayPublicKey: gateway.publicKey,
			GatewayIPv4: gateway.dev.v4.String(), GatewayIPv6: gateway.dev.v6.String(),
			PresharedKey: n.psk, ClientICE: n.clientICE,
		},
	}
	s.pending[ref] = req
	if first {
		n.held = &requestConnection{
			Ref: ref, ExpiresAt: end.Unix(), Resource: r.forGateway(),
			Client: legacyClient{
				ID:      client.dev.id,
				Peer:    legacyPeer{addresses, 25, client.publicKey, n.psk},
				Payload: legacyPayload{n.clientICE},
			},
		}
		if s.cfg.Legacy == LegacyInOrder {
			s.release(gateway, n)
		}
		return
	}
	s.pushLegacy(gateway, "allow_access", req, allowAccess{
		Ref: ref, ClientID: client.dev.id, ClientIPv4: addresses.IPv4, ClientIPv6: addresses.IPv6,
		ExpiresAt: end.Unix(), Resource: r.forGateway(),
	})
	s.release(gateway, n)
	if n.ready {
		s.grantLegacy(ref, req, n)
	}
}

// newIntroduction makes what such a client makes itself, each time anew.
func newIntroduction(client, gateway *session, ref string) *introduction {
	var psk [pskLen]byte
	rand.Read(psk[:])
	n := &introduction{ref: ref, psk: base64.StdEncoding.EncodeToString(psk[:])}
	n.clientICE, _ = DeriveICE(Endpoint{client.dev.id, n.psk}, Endpoint{gateway.dev.id, gateway.publicKey})
	return n
}

// release sends what is held back.
func (s *Server) release(gateway *session, n *introduction) {
	if req := s.pending[n.ref]; n.held != nil && req != nil {
		s.pushLegacy(gateway, "request_connection", req, *n.held)
	}
	n.held = nil
}

func (s *Server) pushLegacy(gateway *session, event string, req *request, payload any) {
	s.push(gateway, event, payload)
	s.emit(gateway, Event{
		Kind: AuthorizationPushed, AuthorizationID: req.id, ClientID: req.session.dev.id, ResourceID: req.resource.ID, Detail: event,
	})
}

// connectionReady handles the gateway's answer to request_connection, which is
// what every request of that client waits for.
func (s *Server) connectionReady(gateway *session, f frame) bool {
	var msg struct {
		Ref     *string `json:"ref"`
		Payload struct {
			Accepted legacyPayload `json:"ConnectionAccepted"`
		} `json:"gateway_payload"`
	}
	if !decode(f.Payload, &msg) || msg.Ref == nil {
		return false
	}
	asked, ok := s.pending[*msg.Ref]
	switch {
	case ok && asked.gateway != gateway.dev, !ok && !s.refs.issued(*msg.Ref):
		s.invalidRef(gateway, f)
		return true
	case !ok:
		s.replyOK(gateway, f)
		s.emit(gateway, Event{Kind: LateAck})
		return true
	}
	n := asked.session.introductions[gateway]
	if n == nil || n.ready || msg.Payload.Accepted.ICE == (ICECredentials{}) {
		s.invalidRef(gateway, f)
		return true
	}
	s.replyOK(gateway, f)
	s.emit(gateway, Event{Kind: AuthorizationAcked, AuthorizationID: asked.id, ClientID: asked.session.dev.id, ResourceID: asked.resource.ID})
	n.gatewayICE, n.ready = msg.Payload.Accepted.ICE, true
	for ref, req := range s.pending {
		if req.session == asked.session && req.gateway == gateway.dev {
			s.grantLegacy(ref, req, n)
		}
	}
	return true
}

// grantLegacy tells the client what it needs for a connection that is ready.
func (s *Server) grantLegacy(ref string, req *request, n *introduction) {
	s.forget(ref)
	if !req.session.joined {
		return
	}
	req.payload.GatewayICE = n.gatewayICE
	s.push(req.session, grantNames(req.session.generation).granted, req.payload)
	s.emit(req.session, Event{
		Kind: AuthorizationGranted, AuthorizationID: req.id, GatewayID: req.gateway.id, ResourceID: req.resource.ID,
	})
}
