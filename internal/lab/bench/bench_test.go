package bench

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"net/netip"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"firezone-gateway/internal/lab/gateway"
	labnet "firezone-gateway/internal/lab/net"
	"firezone-gateway/internal/lab/resource"
)

const (
	// builtVariable hands the daemon on to the process in a user namespace.
	builtVariable = "LAB_BENCH_TEST_BUILT"
	// plainArgument makes the test binary the plain process in the middle.
	plainArgument = "plain-wireguard-child"
)

var (
	daemon       string
	errIsolation error
)

func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == plainArgument {
		os.Exit(plainChild(os.Args[2:]))
	}
	dir, err := built()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	daemon = filepath.Join(dir, "firezone-gateway")
	errIsolation = labnet.EnsureIsolated()
	if errIsolation == nil {
		errIsolation = labnet.CheckTUN()
	}
	code := m.Run()
	os.RemoveAll(dir)
	if code == 0 {
		if err := goleak.Find(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			code = 1
		}
	}
	os.Exit(code)
}

func built() (string, error) {
	if dir := os.Getenv(builtVariable); dir != "" {
		return dir, nil
	}
	dir, err := os.MkdirTemp("", "bench-test-")
	if err != nil {
		return "", err
	}
	_, err = gateway.Build(context.Background(), dir)
	if err != nil {
		return "", errors.Join(err, os.RemoveAll(dir))
	}
	return dir, os.Setenv(builtVariable, dir)
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

func needNamespaces(t *testing.T) {
	t.Helper()
	if errIsolation == nil {
		return
	}
	if os.Getenv("CI") == "true" {
		t.Fatal(errIsolation)
	}
	t.Skip(errIsolation)
}

func options(t *testing.T) Options {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return Options{Gateway: daemon, Plain: []string{self, plainArgument}, Rounds: 1, Seconds: 0.3}
}

func TestRunMeasuresBothWays(t *testing.T) {
	needNamespaces(t)
	if raceDetector {
		t.Skip("throughput under the race detector says nothing")
	}
	o := options(t)
	o.Rounds, o.LogDir = 2, t.TempDir()
	report, err := Run(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	if len(report.Ways) != 2 || report.Ways[0].Name != "firezone-gateway" {
		t.Fatalf("report is %+v", report)
	}
	for _, way := range report.Ways {
		for _, series := range []Series{way.To, way.From} {
			if len(series.Rounds) != 2 || series.Median <= 0 || series.CPUSeconds <= 0 || series.PerCPU <= 0 {
				t.Errorf("%s: %+v", way.Name, series)
			}
		}
		if way.PeakRSS < 1<<20 {
			t.Errorf("%s: peak resident memory is %d bytes", way.Name, way.PeakRSS)
		}
	}
	if report.To.Medians <= 0 || report.From.Rounds <= 0 || report.From.PerCPU <= 0 {
		t.Errorf("ratios are %+v and %+v", report.To, report.From)
	}
	if log, err := os.ReadFile(filepath.Join(o.LogDir, "bench-gateway.log")); err != nil || len(log) == 0 {
		t.Errorf("log of %d bytes, %v", len(log), err)
	}
	if _, err := json.Marshal(report); err != nil {
		t.Error(err)
	}
}

func TestRunFailsAndCleansUp(t *testing.T) {
	needNamespaces(t)
	for name, change := range map[string]func(*Options){
		"without a plain command":        func(o *Options) { o.Plain = nil },
		"with a plain command that ends": func(o *Options) { o.Plain = []string{"/bin/true"} },
		"without a gateway":              func(o *Options) { o.Gateway = "/nonexistent" },
		"with a gateway that ends":       func(o *Options) { o.Gateway = "/bin/true" },
		"without rounds":                 func(o *Options) { o.Rounds = 0 },
		"without time":                   func(o *Options) { o.Seconds = 0 },
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
	needNamespaces(t)
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
		r.add(0, resource.ToResource, Sample{Gigabits: gigabits, Seconds: 2, CPUSeconds: 1})
		r.add(0, resource.FromResource, Sample{Gigabits: 1, Seconds: 2, CPUSeconds: 0})
		r.add(1, resource.ToResource, Sample{Gigabits: 2, Seconds: 2, CPUSeconds: 1})
		r.add(1, resource.FromResource, Sample{Gigabits: 0, Seconds: 2, CPUSeconds: 1})
	}
	r.Ways[0].PeakRSS = 18 << 20
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
	} {
		if math.Abs(c.got-c.want) > 1e-9 {
			t.Errorf("%s is %v, not %v", c.what, c.got, c.want)
		}
	}
	var text bytes.Buffer
	if err := r.Write(&text); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"ours, to the resource", "round 3", "ratio ours / theirs", "to the resource     2.00 of the medians", "peak resident memory of ours: 18.0 MiB"} {
		if !strings.Contains(text.String(), want) {
			t.Errorf("%q is missing in\n%s", want, text.String())
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
