package actors

import (
	"context"
	"math"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	mdns "github.com/miekg/dns"
	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	promodel "github.com/prometheus/common/model"
	"go.opentelemetry.io/otel/attribute"
	sdkmetric "go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/metric/metricdata"

	"firezone-gateway/internal/actorkit"
	"firezone-gateway/internal/dns"
	"firezone-gateway/internal/drop"
	labportal "firezone-gateway/internal/lab/portal"
	"firezone-gateway/internal/packet/packettest"
	"firezone-gateway/internal/telemetry"
)

// figures are the values of one collection, by the name of the metric and by its
// attributes; of histograms the number of measurements.
type figures map[string]map[string]float64

// gauge collects what a tree shows to exporters.
type gauge struct {
	t      testing.TB
	reader *sdkmetric.ManualReader
}

func newGauge(t testing.TB, tree *Tree) *gauge {
	t.Helper()
	histograms := &telemetry.Histograms{}
	g := &gauge{t, sdkmetric.NewManualReader(sdkmetric.WithProducer(histograms))}
	p := &telemetry.Providers{Meter: sdkmetric.NewMeterProvider(sdkmetric.WithReader(g.reader)), Histograms: histograms}
	if _, err := tree.Observe(p, time.Now()); err != nil {
		t.Fatal(err)
	}
	return g
}

func (g *gauge) collect() metricdata.ResourceMetrics {
	g.t.Helper()
	var all metricdata.ResourceMetrics
	if err := g.reader.Collect(context.Background(), &all); err != nil {
		g.t.Fatal(err)
	}
	return all
}

func (g *gauge) read() figures {
	g.t.Helper()
	out := figures{}
	for _, scope := range g.collect().ScopeMetrics {
		for _, m := range scope.Metrics {
			if out[m.Name] == nil {
				out[m.Name] = map[string]float64{}
			}
			put := func(set attribute.Set, v float64) {
				out[m.Name][set.Encoded(attribute.DefaultEncoder())] = v
			}
			switch data := m.Data.(type) {
			case metricdata.Sum[int64]:
				for _, p := range data.DataPoints {
					put(p.Attributes, float64(p.Value))
				}
			case metricdata.Sum[float64]:
				for _, p := range data.DataPoints {
					put(p.Attributes, p.Value)
				}
			case metricdata.Gauge[int64]:
				for _, p := range data.DataPoints {
					put(p.Attributes, float64(p.Value))
				}
			case metricdata.Gauge[float64]:
				for _, p := range data.DataPoints {
					put(p.Attributes, p.Value)
				}
			case metricdata.Histogram[float64]:
				for _, p := range data.DataPoints {
					put(p.Attributes, float64(p.Count))
				}
			default:
				g.t.Errorf("%s is a %T", m.Name, data)
			}
		}
	}
	return out
}

// of returns one value, NaN if it is not there.
func (f figures) of(m telemetry.Metric, attributes string) float64 {
	if v, ok := f[m.Name][attributes]; ok {
		return v
	}
	return math.NaN()
}

type want struct {
	metric     telemetry.Metric
	attributes string
	value      float64
}

func (g *gauge) want(all []want) {
	g.t.Helper()
	got := g.read()
	for _, w := range all {
		if v := got.of(w.metric, w.attributes); v != w.value {
			g.t.Errorf("%s %s is %v, want %v", w.metric.Name, w.attributes, v, w.value)
		}
	}
}

// deafNameServer makes the names of a plane be asked for where nobody answers.
func deafNameServer(t testing.TB, p *testPlane) {
	t.Helper()
	conf := filepath.Join(t.TempDir(), "resolv.conf")
	if err := os.WriteFile(conf, []byte("nameserver 127.0.0.1\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	p.upstreams = dns.NewUpstreams(dns.UpstreamsConfig{ResolvConf: conf, Port: 9, Drops: p.Drops})
	p.DNS = dns.NewForwarder(p.upstreams)
}

// askForNames sends a query to a DNS server of the plane, and looks a resource up.
func askForNames(t testing.TB, p *testPlane) {
	t.Helper()
	s, err := dns.Listen(dns.ServerConfig{
		Network: dns.UDP, Addr: netip.MustParseAddrPort("127.0.0.1:0"), Forwarder: p.DNS,
		Clients: func(netip.Addr) bool { return true },
	})
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan struct{})
	go func() { defer close(served); _ = s.Serve() }()
	defer func() { s.Close(); <-served }()
	query := new(mdns.Msg).SetQuestion("a.example.", mdns.TypeSRV)
	answer, _, err := (&mdns.Client{Timeout: patience}).Exchange(query, s.Addr().String())
	if err != nil || answer.Rcode != mdns.RcodeServerFailure {
		t.Fatalf("answer %v, %v", answer, err)
	}
	r := dns.NewResolver(dns.ResolverConfig{Upstreams: p.upstreams})
	defer r.Close()
	if found, err := r.Resolve(t.Context(), "a.example"); err != nil || found.Outcome != dns.Failed {
		t.Fatalf("resolved to %+v, %v", found, err)
	}
}

// withNAT gives the only client a translation, and with it a nat actor.
func (r *treeRig) withNAT() {
	r.t.Helper()
	done := make(chan struct{})
	r.tree.system.Send(r.pid(KindPeer), act(func(ctx actorkit.Context) {
		r.peer.ensureNAT(ctx)
		close(done)
	}))
	await(r.t, done, "a translation for the client")
}

func TestEveryMetricIsFedAndNamesNobody(t *testing.T) {
	r := newTreeRig(t, labportal.Config{})
	deafNameServer(t, r.plane)
	r.start(nil)
	r.ready()
	r.tun = receive(t, r.plane.host.opened, "device")
	wg := newWireGuard(t)
	c := dialClient(t, r.lab, "client", wg.key.PublicKey().Bytes())
	wg.connect(r.plane, c.access(r.resource(10)))
	wg.passes(r.tun, c.ipv4, 10)
	r.withNAT()
	askForNames(t, r.plane)

	g := newGauge(t, r.tree)
	got := g.read()
	for _, m := range telemetry.Metrics() {
		if len(got[m.Name]) == 0 {
			t.Errorf("nobody feeds %s", m.Name)
		}
		delete(got, m.Name)
	}
	for name := range got {
		t.Errorf("%s is not declared", name)
	}

	labels := []attribute.Key{
		telemetry.AttrActorKind, telemetry.AttrDirection, telemetry.AttrNetwork, telemetry.AttrTransport, telemetry.AttrError,
		telemetry.AttrQueueItem, telemetry.AttrSession, telemetry.AttrSocketPair, telemetry.AttrRelayState,
		telemetry.AttrQuestion, telemetry.AttrResponse, telemetry.AttrCPUMode, telemetry.AttrGoMemoryType,
	}
	series := 0
	for name, values := range g.read() {
		for set := range values {
			series++
			for pair := range strings.SplitSeq(set, ",") {
				key, value, _ := strings.Cut(pair, "=")
				if set != "" && !slices.Contains(labels, attribute.Key(key)) || strings.Contains(value, c.id) {
					t.Errorf("%s has the attribute %s", name, pair)
				}
			}
		}
	}
	if series > 400 {
		t.Errorf("%d series for one client", series)
	}
}

func TestMetricsOfAClient(t *testing.T) {
	r := newRunningTree(t, labportal.Config{})
	g := newGauge(t, r.tree)
	eventually(t, func() bool { return g.read().of(telemetry.RelayedAddress, "") == 1 }, "a relay is allocated") // the tree is ready without
	g.want([]want{
		{telemetry.PortalUp, "", 1},
		{telemetry.PortalJoins, "", 1},
		{telemetry.PortalHiccups, "", 0},
		{telemetry.Relays, "tunnel.relay.state=allocated", 1},
		{telemetry.RelayedAddress, "", 1},
		{telemetry.Sockets, "network.transport=udp,network.type=ipv4", 1},
		{telemetry.Peers, "", 0},
	})
	id := r.resource(10)
	wg := newWireGuard(t)
	c := dialClient(t, r.lab, "client", wg.key.PublicKey().Bytes())
	wg.connect(r.plane, c.access(id))
	wg.passes(r.tun, c.ipv4, 10)
	group := netip.MustParseAddrPort("224.0.0.251:5353")
	wg.net.in <- packettest.UDP(netip.AddrPortFrom(c.ipv4, 5353), group, nil)

	const toResource = "network.io.direction=receive"
	const multicast = "error.type=multicast,network.io.direction=receive"
	eventually(t, func() bool { return g.read().of(telemetry.Dropped, multicast) == 1 }, "what is dropped is counted")
	got := g.read()
	passed := got.of(telemetry.TunnelPackets, toResource)
	if passed < 1 || got.of(telemetry.TunnelBytes, toResource) != passed*36 {
		t.Errorf("%v packets of %v bytes", passed, got.of(telemetry.TunnelBytes, toResource))
	}
	g.want([]want{
		{telemetry.Sessions, "tunnel.session.state=established", 1},
		{telemetry.Sessions, "tunnel.session.state=absent", 0},
		{telemetry.Connections, "connection.socket=PeerToPeer", 1},
		{telemetry.Handshakes, "", 1},
		{telemetry.Peers, "", 1},
		{telemetry.Grants, "", 1},
		{telemetry.ActorCount, "actor.kind=peer", 1},
	})
	if age := got.of(telemetry.HandshakeAge, ""); age <= 0 || age > 60 {
		t.Errorf("handshake %v s ago", age)
	}

	// What a client did outlives it.
	wg.sayGoodbye()
	eventually(t, func() bool { return len(r.plane.store.ids()) == 0 && len(r.tree.peers()) == 0 }, "nothing is left")
	for range 2 {
		got = g.read()
		if v := got.of(telemetry.TunnelPackets, toResource); v < passed {
			t.Errorf("%v packets after the goodbye, %v before", v, passed)
		}
		g.want([]want{
			{telemetry.Dropped, multicast, 1},
			{telemetry.Handshakes, "", 1},
			{telemetry.Peers, "", 0},
			{telemetry.ActorCount, "actor.kind=peer", 0},
		})
	}
}

func TestEveryKindOfActorHasMetrics(t *testing.T) {
	r := newRunningTree(t, labportal.Config{})
	dialClient(t, r.lab, "client", nil).access(r.resource(10))
	r.withNAT()
	p, shutdown, err := telemetry.Setup(t.Context(), telemetry.Config{ServiceName: "gateway", Prometheus: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = shutdown(context.Background()) })
	if _, err := r.tree.Observe(p, time.Now()); err != nil {
		t.Fatal(err)
	}
	scraped := scrape(t, p)
	for kind := range Table {
		for _, name := range []string{
			"actor_count", "actor_mailbox_depth", "actor_mailbox_max_depth", "actor_mailbox_wait_seconds_total", "actor_mailbox_max_wait_seconds",
			"actor_failures_total", "actor_restarts_total", "actor_stuck_total", "actor_injected_total", "actor_refused_total",
			"actor_handler_duration_seconds",
		} {
			m := ofKind(scraped[name], kind)
			if m == nil {
				t.Errorf("%s has no %s", name, kind)
				continue
			}
			if name == "actor_count" && m.GetGauge().GetValue() < 1 {
				t.Errorf("no %s lives", kind)
			}
			if h := m.GetHistogram(); h != nil && kind == KindPeers && (h.GetSampleCount() == 0 || h.GetSampleSum() <= 0 || len(h.GetBucket()) < 5) {
				t.Errorf("handling of %s: %v", kind, h)
			}
		}
	}
	// What happens to one shows at once.
	r.tree.system.Send(r.pid(KindPeer), boom{})
	eventually(t, func() bool {
		s := scrape(t, p)
		return ofKind(s["actor_restarts_total"], KindPeer).GetCounter().GetValue() == 1 &&
			ofKind(s["actor_failures_total"], KindPeer).GetCounter().GetValue() == 1
	}, "a restart is seen")
}

func scrape(t testing.TB, p *telemetry.Providers) map[string]*dto.MetricFamily {
	t.Helper()
	w := httptest.NewRecorder()
	p.Prometheus.ServeHTTP(w, httptest.NewRequest("GET", "/metrics", nil))
	parser := expfmt.NewTextParser(promodel.LegacyValidation)
	families, err := parser.TextToMetricFamilies(w.Body)
	if err != nil || w.Code != 200 {
		t.Fatalf("status %d, %v", w.Code, err)
	}
	return families
}

func ofKind(f *dto.MetricFamily, kind string) *dto.Metric {
	for _, m := range f.GetMetric() {
		for _, l := range m.GetLabel() {
			if l.GetName() == "actor_kind" && l.GetValue() == kind {
				return m
			}
		}
	}
	return nil
}

func TestDropsHaveTheirDirection(t *testing.T) {
	for r, want := range map[drop.Reason]string{
		drop.Malformed: "receive", drop.ResolverBusy: "receive", drop.NATFull: "receive",
		drop.NotAPeer: "transmit", drop.NATEnded: "transmit", drop.NotConnected: "transmit",
		drop.DatagramOversize: "receive", drop.ChannelUnknown: "receive", drop.STUNMalformed: "receive",
		drop.NoPath: "transmit", drop.SendFailed: "transmit", drop.ThirdPartyPanic: "",
		drop.FrameMalformed: "", drop.KeyReplaced: "", drop.DNSMalformed: "", drop.DNSConnections: "",
		drop.InjectOverflow: "transmit", drop.MailboxFull: "", drop.TUNWrite: "receive",
	} {
		if got := directionOf(r); got != want {
			t.Errorf("%s: %q, want %q", r, got, want)
		}
	}
}
