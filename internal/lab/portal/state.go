package portal

import (
	"crypto/rand"
	"crypto/sha256"
	"fmt"
	"net/netip"
	"time"
)

// Role is the kind of a peer. Its value is the topic it joins.
type Role string

// The roles.
const (
	Gateway     Role = "gateway"
	Client      Role = "client"
	RelayServer Role = "relay"
)

// Bounds on what strangers can make the portal remember.
const (
	maxDevices  = 8192
	maxSessions = 8192
	maxPending  = 4096
)

// state is everything the portal knows.
type state struct {
	closed bool
	faults Faults
	rates  *rateLimiter // nil: no limit

	sites     map[string]Site
	resources map[string]Resource
	grants    map[grantKey]time.Time // end of the grant
	auths     map[authKey]authorization

	devices   map[string]*device // by identity
	byID      map[string]*device
	addresses addressPool

	sessions map[*session]struct{}
	pending  map[string]*request // by ref

	relays   []Relay     // set from outside, before those that logged in
	presence *time.Timer // debounces relays_presence; nil when idle

	accountID string
	policyID  string
	ingestKey [sha256.Size]byte
}

// device is a gateway or client that has logged in at least once.
type device struct {
	role       Role
	id         string
	externalID string
	siteID     string // gateways
	name       string
	pskBase    [pskLen]byte
	v4, v6     netip.Addr
	sessions   []*session // those not ended, oldest first
}

// grantKey names a grant. An empty client means every client.
type grantKey struct {
	client     string // external id in its wire form
	resourceID string
}

// authKey names the authorization of one client for one resource on one gateway.
type authKey struct {
	clientID, gatewayID, resourceID string
}

type authorization struct {
	id      string
	expires time.Time
}

func newState(cfg Config) state {
	st := state{
		sites:     map[string]Site{DefaultSiteID: {ID: DefaultSiteID, Name: "lab"}},
		resources: make(map[string]Resource),
		grants:    make(map[grantKey]time.Time),
		auths:     make(map[authKey]authorization),
		devices:   make(map[string]*device),
		byID:      make(map[string]*device),
		sessions:  make(map[*session]struct{}),
		pending:   make(map[string]*request),
		accountID: uuidFrom(sha256.Sum256([]byte("account|" + cfg.AccountSlug))),
		policyID:  uuidFrom(sha256.Sum256([]byte("policy|" + cfg.AccountSlug))),
	}
	rand.Read(st.ingestKey[:])
	if cfg.RateLimit != nil {
		st.rates = newRateLimiter(*cfg.RateLimit)
	}
	return st
}

// device returns the device of an identity and creates it on demand.
func (s *Server) device(role Role, siteID, externalID, name string) (*device, error) {
	identity := string(role) + "|" + siteID + "|" + externalID
	if dev, ok := s.devices[identity]; ok {
		dev.name = name
		return dev, nil
	}
	if len(s.devices) >= maxDevices {
		return nil, fmt.Errorf("%d devices are known already", maxDevices)
	}
	v4, v6, err := s.addresses.assign(identity)
	if err != nil {
		return nil, err
	}
	dev := &device{
		role:       role,
		id:         uuidFrom(sha256.Sum256([]byte("device|" + identity))),
		externalID: externalID,
		siteID:     siteID,
		name:       name,
		v4:         v4,
		v6:         v6,
	}
	rand.Read(dev.pskBase[:])
	s.devices[identity], s.byID[dev.id] = dev, dev
	return dev, nil
}

// find returns the devices of a role that name names: all of them for "", else
// those with that id or external id.
func (s *Server) find(role Role, name string) ([]*device, error) {
	wire := ExternalID(name)
	var found []*device
	for _, dev := range s.devices {
		if dev.role == role && (name == "" || dev.id == name || dev.externalID == name || dev.externalID == wire) {
			found = append(found, dev)
		}
	}
	if len(found) == 0 && name != "" {
		return nil, notFound(string(role), name)
	}
	return found, nil
}

// granted returns the end of the client's access to a resource: the latest of
// its own grant and the grant for everybody.
func (s *Server) granted(client *device, resourceID string) (end time.Time, ok bool) {
	for _, name := range []string{client.externalID, ""} {
		if t, found := s.grants[grantKey{name, resourceID}]; found {
			ok = true
			if t.After(end) {
				end = t
			}
		}
	}
	return end, ok
}

// visible reports whether the client holds an unexpired grant for the resource.
func (s *Server) visible(client *device, resourceID string) bool {
	end, ok := s.granted(client, resourceID)
	return ok && end.After(s.cfg.Now())
}

// joined returns the sessions of a role that have joined their topic.
func (s *Server) joined(role Role) []*session {
	var found []*session
	for sess := range s.sessions {
		if sess.role == role && sess.joined && !sess.ended {
			found = append(found, sess)
		}
	}
	return found
}

// forgetExpired drops authorizations that have ended on their own. Nothing is
// pushed: gateways end access by themselves.
func (s *Server) forgetExpired() {
	now := s.cfg.Now()
	for key, auth := range s.auths {
		if !auth.expires.After(now) {
			delete(s.auths, key)
		}
	}
}
