package bench

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"math"
	"net"
	"net/netip"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"firezone-gateway/internal/lab/client"
	"firezone-gateway/internal/lab/labtest"
	labnet "firezone-gateway/internal/lab/net"
	"firezone-gateway/internal/lab/resource"
)

// plainArgument makes the test binary the plain process in the middle.
const plainArgument = "plain-wireguard-child"

func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == plainArgument {
		os.Exit(plainChild(os.Args[2:]))
	}
	labtest.Main(m)
}

// plainChild reads its flags as firezone-lab does.
func plainChild(args []string) int {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	var p Plain
	for _, arg := range args {
		name, value, _ := strings.Cut(arg, "=")
		switch name {
		case "--name":
			p.Name = value
		case "--address":
			p.Addresses = append(p.Addresses, netip.MustParsePrefix(value))
		case "--route":
			p.Routes = append(p.Routes, netip.MustParsePrefix(value))
		}
	}
	if err := p.Run(ctx, os.Stdin, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

func options(t *testing.T) Options {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return Options{Gateway: labtest.Daemon(), Plain: []string{self, plainArgument}, Rounds: 1, Seconds: 0.3}
}

func TestRunMeasuresBothWays(t *testing.T) {
	for _, c := range []struct {
		name   string
		choose func(*Options)
		ways   [2]string
	}{
		{"the gateway and plain WireGuard", func(*Options) {}, [2]string{"firezone-gateway", "plain WireGuard"}},
		{"through a relay and directly", func(o *Options) { o.Relayed, o.Plain = true, nil }, [2]string{"relayed", "direct"}},
		{"by a DNS resource and by a CIDR resource", func(o *Options) { o.DNS, o.Plain = true, nil }, [2]string{"DNS resource", "CIDR resource"}},
		{"with and without telemetry", func(o *Options) { o.Telemetry, o.Plain = true, nil }, [2]string{"telemetry on", "telemetry off"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			labtest.NeedNamespaces(t)
			if raceDetector {
				t.Skip("throughput under the race detector says nothing")
			}
			o := options(t)
			o.Rounds, o.LogDir = 2, t.TempDir()
			c.choose(&o)
			report, err := Run(t.Context(), o)
			if err != nil {
				t.Fatal(err)
			}
			wantMeasured(t, report, c.ways)
			// Which way the bytes went is what Run itself holds for each stream.
			if got := report.Ways[0].To.Forwarded > 0 && report.Ways[0].From.Forwarded > 0; got != o.Relayed {
				t.Errorf("relay had to do with both directions: %v", got)
			}
			if log, err := os.ReadFile(filepath.Join(o.LogDir, "bench-gateway.log")); err != nil || len(log) == 0 {
				t.Errorf("log of %d bytes, %v", len(log), err)
			}
			if _, err := json.Marshal(report); err != nil {
				t.Error(err)
			}
		})
	}
}

func wantMeasured(t *testing.T, report Report, ways [2]string) {
	t.Helper()
	if len(report.Ways) != 2 || report.Ways[0].Name != ways[0] || report.Ways[1].Name != ways[1] {
		t.Fatalf("report is %+v", report)
	}
	for _, way := range report.Ways {
		for _, series := range []Series{way.To, way.From} {
			if len(series.Rounds) != 2 || series.Median <= 0 || series.CPUSeconds <= 0 || series.PerCPU <= 0 {
				t.Errorf("%s: %+v", way.Name, series)
			}
			if series.PeakRSS < 1<<20 || series.PeakRSS > way.PeakRSS {
				t.Errorf("%s: peak resident memory is %d bytes, and %d from the start", way.Name, series.PeakRSS, way.PeakRSS)
			}
		}
	}
	if report.To.Medians <= 0 || report.From.Rounds <= 0 || report.From.PerCPU <= 0 {
		t.Errorf("ratios are %+v and %+v", report.To, report.From)
	}
}

func TestADNSRunNeedsTheTranslationOnOneWayOnly(t *testing.T) {
	labtest.NeedNamespaces(t)
	o := options(t)
	o.DNS = true
	r, err := newRig(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := r.close(); err != nil {
			t.Error(err)
		}
	}()
	if len(r.ways) != 2 || !client.ProxyRanges[0].Contains(r.ways[0].target) || r.ways[1].target != throughGateway {
		t.Fatalf("ways are %+v", r.ways)
	}
	// Only the gateway's translation leads from a proxy address to the resource.
	for _, w := range r.ways {
		if got, err := r.stream(t.Context(), w, resource.ToResource, time.Millisecond); err != nil || got.Bytes == 0 {
			t.Errorf("%s: %d bytes arrive, error %v", w.name, got.Bytes, err)
		}
	}
}

// The only way from the detour's client to the middle leads through a program
// at the relay's host.
func TestTheDetourForwardsNothing(t *testing.T) {
	labtest.NeedNamespaces(t)
	network, err := labnet.NewTwoHop()
	if err != nil {
		t.Fatal(err)
	}
	defer network.Close()
	d, err := newDetour(network)
	if err != nil {
		t.Fatal(err)
	}
	at := func(h labnet.Host, address netip.Addr) *net.UDPConn {
		conn, err := h.ListenUDP(netip.AddrPortFrom(address, 0))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
		_ = conn.SetReadDeadline(time.Now().Add(startPatience))
		return conn
	}
	relay, relayed, direct := at(d.relay, d.relay.IPv4), at(d.client, d.client.IPv4), at(network.Client, network.Client.IPv4)
	buffer := make([]byte, 16)
	for _, address := range []netip.Addr{middleToRelay.Addr(), network.Middle.IPv4} {
		middle := at(network.Middle, address)
		to := middle.LocalAddr().(*net.UDPAddr).AddrPort()
		for _, send := range []struct {
			from *net.UDPConn
			text string
		}{{relayed, "blocked"}, {relay, "relayed"}} {
			if _, err := send.from.WriteToUDPAddrPort([]byte(send.text), to); err != nil && send.from == relay {
				t.Fatal(err)
			}
		}
		if n, _, err := middle.ReadFromUDPAddrPort(buffer); err != nil || string(buffer[:n]) != "relayed" {
			t.Errorf("%v gets %q, error %v", address, buffer[:n], err)
		}
	}
	// The relay's host is there for all three.
	for _, from := range []*net.UDPConn{relayed, direct} {
		if _, err := from.WriteToUDPAddrPort([]byte("hello"), relay.LocalAddr().(*net.UDPAddr).AddrPort()); err != nil {
			t.Fatal(err)
		}
		if _, sender, err := relay.ReadFromUDPAddrPort(buffer); err != nil || sender.String() != from.LocalAddr().String() {
			t.Errorf("relay hears %v, error %v, want %v", sender, err, from.LocalAddr())
		}
	}
}

func TestStreamsHaveToGoTheirWay(t *testing.T) {
	const long, short = 100_000_000, 1_000_000
	for _, c := range []struct {
		name      string
		relayed   bool
		stream    uint64
		forwarded uint64
		ok        bool
	}{
		{"relayed, all through the relay", true, long, 105_000_000, true},
		{"relayed, part of it not", true, long, 99_000_000, false},
		{"relayed, not at all", true, long, 0, false},
		{"direct", false, long, 0, true},
		{"direct, beside the end of another stream", false, long, 2_000_000, true},
		{"direct and short, beside the end of another stream", false, short, 2_000_000, true},
		{"direct, but most of it through the relay", false, long, 60_000_000, false},
		{"direct, but through the relay", false, long, 105_000_000, false},
	} {
		if err := (way{relayed: c.relayed}).checkPath(c.stream, c.forwarded); (err == nil) != c.ok {
			t.Errorf("%s: %v", c.name, err)
		}
	}
}

func TestRunFailsAndCleansUp(t *testing.T) {
	labtest.NeedNamespaces(t)
	for name, change := range map[string]func(*Options){
		"without a plain command":        func(o *Options) { o.Plain = nil },
		"with a plain command that ends": func(o *Options) { o.Plain = []string{"/bin/true"} },
		"without a gateway":              func(o *Options) { o.Gateway = "/nonexistent" },
		"with a gateway that ends":       func(o *Options) { o.Gateway = "/bin/true" },
		"without rounds":                 func(o *Options) { o.Rounds = 0 },
		"without time":                   func(o *Options) { o.Seconds = 0 },
		"relayed, without a gateway":     func(o *Options) { o.Gateway, o.Relayed = "/nonexistent", true },
		"relayed, a gateway that ends":   func(o *Options) { o.Gateway, o.Relayed = "/bin/true", true },
		"DNS, without a gateway":         func(o *Options) { o.Gateway, o.DNS = "/nonexistent", true },
		"DNS, a gateway that ends":       func(o *Options) { o.Gateway, o.DNS = "/bin/true", true },
		"relayed and DNS at once":        func(o *Options) { o.Relayed, o.DNS = true, true },
		"telemetry, without a gateway":   func(o *Options) { o.Gateway, o.Telemetry = "/nonexistent", true },
		"telemetry and DNS at once":      func(o *Options) { o.Telemetry, o.DNS = true, true },
	} {
		t.Run(name, func(t *testing.T) {
			o := options(t)
			change(&o)
			begin := time.Now()
			if _, err := Run(t.Context(), o); err == nil {
				t.Error("no error")
			}
			if took := time.Since(begin); took > startPatience/2 {
				t.Errorf("took %v", took)
			}
		})
	}
}

func TestPlainRefusesABadConfiguration(t *testing.T) {
	labtest.NeedNamespaces(t)
	lab := labnet.New()
	defer lab.Close()
	ns, err := lab.AddNamespace("plain")
	if err != nil {
		t.Fatal(err)
	}
	err = ns.Do(func() error {
		return Plain{Name: "tun-bad"}.Run(t.Context(), strings.NewReader("private_key=short\n"), new(bytes.Buffer))
	})
	if err == nil {
		t.Error("no error")
	}
}

func TestReportFollowsFromItsRounds(t *testing.T) {
	r := newReport(Options{Seconds: 2}, []way{{name: "ours"}, {name: "theirs"}})
	for _, gigabits := range []float64{3, 9, 4} {
		r.add(0, resource.ToResource, Sample{Gigabits: gigabits, Bytes: uint64(gigabits * 2 / 8 * 1e9), Seconds: 2, CPUSeconds: 1, PeakRSS: uint64(gigabits) << 20, peakBefore: 18 << 20})
		r.add(0, resource.FromResource, Sample{Gigabits: 1, Bytes: 250e6, Seconds: 2, CPUSeconds: 0})
		r.add(1, resource.ToResource, Sample{Gigabits: 2, Bytes: 500e6, Seconds: 2, CPUSeconds: 1})
		r.add(1, resource.FromResource, Sample{Gigabits: 0, Seconds: 2, CPUSeconds: 1})
	}
	r.finish()
	for _, c := range []struct {
		what      string
		got, want float64
	}{
		{"median", r.Ways[0].To.Median, 4},
		{"CPU seconds", r.Ways[0].To.CPUSeconds, 3},
		{"gigabits per CPU second", r.Ways[0].To.PerCPU, 32.0 / 3},
		{"gigabits per CPU second without any", r.Ways[0].From.PerCPU, 0},
		{"ratio of the medians", r.To.Medians, 2},
		{"median of the rounds' ratios", r.To.Rounds, 2},
		{"ratio in efficiency", r.To.PerCPU, 32.0 / 12},
		{"ratio to nothing", r.From.Medians, 0},
		{"peak memory of a direction", float64(r.Ways[0].To.PeakRSS), 9 << 20},
	} {
		if math.Abs(c.got-c.want) > 1e-9 {
			t.Errorf("%s is %v, not %v", c.what, c.got, c.want)
		}
	}
	wantText(t, r, []string{
		"ours, to the resource", "round 3", "peak MiB", "ratio ours / theirs", "to the resource     2.00 of the medians",
		"peak resident memory of ours: 18.0 MiB", "peak resident memory of theirs: 0.0 MiB",
	}, []string{"relay"})
}

func TestReportOfARelayedRun(t *testing.T) {
	r := newReport(Options{Seconds: 2, Relayed: true}, []way{{name: relayedWay, relayed: true}, {name: "direct"}})
	for range 2 {
		for _, d := range directions {
			r.add(0, d, Sample{Gigabits: 1.5, Bytes: 375e6, Seconds: 2, CPUSeconds: 1, PeakRSS: 20 << 20, Forwarded: 400e6})
			r.add(1, d, Sample{Gigabits: 2, Bytes: 500e6, Seconds: 2, CPUSeconds: 1, PeakRSS: 30 << 20, Forwarded: 1e5})
		}
	}
	r.finish()
	if got := r.Ways[0].To.Forwarded; got != 800e6 {
		t.Errorf("%d bytes through the relay", got)
	}
	wantText(t, r, []string{
		"relayed, from the resource", "ratio relayed / direct", "0.75 of the medians, 0.75 median of the rounds, 0.75 in Gbit per CPU second",
		"relay MB", "800.0", "0.2", "peak resident memory of the gateway: 30.0 MiB", "2 s each direction",
	}, []string{"memory of relayed", "memory of direct"})
	encoded, err := json.Marshal(r)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{`"ratio_to_resource":{"medians":0.75,`, `"name":"relayed"`, `"relay_bytes":800000000`, `"peak_rss_bytes":31457280`, `"cpu_seconds":2`, `"bytes":375000000`} {
		if !bytes.Contains(encoded, []byte(want)) {
			t.Errorf("%s is missing in %s", want, encoded)
		}
	}
}

func TestReportOfADNSRun(t *testing.T) {
	r := newReport(Options{Seconds: 0.5, DNS: true}, []way{{name: "DNS resource"}, {name: "CIDR resource"}})
	for i := range columns + 1 {
		for _, d := range directions {
			r.add(0, d, Sample{Gigabits: 1.5 + float64(i), Bytes: 90e6, Seconds: 0.5, CPUSeconds: 0.2, PeakRSS: 20 << 20})
			r.add(1, d, Sample{Gigabits: 1.5 + float64(i), Bytes: 100e6, Seconds: 0.5, CPUSeconds: 0.2, PeakRSS: 30 << 20})
		}
	}
	r.finish()
	wantText(t, r, []string{
		"lowest  highest  median", "DNS resource, to the resource    1.50     9.50    5.50", "CIDR resource, from the resource", "ratio DNS resource / CIDR resource",
		"1.00 of the medians, 1.00 median of the rounds, 0.90 in Gbit per CPU second", "peak resident memory of the gateway: 30.0 MiB",
	}, []string{"round 1", "relay", "memory of DNS", "memory of CIDR"})
	encoded, err := json.Marshal(r)
	if err != nil {
		t.Fatal(err)
	}
	// All the rounds are in what programs read.
	if got := bytes.Count(encoded, []byte(`"gbit_per_second"`)); got != 4*(columns+1) {
		t.Errorf("%d samples in %s", got, encoded)
	}
}

func TestReportWithoutRounds(t *testing.T) {
	wantText(t, newReport(Options{}, nil), []string{"processors"}, []string{"relay", "ratio"})
	wantText(t, newReport(Options{}, []way{{name: "ours"}, {name: "theirs"}}), []string{"ratio ours / theirs"}, []string{"relay", "NaN"})
}

// wantText holds that the report's text has some words and lacks others.
func wantText(t *testing.T, r Report, with, without []string) {
	t.Helper()
	var text bytes.Buffer
	if err := r.Write(&text); err != nil {
		t.Fatal(err)
	}
	for _, word := range with {
		if !strings.Contains(text.String(), word) {
			t.Errorf("%q is missing in\n%s", word, text.String())
		}
	}
	for _, word := range without {
		if strings.Contains(text.String(), word) {
			t.Errorf("%q is in\n%s", word, text.String())
		}
	}
}

func TestMedian(t *testing.T) {
	for _, c := range []struct {
		values []float64
		want   float64
	}{{nil, 0}, {[]float64{5}, 5}, {[]float64{9, 1}, 5}, {[]float64{9, 1, 2}, 2}} {
		if got := median(c.values); got != c.want {
			t.Errorf("median(%v) = %v, want %v", c.values, got, c.want)
		}
	}
}
