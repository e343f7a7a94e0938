package portal

import (
	"cmp"
	"encoding/json"
	"slices"
	"time"

	"github.com/google/uuid"
)

// Reasons for which a client is refused (portal-protocol §7.3).
const (
	reasonNotFound        = "not_found"
	reasonOffline         = "offline"
	reasonForbidden       = "forbidden"
	reasonVersionMismatch = "version_mismatch"
)

// names are the events of one socket generation.
type names struct {
	request string // client → portal
	push    string // portal → gateway
	ack     string // gateway → portal
	granted string // portal → client
	failed  string // portal → client
}

// grantNames returns the names by generation. Those of one are unknown on the
// socket of the other.
func grantNames(generation int) names {
	if generation == 2 {
		return names{"request_authorization", "create_authorization", "authorization_created",
			"authorization_created", "authorization_creation_failed"}
	}
	return names{"create_flow", "authorize_flow", "flow_authorized", "flow_created", "flow_creation_failed"}
}

// request is a client's request that a gateway has been asked for.
//
//	pushed --ack--> granted
//	pushed --time-out--> failed (offline)
//	pushed --client gone--> forgotten
type request struct {
	id       string // of the authorization
	session  *session
	gateway  *device
	resource Resource
	payload  granted
	timer    *time.Timer
}

// gatewayGrant is the payload of authorize_flow and create_authorization
// (portal-protocol §3.2, §3.3).
type gatewayGrant struct {
	Ref         string          `json:"ref"`
	Resource    gatewayResource `json:"resource"`
	Client      gatewayPeer     `json:"client"`
	ClientICE   ICECredentials  `json:"client_ice_credentials"`
	GatewayICE  ICECredentials  `json:"gateway_ice_credentials"`
	Subject     subject         `json:"subject"`
	ExpiresAt   int64           `json:"expires_at"`
	UseIceless  *bool           `json:"use_iceless,omitempty"`
	IngestToken string          `json:"flow_logs_ingest_token,omitempty"`
}

type gatewayPeer struct {
	ID           string `json:"id"`
	PublicKey    string `json:"public_key"`
	PresharedKey string `json:"preshared_key"`
	tunnelAddresses
	Version         *string `json:"version"`
	OSName          *string `json:"device_os_name"`
	OSVersion       *string `json:"device_os_version"`
	DeviceSerial    *string `json:"device_serial"`
	DeviceUUID      *string `json:"device_uuid"`
	VendorID        *string `json:"identifier_for_vendor"`
	FirebaseInstall *string `json:"firebase_installation_id"`
}

// subject is the actor. IdentityID and IdentityName are the 1.4 form.
type subject struct {
	ActorID      string `json:"actor_id"`
	ActorEmail   string `json:"actor_email"`
	ActorName    string `json:"actor_name,omitempty"`
	ActorType    string `json:"actor_type,omitempty"`
	IdentityID   string `json:"identity_id,omitempty"`
	IdentityName string `json:"identity_name,omitempty"`
}

// granted is the payload of flow_created and the client's authorization_created.
type granted struct {
	ResourceID       string         `json:"resource_id"`
	GatewayID        string         `json:"gateway_id"`
	SiteID           string         `json:"site_id,omitempty"`
	GatewayGroupID   string         `json:"gateway_group_id,omitempty"`
	GatewayPublicKey string         `json:"gateway_public_key"`
	GatewayIPv4      string         `json:"gateway_ipv4"`
	GatewayIPv6      string         `json:"gateway_ipv6"`
	PresharedKey     string         `json:"preshared_key"`
	ClientICE        ICECredentials `json:"client_ice_credentials"`
	GatewayICE       ICECredentials `json:"gateway_ice_credentials"`
	UseIceless       *bool          `json:"use_iceless,omitempty"`
	IngestToken      string         `json:"flow_logs_ingest_token,omitempty"`
}

type failed struct {
	ResourceID string   `json:"resource_id"`
	Reason     string   `json:"reason"`
	Violated   []string `json:"violated_properties,omitempty"`
}

// requested handles create_flow and request_authorization.
func (s *Server) requested(sess *session, payload json.RawMessage) bool {
	var msg struct {
		ResourceID string   `json:"resource_id"`
		Connected  []string `json:"connected_gateway_ids"`
	}
	if !decode(payload, &msg) || msg.ResourceID == "" {
		return false
	}
	id := uuid.NewString()
	resource, exists := s.resources[msg.ResourceID]
	fail := func(why string) {
		s.fail(sess, id, msg.ResourceID[:min(len(msg.ResourceID), maxDetail)], why)
	}
	s.emit(sess, Event{Kind: AuthorizationRequested, AuthorizationID: id, ResourceID: resource.ID})
	end, allowed := s.granted(sess.dev, msg.ResourceID)
	switch {
	case !exists || !allowed:
		fail(reasonNotFound)
		return true
	case !end.After(s.cfg.Now()):
		fail(reasonForbidden)
		return true
	case len(s.pending) >= maxPending:
		fail(reasonOffline)
		return true
	}
	gateway, why := s.pick(sess, resource, msg.Connected)
	if why != "" {
		fail(why)
		return true
	}
	if s.cfg.Legacy != LegacyOff {
		s.introduce(sess, gateway, resource, id, end, slices.Contains(msg.Connected, gateway.dev.id))
		return true
	}
	if err := s.authorize(sess, gateway, resource, id, end); err != nil {
		s.log.Error("authorize", "resource", resource.ID, "err", err)
		fail(reasonOffline)
	}
	return true
}

// pick chooses a gateway of the resource's site that may serve the client:
// one it is connected to already, else the highest version as text, else the
// lowest id, so that tests repeat (portal-protocol §5.2).
func (s *Server) pick(client *session, r Resource, connected []string) (gateway *session, why string) {
	var online, eligible []*session
	for _, sess := range s.joined(Gateway) {
		if sess.dev.siteID == r.SiteID {
			online = append(online, sess)
			if compatible(client.agent, sess.agent) {
				eligible = append(eligible, sess)
			}
		}
	}
	switch {
	case len(eligible) > 0:
	case len(online) > 0 && !s.cfg.V1Only:
		return nil, reasonVersionMismatch
	default:
		return nil, reasonOffline
	}
	hinted := func(sess *session) int {
		if slices.Contains(connected, sess.dev.id) {
			return 0
		}
		return 1
	}
	return slices.MinFunc(eligible, func(a, b *session) int {
		return cmp.Or(hinted(a)-hinted(b), cmp.Compare(b.agent.Version, a.agent.Version), cmp.Compare(a.dev.id, b.dev.id))
	}), ""
}

// authorize derives the secrets of the pair, pushes the grant to the gateway
// and waits for its acknowledgement.
func (s *Server) authorize(client, gateway *session, r Resource, id string, end time.Time) error {
	c := Endpoint{client.dev.id, client.publicKey}
	g := Endpoint{gateway.dev.id, gateway.publicKey}
	psk, err := DerivePSK(c, g, client.dev.pskBase, gateway.dev.pskBase)
	if err != nil {
		return err
	}
	clientICE, gatewayICE := DeriveICE(c, g)
	forGateway := gatewayGrant{
		Ref:       s.refs.issue(),
		Resource:  r.forGateway(),
		Client:    peerOf(client, psk),
		ClientICE: clientICE, GatewayICE: gatewayICE,
		Subject:   s.subject(),
		ExpiresAt: end.Unix(),
	}
	forClient := granted{
		ResourceID: r.ID, GatewayID: g.ID, GatewayPublicKey: g.PublicKey,
		GatewayIPv4: gateway.dev.v4.String(), GatewayIPv6: gateway.dev.v6.String(),
		PresharedKey: psk, ClientICE: clientICE, GatewayICE: gatewayICE,
	}
	if s.usesSites(client) {
		forClient.SiteID = r.SiteID
	} else {
		forClient.GatewayGroupID = r.SiteID
	}
	if !s.cfg.V1Only {
		iceless := s.cfg.Iceless && client.iceless && gateway.iceless
		forGateway.UseIceless, forClient.UseIceless = &iceless, &iceless
		claims := s.claims(client, gateway, r, id, end)
		if forGateway.IngestToken, err = ingestToken(s.ingestKey[:], claims.as(roleResponder)); err != nil {
			return err
		}
		if forClient.IngestToken, err = ingestToken(s.ingestKey[:], claims.as(roleInitiator)); err != nil {
			return err
		}
	}
	s.forgetExpired()
	s.auths[authKey{c.ID, g.ID, r.ID}] = authorization{id, end}
	s.pending[forGateway.Ref] = &request{
		id: id, session: client, gateway: gateway.dev, resource: r, payload: forClient,
		timer: s.expect(forGateway.Ref),
	}
	for _, sess := range gateway.dev.sessions {
		if sess.joined {
			s.push(sess, grantNames(sess.generation).push, forGateway)
		}
	}
	s.emit(gateway, Event{Kind: AuthorizationPushed, AuthorizationID: id, ClientID: c.ID, ResourceID: r.ID})
	return nil
}

// expect fails the request once the time for its acknowledgement is over.
func (s *Server) expect(ref string) *time.Timer {
	return time.AfterFunc(s.cfg.AckTimeout, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		if req, ok := s.pending[ref]; ok {
			delete(s.pending, ref)
			s.fail(req.session, req.id, req.resource.ID, reasonOffline)
		}
	})
}

// acknowledged handles the gateway's acknowledgement. A ref that was issued
// but is over is accepted and dropped.
func (s *Server) acknowledged(sess *session, f frame) bool {
	var msg struct {
		Ref *string `json:"ref"`
	}
	if !decode(f.Payload, &msg) || msg.Ref == nil {
		return false
	}
	req, ok := s.pending[*msg.Ref]
	switch {
	case ok && req.gateway != sess.dev, !ok && !s.refs.issued(*msg.Ref):
		s.invalidRef(sess, f)
		return true
	case !ok:
		s.replyOK(sess, f)
		s.emit(sess, Event{Kind: LateAck})
		return true
	}
	s.forget(*msg.Ref)
	s.replyOK(sess, f)
	e := Event{Kind: AuthorizationAcked, AuthorizationID: req.id, ClientID: req.session.dev.id, ResourceID: req.resource.ID}
	s.emit(sess, e)
	if req.session.joined {
		s.push(req.session, grantNames(req.session.generation).granted, req.payload)
		e.Kind, e.GatewayID = AuthorizationGranted, req.gateway.id
		s.emit(req.session, e)
	}
	return true
}

func (s *Server) invalidRef(sess *session, f frame) {
	s.replyError(sess, f, "invalid_ref")
	s.emit(sess, Event{Kind: InvalidRef})
}

func (s *Server) forget(ref string) {
	if req, ok := s.pending[ref]; ok {
		req.timer.Stop()
		delete(s.pending, ref)
	}
}

func (s *Server) fail(client *session, id, resourceID, why string) {
	payload := failed{ResourceID: resourceID, Reason: why}
	if why == reasonForbidden {
		payload.Violated = []string{"current_utc_datetime"}
	}
	if client.joined {
		s.push(client, grantNames(client.generation).failed, payload)
	}
	s.emit(client, Event{Kind: AuthorizationFailed, AuthorizationID: id, ResourceID: resourceID, Detail: why})
	s.log.Info("authorization failed", "client", client.dev.id, "resource", resourceID, "reason", why)
}
