package tour

import (
	"context"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"firezone-gateway/internal/lab/gateway"
	labnet "firezone-gateway/internal/lab/net"
	"firezone-gateway/internal/lab/portal"
)

// returnLimit bounds the time that the gateway takes to return to a portal that
// was away for some seconds: the delays of its back-off, and some more for a
// machine with other work.
const returnLimit = 30 * time.Second

// alone are the options of a World with one client.
func alone() Options {
	o := scaled()
	o.Clients = 1
	return o
}

// settle brings the gateway and its clients to work.
func settle(t *testing.T, w *World) {
	t.Helper()
	require(t, w, gatewayJoins, clientsAuthorized)
}

// within returns a context of the test that ends after d.
func within(t *testing.T, d time.Duration) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}

// awaitEvent returns the first event after another one that is as wanted.
func (w *World) awaitEvent(t *testing.T, what string, after uint64, limit time.Duration, match func(portal.Event) bool) portal.Event {
	t.Helper()
	e, err := w.portal.WaitEvent(within(t, limit), after, match)
	if err != nil {
		t.Fatalf("%s: %v", what, err)
	}
	return e
}

// awaitReturn waits until the gateway has joined the portal again, by both
// accounts: before it has seen the answer, a gateway counts another failure.
func (w *World) awaitReturn(t *testing.T, after uint64, limit time.Duration) portal.Event {
	t.Helper()
	e := w.awaitEvent(t, "gateway did not come back", after, limit, joined)
	if err := await(within(t, limit), "gateway is not ready", w.ready); err != nil {
		t.Fatal(err)
	}
	return e
}

// ready asks the daemon itself.
func (w *World) ready() bool {
	client := http.Client{
		Transport: &http.Transport{DialContext: w.net.Gateway.Host.DialContext, DisableKeepAlives: true},
		Timeout:   pingPatience,
	}
	response, err := client.Get("http://127.0.0.1:8080/readyz")
	if err != nil {
		return false
	}
	response.Body.Close()
	return response.StatusCode == http.StatusOK
}

func left(e portal.Event) bool { return e.Kind == portal.PeerLeft && e.Role == portal.Gateway }

func refusedConnect(e portal.Event) bool {
	return e.Kind == portal.ConnectRefused && e.Role == portal.Gateway
}

// sendAway ends the gateway's connection to the portal, and no client's.
func (w *World) sendAway(t *testing.T) {
	t.Helper()
	if err := w.portal.DisconnectGateway("", "", closeRestart); err != nil {
		t.Fatal(err)
	}
}

// suspend kills the portal. Clients lose their connections to it for good.
func (w *World) suspend(t *testing.T) {
	t.Helper()
	if err := w.portal.Suspend(); err != nil {
		t.Fatal(err)
	}
	w.cutOff(t)
}

// cutOff says that the clients have lost the portal by the end of the test.
func (w *World) cutOff(t *testing.T) {
	t.Cleanup(func() {
		for _, c := range w.clients {
			_ = c.Close() // it cannot say farewell to the portal, and complains
		}
		w.clients = nil
	})
}

func (w *World) setFaults(t *testing.T, f portal.Faults) {
	t.Helper()
	if err := w.portal.SetFaults(f); err != nil {
		t.Fatal(err)
	}
}

// mustAccess asks for a resource in the name of the main client.
func (w *World) mustAccess(t *testing.T, r role) {
	t.Helper()
	if err := w.access(within(t, stepLimit), 0, r); err != nil {
		t.Fatal(err)
	}
}

// awaitTraffic pings a role until it is answered.
func (w *World) awaitTraffic(t *testing.T, r role) {
	t.Helper()
	w.awaitTrafficWithin(t, r, stepLimit)
}

func (w *World) awaitTrafficWithin(t *testing.T, r role, limit time.Duration) {
	t.Helper()
	ctx := within(t, limit)
	for {
		reply, err := w.pingWithin(ctx, 0, places[r].address, pingRepeat)
		if err == nil && reply.Error == nil {
			return
		}
		if ctx.Err() != nil {
			t.Fatalf("no traffic to %s: %v", places[r].name, err)
		}
		if err := pause(ctx, pingInterval); err != nil {
			t.Fatalf("no traffic to %s", places[r].name)
		}
	}
}

// mustListen opens a listener in the portal's namespace.
func (w *World) mustListen(t *testing.T, at netip.AddrPort) net.Listener {
	t.Helper()
	listener, err := w.net.Portal.Listen("tcp", at.String())
	if err != nil {
		t.Fatal(err)
	}
	return listener
}

// portalName is the name that stands for the portal in a hosts file.
const portalName = "portal.lab.example"

// hostsFile is what a daemon sees at /etc/hosts. Its resolver looks at changes
// every five seconds only.
type hostsFile struct{ path string }

// newHostsFile returns a hosts file, and lets the daemon of o know the portal by
// its name.
func newHostsFile(t *testing.T, o *Options) hostsFile {
	t.Helper()
	dir := t.TempDir()
	h := hostsFile{filepath.Join(dir, "hosts")}
	// Names that the file does not have are refused at once.
	resolver := filepath.Join(dir, "resolv.conf")
	if err := os.WriteFile(resolver, []byte("nameserver 127.0.0.1\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	o.scene.daemon = func(_ *World, g *gateway.Options) {
		g.Portal = "ws://" + portalName + ":8081"
		g.Files = []labnet.File{{Source: h.path, Target: "/etc/hosts"}, {Source: resolver, Target: "/etc/resolv.conf"}}
	}
	return h
}

// set makes the addresses those of the portal's name.
func (h hostsFile) set(t *testing.T, addresses ...netip.Addr) {
	t.Helper()
	lines := []string{"127.0.0.1 localhost"}
	for _, a := range addresses {
		lines = append(lines, a.String()+" "+portalName)
	}
	if err := os.WriteFile(h.path, []byte(strings.Join(lines, "\n")+"\n"), 0o644); err != nil {
		t.Fatal(err)
	}
}

// attemptsFailed counts the attempts at the portal that the daemon reports as
// failed in its latest lines.
func (w *World) attemptsFailed() int {
	n := 0
	for _, line := range w.gateway.Tail(200) {
		if strings.Contains(line, "no portal, trying again") {
			n++
		}
	}
	return n
}

// awaitFailures waits until the daemon has reported n more failed attempts than
// before.
func (w *World) awaitFailures(t *testing.T, before, n int) {
	t.Helper()
	err := await(within(t, returnLimit), "no failed attempts", func() bool { return w.attemptsFailed() >= before+n })
	if err != nil {
		t.Fatal(err)
	}
}
