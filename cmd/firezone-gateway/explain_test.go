package main

import (
	"context"
	"encoding/json"
	"errors"
	"net/netip"
	"slices"
	"strings"
	"syscall"
	"testing"

	"firezone-gateway/actors"
	"firezone-gateway/internal/admin"
	"firezone-gateway/internal/tun"
)

var refused = admin.Explanation{
	Client: "client-1", To: "10.0.0.5:22/tcp",
	Stages: []admin.Stage{
		{Stage: admin.StageClient, Verdict: admin.Pass, Detail: "client-1 with 2 granted resources"},
		{Stage: admin.StagePolicy, Verdict: admin.Stop, Reason: "filtered", Detail: "no resource admits it", Resources: []admin.Judged{
			{ResourceID: "web", Name: "Web\x1b[2J", Kind: "cidr", Address: "10.0.0.0/8", Reason: "filtered", Filters: []string{"tcp/443", "udp"}},
			{ResourceID: "old", Name: "Old", Kind: "cidr", Address: "10.0.0.0/16", Reason: "expired", ExpiresAt: statusTime},
		}},
		{Stage: admin.StageRoute, Verdict: admin.Skipped, Detail: "there is no packet to route"},
	},
}

func TestTell(t *testing.T) {
	text := tell(refused)
	says(t, text, "A packet to 10.0.0.5:22/tcp would NOT pass: policy\n", "policy  stop     no resource admits it [filtered]", "Web?[2J",
		"no, filtered", "tcp/443 udp", "no, expired", "everything", "2026-11-21T09:38:48Z", "never")
	if strings.Contains(text, "\x1b") {
		t.Error("an escape sequence is in it")
	}
	admitted := admin.Explanation{To: "10.0.0.5:443/tcp", Passes: true, Stages: []admin.Stage{
		{Stage: admin.StagePolicy, Verdict: admin.Pass, Detail: "admitted", Resources: []admin.Judged{{ResourceID: "web", Admits: true}}},
	}}
	says(t, tell(admitted), "A packet to 10.0.0.5:443/tcp would pass\n", "yes")
}

func TestExplainCommand(t *testing.T) {
	var asked admin.Question
	working := serveOperations(t, admin.Operations{Explain: func(_ context.Context, q admin.Question) (admin.Explanation, error) {
		asked = q
		e := refused
		e.Passes = q.To.Port == 443
		return e, nil
	}})
	broken := serveOperations(t, admin.Operations{Explain: func(context.Context, admin.Question) (admin.Explanation, error) {
		return admin.Explanation{}, errors.New("out of order")
	}})
	for _, tc := range []struct {
		name, socket string
		args         []string
		code         int
		want         []string
	}{
		{"it would pass", working, []string{"--client", "client-1", "--to", "10.0.0.5:443/tcp"}, 0, []string{"would pass"}},
		{"it would not", working, []string{"--client", "client-1", "--to", "10.0.0.5:22"}, 1, []string{"would NOT pass"}},
		{"the gateway cannot", broken, []string{"--client", "client-1", "--to", "10.0.0.5:22"}, 1, []string{"out of order"}},
		{"no gateway", socketPath(t), []string{"--client", "client-1", "--to", "10.0.0.5:22"}, 1, []string{"is the gateway running?"}},
		{"no client", working, []string{"--to", "10.0.0.5:22"}, 2, []string{"--client", "explain --help"}},
		{"an empty client", working, []string{"--client=", "--to", "10.0.0.5:22"}, 2, []string{"--client", "explain --help"}},
		{"no destination", working, []string{"--client", "client-1"}, 2, []string{"--to", "explain --help"}},
		{"half a destination", working, []string{"--client", "client-1", "--to", "10.0.0.5"}, 2, []string{"--to", "10.0.0.5:443/tcp", "explain --help"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Setenv("FIREZONE_CONTROL_SOCKET", tc.socket)
			args := append([]string{"explain"}, tc.args...)
			code, stdout, stderr := command(args...)
			if code != tc.code {
				t.Errorf("exit code %d, want %d", code, tc.code)
			}
			says(t, stdout+stderr, tc.want...)
			code, stdout, _ = command(append(args, "--json")...)
			if code != tc.code {
				t.Errorf("with --json exit code %d, want %d", code, tc.code)
			}
			if tc.code == exitUsage {
				return
			}
			var got struct {
				admin.Explanation
				Error string `json:"error"`
			}
			if err := json.Unmarshal([]byte(stdout), &got); err != nil || strings.Count(stdout, "\n") != 1 {
				t.Fatalf("%q is not one line of JSON: %v", stdout, err)
			}
			if got.Passes != (code == 0) || (got.Error == "") != (len(got.Stages) > 0) {
				t.Errorf("%+v", got)
			}
		})
	}
	if asked.Client != "client-1" || asked.To.String() != "10.0.0.5:22/tcp" {
		t.Errorf("asked %+v", asked)
	}
}

// TestTheRouteOfAPacketFromTheTunnel asks a real kernel about a real device.
func TestTheRouteOfAPacketFromTheTunnel(t *testing.T) {
	t.Parallel()
	client := netip.MustParseAddr("100.64.0.9")
	for _, tc := range []struct {
		name, masquerade string
		want             map[string]string // by destination
	}{
		{"a host that forwards", "true", map[string]string{
			"198.51.100.1": "interface uplink, next hop 192.0.2.1", "192.0.2.9": "interface uplink, directly connected", "192.0.2.2": "to this host itself",
		}},
		{"a host that does not", "", map[string]string{"198.51.100.1": "", "192.0.2.9": "", "192.0.2.2": "to this host itself"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			s := newSite(t)
			r := s.startJoined(t, launch{env: variablesOf{"FIREZONE_MASQUERADE": tc.masquerade, "FIREZONE_NO_HOST_WATCH": "true"}})
			r.await(t, "policy rules", func() bool { return len(ourRules(t, s.Namespace)) == 6 })
			if tc.masquerade != "" {
				r.await(t, "the firewall", func() bool { return slices.Contains(tables(t, s.Namespace), "firezone_gateway") })
			}
			s.addDefaultRoute(t)
			for to, want := range tc.want {
				err := s.Do(func() error {
					got, err := actors.KernelRoute(tun.DefaultName, client, netip.MustParseAddr(to))
					if got != want || (err == nil) != (want != "") {
						t.Errorf("to %s: %q, %v, want %q", to, got, err, want)
					}
					return nil
				})
				if err != nil {
					t.Fatal(err)
				}
			}
			r.terminates(t, syscall.SIGTERM)
		})
	}
}
