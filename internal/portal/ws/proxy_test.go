package ws

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"

	"firezone-gateway/internal/hammer"
	"firezone-gateway/internal/portal"
)

const proxyPassword = "pr0xy-s3cret"

// scripted is a proxy that reads one request and answers with fixed bytes. The
// channel gets what it was asked.
func scripted(t *testing.T, answer string) (address string, asked <-chan *http.Request) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	requests, done := make(chan *http.Request, 1), make(chan struct{})
	go func() {
		defer close(done)
		c, err := l.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		r, err := http.ReadRequest(bufio.NewReader(c))
		if err != nil {
			return
		}
		requests <- r
		_, _ = io.WriteString(c, answer)
		// The answer ends with the connection, which the client closes.
		_ = c.(*net.TCPConn).CloseWrite()
		_, _ = io.Copy(io.Discard, c)
	}()
	t.Cleanup(func() {
		l.Close()
		<-done
	})
	return l.Addr().String(), requests
}

func through(t *testing.T, proxy string, resolver Resolver) (*Conn, error) {
	t.Helper()
	u, err := url.Parse(proxy)
	if err != nil {
		t.Fatal(err)
	}
	return Dial(t.Context(), DialConfig{Endpoint: endpoint(t, "https://portal.test"), Proxy: http.ProxyURL(u), Resolver: resolver})
}

func TestDialProxyRefuses(t *testing.T) {
	for _, tt := range []struct{ name, answer, want string }{
		{"with a status and its phrase", "HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n", "HTTP status 407 (Proxy Authentication Required)"},
		{"with a status and no phrase", "HTTP/1.1 407\r\n\r\n", "HTTP status 407 (Proxy Authentication Required)"},
		{"with a status and an empty phrase", "HTTP/1.1 403 \r\n\r\n", "HTTP status 403 (Forbidden)"},
		{"with a status that has no name", "HTTP/1.1 599\r\n\r\n", "HTTP status 599"},
		{"with a phrase that tells the password", "HTTP/1.1 407 " + proxyPassword + "\r\n\r\n", "HTTP status 407"},
		{"with a success that is none of CONNECT", "HTTP/1.1 302 Found\r\nLocation: /login\r\n\r\n", "HTTP status 302 (Found)"},
		{"with something that is not HTTP", "SSH-2.0 " + proxyPassword + "\r\n", "not HTTP"},
		{"with a header that never ends", "HTTP/1.1 200 OK\r\nX: " + strings.Repeat("x", 1<<20), "not HTTP"},
		{"by hanging up", "", "hung up"},
		{"by speaking for the portal", "HTTP/1.1 200 OK\r\n\r\nHTTP/1.1 101 Switching Protocols\r\n\r\n", "more than an answer"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			address, asked := scripted(t, tt.answer)
			c, err := through(t, "http://user:"+proxyPassword+"@"+address, nil)
			if err == nil {
				c.Abort()
				t.Fatal("connected")
			}
			if !strings.Contains(err.Error(), tt.want) || !strings.Contains(err.Error(), "proxy") {
				t.Errorf("error %q does not say %q", err, tt.want)
			}
			if strings.Contains(err.Error(), proxyPassword) || strings.Contains(err.Error(), "dXNlc") || FailureOf(err) != (portal.Failure{}) {
				t.Errorf("error %v, failure %v", err, FailureOf(err))
			}
			r := <-asked
			user, password, _ := (&http.Request{Header: http.Header{"Authorization": r.Header["Proxy-Authorization"]}}).BasicAuth()
			if r.Method != "CONNECT" || r.Host != "portal.test:443" || user != "user" || password != proxyPassword {
				t.Errorf("asked %s %s as %q", r.Method, r.Host, user)
			}
			if r.Header.Get("X-Authorization") != "" {
				t.Error("the proxy gets the token")
			}
		})
	}
}

func TestDialProxyAddresses(t *testing.T) {
	for _, tt := range []struct{ name, proxy, want string }{
		{"a scheme that is not supported", "https://user:" + proxyPassword + "@127.0.0.1:1", "neither http nor socks5"},
		{"an unknown scheme", proxyPassword + "://127.0.0.1:1", "neither http nor socks5"},
		{"no host", "http://user:" + proxyPassword + "@:3128", "no host"},
		{"nobody there", "http://user:" + proxyPassword + "@127.0.0.77:1", "connection refused"},
		{"nobody there, socks5", "socks5://user:" + proxyPassword + "@127.0.0.77:1", "connection refused"},
		{"the port that http has", "http://user:" + proxyPassword + "@127.0.0.77", "127.0.0.77:80"},
		{"the port that socks has", "socks5h://user:" + proxyPassword + "@127.0.0.77", "127.0.0.77:1080"},
		{"a name that nobody knows", "http://user:" + proxyPassword + "@proxy.test:3128", "look up proxy.test"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := through(t, tt.proxy, &resolver{err: &net.DNSError{Name: "proxy.test", IsNotFound: true}})
			if err == nil || !strings.Contains(err.Error(), tt.want) || !strings.Contains(err.Error(), "proxy") {
				t.Fatalf("error %v does not say %q", err, tt.want)
			}
			if strings.Contains(err.Error(), proxyPassword) || FailureOf(err) != (portal.Failure{}) {
				t.Errorf("error %v, failure %v", err, FailureOf(err))
			}
		})
	}
}

// TestDialProxySOCKS speaks the two messages of RFC 1928 that are needed.
func TestDialProxySOCKS(t *testing.T) {
	s := httptest.NewServer(upgrade)
	defer s.Close()
	for name, tt := range map[string]struct {
		reply byte
		want  string
	}{
		"that connects": {0, ""}, "that refuses": {5, "connection refused"},
	} {
		t.Run(name, func(t *testing.T) {
			l, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			target, done := make(chan string, 1), make(chan error, 1)
			go func() { done <- serveSOCKS(l, s.Listener.Addr().String(), tt.reply, target) }()
			u := &url.URL{Scheme: "socks5", Host: l.Addr().String()}
			c, err := Dial(t.Context(), DialConfig{Endpoint: endpoint(t, "http://portal.test:8081"), Proxy: http.ProxyURL(u)})
			if err == nil {
				c.Close(CloseNormal, patience)
			}
			if (err == nil) != (tt.want == "") || err != nil && !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error %v, want %q", err, tt.want)
			}
			l.Close()
			if err := <-done; err != nil {
				t.Error(err)
			}
			// The proxy resolves the name, as it does for CONNECT.
			if got := <-target; got != "portal.test" {
				t.Errorf("asked for %s", got)
			}
		})
	}
}

func serveSOCKS(l net.Listener, upstream string, reply byte, target chan<- string) error {
	down, err := l.Accept()
	if err != nil {
		return err
	}
	defer down.Close()
	hello := make([]byte, 3)
	if _, err := io.ReadFull(down, hello); err != nil {
		return err
	}
	_, _ = down.Write([]byte{5, 0})
	head := make([]byte, 5)
	if _, err := io.ReadFull(down, head); err != nil {
		return err
	}
	if head[3] != 3 {
		return errors.New("the request names no host")
	}
	rest := make([]byte, int(head[4])+2)
	if _, err := io.ReadFull(down, rest); err != nil {
		return err
	}
	target <- string(rest[:len(rest)-2])
	_, _ = down.Write([]byte{5, reply, 0, 1, 0, 0, 0, 0, 0, 0})
	if reply != 0 {
		return nil
	}
	up, err := net.DialTimeout("tcp", upstream, patience)
	if err != nil {
		return err
	}
	defer up.Close()
	ended := make(chan struct{})
	go func() { _, _ = io.Copy(up, down); up.Close(); close(ended) }()
	_, _ = io.Copy(down, up)
	down.Close()
	<-ended
	return nil
}

// TestDialProxyIsBoundInTime is about one that takes the request and is silent.
func TestDialProxyIsBoundInTime(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		if c, err := l.Accept(); err == nil {
			_, _ = io.Copy(io.Discard, c)
			c.Close()
		}
	}()
	began := time.Now()
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	u := &url.URL{Scheme: "http", Host: l.Addr().String()}
	_, err = Dial(ctx, DialConfig{Endpoint: endpoint(t, "https://portal.test"), Proxy: http.ProxyURL(u)})
	if !errors.Is(err, context.DeadlineExceeded) || time.Since(began) > AttemptTimeout/2 {
		t.Errorf("error %v after %v", err, time.Since(began))
	}
	<-ended
}

// answered is a connection to a proxy whose answer is fixed.
type answered struct {
	net.Conn
	io.Reader
}

func (a answered) Read(b []byte) (int, error)  { return a.Reader.Read(b) }
func (a answered) Write(b []byte) (int, error) { return len(b), nil }

// FuzzTunnel checks that no answer of a proxy does more than let the attempt
// fail, with a text that has nothing of the answer in it.
func FuzzTunnel(f *testing.F) { fuzzTunnel(f) }

func TestHammerTunnel(t *testing.T) { hammer.Test(t, "FuzzTunnel", fuzzTunnel) }

func fuzzTunnel(f hammer.F) {
	f.Add([]byte("HTTP/1.1 200 OK\r\n\r\n"), true)
	f.Add([]byte("HTTP/1.1 407\r\n\r\n"), true)
	f.Add([]byte("HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n"), false)
	f.Fuzz(func(t *testing.T, answer []byte, known bool) {
		var user *url.Userinfo
		if known {
			user = url.UserPassword("user", proxyPassword)
		}
		err := tunnel(answered{Reader: bytes.NewReader(answer)}, user, "portal.test:443")
		if err == nil {
			if !bytes.HasPrefix(answer, []byte("HTTP/")) {
				t.Fatalf("%q opened a tunnel", answer)
			}
			return
		}
		text := err.Error()
		if len(text) > 100 || strings.Contains(text, proxyPassword) {
			t.Fatalf("error %q", text)
		}
		for _, allowed := range []string{"it hung up", "its answer is not HTTP", "it sent more than an answer", "it refused: HTTP status "} {
			if strings.HasPrefix(text, allowed) {
				return
			}
		}
		t.Fatalf("error %q", text)
	})
}
