package portal

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"net/netip"
	"strconv"
	"strings"
	"testing"
	"time"
)

func TestParseUserAgent(t *testing.T) {
	for _, c := range []struct {
		name, header                      string
		os, osVersion, component, version string
		semver                            bool
	}{
		{"gateway with kernel", "Debian/12.0.0 gateway/1.4.18 (x86_64; 6.1.0-13-amd64)", "Debian", "12.0.0", "gateway", "1.4.18", true},
		{"system name with spaces", "Mac OS/14.1 apple-client/1.5.11 (arm64)", "Mac OS", "14.1", "apple-client", "1.5.11", true},
		{"pre-release", "Linux/6.1 headless-client/1.6.0-pre.1+b", "Linux", "6.1", "headless-client", "1.6.0-pre.1+b", true},
		{"version of two parts", "Linux/6.1 gateway/1.6", "Linux", "6.1", "gateway", "1.6", false},
		{"no component", "curl/8.0", "", "", "", "", false},
		{"nothing", "", "", "", "", "", false},
	} {
		t.Run(c.name, func(t *testing.T) {
			ua := parseUserAgent(c.header)
			if ua.OSName != c.os || ua.OSVersion != c.osVersion || ua.Component != c.component ||
				ua.Version != c.version || ua.HasSemver != c.semver {
				t.Errorf("got %+v", ua)
			}
		})
	}
}

func TestCompatibilityWindow(t *testing.T) {
	agent := func(component, version string) userAgent {
		return parseUserAgent("Linux/6 " + component + "/" + version)
	}
	for _, c := range []struct {
		client, gateway string
		want            bool
	}{
		{"1.5.5", "1.4.0", true},
		{"1.5.5", "1.3.9", false},
		{"1.5.5", "1.6.9", true},
		{"1.5.5", "1.7.0", false},
		{"1.4.0", "1.5.3", true},
		{"1.6.0", "1.5.3", true},
		{"1.6.0", "1.4.19", false},
		{"2.0.0", "1.6.0", false},
		{"1.0.0", "1.1.0", true},
		{"1.5.5", "junk", false},
		{"junk", "junk", true},
	} {
		if got := compatible(agent("headless-client", c.client), agent("gateway", c.gateway)); got != c.want {
			t.Errorf("client %s, gateway %s: %v", c.client, c.gateway, got)
		}
	}
}

func TestSiteNamesFollowTheClientVersion(t *testing.T) {
	for _, c := range []struct {
		header     string
		generation int
		want       bool
	}{
		{"Linux/6 headless-client/1.5.5", 1, false},
		{"Linux/6 headless-client/1.5.6", 1, true},
		{"Windows/10 gui-client/1.5.9", 1, false},
		{"Windows/10 gui-client/1.5.10", 1, true},
		{"unknown", 1, false},
		{"unknown", 2, true},
	} {
		if got := parseUserAgent(c.header).usesSites(c.generation); got != c.want {
			t.Errorf("%s on V%d: %v", c.header, c.generation, got)
		}
	}
}

func TestResourcesAreValidated(t *testing.T) {
	for _, c := range []struct {
		name     string
		resource Resource
		address  string // "" for a refusal
	}{
		{"a prefix is masked", Resource{Type: CIDR, Address: "172.20.3.4/16"}, "172.20.0.0/16"},
		{"an address becomes a prefix", Resource{Type: CIDR, Address: "172.20.0.1"}, "172.20.0.1/32"},
		{"an IPv6 address becomes a prefix", Resource{Type: CIDR, Address: "2001:db8::1"}, "2001:db8::1/128"},
		{"everything is no part of the reserved range", Resource{Type: CIDR, Address: "0.0.0.0/0"}, "0.0.0.0/0"},
		{"tunnel range", Resource{Type: CIDR, Address: "100.64.1.0/24"}, ""},
		{"proxy range", Resource{Type: CIDR, Address: "fd00:2021:1111:8000::/107"}, ""},
		{"no address", Resource{Type: CIDR}, ""},
		{"pattern", Resource{Type: DNS, Address: "**.lab.test"}, "**.lab.test"},
		{"pattern with port", Resource{Type: DNS, Address: "lab.test:80"}, ""},
		{"unknown stack", Resource{Type: DNS, Address: "lab.test", IPStack: "both"}, ""},
		{"unknown type", Resource{Type: "pool", Address: "lab.test"}, ""},
		{"unknown protocol", Resource{Type: DNS, Address: "lab.test", Filters: []Filter{{Protocol: "sctp"}}}, ""},
		{"ports backwards", Resource{Type: DNS, Address: "lab.test", Filters: []Filter{Ports(TCP, 2, 1)}}, ""},
		{"id that is no UUID", Resource{ID: "web", Type: DNS, Address: "lab.test"}, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			r, err := c.resource.normalized()
			if (err == nil) != (c.address != "") {
				t.Fatalf("error %v", err)
			}
			if err == nil && (r.Address != c.address || r.ID == "" || r.SiteID != DefaultSiteID || r.Filters == nil) {
				t.Errorf("got %+v", r)
			}
		})
	}
}

func TestAddressesAreDeterministicDistinctAndInRange(t *testing.T) {
	v4Range, v6Range := netip.MustParsePrefix("100.64.0.0/11"), netip.MustParsePrefix("fd00:2021:1111::/107")
	var a, b addressPool
	seen := make(map[netip.Addr]bool)
	for i := range 5000 {
		identity := strconv.Itoa(i)
		v4, v6, err := a.assign(identity)
		if err != nil {
			t.Fatal(err)
		}
		again4, again6, err := b.assign(identity)
		if err != nil || again4 != v4 || again6 != v6 {
			t.Fatalf("%s and %s, then %s and %s", v4, v6, again4, again6)
		}
		if seen[v4] || seen[v6] || !v4Range.Contains(v4) || !v6Range.Contains(v6) {
			t.Fatalf("%s and %s are used or out of range", v4, v6)
		}
		seen[v4], seen[v6] = true, true
	}
}

func TestAddressPoolEndsWithAnError(t *testing.T) {
	pool := addressPool{used: make(map[uint32]bool, 1<<addressBits)}
	for host := uint32(1); host < 1<<addressBits-2; host++ {
		pool.used[host] = true
	}
	v4, v6, err := pool.assign("last")
	if err != nil || v4 != netip.MustParseAddr("100.95.255.254") || v6 != netip.MustParseAddr("fd00:2021:1111::1f:fffe") {
		t.Fatalf("%s, %s, %v", v4, v6, err)
	}
	if _, _, err := pool.assign("one more"); err == nil {
		t.Fatal("a full pool hands out an address")
	}
}

func TestRateLimiter(t *testing.T) {
	start := time.Unix(1_700_000_000, 0)
	l := newRateLimiter(RateLimit{PerSecond: 1, Burst: 2})
	steps := []struct {
		after time.Duration
		token string
		want  bool
	}{
		{0, "a", true}, {0, "a", true}, {0, "a", false}, {0, "b", true},
		{999 * time.Millisecond, "a", false}, {time.Second, "a", true}, {time.Second, "a", false},
		{time.Minute, "a", true}, {time.Minute, "a", true}, {time.Minute, "a", false},
	}
	for i, step := range steps {
		if got := l.allow("192.0.2.1", step.token, start.Add(step.after)); got != step.want {
			t.Fatalf("step %d: %v", i, got)
		}
	}
}

func TestRateLimiterIsBounded(t *testing.T) {
	start := time.Unix(1_700_000_000, 0)
	l := newRateLimiter(RateLimit{PerSecond: 1, Burst: 1})
	for i := range rateKeys {
		if !l.allow("192.0.2.1", strconv.Itoa(i), start) {
			t.Fatalf("token %d is refused", i)
		}
	}
	if l.allow("192.0.2.1", "one more", start) {
		t.Fatal("the table grows beyond its bound")
	}
	if !l.allow("192.0.2.1", "one more", start.Add(2*time.Second)) || len(l.full) != 1 {
		t.Fatalf("%d buckets are left", len(l.full))
	}
}

func TestIngestTokenIsAWellFormedJWT(t *testing.T) {
	key := []byte("key")
	token, err := ingestToken(key, ingestClaims{Role: roleResponder, IssuedAt: 1, ExpiresAt: 2})
	if err != nil {
		t.Fatal(err)
	}
	claims := checkJWT(t, token, roleResponder)
	if claims["iat"] != 1.0 || claims["exp"] != 2.0 {
		t.Errorf("claims %v", claims)
	}
	parts := strings.Split(token, ".")
	mac := hmac.New(sha256.New, key)
	mac.Write([]byte(parts[0] + "." + parts[1]))
	if base64.RawURLEncoding.EncodeToString(mac.Sum(nil)) != parts[2] {
		t.Error("signature does not verify")
	}
}

// checkJWT checks what recent peers check and returns the claims.
func checkJWT(t *testing.T, token, role string) map[string]any {
	t.Helper()
	parts := strings.Split(token, ".")
	if len(parts) != 3 || parts[2] == "" {
		t.Fatalf("%d segments", len(parts))
	}
	var header, claims map[string]any
	for i, into := range []*map[string]any{&header, &claims} {
		raw, err := base64.RawURLEncoding.DecodeString(parts[i])
		if err != nil {
			t.Fatal(err)
		}
		if err := json.Unmarshal(raw, into); err != nil {
			t.Fatal(err)
		}
	}
	if header["alg"] != "HS256" {
		t.Errorf("header %v", header)
	}
	for _, name := range []string{
		"account_id", "iat", "exp", "role", "uploads_enabled", "initiator_device_id", "responder_device_id",
		"policy_authorization_id", "policy_id", "resource_id", "resource_name", "initiator_actor_id",
		"initiator_actor_name", "authorized_at", "authorization_expires_at",
	} {
		if _, ok := claims[name]; !ok {
			t.Errorf("claim %s is missing", name)
		}
	}
	if claims["role"] != role {
		t.Errorf("role %v, want %s", claims["role"], role)
	}
	return claims
}
