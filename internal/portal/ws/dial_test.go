package ws

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"reflect"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/gorilla/websocket"
	"go.uber.org/goleak"

	"firezone-gateway/internal/portal"
)

const (
	pathV1 = "/gateway/websocket"
	pathV2 = "/gateway/v2/websocket"
	token  = "s3cret-token"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestDialRoutes(t *testing.T) {
	missing := answer{status: 401, contentType: "text/plain", body: "Missing token"}
	tests := []struct {
		name      string
		preferred portal.Route
		answers   map[string]answer // by path, "?" appended if the token is in the query
		asked     []string
		route     portal.Route
		failure   portal.Failure
	}{
		{"a current portal takes the versioned path", portal.RouteUnknown, map[string]answer{pathV2: upgrade}, []string{pathV2}, portal.RouteV2, portal.Failure{}},
		{"an older portal does not know it", portal.RouteUnknown, map[string]answer{pathV1: upgrade}, []string{pathV2, pathV1}, portal.RouteV1, portal.Failure{}},
		{"rules 3 and 5: the oldest portal gets the token in the query as well", portal.RouteUnknown,
			map[string]answer{pathV1: missing, pathV1 + "?": upgrade}, []string{pathV2, pathV1, pathV1 + "?"}, portal.RouteV1Query, portal.Failure{}},
		{"the route that worked is tried first", portal.RouteV1Query, map[string]answer{pathV1 + "?": upgrade, pathV2: upgrade}, []string{pathV1 + "?"}, portal.RouteV1Query, portal.Failure{}},
		{"a portal may lose the old path", portal.RouteV1, map[string]answer{pathV2: upgrade}, []string{pathV1, pathV2}, portal.RouteV2, portal.Failure{}},
		{"a portal without any path is asked once for each", portal.RouteUnknown, nil, []string{pathV2, pathV1}, 0, portal.Failure{Status: 404}},
		{"a portal that lost all paths is asked once for each", portal.RouteV1Query, nil, []string{pathV1 + "?", pathV2, pathV1}, 0, portal.Failure{Status: 404}},
		{"rule 15: 401 is fatal and no other route is tried", portal.RouteUnknown,
			map[string]answer{pathV2: {status: 401, contentType: "application/problem+json", body: `{"code":"invalid_token","detail":"Invalid token"}`}, pathV1: upgrade},
			[]string{pathV2}, 0, portal.Failure{Status: 401, Fatal: true, TokenInvalid: true, Code: "invalid_token", Detail: "Invalid token"}},
		{"the token does not go to the query after another 401", portal.RouteV1, map[string]answer{pathV1: {status: 401, body: "Invalid token"}, pathV1 + "?": upgrade},
			[]string{pathV1}, 0, portal.Failure{Status: 401, Fatal: true, TokenInvalid: true}},
		{"rule 17: a busy portal names the delay", portal.RouteUnknown, map[string]answer{pathV2: {status: 503, retryAfter: "30"}},
			[]string{pathV2}, 0, portal.Failure{Status: 503, RetryAfter: 30 * time.Second, HasRetryAfter: true}},
		{"rule 16: a redirect is not followed", portal.RouteUnknown, map[string]answer{pathV2: {status: 302}}, []string{pathV2}, 0, portal.Failure{Status: 302}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var mu sync.Mutex
			var asked []string
			s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				path := r.URL.Path
				if r.URL.Query().Get("token") == token {
					path += "?"
				}
				mu.Lock()
				asked = append(asked, path)
				mu.Unlock()
				if got := r.Header.Get("X-Authorization"); got != "Bearer "+token {
					t.Errorf("X-Authorization %q", got)
				}
				a, ok := tt.answers[path]
				if !ok {
					a = answer{status: 404}
				}
				a.serve(w, r)
			}))
			defer s.Close()
			c, err := Dial(t.Context(), DialConfig{Endpoint: endpoint(t, s.URL), Preferred: tt.preferred})
			if err == nil {
				defer c.Close(CloseNormal, time.Second)
				if c.Route() != tt.route {
					t.Errorf("route %v", c.Route())
				}
			}
			if (err == nil) != (tt.route != 0) || FailureOf(err) != tt.failure {
				t.Errorf("error %v, failure %#v", err, FailureOf(err))
			}
			if err != nil && strings.Contains(err.Error(), token) {
				t.Errorf("error shows the token: %v", err)
			}
			mu.Lock()
			defer mu.Unlock()
			if !reflect.DeepEqual(asked, tt.asked) {
				t.Errorf("asked %v, want %v", asked, tt.asked)
			}
		})
	}
}

func TestDialRequest(t *testing.T) {
	got := make(chan *http.Request, 1)
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		got <- r
		upgrade.serve(w, r)
	}))
	defer s.Close()
	c, err := Dial(t.Context(), DialConfig{Endpoint: endpoint(t, s.URL+"/base/")})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close(CloseNormal, time.Second)
	r := <-got
	if r.Host != "127.0.0.1" || r.Proto != "HTTP/1.1" || r.URL.Path != "/base"+pathV2 {
		t.Errorf("request for %s%s with %s", r.Host, r.URL.Path, r.Proto)
	}
	if ua := r.UserAgent(); ua != "Debian/12 gateway/1.5.3" {
		t.Errorf("user agent %q", ua)
	}
	for _, h := range []string{"Origin", "Sec-Websocket-Protocol", "Sec-Websocket-Extensions", "Authorization"} {
		if v := r.Header.Get(h); v != "" {
			t.Errorf("%s: %q", h, v)
		}
	}
	q := r.URL.Query()
	if q.Get("external_id") != "gw" || q.Get("name") != "gw-1" || len(q.Get("public_key")) != 44 || q.Has("token") || q.Has("vsn") {
		t.Errorf("query with keys %v", q)
	}
}

func TestDialTLS(t *testing.T) {
	s := httptest.NewUnstartedServer(upgrade)
	s.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
	s.StartTLS()
	defer s.Close()
	roots := x509.NewCertPool()
	roots.AddCert(s.Certificate())

	t.Run("a known certificate is accepted", func(t *testing.T) {
		c, err := Dial(t.Context(), DialConfig{Endpoint: endpoint(t, s.URL), TLS: &tls.Config{RootCAs: roots}})
		if err != nil {
			t.Fatal(err)
		}
		c.Close(CloseNormal, time.Second)
	})
	t.Run("an unknown certificate is a transient failure", func(t *testing.T) {
		_, err := Dial(t.Context(), DialConfig{Endpoint: endpoint(t, s.URL)})
		var unknown x509.UnknownAuthorityError
		if !errors.As(err, &unknown) || FailureOf(err) != (portal.Failure{}) {
			t.Errorf("error %v", err)
		}
	})
}

func TestDialAddresses(t *testing.T) {
	s := httptest.NewServer(upgrade)
	defer s.Close()
	_, port, _ := net.SplitHostPort(s.Listener.Addr().String())
	named := endpoint(t, "http://portal.test:"+port)

	t.Run("all addresses are tried at once and the first to open wins", func(t *testing.T) {
		var both sync.WaitGroup
		both.Add(2)
		control := func(_, _ string, _ syscall.RawConn) error {
			both.Done()
			met := make(chan struct{})
			go func() { both.Wait(); close(met) }()
			select {
			case <-met:
				return nil
			case <-time.After(TCPTimeout):
				return errors.New("the other address was not tried meanwhile")
			}
		}
		// Nothing listens on the first address.
		r := &resolver{addrs: []string{"127.0.0.77", "127.0.0.1", "127.0.0.1"}}
		for n := 1; n <= 2; n++ {
			c, err := Dial(t.Context(), DialConfig{Endpoint: named, Resolver: r, Control: control})
			if err != nil {
				t.Fatal(err)
			}
			c.Close(CloseNormal, time.Second)
			if r.calls != n || r.host != "portal.test" {
				t.Errorf("%d look-ups of %q after %d connections", r.calls, r.host, n)
			}
			both.Add(2)
		}
		both.Add(-2)
	})
	t.Run("connections that open too late are closed", func(t *testing.T) {
		const n = 4
		var mu sync.Mutex
		var peers []net.Conn
		var all sync.WaitGroup
		all.Add(n)
		connect := func(context.Context, string, string) (net.Conn, error) {
			near, far := net.Pipe()
			mu.Lock()
			peers = append(peers, far)
			mu.Unlock()
			all.Done()
			all.Wait() // every address opens, whatever the racer cancels
			return near, nil
		}
		c, err := racer{&resolver{addrs: []string{"127.0.0.1", "127.0.0.2", "127.0.0.3", "::1"}}, connect}.dial(t.Context(), "tcp", "portal.test:1")
		if err != nil {
			t.Fatal(err)
		}
		closed := 0
		for _, p := range peers {
			_ = p.SetReadDeadline(time.Now().Add(10 * time.Millisecond))
			if _, err := p.Read(make([]byte, 1)); errors.Is(err, io.EOF) {
				closed++
			}
			p.Close()
		}
		c.Close()
		if closed != n-1 {
			t.Errorf("%d of %d are closed", closed, n)
		}
	})
	t.Run("an unknown name is a transient failure", func(t *testing.T) {
		_, err := Dial(t.Context(), DialConfig{Endpoint: named, Resolver: &resolver{err: &net.DNSError{IsNotFound: true}}})
		var dns *net.DNSError
		if !errors.As(err, &dns) || FailureOf(err) != (portal.Failure{}) {
			t.Errorf("error %v", err)
		}
	})
	t.Run("a name without addresses is a failure", func(t *testing.T) {
		if _, err := Dial(t.Context(), DialConfig{Endpoint: named, Resolver: &resolver{}}); err == nil {
			t.Error("connected")
		}
	})
	t.Run("a refusing host is a failure that names every address", func(t *testing.T) {
		_, err := Dial(t.Context(), DialConfig{Endpoint: named, Resolver: &resolver{addrs: []string{"127.0.0.77", "127.0.0.78"}}})
		if !errors.Is(err, syscall.ECONNREFUSED) || !strings.Contains(err.Error(), "127.0.0.78") {
			t.Errorf("error %v", err)
		}
	})
	t.Run("a refused socket option is a failure", func(t *testing.T) {
		want := errors.New("mark refused")
		_, err := Dial(t.Context(), DialConfig{Endpoint: endpoint(t, s.URL), Control: func(string, string, syscall.RawConn) error { return want }})
		if !errors.Is(err, want) {
			t.Errorf("error %v", err)
		}
	})
	t.Run("nothing is dialled without a public key", func(t *testing.T) {
		if _, err := Dial(t.Context(), DialConfig{}); err == nil {
			t.Error("connected")
		}
	})
}

func TestDialEndsWithItsContext(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	ctx, cancel := context.WithCancel(t.Context())
	closed := make(chan error, 1)
	go func() {
		peer, err := l.Accept()
		if err != nil {
			closed <- err
			return
		}
		defer peer.Close()
		// The request arrives and is never answered.
		_, err = peer.Read(make([]byte, 1))
		cancel()
		_, _ = io.Copy(io.Discard, peer)
		closed <- err
	}()
	began := time.Now()
	_, err = Dial(ctx, DialConfig{Endpoint: endpoint(t, "http://"+l.Addr().String())})
	if !errors.Is(err, context.Canceled) || time.Since(began) > AttemptTimeout/2 {
		t.Errorf("error %v after %v", err, time.Since(began))
	}
	if err := <-closed; err != nil {
		t.Error(err)
	}
}

func TestDialProxy(t *testing.T) {
	s := httptest.NewServer(upgrade)
	defer s.Close()
	asked := make(chan string, 1)
	proxy := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked <- r.Method + " " + r.Host
		up, err := net.Dial("tcp", s.Listener.Addr().String())
		if err != nil {
			t.Error(err)
			return
		}
		defer up.Close()
		down, rw, err := w.(http.Hijacker).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		defer down.Close()
		fmt.Fprint(down, "HTTP/1.1 200 OK\r\n\r\n")
		done := make(chan struct{})
		go func() { _, _ = io.Copy(up, rw); up.Close(); close(done) }()
		_, _ = io.Copy(down, up)
		down.Close()
		<-done
	}))
	defer proxy.Close()

	t.Run("the portal is reached through it", func(t *testing.T) {
		u, _ := url.Parse(proxy.URL)
		c, err := Dial(t.Context(), DialConfig{Endpoint: endpoint(t, "http://portal.test:8081"), Proxy: http.ProxyURL(u)})
		if err != nil {
			t.Fatal(err)
		}
		c.Close(CloseNormal, time.Second)
		if got := <-asked; got != "CONNECT portal.test:8081" {
			t.Errorf("asked for %s", got)
		}
	})
	t.Run("an address that can not be used is not quoted", func(t *testing.T) {
		_, err := Dial(t.Context(), DialConfig{Endpoint: endpoint(t, s.URL), Proxy: func(*http.Request) (*url.URL, error) {
			return nil, errors.New("invalid proxy address http://u:" + token + "@p")
		}})
		if err == nil || strings.Contains(err.Error(), token) {
			t.Errorf("error %v", err)
		}
	})
}

// answer is what the test portal says to one request.
type answer struct {
	status                        int
	contentType, body, retryAfter string
}

// upgrade accepts the websocket and answers its Close.
var upgrade = answer{status: http.StatusSwitchingProtocols}

func (a answer) ServeHTTP(w http.ResponseWriter, r *http.Request) { a.serve(w, r) }

func (a answer) serve(w http.ResponseWriter, r *http.Request) {
	if a.status == http.StatusSwitchingProtocols {
		c, err := (&websocket.Upgrader{}).Upgrade(w, r, nil)
		if err != nil {
			return
		}
		defer c.Close()
		for err == nil {
			_, _, err = c.ReadMessage()
		}
		return
	}
	if a.contentType != "" {
		w.Header().Set("Content-Type", a.contentType)
	}
	if a.retryAfter != "" {
		w.Header().Set("Retry-After", a.retryAfter)
	}
	if a.status == http.StatusFound {
		w.Header().Set("Location", pathV1)
	}
	w.WriteHeader(a.status)
	_, _ = io.WriteString(w, a.body)
}

type resolver struct {
	addrs []string
	err   error
	calls int
	host  string
}

func (r *resolver) LookupNetIP(_ context.Context, _, host string) ([]netip.Addr, error) {
	r.calls++
	r.host = host
	var out []netip.Addr
	for _, a := range r.addrs {
		out = append(out, netip.MustParseAddr(a))
	}
	return out, r.err
}

func endpoint(t *testing.T, base string) portal.Endpoint {
	t.Helper()
	l, err := portal.NewLoginURL(portal.Login{BaseURL: base, Token: token, ID: "gw", Name: "gw-1", UserAgent: "Debian/12 gateway/1.5.3"})
	if err != nil {
		t.Fatal(err)
	}
	return l.Connect(portal.PublicKey{1, 2, 3})
}
