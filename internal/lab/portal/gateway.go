package portal

import (
	"encoding/json"
	"slices"
	"strings"
)

// Payloads that go to gateways, portal-protocol §3.

type gatewayInit struct {
	AccountSlug    string             `json:"account_slug"`
	Interface      tunnelAddresses    `json:"interface"`
	Config         masqueradeConfig   `json:"config"`
	Relays         []turnServer       `json:"relays"`
	Authorizations []authorizationRow `json:"authorizations"`
	FlowLogs       *flowLogConfig     `json:"flow_logs,omitempty"`
}

type tunnelAddresses struct {
	IPv4 string `json:"ipv4"`
	IPv6 string `json:"ipv6"`
}

type masqueradeConfig struct {
	IPv4 bool `json:"ipv4_masquerade_enabled"`
	IPv6 bool `json:"ipv6_masquerade_enabled"`
}

type authorizationRow struct {
	accessPair
	ExpiresAt int64 `json:"expires_at"`
}

// accessPair is also the payload of reject_access.
type accessPair struct {
	ClientID   string `json:"client_id"`
	ResourceID string `json:"resource_id"`
}

type flowLogConfig struct {
	APIURL        string `json:"api_url"`
	IntervalSecs  int64  `json:"upload_interval_secs"`
	UploadBatches int    `json:"upload_batch_size"`
}

// gatewayResource is a resource as gateways see it.
type gatewayResource struct {
	ID      string       `json:"id"`
	Type    ResourceType `json:"type"`
	Name    string       `json:"name,omitempty"`
	Address string       `json:"address,omitempty"`
	Filters *[]Filter    `json:"filters,omitempty"`
}

// gatewayCandidates is the payload of ice_candidates and its invalidation.
type gatewayCandidates struct {
	ClientID   string            `json:"client_id"`
	Candidates []json.RawMessage `json:"candidates"`
}

func (s *Server) gatewayInit(sess *session) gatewayInit {
	return gatewayInit{
		AccountSlug:    s.cfg.AccountSlug,
		Interface:      sess.dev.tunnelAddresses(),
		Config:         masqueradeConfig{true, true},
		Relays:         s.turnServers(sess, s.choose(sess)),
		Authorizations: s.authorizationsOf(sess.dev),
		FlowLogs:       s.flowLogs(),
	}
}

// authorizationsOf lists what the gateway should consider granted.
func (s *Server) authorizationsOf(gateway *device) []authorizationRow {
	s.forgetExpired()
	rows := []authorizationRow{}
	for key, auth := range s.auths {
		if key.gatewayID == gateway.id {
			rows = append(rows, authorizationRow{accessPair{key.clientID, key.resourceID}, auth.expires.Unix()})
		}
	}
	slices.SortFunc(rows, func(a, b authorizationRow) int {
		return strings.Compare(a.ClientID+a.ResourceID, b.ClientID+b.ResourceID)
	})
	return rows
}

func (s *Server) flowLogs() *flowLogConfig {
	if s.cfg.V1Only {
		return nil
	}
	f := s.cfg.FlowLogs
	return &flowLogConfig{f.APIURL, int64(f.UploadInterval.Seconds()), f.BatchSize}
}

func (d *device) tunnelAddresses() tunnelAddresses {
	return tunnelAddresses{d.v4.String(), d.v6.String()}
}

// forGateway renders a resource for gateways.
func (r Resource) forGateway() gatewayResource {
	if r.Type == Internet {
		return gatewayResource{ID: r.ID, Type: r.Type}
	}
	return gatewayResource{ID: r.ID, Type: r.Type, Name: r.Name, Address: r.Address, Filters: &r.Filters}
}

// fromGateway handles the events of portal-protocol §4.
func (s *Server) fromGateway(sess *session, f frame) bool {
	switch f.Event {
	case grantNames(sess.generation).ack:
		return s.acknowledged(sess, f)
	case "connection_ready":
		return s.connectionReady(sess, f)
	case "broadcast_ice_candidates":
		return s.candidatesFromGateway(sess, f.Payload, "ice_candidates", CandidatesAdded)
	case "broadcast_invalidated_ice_candidates":
		return s.candidatesFromGateway(sess, f.Payload, "invalidate_ice_candidates", CandidatesInvalidated)
	case "no_relays":
		if s.cfg.V1Only {
			return false
		}
		s.answerNoRelays(sess)
	case "set_snownet_capabilities":
		return s.capabilities(sess, f.Payload)
	default:
		return false
	}
	return true
}

// capabilities notes what the peer can do. Absent keys mean "not supported".
func (s *Server) capabilities(sess *session, payload json.RawMessage) bool {
	var caps struct {
		Iceless bool `json:"iceless"`
	}
	if s.cfg.V1Only || !decode(payload, &caps) {
		return false
	}
	sess.iceless = caps.Iceless
	e := Event{Kind: Capabilities}
	if caps.Iceless {
		e.Detail = "iceless"
	}
	s.emit(sess, e)
	return true
}

// candidatesFromGateway forwards to the clients named. Unknown and offline
// clients are skipped silently (portal-protocol §4.3).
func (s *Server) candidatesFromGateway(sess *session, payload json.RawMessage, event string, kind EventKind) bool {
	var msg struct {
		ClientIDs  []string          `json:"client_ids"`
		Candidates []json.RawMessage `json:"candidates"`
	}
	if !decode(payload, &msg) || msg.ClientIDs == nil || msg.Candidates == nil {
		return false
	}
	for _, id := range distinct(msg.ClientIDs) {
		client, ok := s.byID[id]
		if !ok || client.role != Client {
			continue
		}
		s.emit(sess, Event{Kind: kind, ClientID: id, Candidates: texts(msg.Candidates)})
		s.pushAll(client, event, clientCandidates{sess.dev.id, msg.Candidates})
	}
	return true
}

// distinct returns the ids without repetitions.
func distinct(ids []string) []string {
	slices.Sort(ids)
	return slices.Compact(ids)
}

// Bounds on the candidates that an event remembers.
const (
	candidatesKept = 64
	candidateLen   = 512
)

// texts returns the elements that are strings of a sensible size.
func texts(raw []json.RawMessage) []string {
	var list []string
	for _, r := range raw[:min(len(raw), candidatesKept)] {
		var text string
		if len(r) <= candidateLen && r[0] == '"' && json.Unmarshal(r, &text) == nil {
			list = append(list, text)
		}
	}
	return list
}
