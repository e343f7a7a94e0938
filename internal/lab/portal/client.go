package portal

import (
	"encoding/json"
	"net/netip"
	"slices"
	"strings"
)

const dnsPort = 53

// Payloads that go to clients, portal-protocol §7.

// clientInit carries the fields of both generations. Sites are the exception:
// see Server.forClient.
type clientInit struct {
	Interface      clientInterface    `json:"interface"`
	Resources      []clientResource   `json:"resources"`
	Relays         []turnServer       `json:"relays"`
	Authorizations []authorizationRow `json:"authorizations"`
	FlowLogs       *flowLogConfig     `json:"flow_logs,omitempty"`
}

type clientInterface struct {
	tunnelAddresses
	SearchDomain *string       `json:"search_domain"`
	UpstreamDNS  []upstreamDNS `json:"upstream_dns"`
	UpstreamDo53 []upstreamIP  `json:"upstream_do53"`
	UpstreamDoH  []upstreamURL `json:"upstream_doh"`
}

type upstreamDNS struct {
	Protocol string `json:"protocol"`
	Address  string `json:"address"`
}

type upstreamIP struct {
	IP string `json:"ip"`
}

type upstreamURL struct {
	URL string `json:"url"`
}

// clientResource is a resource as clients see it. Exactly one of Sites and
// GatewayGroups is set.
type clientResource struct {
	ID            string       `json:"id"`
	Type          ResourceType `json:"type"`
	Name          string       `json:"name,omitempty"`
	Address       string       `json:"address,omitempty"`
	Description   *string      `json:"address_description"`
	IPStack       string       `json:"ip_stack,omitempty"`
	CanBeDisabled bool         `json:"can_be_disabled,omitempty"`
	Sites         []siteRef    `json:"sites,omitempty"`
	GatewayGroups []siteRef    `json:"gateway_groups,omitempty"`
	Filters       []Filter     `json:"filters"`
}

type siteRef struct {
	ID   string `json:"id"`
	Name string `json:"name"`
}

// clientCandidates is the payload of ice_candidates and its invalidation.
type clientCandidates struct {
	GatewayID  string            `json:"gateway_id"`
	Candidates []json.RawMessage `json:"candidates"`
}

func (s *Server) clientInit(sess *session) clientInit {
	resources := []clientResource{}
	for _, r := range s.resources {
		if s.visible(sess.dev, r.ID) {
			resources = append(resources, s.forClient(sess, r))
		}
	}
	slices.SortFunc(resources, func(a, b clientResource) int { return strings.Compare(a.ID, b.ID) })
	return clientInit{
		Interface:      s.clientInterface(sess.dev),
		Resources:      resources,
		Relays:         s.turnServers(sess, s.choose(sess)),
		Authorizations: []authorizationRow{}, // of client-to-client access, which there is none of
		FlowLogs:       s.flowLogs(),
	}
}

func (s *Server) clientInterface(dev *device) clientInterface {
	dns := s.cfg.ClientDNS
	iface := clientInterface{
		tunnelAddresses: dev.tunnelAddresses(),
		UpstreamDNS:     []upstreamDNS{}, UpstreamDo53: []upstreamIP{}, UpstreamDoH: []upstreamURL{},
	}
	if dns.SearchDomain != "" {
		iface.SearchDomain = &dns.SearchDomain
	}
	for _, ip := range dns.Do53 {
		iface.UpstreamDo53 = append(iface.UpstreamDo53, upstreamIP{ip.String()})
		iface.UpstreamDNS = append(iface.UpstreamDNS, upstreamDNS{"ip_port", netip.AddrPortFrom(ip, dnsPort).String()})
	}
	for _, url := range dns.DoH {
		iface.UpstreamDoH = append(iface.UpstreamDoH, upstreamURL{url})
	}
	return iface
}

// forClient renders a resource for one client. Recent clients take "sites" and
// "gateway_groups" as names of one field and may drop a resource that has
// both, so the client's version decides, as in the real portal.
func (s *Server) forClient(sess *session, r Resource) clientResource {
	out := clientResource{
		ID: r.ID, Type: r.Type, Name: r.Name, Address: r.Address, IPStack: r.IPStack, Filters: r.Filters,
		CanBeDisabled: r.Type == Internet,
	}
	if r.Description != "" {
		out.Description = &r.Description
	}
	site := []siteRef{{r.SiteID, s.sites[r.SiteID].Name}}
	if s.usesSites(sess) {
		out.Sites = site
	} else {
		out.GatewayGroups = site
	}
	return out
}

func (s *Server) usesSites(sess *session) bool {
	return !s.cfg.V1Only && sess.agent.usesSites(sess.generation)
}

// fromClient handles the events of portal-protocol §7.3 and §7.4. The names of
// candidate events depend on the client's version, not on its path, so both
// sets are taken on either.
func (s *Server) fromClient(sess *session, f frame) bool {
	switch f.Event {
	case grantNames(sess.generation).request:
		return s.requested(sess, f.Payload)
	case "broadcast_ice_candidates", "new_gateway_ice_candidates":
		return s.candidatesFromClient(sess, f.Payload, "ice_candidates", CandidatesAdded)
	case "broadcast_invalidated_ice_candidates", "invalidate_gateway_ice_candidates":
		return s.candidatesFromClient(sess, f.Payload, "invalidate_ice_candidates", CandidatesInvalidated)
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

func (s *Server) candidatesFromClient(sess *session, payload json.RawMessage, event string, kind EventKind) bool {
	var msg struct {
		GatewayID  string            `json:"gateway_id"`
		GatewayIDs []string          `json:"gateway_ids"`
		Candidates []json.RawMessage `json:"candidates"`
	}
	if !decode(payload, &msg) || msg.Candidates == nil || (msg.GatewayID == "") == (msg.GatewayIDs == nil) {
		return false
	}
	if msg.GatewayID != "" {
		msg.GatewayIDs = []string{msg.GatewayID}
	}
	for _, id := range distinct(msg.GatewayIDs) {
		gateway, ok := s.byID[id]
		if !ok || gateway.role != Gateway {
			continue
		}
		s.emit(sess, Event{Kind: kind, GatewayID: id, Candidates: texts(msg.Candidates)})
		s.pushAll(gateway, event, gatewayCandidates{sess.dev.id, msg.Candidates})
	}
	return true
}
