package scale

import (
	"bytes"
	"context"
	"strings"
	"testing"
	"time"
)

// TestClientsConnectAndIdle runs real clients against the real daemon, few of them
// and for a short time; the figures are those of firezone-lab scale to judge.
func TestClientsConnectAndIdle(t *testing.T) {
	if testing.Short() {
		t.Skip("takes a daemon and some seconds")
	}
	binary := daemon(t)
	for _, c := range []struct {
		name    string
		relayed bool
	}{{"directly", false}, {"through a relay", true}} {
		t.Run(c.name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), 4*time.Minute)
			defer cancel()
			const clients, latency = 8, 3
			report, err := Run(ctx, Options{
				Gateway: binary, Clients: clients, Latency: latency, Relayed: c.relayed,
				Idle: time.Second, settling: time.Second, Progress: t.Logf, LogDir: t.TempDir(),
			})
			if err != nil {
				t.Fatal(err)
			}
			if !report.OK || report.Connected != clients || report.Awake != clients {
				t.Errorf("%d connected, %d after idling: %+v", report.Connected, report.Awake, report.Targets)
			}
			if report.Setup.Count != clients || report.Setup.Median <= 0 || report.Setup.Max < report.Setup.Median {
				t.Errorf("set-up is %v", report.Setup)
			}
			if report.Sequential.Count != latency || report.Sequential.P99 <= 0 {
				t.Errorf("one after the other is %v", report.Sequential)
			}
			if report.Goroutines == 0 || report.ResidentPerClient == 0 || report.ConnectCPU.Lab <= 0 {
				t.Errorf("%d goroutines, %d resident bytes, processor time %+v", report.Goroutines, report.ResidentPerClient, report.ConnectCPU)
			}
			if total := report.Total; total.ChecksAnswered < clients || total.ChecksReceived < clients || total.Initiations < clients+latency {
				t.Errorf("clients did %+v", total)
			}
			var text bytes.Buffer
			if err := report.Write(&text); err != nil || !strings.Contains(text.String(), "goroutines") {
				t.Errorf("report is %q, %v", text.String(), err)
			}
		})
	}
}

func TestRunRefusesWhatIsNoRun(t *testing.T) {
	for name, o := range map[string]Options{
		"no client":            {Idle: time.Second},
		"too many clients":     {Clients: MaxClients, Latency: 1, Idle: time.Second},
		"no time to be idle":   {Clients: 1},
		"a negative number of": {Clients: 1, Latency: -1, Idle: time.Second},
	} {
		if _, err := Run(t.Context(), o); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

func TestDaemonThatEndsIsReported(t *testing.T) {
	daemon(t) // for the privilege
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	_, err := Run(ctx, Options{Gateway: "/bin/false", Clients: 1, Idle: time.Second})
	if err == nil || !strings.Contains(err.Error(), "did not join") {
		t.Errorf("error is %v", err)
	}
}
