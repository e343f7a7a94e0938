package tour

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"firezone-gateway/internal/lab/gateway"
	"firezone-gateway/internal/lab/portal"
)

const tlsPort = 8443

// authority is a certificate authority of the lab.
type authority struct {
	certificate *x509.Certificate
	key         *ecdsa.PrivateKey
}

func newAuthority(t *testing.T, name string) authority {
	t.Helper()
	a := authority{key: newKey(t)}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, a.key.Public(), a.key)
	if err != nil {
		t.Fatal(err)
	}
	if a.certificate, err = x509.ParseCertificate(der); err != nil {
		t.Fatal(err)
	}
	return a
}

// issue returns a certificate for a server at the address.
func (a authority) issue(t *testing.T, address netip.Addr) *tls.Certificate {
	t.Helper()
	key := newKey(t)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(2), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		IPAddresses: []net.IP{address.AsSlice()}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.certificate, key.Public(), a.key)
	if err != nil {
		t.Fatal(err)
	}
	return &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// file writes the authority's certificate where a daemon can read it.
func (a authority) file(t *testing.T) string {
	t.Helper()
	var text bytes.Buffer
	if err := pem.Encode(&text, &pem.Block{Type: "CERTIFICATE", Bytes: a.certificate.Raw}); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(path, text.Bytes(), 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

func newKey(t *testing.T) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// TestTourWaitsForASlowTLSPortal promises that the gateway logs in to a portal
// whose TLS is slow, gives up one whose TLS does not come to an end, and has
// nothing to do with one that a stranger vouches for.
func TestTourWaitsForASlowTLSPortal(t *testing.T) {
	t.Parallel()
	ours, strangers := newAuthority(t, "lab"), newAuthority(t, "stranger")
	o := alone()
	var certificate atomic.Pointer[tls.Certificate]
	var own, strange *tls.Certificate
	o.scene.prepare = func(w *World) error {
		own, strange = ours.issue(t, w.net.Portal.IPv4), strangers.issue(t, w.net.Portal.IPv4)
		certificate.Store(own)
		config := &tls.Config{GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return certificate.Load(), nil }}
		listener := w.mustListen(t, netip.AddrPortFrom(w.net.Portal.IPv4, tlsPort))
		return w.portal.Resume(tls.NewListener(listener, config))
	}
	o.scene.daemon = func(_ *World, g *gateway.Options) { g.Env = []string{"SSL_CERT_FILE=" + ours.file(t)} }
	w, f := behindFront(t, o, "wss", tlsPort)
	settle(t, w)
	feed := startFeed(t, w)

	after := w.lastEvent()
	f.become(drip(16, 50*time.Millisecond))
	e := w.awaitEvent(t, "slow TLS", after, attemptLimit+returnLimit, joined)
	t.Logf("slow: joined %.1f s after the connection was lost", e.At.Sub(w.awaitEvent(t, "loss", after, returnLimit, left).At).Seconds())

	after = w.lastEvent()
	f.become(drip(1, 50*time.Millisecond))
	visit := f.awaitVisits(t, 1, attemptLimit+returnLimit)[0]
	waited := visit.end.Sub(visit.begin)
	t.Logf("slower: given up after %.1f s", waited.Seconds())
	if waited < attemptLimit-time.Second || waited > attemptLimit+loadSlack {
		t.Errorf("given up after %v", waited)
	}

	certificate.Store(strange)
	f.become(pass)
	f.awaitVisits(t, 2, returnLimit)
	for _, e := range w.portal.Events(after) {
		if e.Kind == portal.PeerConnected && e.Role == portal.Gateway {
			t.Error("the gateway logged in to a stranger")
		}
	}

	certificate.Store(own)
	begin := time.Now()
	e = w.awaitReturn(t, after, returnLimit)
	t.Logf("fast again: joined after %.1f s", e.At.Sub(begin).Seconds())
	feed.unharmed(t, stallLimit)
	require(t, w, pingAnswered, gatewayLeaves)
}
