package portal

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"log/slog"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"unicode"
)

// Login is what a gateway shows to the portal besides its public key. Its
// textual forms leave the token out.
type Login struct {
	BaseURL   string // of the portal; scheme http, https, ws or wss
	Token     string // secret; white space anywhere in it is removed
	ID        string // of the device, raw, 1 to 255 bytes
	Name      string // shown to administrators, 1 to 255 characters
	UserAgent string // see UserAgent
}

// LoginURL is the prototype of a login (§1.1). It lacks the public key, and
// nothing can be dialled before Connect supplies it. Its textual forms leave the
// token out.
type LoginURL struct {
	base       url.URL // scheme, host and path only
	token      string
	externalID string
	name       string
	userAgent  string
}

// NewLoginURL checks l and returns its prototype. Errors name the field at
// fault and never the token.
func NewLoginURL(l Login) (LoginURL, error) {
	u, err := url.Parse(l.BaseURL)
	if err != nil {
		// The text of url.Error quotes the URL, which may contain a password.
		return LoginURL{}, errors.New("portal URL does not parse")
	}
	switch u.Scheme {
	case "http", "ws":
		u.Scheme = "ws"
	case "https", "wss":
		u.Scheme = "wss"
	default:
		return LoginURL{}, errors.New("portal URL: scheme is none of http, https, ws, wss")
	}
	if u.Hostname() == "" {
		return LoginURL{}, errors.New("portal URL: no host")
	}
	if strings.ContainsAny(u.Hostname(), ":[]%") && !isAddress(u.Hostname()) {
		return LoginURL{}, errors.New("portal URL: host is neither a name nor an address")
	}
	if p, err := strconv.ParseUint(u.Port(), 10, 16); u.Port() != "" && (err != nil || p == 0) {
		return LoginURL{}, errors.New("portal URL: port is not between 1 and 65535")
	}
	if u.User != nil {
		return LoginURL{}, errors.New("portal URL: user information is not supported")
	}
	token := strings.Map(dropSpace, l.Token)
	if token == "" || printable(token, len(token)) != token {
		return LoginURL{}, errors.New("token is empty or not printable ASCII")
	}
	if l.ID == "" || len(l.ID) > 255 {
		return LoginURL{}, errors.New("device id is not 1 to 255 bytes long")
	}
	if n := len([]rune(l.Name)); n == 0 || n > 255 {
		return LoginURL{}, errors.New("name is not 1 to 255 characters long")
	}
	return LoginURL{
		base:       url.URL{Scheme: u.Scheme, Host: u.Host, Path: u.Path, RawPath: u.RawPath},
		token:      token,
		externalID: ExternalID(l.ID),
		name:       l.Name,
		userAgent:  printable(l.UserAgent, 512),
	}, nil
}

// isAddress reports whether host is an IPv6 address, with the name of an interface
// as its zone if there is one: a URL takes any text there and does not give it
// back.
func isAddress(host string) bool {
	a, err := netip.ParseAddr(host)
	return err == nil && !strings.ContainsFunc(a.Zone(), func(r rune) bool {
		return !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("-._", r))
	})
}

// Connect completes the prototype with the gateway's public key.
func (l LoginURL) Connect(key PublicKey) Endpoint {
	return Endpoint{login: l, key: key}
}

// String returns the base URL.
func (l LoginURL) String() string { return l.base.String() }

// GoString equals String.
func (l LoginURL) GoString() string { return l.String() }

// LogValue equals String.
func (l LoginURL) LogValue() slog.Value { return slog.StringValue(l.String()) }

// ExternalID returns the form of a raw device id that is sent (rule 1): the hex
// SHA-256 of the id exactly as given if it is a UUID, else the id.
func ExternalID(raw string) string {
	if !isUUID(raw) {
		return raw
	}
	sum := sha256.Sum256([]byte(raw))
	return hex.EncodeToString(sum[:])
}

// Route is a way to log in (§5.5). The zero value means that none is known.
type Route uint8

// The routes, in the order in which they are tried.
const (
	RouteUnknown Route = iota
	RouteV2            // versioned path, token in the header
	RouteV1            // old path, token in the header
	RouteV1Query       // old path, token in the header and in the URL
)

// Generation returns the generation of the socket behind r, or zero.
func (r Route) Generation() Generation {
	switch r {
	case RouteV2:
		return V2
	case RouteV1, RouteV1Query:
		return V1
	default:
		return 0
	}
}

// String returns a short name for logs.
func (r Route) String() string {
	switch r {
	case RouteV2:
		return "v2"
	case RouteV1:
		return "v1"
	case RouteV1Query:
		return "v1-query-token"
	default:
		return "unknown"
	}
}

// Endpoint is a complete login. Only LoginURL.Connect makes one. Its textual
// forms leave the token out.
type Endpoint struct {
	login LoginURL
	key   PublicKey
}

// IsValid reports whether e was made by Connect.
func (e Endpoint) IsValid() bool { return e.login.base.Host != "" }

// String returns the base URL.
func (e Endpoint) String() string { return e.login.String() }

// GoString equals String.
func (e Endpoint) GoString() string { return e.String() }

// LogValue equals String.
func (e Endpoint) LogValue() slog.Value { return slog.StringValue(e.String()) }

// Request is the websocket upgrade request for one route. It contains the
// token; its textual forms do not.
type Request struct {
	URL     url.URL             // ws or wss; the host as configured
	Address string              // host:port to dial
	Header  map[string][]string // canonical keys: Host, User-Agent, X-Authorization
}

// Request returns the upgrade request for r, which must be known.
func (e Endpoint) Request(r Route) Request {
	u := e.login.base
	suffix := "/gateway/v2/websocket"
	if r.Generation() == V1 {
		suffix = "/gateway/websocket"
	}
	u.Path = strings.TrimSuffix(u.Path, "/") + suffix
	if u.RawPath != "" {
		u.RawPath = strings.TrimSuffix(u.RawPath, "/") + suffix
	}
	// Assembled by hand because the order is fixed (§1.1).
	var q strings.Builder
	if r == RouteV1Query {
		q.WriteString("token=" + url.QueryEscape(e.login.token) + "&")
	}
	q.WriteString("external_id=" + url.QueryEscape(e.login.externalID))
	q.WriteString("&name=" + url.QueryEscape(e.login.name))
	q.WriteString("&public_key=" + url.QueryEscape(e.key.String()))
	u.RawQuery = q.String()

	host := bracketed(u.Hostname())
	header := map[string][]string{
		"Host":            {host},
		"User-Agent":      {e.login.userAgent},
		"X-Authorization": {"Bearer " + e.login.token},
	}
	return Request{URL: u, Address: host + ":" + dialPort(&u), Header: header}
}

// String returns scheme, host and path.
func (r Request) String() string {
	return r.URL.Scheme + "://" + r.URL.Host + r.URL.EscapedPath()
}

// GoString equals String.
func (r Request) GoString() string { return r.String() }

// LogValue equals String.
func (r Request) LogValue() slog.Value { return slog.StringValue(r.String()) }

// MarshalText equals String.
func (r Request) MarshalText() ([]byte, error) { return []byte(r.String()), nil }

// dialPort is 443 unless the URL names a port other than the scheme's default:
// the reference's URL library hides that one, so ws://host:80 dials 443 too.
func dialPort(u *url.URL) string {
	p := u.Port()
	if p == "" || (u.Scheme == "ws" && p == "80") {
		return "443"
	}
	return p
}

func bracketed(host string) string {
	if a, err := netip.ParseAddr(host); err == nil && a.Is6() {
		return "[" + host + "]"
	}
	return host
}

func dropSpace(r rune) rune {
	if unicode.IsSpace(r) {
		return -1
	}
	return r
}

// isUUID accepts the four textual forms that the reference's parser does:
// plain, hyphenated, in braces, and as a URN.
func isUUID(s string) bool {
	if len(s) == 32 {
		return isHex(s)
	}
	if len(s) == 38 && s[0] == '{' && s[37] == '}' {
		s = s[1:37]
	}
	if len(s) == 45 {
		s = strings.TrimPrefix(s, "urn:uuid:")
	}
	return len(s) == 36 && s[8] == '-' && s[13] == '-' && s[18] == '-' && s[23] == '-' &&
		isHex(s[:8]) && isHex(s[9:13]) && isHex(s[14:18]) && isHex(s[19:23]) && isHex(s[24:])
}

func isHex(s string) bool {
	for i := range len(s) {
		switch c := s[i]; {
		case '0' <= c && c <= '9', 'a' <= c && c <= 'f', 'A' <= c && c <= 'F':
		default:
			return false
		}
	}
	return true
}
