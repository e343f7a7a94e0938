package portal

import (
	"strings"
	"testing"
)

const rawID = "4694E56C-7643-4A15-9DF3-638E5B05F570"

func testKey(t *testing.T) PublicKey {
	t.Helper()
	return key(t, "uMBCkAxTewfSgypIyxdQ18uCi84HLtKmQJy0wvQrYWY=")
}

func TestExternalID(t *testing.T) {
	const hash = "c9cc2a8a01f9d3d6b2c26719965709196ae2c79214a837e28f0a751af1e2f2ca"
	if got := ExternalID(rawID); got != hash {
		t.Errorf("vector: got %s", got)
	}
	tests := []struct {
		name, raw string
		hashed    bool
	}{
		{"a lowercase UUID is hashed", "4694e56c-7643-4a15-9df3-638e5b05f570", true},
		{"a UUID without hyphens is hashed", "4694e56c76434a159df3638e5b05f570", true},
		{"a UUID in braces is hashed", "{4694e56c-7643-4a15-9df3-638e5b05f570}", true},
		{"a UUID as URN is hashed", "urn:uuid:4694e56c-7643-4a15-9df3-638e5b05f570", true},
		{"a host name is sent as it is", "gw-1", false},
		{"a hash is sent as it is", hash, false},
		{"a UUID with a foreign letter is sent as it is", "4694e56c-7643-4a15-9df3-638e5b05f57g", false},
		{"a UUID with a misplaced hyphen is sent as it is", "4694e56-c7643-4a15-9df3-638e5b05f570", false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got := ExternalID(tt.raw)
			if (got != tt.raw) != tt.hashed {
				t.Errorf("got %s", got)
			}
			if tt.hashed && (len(got) != 64 || got == hash) {
				t.Errorf("got %s, which ignores the text of the id", got)
			}
		})
	}
}

func TestEndpointRequest(t *testing.T) {
	const query = "?external_id=c9cc2a8a01f9d3d6b2c26719965709196ae2c79214a837e28f0a751af1e2f2ca&name=gw+1%2Fa&public_key=uMBCkAxTewfSgypIyxdQ18uCi84HLtKmQJy0wvQrYWY%3D"
	tests := []struct {
		name, base string
		route      Route
		url        string
		address    string
		host       string
	}{
		{"https becomes wss on the versioned path", "https://api.example.org", RouteV2, "wss://api.example.org/gateway/v2/websocket" + query, "api.example.org:443", "api.example.org"},
		{"the old path has the same query", "wss://api.example.org/", RouteV1, "wss://api.example.org/gateway/websocket" + query, "api.example.org:443", "api.example.org"},
		{"rule 3: the oldest portals get the token first in the query", "wss://api.example.org", RouteV1Query,
			"wss://api.example.org/gateway/websocket?token=.SFM%2Bab%3D&" + query[1:], "api.example.org:443", "api.example.org"},
		{"http becomes ws and dials 443", "http://portal", RouteV2, "ws://portal/gateway/v2/websocket" + query, "portal:443", "portal"},
		{"ws on port 80 dials 443", "ws://portal:80", RouteV2, "ws://portal:80/gateway/v2/websocket" + query, "portal:443", "portal"},
		{"wss on port 80 dials 80", "wss://portal:80", RouteV2, "wss://portal:80/gateway/v2/websocket" + query, "portal:80", "portal"},
		{"another port is dialled and not in the Host header", "ws://127.0.0.1:8081", RouteV2, "ws://127.0.0.1:8081/gateway/v2/websocket" + query, "127.0.0.1:8081", "127.0.0.1"},
		{"an IPv6 address keeps its brackets", "ws://[::1]:8081", RouteV2, "ws://[::1]:8081/gateway/v2/websocket" + query, "[::1]:8081", "[::1]"},
		{"a base path is kept and an old query is not", "wss://api.example.org/a%2Fb/c/?x=1#f", RouteV2, "wss://api.example.org/a%2Fb/c/gateway/v2/websocket" + query, "api.example.org:443", "api.example.org"},
		{"one trailing empty segment is dropped", "wss://api.example.org/a//", RouteV1, "wss://api.example.org/a//gateway/websocket" + query, "api.example.org:443", "api.example.org"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			l, err := NewLoginURL(Login{BaseURL: tt.base, Token: " .SFM+\n\tab= ", ID: rawID, Name: "gw 1/a", UserAgent: "Debian/12 gateway/1.5.3"})
			if err != nil {
				t.Fatal(err)
			}
			r := l.Connect(testKey(t)).Request(tt.route)
			if got := r.URL.String(); got != tt.url {
				t.Errorf("URL\n got %s\nwant %s", got, tt.url)
			}
			if r.Address != tt.address {
				t.Errorf("address %s", r.Address)
			}
			want := map[string]string{
				"Host": tt.host, "User-Agent": "Debian/12 gateway/1.5.3",
				"X-Authorization": "Bearer .SFM+ab=", // rules 3 and 4
			}
			for k, v := range want {
				if got := r.Header[k]; len(got) != 1 || got[0] != v {
					t.Errorf("%s: %q", k, got)
				}
			}
			if len(r.Header) != len(want) {
				t.Errorf("more headers than wanted: %d", len(r.Header))
			}
		})
	}

	t.Run("rule 2: plus and slash of a key are escaped", func(t *testing.T) {
		l, err := NewLoginURL(Login{BaseURL: "wss://p", Token: "t", ID: "i", Name: "n"})
		if err != nil {
			t.Fatal(err)
		}
		var key PublicKey
		for i := range key {
			key[i] = 0xfb
		}
		r := l.Connect(key).Request(RouteV2)
		_, raw, _ := strings.Cut(r.URL.RawQuery, "public_key=")
		if strings.ContainsAny(raw, "+/=") || r.URL.Query().Get("public_key") != key.String() || len(key.String()) != 44 {
			t.Errorf("got %s", raw)
		}
	})
}

func TestNewLoginURLRefuses(t *testing.T) {
	good := Login{BaseURL: "wss://p.example.org", Token: "s3cret", ID: "i", Name: "n"}
	if _, err := NewLoginURL(good); err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		name string
		edit func(*Login)
	}{
		{"a scheme that is not of the web", func(l *Login) { l.BaseURL = "ftp://p" }},
		{"a URL without scheme", func(l *Login) { l.BaseURL = "p.example.org" }},
		{"a URL without host", func(l *Login) { l.BaseURL = "wss:///x" }},
		{"a URL whose host is neither a name nor an address", func(l *Login) { l.BaseURL = "ws://::" }},
		{"a URL with port 0", func(l *Login) { l.BaseURL = "wss://p:0" }},
		{"a URL with a port that does not exist", func(l *Login) { l.BaseURL = "wss://p:65536" }},
		{"a URL with a password", func(l *Login) { l.BaseURL = "wss://u:s3cret@p" }},
		{"a URL that does not parse", func(l *Login) { l.BaseURL = "wss://u:s3cret@p:port" }},
		{"a token of white space", func(l *Login) { l.Token = " \n" }},
		{"a token with a control character", func(l *Login) { l.Token = "s3cret\x00" }},
		{"an empty id", func(l *Login) { l.ID = "" }},
		{"an id that is too long", func(l *Login) { l.ID = strings.Repeat("x", 256) }},
		{"an empty name", func(l *Login) { l.Name = "" }},
		{"a name that is too long", func(l *Login) { l.Name = strings.Repeat("ä", 256) }},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			l := good
			tt.edit(&l)
			_, err := NewLoginURL(l)
			if err == nil {
				t.Fatal("accepted")
			}
			if strings.Contains(err.Error(), "s3cret") {
				t.Errorf("error quotes a secret: %v", err)
			}
		})
	}
	if (Endpoint{}).IsValid() {
		t.Error("an endpoint that nobody connected is valid")
	}
}

func TestUserAgent(t *testing.T) {
	tests := []struct{ name, os, osVersion, version, arch, kernel, want string }{
		{"everything is known", "Debian", "12.0.0", "1.4.18", "x86_64", "6.1.0-13-amd64", "Debian/12.0.0 gateway/1.4.18 (x86_64; 6.1.0-13-amd64)"},
		{"the kernel is unknown", "Debian", "12.0.0", "1.5.3", "x86_64", "", "Debian/12.0.0 gateway/1.5.3 (x86_64)"},
		{"the architecture is unknown", "Debian", "12.0.0", "1.5.3", "", "6.1", "Debian/12.0.0 gateway/1.5.3 (6.1)"},
		{"only the version is known", "", "", "1.5.3", "", "", "Unknown/Unknown gateway/1.5.3"},
		{"a name with spaces is kept, other letters and line breaks are not", "Débian GNU\r\n", "12", "1.5.3", "", "", "Dbian GNU/12 gateway/1.5.3"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := UserAgent(tt.os, tt.osVersion, tt.version, tt.arch, tt.kernel); got != tt.want {
				t.Errorf("got %q", got)
			}
		})
	}
}
