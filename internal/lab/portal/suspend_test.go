package portal

import (
	"crypto/tls"
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"syscall"
	"testing"
	"time"

	"github.com/gorilla/websocket"
)

// relisten opens a listener where the portal is, or was.
func relisten(t *testing.T, s *Server) net.Listener {
	t.Helper()
	ln, err := net.Listen("tcp", s.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	return ln
}

func suspend(t *testing.T, s *Server) {
	t.Helper()
	if err := s.Suspend(); err != nil {
		t.Fatal(err)
	}
}

func TestSuspendedPortalRefusesConnectionsAndKeepsWhatItKnows(t *testing.T) {
	s := lab(t, Config{})
	gateway, _ := join(t, s, gatewayLogin(gatewayV2), "gateway")
	client, _ := join(t, s, clientLogin(clientV2), "client")
	for _, resource := range []string{cidrID, dnsID} {
		authorized(t, generations[2], gateway, client, resource)
	}

	suspend(t, s)
	for _, p := range []*peer{gateway, client} {
		p.conn.SetReadDeadline(time.Now().Add(patience))
		_, _, err := p.conn.ReadMessage()
		if !websocket.IsCloseError(err, websocket.CloseAbnormalClosure) {
			t.Errorf("websocket of the %s ends with %v", p.topic, err)
		}
	}
	if _, _, err := try(s, gatewayLogin(gatewayV2)); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("login while suspended: %v", err)
	}
	suspend(t, s) // once more does nothing
	if err := s.Revoke("", dnsID); err != nil {
		t.Fatal(err)
	}

	address := s.Addr().String()
	if err := s.Resume(relisten(t, s)); err != nil {
		t.Fatal(err)
	}
	if s.Addr().String() != address {
		t.Errorf("address is %s, was %s", s.Addr(), address)
	}
	_, init := join(t, s, gatewayLogin(gatewayV2), "gateway")
	rows, _ := at(t, init, "authorizations").([]any)
	if len(rows) != 1 || text(t, rows[0], "resource_id") != cidrID {
		t.Errorf("authorizations after the return are %v, want the one that was not revoked", rows)
	}
}

func TestPortalMovesToAnotherAddress(t *testing.T) {
	s := start(t, Config{})
	old := s.URL()
	suspend(t, s)
	for range 2 {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Resume(ln); err != nil {
			t.Fatal(err)
		}
	}
	if s.URL() == old {
		t.Errorf("URL is still %s", old)
	}
	join(t, s, gatewayLogin(gatewayV2), "gateway")
}

func TestPortalServesOnSeveralListeners(t *testing.T) {
	s := start(t, Config{})
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	second := ln.Addr().String()
	if err := s.Resume(ln); err != nil {
		t.Fatal(err)
	}
	join(t, s, gatewayLogin(gatewayV2), "gateway") // on the first one
	for _, address := range []string{s.Addr().String(), second} {
		conn, err := net.Dial("tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		conn.Close()
	}
	suspend(t, s)
	if _, err := net.Dial("tcp", second); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("second listener while suspended: %v", err)
	}
}

func TestResumedPortalKeepsItsTLS(t *testing.T) {
	web := httptest.NewUnstartedServer(nil)
	web.StartTLS()
	defer web.Close()
	s := start(t, Config{TLS: &tls.Config{Certificates: web.TLS.Certificates}})
	suspend(t, s)
	if err := s.Resume(relisten(t, s)); err != nil {
		t.Fatal(err)
	}
	conn, err := tls.Dial("tcp", s.Addr().String(), web.Client().Transport.(*http.Transport).TLSClientConfig)
	if err != nil {
		t.Fatal(err)
	}
	conn.Close()
}

func TestClosedPortalNeitherSuspendsNorResumes(t *testing.T) {
	for name, prepare := range map[string]func(*Server) error{
		"running":   func(*Server) error { return nil },
		"suspended": (*Server).Suspend,
	} {
		t.Run(name, func(t *testing.T) {
			s := start(t, Config{})
			if err := prepare(s); err != nil {
				t.Fatal(err)
			}
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			if err := s.Suspend(); !errors.Is(err, ErrClosed) {
				t.Errorf("Suspend = %v", err)
			}
			ln := relisten(t, s) // the port is free
			if err := s.Resume(ln); !errors.Is(err, ErrClosed) {
				t.Errorf("Resume = %v", err)
			}
			if err := ln.Close(); !errors.Is(err, net.ErrClosed) {
				t.Errorf("the listener was left open: %v", err)
			}
		})
	}
}

func TestHandshakeThatASuspensionOvertakesLeavesNoSession(t *testing.T) {
	s := start(t, Config{})
	suspend(t, s)
	w := httptest.NewRecorder()
	r := httptest.NewRequest("GET", gatewayV2, nil)
	s.Handler().ServeHTTP(w, r)
	if w.Code != 503 {
		t.Errorf("status %d", w.Code)
	}
}
