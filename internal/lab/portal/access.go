package portal

import (
	"errors"
	"fmt"
	"slices"
	"time"
)

// AddSite creates a site or replaces the one with its id, and returns it as
// stored. DefaultSiteID exists from the start.
func (s *Server) AddSite(site Site) (Site, error) {
	id, err := normalizedID(site.ID)
	if err != nil {
		return Site{}, fmt.Errorf("site: %w", err)
	}
	site.ID = id
	setDefault(&site.Name, "site-"+id[:8])
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, other := range s.sites {
		if other.ID != id && site.GatewayToken != "" && other.GatewayToken == site.GatewayToken {
			return Site{}, fmt.Errorf("site %s has the same gateway token", other.ID)
		}
	}
	s.sites[id] = site
	return site, nil
}

// AddResource creates a resource and returns it as stored. Nobody sees it
// before there is a grant.
func (s *Server) AddResource(r Resource) (Resource, error) {
	r, err := r.normalized()
	if err != nil {
		return Resource{}, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, ok := s.resources[r.ID]; ok {
		return Resource{}, fmt.Errorf("resource %s exists", r.ID)
	}
	return r, s.putResource(r)
}

// UpdateResource replaces a resource. Gateways and clients get an update when
// only name, description or filters change; otherwise access ends first and
// clients see the resource deleted and created (portal-protocol §3.6, §7.5).
func (s *Server) UpdateResource(r Resource) (Resource, error) {
	r, err := r.normalized()
	if err != nil {
		return Resource{}, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	old, ok := s.resources[r.ID]
	if !ok {
		return Resource{}, notFound("resource", r.ID)
	}
	if err := s.putResource(r); err != nil {
		return Resource{}, err
	}
	breaks := old.breaks(r)
	if breaks {
		s.rejectAll(func(key authKey) bool { return key.resourceID == r.ID })
	} else {
		s.updateGateways(r)
	}
	for _, sess := range s.joined(Client) {
		if !s.visible(sess.dev, r.ID) {
			continue
		}
		if breaks {
			s.push(sess, "resource_deleted", r.ID)
		}
		s.push(sess, "resource_created_or_updated", s.forClient(sess, r))
	}
	return r, nil
}

// RemoveResource deletes a resource with its grants and ends access to it.
func (s *Server) RemoveResource(id string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, ok := s.resources[id]; !ok {
		return notFound("resource", id)
	}
	s.rejectAll(func(key authKey) bool { return key.resourceID == id })
	for _, sess := range s.joined(Client) {
		if s.visible(sess.dev, id) {
			s.push(sess, "resource_deleted", id)
		}
	}
	for key := range s.grants {
		if key.resourceID == id {
			delete(s.grants, key)
		}
	}
	delete(s.resources, id)
	return nil
}

// Grant lets a client reach a resource for ttl from the time of Config.Now. The
// client is named by its external id, raw or as on the wire; "" means every
// client. Granting again replaces the expiry: recent portals apply it when the
// client asks again, those of 1.4 move existing authorizations at once
// (portal-protocol §3.10).
func (s *Server) Grant(client, resourceID string, ttl time.Duration) error {
	if ttl <= 0 {
		return errors.New("grant needs a positive time to live")
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	r, ok := s.resources[resourceID]
	if !ok {
		return notFound("resource", resourceID)
	}
	name := ExternalID(client)
	s.grants[grantKey{name, resourceID}] = s.cfg.Now().Add(ttl)
	for _, sess := range s.joined(Client) {
		if concerns(name, sess.dev) {
			s.push(sess, "resource_created_or_updated", s.forClient(sess, r))
		}
	}
	if s.cfg.V1Only {
		s.moveExpiry(name, resourceID)
	}
	return nil
}

// Revoke deletes the grant that Grant made with the same names. Gateways get
// reject_access for every authorization that rested on it, clients lose the
// resource unless another grant covers them.
func (s *Server) Revoke(client, resourceID string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	name := ExternalID(client)
	key := grantKey{name, resourceID}
	if _, ok := s.grants[key]; !ok {
		return notFound("grant for resource", resourceID)
	}
	delete(s.grants, key)
	s.rejectAll(func(key authKey) bool {
		dev := s.byID[key.clientID]
		return key.resourceID == resourceID && concerns(name, dev) &&
			!(s.cfg.V1Only && s.visible(dev, resourceID))
	})
	if s.cfg.V1Only {
		s.moveExpiry(name, resourceID)
	}
	for _, sess := range s.joined(Client) {
		if concerns(name, sess.dev) && !s.visible(sess.dev, resourceID) {
			s.push(sess, "resource_deleted", resourceID)
		}
	}
	return nil
}

// concerns reports whether a grant made for name covers the client.
func concerns(name string, client *device) bool { return name == "" || name == client.externalID }

func (s *Server) putResource(r Resource) error {
	if _, ok := s.sites[r.SiteID]; !ok {
		return notFound("site", r.SiteID)
	}
	s.resources[r.ID] = r
	return nil
}

func (s *Server) knowsResource(id string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	_, ok := s.resources[id]
	return ok
}

// updateGateways pushes resource_updated to the gateways of the site.
func (s *Server) updateGateways(r Resource) {
	for _, sess := range s.joined(Gateway) {
		if sess.dev.siteID == r.SiteID {
			s.push(sess, "resource_updated", r.forGateway())
		}
	}
}

// rejectAll ends the authorizations that match. Gateways hear of those only
// that have not ended by themselves. Requests in flight fail with not_found;
// their acknowledgements come too late.
func (s *Server) rejectAll(match func(authKey) bool) {
	s.forgetExpired()
	for ref, req := range s.pending {
		if match(authKey{req.session.dev.id, req.gateway.id, req.resource.ID}) {
			s.forget(ref)
			s.fail(req.session, req.id, req.resource.ID, reasonNotFound)
		}
	}
	var keys []authKey
	for key := range s.auths {
		if match(key) {
			keys = append(keys, key)
		}
	}
	slices.SortFunc(keys, compareAuth)
	for _, key := range keys {
		auth := s.auths[key]
		delete(s.auths, key)
		for _, sess := range s.byID[key.gatewayID].sessions {
			if sess.joined {
				s.push(sess, "reject_access", accessPair{key.clientID, key.resourceID})
				s.emit(sess, Event{Kind: AccessRejected, AuthorizationID: auth.id, ClientID: key.clientID, ResourceID: key.resourceID})
			}
		}
	}
}

// moveExpiry gives existing authorizations the end of the grants in force.
func (s *Server) moveExpiry(name, resourceID string) {
	s.forgetExpired()
	for key, auth := range s.auths {
		client := s.byID[key.clientID]
		if key.resourceID != resourceID || !concerns(name, client) {
			continue
		}
		end, ok := s.granted(client, resourceID)
		if !ok || end.Equal(auth.expires) {
			continue
		}
		s.auths[key] = authorization{auth.id, end}
		s.pushAll(s.byID[key.gatewayID], "access_authorization_expiry_updated",
			authorizationRow{accessPair{key.clientID, resourceID}, end.Unix()})
	}
}
