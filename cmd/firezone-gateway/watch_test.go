package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"firezone-gateway/internal/admin"
)

func TestDifferences(t *testing.T) {
	for _, tc := range []struct {
		name   string
		change func(s *admin.Status)
		want   []string // what, subject, from and to
	}{
		{"nothing", func(*admin.Status) {}, nil},
		{"handshakes and traffic are no change", func(s *admin.Status) {
			age := 100.0
			s.Peers[0].HandshakeAge, s.Peers[0].ToClient.Bytes, s.Uptime, s.DNS.Answered = &age, 1<<40, 1e6, 99
		}, nil},
		{"not ready", func(s *admin.Status) { s.Ready, s.Missing = false, []string{"tun", "relay"} }, []string{"ready||ready|missing tun, relay"}},
		{"the portal is lost", func(s *admin.Status) { s.Portal.Joined = false }, []string{"portal||joined by route v2, generation v2|not joined"}},
		{"a reset", func(s *admin.Status) { s.Phase, s.Key.Public = admin.PhaseResetting, "OTHER=" },
			[]string{"phase||running|resetting", "key||PUBLICKEY=|OTHER="}},
		{"a relay goes", func(s *admin.Status) { s.Relays = nil }, []string{"relay|relay-1|relayed addresses 192.0.2.1:50000|"}},
		{"a relay refuses", func(s *admin.Status) { s.Relays = []admin.Relay{{ID: "relay-1"}} },
			[]string{"relay|relay-1|relayed addresses 192.0.2.1:50000|not usable"}},
		{"another relay", func(s *admin.Status) { s.Relays = append(s.Relays, admin.Relay{ID: "relay-0", Usable: true}) },
			[]string{"relay|relay-0||relayed addresses none"}},
		{"a client goes", func(s *admin.Status) { s.Peers = s.Peers[1:] }, []string{"peer|client-0000|present|"}},
		{"a client comes", func(s *admin.Status) { s.Peers = append(s.Peers, admin.Peer{ClientID: "new", Session: "none"}) },
			[]string{"peer|new||present", "peer.session|new||none"}},
		{"a session and a path", func(s *admin.Status) {
			p := *s.Peers[0].Path
			p.Kind, p.Relay = admin.Relayed, "relay-1"
			s.Peers[0].Session, s.Peers[0].Path = "expired", &p
		}, []string{"peer.session|client-0000|established|expired", "peer.path|client-0000|direct 198.51.100.7:1234|relayed relay-1"}},
		{"a grant ends", func(s *admin.Status) { s.Peers[1].Grants = nil },
			[]string{"peer.grant|client-0001|resource-1 office until 2026-11-21T10:38:48Z|"}},
		{"a grant is extended", func(s *admin.Status) {
			s.Peers[1].Grants = []admin.Grant{{ResourceID: "resource-1", Name: "office", ExpiresAt: statusTime.Add(2 * time.Hour)}}
		}, []string{"peer.grant|client-0001|resource-1 office until 2026-11-21T10:38:48Z|resource-1 office until 2026-11-21T11:38:48Z"}},
		{"packets are dropped", func(s *admin.Status) {
			s.Drops = admin.Drops{"no_path": 5, "stun_unknown": 40}
			s.Peers[0].Drops = admin.Drops{"filtered": 4}
		}, []string{"drops.filtered|client-0000|3|4", "drops.no_path||2|5"}},
		{"counters began anew", func(s *admin.Status) { s.Drops, s.Dead = admin.Drops{"no_path": 1}, 0 }, nil},
		{"an actor failed and restarted", func(s *admin.Status) {
			s.Actors[1].Restarts, s.Actors[1].Failures, s.Actors[1].LastFailure = 1, 1, "port is taken"
		}, []string{"actor.restarts|gateway/dns|0|1", "actor.failure|gateway/dns||port is taken"}},
		{"an actor waits for its restart", func(s *admin.Status) { s.Actors[1].State = "failed" }, []string{"actor.state|gateway/dns|running|failed"}},
		{"name servers", func(s *admin.Status) { s.DNS.Nameservers, s.DNS.Error = nil, "gone" },
			[]string{"dns.name_servers||192.0.2.53|none", "dns.error|||gone"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			before, after := healthy(2), healthy(2)
			before.Dead = 1
			after.Dead = 1
			tc.change(&after)
			var got []string
			for _, c := range differences(before, after) {
				got = append(got, strings.Join([]string{c.What, c.Subject, c.From, c.To}, "|"))
			}
			if strings.Join(got, "\n") != strings.Join(tc.want, "\n") {
				t.Errorf("got %q, want %q", got, tc.want)
			}
		})
	}
}

func TestManyDifferencesAreBounded(t *testing.T) {
	found := differences(healthy(0), healthy(1000))
	if len(found) != maxChanges+1 {
		t.Fatalf("%d differences", len(found))
	}
	// Each new client is a peer, a session, a path, a grant and its drops.
	if last := found[maxChanges]; last.What != "more" || last.To != fmt.Sprintf("%d changes that are not shown", 5*1000-maxChanges) {
		t.Errorf("the last is %+v", last)
	}
}

// watching runs the command watch on what look returns.
func watching(t *testing.T, json bool, look func(n int64) (admin.Status, error)) (out *output, end func() int) {
	t.Helper()
	var n atomic.Int64
	path := serveStatus(t, func(context.Context) (admin.Status, error) { return look(n.Add(1)) })
	f := &watchFlags{controlFlags: controlFlags{ControlSocket: path, JSON: json, Timeout: humanSpan(patience)}, Interval: humanSpan(5 * time.Millisecond)}
	ctx, cancel := context.WithCancel(t.Context())
	out = &output{}
	code := make(chan int, 1)
	go func() { code <- f.watch(ctx, out, out) }()
	t.Cleanup(cancel)
	return out, func() int { cancel(); return <-code }
}

func until(t *testing.T, ok func() bool, what string) {
	t.Helper()
	for deadline := time.Now().Add(patience); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("never: %s", what)
		}
	}
}

func TestWatchTellsEachChangeOnce(t *testing.T) {
	out, end := watching(t, false, func(n int64) (admin.Status, error) {
		s := healthy(1)
		if n > 2 {
			s.Portal.Joined = false
		}
		return s, nil
	})
	until(t, func() bool { return strings.Contains(out.String(), "not joined") }, "the change")
	if code := end(); code != exitOK {
		t.Errorf("exit code %d", code)
	}
	lines := strings.Split(strings.TrimSpace(out.String()), "\n")
	clock := statusTime.Local().Format(time.TimeOnly)
	if len(lines) != 2 || lines[0] != clock+"  gateway: running, ready" || lines[1] != clock+"  portal: joined by route v2, generation v2 → not joined" {
		t.Errorf("%q", lines)
	}
}

func TestWatchOutlivesAGatewayThatIsAway(t *testing.T) {
	out, end := watching(t, true, func(n int64) (admin.Status, error) {
		s := healthy(1)
		switch {
		case n == 2 || n == 3:
			return s, errors.New("the gateway is ending")
		case n > 3:
			s.Key.Public = "OTHER="
		}
		return s, nil
	})
	until(t, func() bool { return strings.Contains(out.String(), "OTHER=") }, "the new key")
	if code := end(); code != exitOK {
		t.Errorf("exit code %d", code)
	}
	var got []string
	for d := json.NewDecoder(strings.NewReader(out.String())); d.More(); {
		var c change
		if err := d.Decode(&c); err != nil {
			t.Fatal(err)
		}
		got = append(got, c.What+"|"+c.From+"|"+c.To)
	}
	want := []string{"gateway||running, ready", "gateway|running, ready|gone: the gateway is ending", "gateway|gone|running, ready", "key|PUBLICKEY=|OTHER="}
	if strings.Join(got, "\n") != strings.Join(want, "\n") || strings.Count(out.String(), "\n") != len(want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

type brokenPipe struct{}

func (brokenPipe) Write([]byte) (int, error) { return 0, syscall.EPIPE }

func TestWatchEndsWithItsReader(t *testing.T) {
	path := serveStatus(t, func(context.Context) (admin.Status, error) { return healthy(0), nil })
	f := &watchFlags{controlFlags: controlFlags{ControlSocket: path, Timeout: humanSpan(patience)}, Interval: humanSpan(time.Hour)}
	if code := f.watch(t.Context(), brokenPipe{}, &bytes.Buffer{}); code != exitFailure {
		t.Errorf("exit code %d", code)
	}
}

func TestWatchCommandRefuses(t *testing.T) {
	t.Setenv("FIREZONE_CONTROL_SOCKET", socketPath(t))
	for _, tc := range []struct {
		name string
		args []string
		code int
		want string
	}{
		{"no gateway", nil, 1, "is the gateway running?"},
		{"too short an interval", []string{"--interval", "1ms"}, 2, "--interval: shorter than 100ms"},
		{"an interval without unit", []string{"--interval", "5"}, 2, "unit"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			code, stdout, stderr := command(append([]string{"watch"}, tc.args...)...)
			if code != tc.code || stdout != "" || !strings.Contains(stderr, tc.want) {
				t.Errorf("exit code %d, stdout %q, stderr %q", code, stdout, stderr)
			}
		})
	}
}

func TestWatchEndsByCtrlC(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	r := s.startJoined(t, launch{})
	r.awaitControl(t)
	w := launch{args: []string{"watch", "--interval", "100ms"}, control: r.control}.start(t, s.Namespace)
	w.await(t, "the first line", func() bool { return strings.Contains(w.stdout.String(), "gateway: running") })
	w.terminates(t, syscall.SIGINT)
	if w.stderr.String() != "" {
		t.Errorf("stderr %q", w.stderr)
	}
	r.terminates(t, syscall.SIGTERM)
}
