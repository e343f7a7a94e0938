package tour

import (
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"firezone-gateway/internal/lab/client"
	"firezone-gateway/internal/lab/gateway"
	"firezone-gateway/internal/lab/labtest"
	labnet "firezone-gateway/internal/lab/net"
	"firezone-gateway/internal/lab/portal"
	"firezone-gateway/internal/lab/resource"
)

// Where the site's name servers are in the resource's network. The third is
// never there.
var (
	nameServer4    = netip.MustParseAddr("10.20.0.53")
	nameServer6    = netip.MustParseAddr("fd00:20::53")
	nameServerDead = netip.MustParseAddr("10.20.0.54")
)

var discardLog = slog.New(slog.DiscardHandler)

// site is a World with DNS resources: the daemon asks the site's name server,
// which it has from a resolv.conf of its own.
type site struct {
	*World
	names *resource.DNSServer
	conf  string                          // path of the daemon's resolv.conf
	at    map[netip.Addr]*resource.Server // those that serve started
}

// newSite builds a site whose first client is at work. servers are the daemon's
// name servers, nameServer4 if there are none.
func newSite(t *testing.T, o Options, servers ...netip.Addr) *site {
	t.Helper()
	return newSiteOf(t, o, settle, servers...)
}

// newSiteOf is newSite with another beginning than settle.
func newSiteOf(t *testing.T, o Options, begin func(*testing.T, *World), servers ...netip.Addr) *site {
	t.Helper()
	labtest.NeedNamespaces(t)
	s := &site{at: make(map[netip.Addr]*resource.Server), conf: filepath.Join(t.TempDir(), "resolv.conf")}
	if len(servers) == 0 {
		servers = []netip.Addr{nameServer4}
	}
	s.setNameServers(t, servers...)
	prepare := o.scene.prepare
	o.scene.prepare = func(w *World) (err error) {
		if err := w.addAddress(nameServer4); err != nil {
			return err
		}
		if s.names, err = resource.ServeDNS(w.net.Resource, nameServer4, 53); err != nil {
			return err
		}
		if prepare != nil {
			return prepare(w)
		}
		return nil
	}
	daemon := o.scene.daemon
	o.scene.daemon = func(w *World, g *gateway.Options) {
		g.Files = append(g.Files, labnet.File{Source: s.conf, Target: "/etc/resolv.conf"})
		if daemon != nil {
			daemon(w, g)
		}
	}
	t.Cleanup(func() {
		if s.names == nil {
			return
		}
		if err := s.names.Close(); err != nil {
			t.Error(err)
		}
	})
	s.World = newWorld(t, o)
	begin(t, s.World)
	return s
}

// setNameServers writes the daemon's resolv.conf, in place: the daemon sees the
// file, not its name.
func (s *site) setNameServers(t *testing.T, servers ...netip.Addr) {
	t.Helper()
	var b strings.Builder
	for _, a := range servers {
		b.WriteString("nameserver " + a.String() + "\n")
	}
	if err := os.WriteFile(s.conf, []byte(b.String()), 0o644); err != nil {
		t.Fatal(err)
	}
}

// add makes a DNS resource and grants it to everybody.
func (s *site) add(t *testing.T, pattern string, filters ...portal.Filter) portal.Resource {
	t.Helper()
	r, err := s.portal.AddResource(portal.Resource{Type: portal.DNS, Name: pattern, Address: pattern, Filters: filters})
	if err != nil {
		t.Fatal(err)
	}
	s.grant(t, r, longAccess)
	return r
}

func (s *site) grant(t *testing.T, r portal.Resource, d time.Duration) {
	t.Helper()
	if err := s.portal.Grant("", r.ID, d); err != nil {
		t.Fatal(err)
	}
}

// serve starts the services of a resource on more addresses of its network.
func (s *site) serve(t *testing.T, addresses ...netip.Addr) {
	t.Helper()
	for _, a := range addresses {
		if err := s.addAddress(a); err != nil {
			t.Fatal(err)
		}
		server, err := resource.Serve(s.net.Resource, a, resource.DefaultPorts, discardLog)
		if err != nil {
			t.Fatal(err)
		}
		s.servers = append(s.servers, server)
		s.at[a] = server
	}
}

func (s *site) resolves(t *testing.T, name string, addresses ...netip.Addr) {
	t.Helper()
	if err := s.names.SetAddresses(name, addresses...); err != nil {
		t.Fatal(err)
	}
}

// client is the main client.
func (s *site) client() *client.Client { return s.clients[0] }

// enter gives the main client access to a domain and returns the proxy addresses:
// four of IPv4, four of IPv6.
func (s *site) enter(t *testing.T, r portal.Resource, domain string) []netip.Addr {
	t.Helper()
	begin := time.Now()
	proxies, active, err := s.client().AccessDomain(within(t, stepLimit), r.ID, domain)
	if err != nil {
		t.Fatal(err)
	}
	if !active {
		t.Fatalf("%s is not served", domain)
	}
	t.Logf("%s set up in %s", domain, milliseconds(time.Since(begin)))
	return proxies
}

// downloads fetches a file from a proxy address.
func (s *site) downloads(t *testing.T, proxy netip.Addr) {
	t.Helper()
	at := netip.AddrPortFrom(proxy, resource.DefaultPorts.HTTP)
	d, err := resource.Download(within(t, stepLimit), s.host(0), at, s.options.RelayTransfer, 5)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%v: %.1f MB in %.2f s, %s", at, float64(d.Bytes)/1e6, d.Elapsed.Seconds(), rate(d.BitsPerSecond()))
	if d.Bytes != s.options.RelayTransfer || !d.Intact() {
		t.Errorf("%d bytes arrived, intact: %v", d.Bytes, d.Intact())
	}
}
