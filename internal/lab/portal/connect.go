package portal

import (
	"crypto/rand"
	"crypto/subtle"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/gorilla/websocket"
)

// refusal is an answer to a handshake other than 101. Text is the body and
// Detail part of it, so neither may hold anything the peer sent.
type refusal struct {
	Status int
	Code   string // of the problem details
	Detail string
	Header http.Header
	Body   *string // replaces the generated body
}

// peerParams are the validated parameters of a login.
type peerParams struct {
	externalID string
	name       string
	publicKey  string
	siteID     string // gateways: by token
	relay      Relay  // relays, without secret
}

var upgrader = websocket.Upgrader{
	HandshakeTimeout: 5 * time.Second,
	// Peers are no browsers and send no Origin.
	CheckOrigin: func(r *http.Request) bool { return r.Header.Get("Origin") == "" },
	Error:       func(w http.ResponseWriter, _ *http.Request, status int, _ error) { w.WriteHeader(status) },
}

func (s *Server) socketHandler(role Role, generation int) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if s.enter() != nil {
			w.WriteHeader(http.StatusServiceUnavailable)
			return
		}
		defer s.wg.Done()
		sess, ref := s.login(r, role, generation)
		if ref != nil {
			s.refuse(w, role, r.URL.Path, *ref)
			return
		}
		conn, err := upgrader.Upgrade(w, r, nil)
		if err != nil {
			s.log.Debug("upgrade", "role", role, "err", err)
			s.leave(sess, 0)
			return
		}
		s.run(sess, conn)
	}
}

// login checks a handshake and registers the session, in the order of the
// real portal: rate before token before parameters before identity.
func (s *Server) login(r *http.Request, role Role, generation int) (*session, *refusal) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.public) == 0 {
		// Suspend has closed the connection under this very handshake.
		return nil, &refusal{Status: http.StatusServiceUnavailable, Code: "suspended", Detail: "Suspended"}
	}
	if ref := s.faults.refusal(role); ref != nil {
		return nil, ref
	}
	query, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		return nil, s.badParams("query")
	}
	token := s.token(r, query)
	if token == "" && (role != RelayServer || s.cfg.RelayToken != "") {
		return nil, &refusal{Status: http.StatusUnauthorized, Code: "missing_token", Detail: "Missing token"}
	}
	host, _, _ := net.SplitHostPort(r.RemoteAddr)
	if s.rates != nil && !s.rates.allow(host, token, s.cfg.Now()) {
		return nil, &refusal{
			Status: http.StatusServiceUnavailable, Code: "rate_limit", Detail: "Rate limit exceeded",
			Header: http.Header{"Retry-After": {"1"}},
		}
	}
	siteID, ok := s.authenticate(role, token)
	if !ok {
		return nil, &refusal{Status: http.StatusUnauthorized, Code: "invalid_token", Detail: "Invalid token"}
	}
	params, bad := parseParams(role, query)
	if bad != "" {
		return nil, s.badParams(bad)
	}
	params.siteID = siteID
	ua := r.UserAgent()
	sess := &session{
		role: role, generation: generation, path: r.URL.Path,
		sock: newSocket(), userAgent: ua, agent: parseUserAgent(ua),
		publicKey: params.publicKey, told: make(map[string]string),
		expires: s.cfg.Now().Add(s.cfg.ClientSession),
	}
	if s.cfg.V1Only && role != RelayServer && sess.agent.Version == "" {
		return nil, s.badParams("user agent")
	}
	if !websocket.IsWebSocketUpgrade(r) {
		return nil, &refusal{Status: http.StatusBadRequest, Code: "invalid_connect_params", Detail: "Not a websocket upgrade"}
	}
	return sess, s.register(sess, params)
}

// register adds the session and settles conflicts of identity: the first
// gateway and the last client win, except at 1.4, where all stay
// (portal-protocol §2.5).
func (s *Server) register(sess *session, params peerParams) *refusal {
	if len(s.sessions) >= maxSessions {
		return &refusal{Status: http.StatusServiceUnavailable, Code: "rate_limit", Detail: "Too many connections"}
	}
	if sess.role == RelayServer {
		sess.relay = params.relay
		s.sessions[sess] = struct{}{}
		return nil
	}
	if s.cfg.V1Only && s.keyTaken(params) {
		return s.badParams("public_key")
	}
	dev, err := s.device(sess.role, params.siteID, params.externalID, params.name)
	if err != nil {
		return &refusal{Status: http.StatusPaymentRequired, Code: "limits_exceeded", Detail: err.Error()}
	}
	if !s.cfg.V1Only && len(dev.sessions) > 0 {
		if sess.role == Gateway {
			return &refusal{Status: http.StatusConflict, Code: "gateway_already_connected", Detail: "Gateway already connected"}
		}
		for _, older := range slices.Clone(dev.sessions) {
			s.evict(older, "token_expired", websocket.CloseNormalClosure)
		}
	}
	sess.dev = dev
	dev.sessions = append(dev.sessions, sess)
	s.sessions[sess] = struct{}{}
	return nil
}

// keyTaken reports whether another gateway that is connected has the public
// key. The 1.4 portal keeps keys unique within an account.
func (s *Server) keyTaken(params peerParams) bool {
	for sess := range s.sessions {
		if sess.role == Gateway && sess.publicKey == params.publicKey &&
			(sess.dev.externalID != params.externalID || sess.dev.siteID != params.siteID) {
			return true
		}
	}
	return false
}

// token reads the login token: the header wins over the query, and a header of
// another shape than "Bearer <token>" counts as absent.
func (s *Server) token(r *http.Request, query url.Values) string {
	if !s.cfg.QueryTokenOnly {
		if token, ok := strings.CutPrefix(r.Header.Get("X-Authorization"), "Bearer "); ok && token != "" {
			return token
		}
	}
	return query.Get("token")
}

// authenticate returns the site of a gateway's token.
func (s *Server) authenticate(role Role, token string) (siteID string, ok bool) {
	switch role {
	case Gateway:
		for _, site := range s.sites {
			if site.GatewayToken != "" && sameToken(token, site.GatewayToken) {
				return site.ID, true
			}
		}
		return DefaultSiteID, s.cfg.GatewayToken == "" || sameToken(token, s.cfg.GatewayToken)
	case Client:
		return "", s.cfg.ClientToken == "" || sameToken(token, s.cfg.ClientToken)
	default:
		return "", s.cfg.RelayToken == "" || sameToken(token, s.cfg.RelayToken)
	}
}

func sameToken(a, b string) bool { return subtle.ConstantTimeCompare([]byte(a), []byte(b)) == 1 }

// parseParams validates the query. It returns the name of the parameter that
// is missing or wrong, "" when all are fine.
func parseParams(role Role, query url.Values) (p peerParams, bad string) {
	if role == RelayServer {
		return parseRelayParams(query)
	}
	p.name, p.publicKey = query.Get("name"), query.Get("public_key")
	// firezone_id is an older name that the recent portal still takes.
	p.externalID = query.Get("external_id")
	setDefault(&p.externalID, query.Get("firezone_id"))
	if p.name == "" && role == Gateway {
		p.name = rand.Text()[:5]
	}
	key, err := base64.StdEncoding.Strict().DecodeString(p.publicKey)
	switch {
	case p.externalID == "" || len(p.externalID) > 255:
		return p, "external_id"
	case p.name == "" || len([]rune(p.name)) > 255:
		return p, "name"
	case err != nil || len(p.publicKey) != 44 || len(key) != 32:
		return p, "public_key"
	}
	return p, ""
}

func parseRelayParams(query url.Values) (p peerParams, bad string) {
	p.name = query.Get("name")
	port := uint64(3478)
	if raw := query.Get("port"); raw != "" {
		var err error
		if port, err = strconv.ParseUint(raw, 10, 16); err != nil || port == 0 {
			return p, "port"
		}
	}
	for _, family := range []struct {
		key string
		to  *netip.AddrPort
		is  func(netip.Addr) bool
	}{{"ipv4", &p.relay.V4, netip.Addr.Is4}, {"ipv6", &p.relay.V6, netip.Addr.Is6}} {
		raw := query.Get(family.key)
		if raw == "" {
			continue
		}
		addr, err := netip.ParseAddr(raw)
		if err != nil || !family.is(addr) || addr.Zone() != "" {
			return p, family.key
		}
		*family.to = netip.AddrPortFrom(addr, uint16(port))
	}
	if !p.relay.V4.IsValid() && !p.relay.V6.IsValid() {
		return p, "ipv4"
	}
	return p, ""
}

func (s *Server) badParams(name string) *refusal {
	ref := &refusal{
		Status: http.StatusBadRequest, Code: "invalid_connect_params",
		Detail: "Invalid or missing connection parameters: " + name,
	}
	if s.cfg.V1Only {
		ref.Status = http.StatusUnprocessableEntity
	}
	return ref
}

// refuse writes the answer in the form of the portal's generation
// (portal-protocol §2.4).
func (s *Server) refuse(w http.ResponseWriter, role Role, path string, ref refusal) {
	s.events.append(Event{Kind: ConnectRefused, Role: role, Path: path, Status: ref.Status, Detail: ref.Code})
	s.log.Info("connect refused", "role", role, "path", path, "status", ref.Status, "reason", ref.Code)
	for name, values := range ref.Header {
		w.Header()[http.CanonicalHeaderKey(name)] = values
	}
	switch {
	case ref.Body != nil:
		w.WriteHeader(ref.Status)
		fmt.Fprint(w, *ref.Body)
	case s.cfg.V1Only:
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		w.WriteHeader(ref.Status)
		fmt.Fprint(w, ref.Detail)
	default:
		w.Header().Set("Content-Type", "application/problem+json")
		w.WriteHeader(ref.Status)
		_ = json.NewEncoder(w).Encode(map[string]any{ // a peer that went away needs no answer
			"type": "about:blank", "title": http.StatusText(ref.Status),
			"status": ref.Status, "detail": ref.Detail, "code": ref.Code,
		})
	}
}
