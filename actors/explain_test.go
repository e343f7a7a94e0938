package actors

import (
	"errors"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"firezone-gateway/internal/actorkit"
	"firezone-gateway/internal/admin"
	labportal "firezone-gateway/internal/lab/portal"
	"firezone-gateway/internal/nat"
	"firezone-gateway/internal/policy"
	"firezone-gateway/internal/portal"
	"firezone-gateway/internal/tunnel"
)

func routed(string, netip.Addr, netip.Addr) (string, error) { return "interface eth0", nil }

func to(t testing.TB, text string) admin.Destination {
	t.Helper()
	d, err := admin.ParseDestination(text)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// stageOf returns a stage of an explanation, which names each once.
func stageOf(t testing.TB, e admin.Explanation, name admin.StageName) admin.Stage {
	t.Helper()
	i := slices.IndexFunc(e.Stages, func(s admin.Stage) bool { return s.Stage == name })
	if i < 0 {
		t.Fatalf("no stage %s in %+v", name, e.Stages)
	}
	return e.Stages[i]
}

func TestExplainAPacketThatPasses(t *testing.T) {
	r := newRunningTree(t, labportal.Config{})
	id := r.resource(10)
	wg := newWireGuard(t)
	c := dialClient(t, r.lab, "client", wg.key.PublicKey().Bytes())
	wg.connect(r.plane, c.access(id))
	wg.passes(r.tun, c.ipv4, 10)
	client, _ := r.plane.Tunnel.Lookup([32]byte(wg.key.PublicKey().Bytes()))
	eventually(t, func() bool { return client.Path() != nil && client.Session() == tunnel.SessionEstablished }, "a path")
	before := client.Counters().ToResourcePackets.Load()
	for _, who := range []string{c.id, c.ipv4.String(), publicKeyText(client.PublicKey())[:8]} {
		e := r.tree.Explain(admin.Question{Client: who, To: to(t, "10.1.2.3:53/udp")}, routed, time.Now())
		if !e.Passes || e.Client != c.id || e.To != "10.1.2.3:53/udp" {
			t.Errorf("%s: %+v", who, e)
		}
		var names []admin.StageName
		for _, s := range e.Stages {
			if names = append(names, s.Stage); s.Verdict != admin.Pass || s.Reason != "" || s.Detail == "" {
				t.Errorf("%s: stage %+v", who, s)
			}
		}
		want := []admin.StageName{admin.StageClient, admin.StageSession, admin.StagePath, admin.StageSource, admin.StagePolicy, admin.StageNAT, admin.StageRoute}
		if !slices.Equal(names, want) {
			t.Errorf("stages %q, want %q", names, want)
		}
		if list := stageOf(t, e, admin.StagePolicy).Resources; len(list) != 1 || list[0].ResourceID != id || !list[0].Admits {
			t.Errorf("%s: resources %+v", who, list)
		}
		noSecrets(t, r.plane, e)
	}
	if client.Counters().ToResourcePackets.Load() != before {
		t.Error("the question was counted as a packet")
	}
}

// explainable is a client without a connection, whose packets the policy judges.
func explainable(t testing.TB) (*Tree, *testPlane) {
	t.Helper()
	p := newTestPlane(t, "")
	system := actorkit.NewSystem(actorkit.Config{Table: Table})
	t.Cleanup(func() { stopSystem(t, system) })
	a := authorization(1, 10)
	web := []policy.Filter{{Protocol: policy.FilterTCP, Ports: policy.PortRange{First: 443, Last: 443}},
		{Protocol: policy.FilterUDP, Ports: policy.PortRange{First: 0, Last: 65535}},
		{Protocol: policy.FilterTCP, Ports: policy.PortRange{First: 8000, Last: 8080}}}
	state := clientState{Client: a.Client, Gateway: ownAddresses, ClientICE: a.ClientICE, GatewayICE: a.GatewayICE}
	for _, g := range []policy.Grant{
		{Resource: policy.Resource{ID: "web", Name: "web", Kind: policy.CIDR, Network: network(10), Filters: web}},
		{Resource: policy.Resource{ID: "old", Name: "old", Kind: policy.CIDR, Network: network(10)}, ExpiresAt: time.Now().Add(-time.Hour)},
		{Resource: policy.Resource{ID: "old20", Name: "old", Kind: policy.CIDR, Network: network(20)}, ExpiresAt: time.Now().Add(-time.Hour)},
		{Resource: policy.Resource{ID: "site", Name: "site", Kind: policy.DNS, Pattern: "*.example.com"}},
	} {
		state.Grants = state.Grants.Upsert(g)
	}
	state.NAT = tunnel.NewNAT(nat.New(nat.Config{}))
	if _, err := state.NAT.Table().Assign(nat.Assignment{
		Resource: "site", Domain: "db.example.com", ProxyIPs: []netip.Addr{proxy4, proxy6}, RealIPs: []netip.Addr{real4},
	}); err != nil {
		t.Fatal(err)
	}
	p.store.put(clientID(1), state)
	return &Tree{plane: p.Plane, system: system}, p
}

func TestExplainWhatThePolicySays(t *testing.T) {
	tree, _ := explainable(t)
	for _, tc := range []struct {
		name, to  string
		verdict   admin.Verdict
		reason    string
		resources string // ID and reason of each
	}{
		{"a port that the filter admits", "10.0.0.5:443/tcp", admin.Pass, "", "web:"},
		{"the last port of a range", "10.0.0.5:8080/tcp", admin.Pass, "", "web:"},
		{"all ports of a protocol", "10.0.0.5:53/udp", admin.Pass, "", "web:"},
		{"a port that no filter admits, and a resource that has ended", "10.0.0.5:22/tcp", admin.Stop, "filtered", "old:expired web:filtered"},
		{"a protocol that no filter admits", "10.0.0.5/icmp", admin.Stop, "filtered", "old:expired web:filtered"},
		{"a resource that has ended", "20.0.0.5:443/tcp", admin.Stop, "expired", "old20:expired"},
		{"no resource", "30.0.0.5:443/tcp", admin.Stop, "no_resource", ""},
		{"no resource by IPv6", "[2001:db8::5]:443/tcp", admin.Stop, "no_resource", ""},
		{"another client", "100.64.1.9:443/tcp", admin.Stop, "tunnel_range", ""},
		{"the gateway itself, closed", "100.64.0.1:22/tcp", admin.Stop, "gateway_closed", ""},
		{"the gateway itself, open", "100.64.0.1/icmp", admin.Pass, "", ""},
		{"its DNS", "100.64.0.1:53535/udp", admin.Pass, "", ""},
		{"multicast", "224.0.0.1:1/udp", admin.Stop, "multicast", ""},
		{"a domain that was set up", proxy4.String() + ":5432/tcp", admin.Pass, "", "site:"},
		{"a domain that was not", "100.96.7.7:5432/tcp", admin.Stop, "unresolved", ""},
		{"a domain by name", "DB.example.com:5432/tcp", admin.Pass, "", "site:"},
		{"a domain by name that was not set up", "new.example.com:5432/tcp", admin.Skipped, "", "site:unresolved"},
		{"a domain by name that no resource covers", "db.example.org:5432/tcp", admin.Stop, "no_resource", ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			e := tree.Explain(admin.Question{Client: clientID(1), To: to(t, tc.to)}, routed, time.Now())
			s := stageOf(t, e, admin.StagePolicy)
			var list []string
			for _, r := range s.Resources {
				list = append(list, r.ResourceID+":"+r.Reason)
			}
			if s.Verdict != tc.verdict || s.Reason != tc.reason || strings.Join(list, " ") != tc.resources {
				t.Errorf("%+v, want %s %s %s", s, tc.verdict, tc.reason, tc.resources)
			}
			if e.Passes {
				t.Error("passes without a connection")
			}
			if s := stageOf(t, e, admin.StageSession); s.Reason != "no_connection" {
				t.Errorf("session %+v", s)
			}
		})
	}
}

func TestExplainTranslationAndRoute(t *testing.T) {
	tree, p := explainable(t)
	a := authorization(1, 10)
	for _, tc := range []struct {
		name, to      string
		nat, route    admin.Verdict
		source, leads string // that the kernel is asked for
	}{
		{"no domain", "10.0.0.5:443/tcp", admin.Pass, admin.Pass, a.Client.IPv4.String(), "10.0.0.5"},
		{"no domain, IPv6", "[2001:db8::5]:443/tcp", admin.Pass, admin.Pass, a.Client.IPv6.String(), "2001:db8::5"},
		{"a domain", proxy4.String() + ":443/tcp", admin.Pass, admin.Pass, a.Client.IPv4.String(), real4.String()},
		{"a domain without address of this family", "[" + proxy6.String() + "]:443/tcp", admin.Stop, admin.Skipped, "", ""},
		{"an address that stands for nothing", "100.96.7.7:443/tcp", admin.Stop, admin.Skipped, "", ""},
		{"a domain by name", "db.example.com:443/tcp", admin.Pass, admin.Pass, a.Client.IPv4.String(), real4.String()},
		{"a domain by name that was not set up", "new.example.com:443/tcp", admin.Skipped, admin.Skipped, "", ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var source, leads string
			lookup := func(device string, src, dst netip.Addr) (string, error) {
				if device != p.TUN.Name {
					t.Errorf("from %q", device)
				}
				source, leads = src.String(), dst.String()
				return "interface eth0", nil
			}
			e := tree.Explain(admin.Question{Client: clientID(1), To: to(t, tc.to)}, lookup, time.Now())
			n, r := stageOf(t, e, admin.StageNAT), stageOf(t, e, admin.StageRoute)
			if n.Verdict != tc.nat || r.Verdict != tc.route || source != tc.source || leads != tc.leads {
				t.Errorf("%+v, %+v from %s to %s", n, r, source, leads)
			}
		})
	}
	e := tree.Explain(admin.Question{Client: clientID(1), To: to(t, "10.0.0.5:443/tcp")},
		func(string, netip.Addr, netip.Addr) (string, error) { return "", errors.New("unreachable") }, time.Now())
	if r := stageOf(t, e, admin.StageRoute); r.Verdict != admin.Stop || r.Reason != "no_route" || !strings.Contains(r.Detail, "unreachable") {
		t.Errorf("%+v", r)
	}
}

func TestExplainWithoutNATOrFamily(t *testing.T) {
	tree, p := explainable(t)
	state := p.store.get(clientID(1))
	state.NAT, state.Client.IPv6 = nil, netip.Addr{}
	p.store.put(clientID(1), state)
	e := tree.Explain(admin.Question{Client: clientID(1), To: to(t, proxy4.String()+":443/tcp")}, routed, time.Now())
	if s := stageOf(t, e, admin.StageNAT); s.Verdict != admin.Stop || s.Reason != "unresolved" {
		t.Errorf("%+v", s)
	}
	e = tree.Explain(admin.Question{Client: clientID(1), To: to(t, "[2001:db8::5]:443/tcp")}, routed, time.Now())
	if s := stageOf(t, e, admin.StageSource); s.Verdict != admin.Stop || s.Reason != "foreign_source" {
		t.Errorf("%+v", s)
	}
	if s := stageOf(t, e, admin.StagePolicy); s.Verdict != admin.Skipped {
		t.Errorf("%+v", s)
	}
}

func TestExplainFindsTheClient(t *testing.T) {
	tree, p := explainable(t)
	second := clientState{Client: authorization(2, 0).Client, Grants: policy.Grants{}.Upsert(policy.Grant{Resource: policy.Resource{ID: "r", Kind: policy.Internet}})}
	second.Client.PublicKey = portal.PublicKey{1, 1, 2, 4}
	p.store.put(clientID(2), second)
	keyless := second
	keyless.Client = portal.Client{IPv4: netip.MustParseAddr("100.64.9.9")}
	p.store.put(clientID(3), keyless)
	for _, tc := range []struct{ name, text, want, reason string }{
		{"by ID", "client-2", "client-2", ""},
		{"by the beginning of an ID", "client-", "", "client_unknown"},
		{"by IPv4", "100.64.1.1", "client-1", ""},
		{"by IPv6", "fd00:2021:1111::1:1", "client-1", ""},
		{"by another address", "100.64.1.77", "", "client_unknown"},
		{"by its whole key", second.Client.PublicKey.String(), "client-2", ""},
		{"by the beginning that two share", "AQEC", "", "client_ambiguous"},
		{"by one that nobody has", "zzzz", "", "client_unknown"},
		{"by that of no key", "AAAA", "", "client_unknown"},
		{"one that has no key yet", "100.64.9.9", "client-3", ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			e := tree.Explain(admin.Question{Client: tc.text, To: to(t, "10.0.0.5:443/tcp")}, routed, time.Now())
			s := stageOf(t, e, admin.StageClient)
			if e.Client != tc.want || s.Reason != tc.reason {
				t.Errorf("%q, %+v", e.Client, s)
			}
			if tc.want == "" && (e.Passes || len(e.Stages) != 1) {
				t.Errorf("%+v", e)
			}
		})
	}
}

func TestExplainIsBounded(t *testing.T) {
	tree, p := explainable(t)
	state := p.store.get(clientID(1))
	for i := range 3 * maxCovering {
		state.Grants = state.Grants.Upsert(policy.Grant{Resource: policy.Resource{
			ID: resourceID(byte(i)) + strings.Repeat("x", i/256), Kind: policy.CIDR, Network: network(10),
			Filters: slices.Repeat([]policy.Filter{{Protocol: policy.FilterUDP}}, 2*maxCovering),
		}})
	}
	p.store.put(clientID(1), state)
	e := tree.Explain(admin.Question{Client: clientID(1), To: to(t, "10.0.0.5:22/tcp")}, routed, time.Now())
	s := stageOf(t, e, admin.StagePolicy)
	if len(s.Resources) != maxCovering || len(s.Resources[1].Filters) != maxCovering {
		t.Errorf("%d resources, the second with %d filters", len(s.Resources), len(s.Resources[1].Filters))
	}
	if !strings.Contains(s.Detail, "302 resources") {
		t.Errorf("detail %q", s.Detail)
	}
}

func TestKernelRoute(t *testing.T) {
	here := netip.MustParseAddr("127.0.0.1")
	if text, err := KernelRoute("", here, here); err != nil || text != "to this host itself" {
		t.Errorf("to loopback: %q, %v", text, err)
	}
	if text, err := KernelRoute("no-such-device", here, netip.MustParseAddr("192.0.2.1")); err == nil {
		t.Errorf("from a device that is not there: %q", text)
	}
}
