package portal

import (
	"cmp"
	"slices"
	"time"
)

// State is a listing of what the portal knows, without secrets.
type State struct {
	Sites          []Site               `json:"sites"` // tokens blanked
	Resources      []Resource           `json:"resources"`
	Grants         []GrantState         `json:"grants"`
	Authorizations []AuthorizationState `json:"authorizations"`
	Gateways       []DeviceState        `json:"gateways"`
	Clients        []DeviceState        `json:"clients"`
	Relays         []RelayState         `json:"relays"`
	Pending        int                  `json:"pending"` // requests waiting for a gateway
}

// GrantState is one grant. An empty Client means every client.
type GrantState struct {
	Client     string    `json:"client"`
	ResourceID string    `json:"resource_id"`
	ExpiresAt  time.Time `json:"expires_at"`
}

// AuthorizationState is one client's access to one resource on one gateway.
type AuthorizationState struct {
	ID         string    `json:"id"`
	ClientID   string    `json:"client_id"`
	GatewayID  string    `json:"gateway_id"`
	ResourceID string    `json:"resource_id"`
	ExpiresAt  time.Time `json:"expires_at"`
}

// DeviceState is a gateway or client that has logged in since the start.
// Sessions is empty while it is away.
type DeviceState struct {
	ID         string         `json:"id"`
	ExternalID string         `json:"external_id"`
	Name       string         `json:"name"`
	SiteID     string         `json:"site_id,omitempty"`
	IPv4       string         `json:"ipv4"`
	IPv6       string         `json:"ipv6"`
	Sessions   []SessionState `json:"sessions"`
}

// SessionState is one websocket of a device.
type SessionState struct {
	Path      string `json:"path"`
	UserAgent string `json:"user_agent"`
	Version   string `json:"version"`
	PublicKey string `json:"public_key"`
	Joined    bool   `json:"joined"`
	Iceless   bool   `json:"iceless"`
}

// RelayState is a relay that peers may be told about.
type RelayState struct {
	ID   string `json:"id"`
	IPv4 string `json:"ipv4,omitempty"`
	IPv6 string `json:"ipv6,omitempty"`
}

// State returns a listing in a stable order.
func (s *Server) State() State {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.forgetExpired()
	st := State{
		Sites: []Site{}, Resources: []Resource{}, Grants: []GrantState{}, Authorizations: []AuthorizationState{},
		Gateways: []DeviceState{}, Clients: []DeviceState{}, Relays: []RelayState{}, Pending: len(s.pending),
	}
	for _, site := range s.sites {
		site.GatewayToken = ""
		st.Sites = append(st.Sites, site)
	}
	for _, r := range s.resources {
		st.Resources = append(st.Resources, r)
	}
	for key, end := range s.grants {
		st.Grants = append(st.Grants, GrantState{key.client, key.resourceID, end})
	}
	for key, auth := range s.auths {
		st.Authorizations = append(st.Authorizations,
			AuthorizationState{auth.id, key.clientID, key.gatewayID, key.resourceID, auth.expires})
	}
	for _, dev := range s.devices {
		if dev.role == Gateway {
			st.Gateways = append(st.Gateways, dev.report())
		} else {
			st.Clients = append(st.Clients, dev.report())
		}
	}
	for _, r := range s.online() {
		entry := RelayState{ID: r.ID}
		if r.V4.IsValid() {
			entry.IPv4 = r.V4.String()
		}
		if r.V6.IsValid() {
			entry.IPv6 = r.V6.String()
		}
		st.Relays = append(st.Relays, entry)
	}
	slices.SortFunc(st.Sites, func(a, b Site) int { return cmp.Compare(a.ID, b.ID) })
	slices.SortFunc(st.Resources, func(a, b Resource) int { return cmp.Compare(a.ID, b.ID) })
	slices.SortFunc(st.Grants, func(a, b GrantState) int {
		return cmp.Or(cmp.Compare(a.Client, b.Client), cmp.Compare(a.ResourceID, b.ResourceID))
	})
	slices.SortFunc(st.Authorizations, func(a, b AuthorizationState) int { return cmp.Compare(a.ID, b.ID) })
	byID := func(a, b DeviceState) int { return cmp.Compare(a.ID, b.ID) }
	slices.SortFunc(st.Gateways, byID)
	slices.SortFunc(st.Clients, byID)
	return st
}

func (d *device) report() DeviceState {
	st := DeviceState{
		ID: d.id, ExternalID: d.externalID, Name: d.name, SiteID: d.siteID,
		IPv4: d.v4.String(), IPv6: d.v6.String(), Sessions: []SessionState{},
	}
	for _, sess := range d.sessions {
		st.Sessions = append(st.Sessions, SessionState{
			sess.path, sess.userAgent, sess.agent.Version, sess.publicKey, sess.joined, sess.iceless,
		})
	}
	return st
}

func compareAuth(a, b authKey) int {
	return cmp.Or(cmp.Compare(a.clientID, b.clientID), cmp.Compare(a.gatewayID, b.gatewayID),
		cmp.Compare(a.resourceID, b.resourceID))
}
