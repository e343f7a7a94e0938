package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"syscall"
	"testing"
	"time"

	"firezone-gateway/internal/admin"
)

var statusTime = time.Date(2026, 11, 21, 9, 38, 48, 0, time.UTC)

// healthy is the status of a gateway with n clients.
func healthy(n int) admin.Status {
	s := admin.Status{
		Time: statusTime, Version: "1.2.3", Uptime: 11_520, Phase: admin.PhaseRunning, Ready: true, Missing: []string{},
		Key: admin.Key{Epoch: 2, Public: "PUBLICKEY="}, Portal: admin.Portal{Joined: true, Route: "v2", Generation: "v2", Since: statusTime.Add(-time.Hour)},
		Tunnel: []netip.Addr{netip.MustParseAddr("100.64.0.1")},
		Relays: []admin.Relay{{ID: "relay-1", Usable: true, Relayed: []netip.AddrPort{netip.MustParseAddrPort("192.0.2.1:50000")}}},
		DNS:    admin.DNS{Nameservers: []netip.Addr{netip.MustParseAddr("192.0.2.53")}, Serving: []netip.AddrPort{}, Answered: 7},
		Drops:  admin.Drops{"no_path": 2, "stun_unknown": 40},
	}
	for _, path := range []string{"gateway", "gateway/dns", "gateway/peers", "gateway/portal"} {
		s.Actors = append(s.Actors, admin.Actor{Path: path, Kind: path[strings.LastIndexByte(path, '/')+1:], State: admin.ActorRunning})
	}
	for i := range n {
		age := float64(i)
		p := admin.Peer{
			ClientID: fmt.Sprintf("client-%04d", i), Addresses: []netip.Addr{netip.AddrFrom4([4]byte{100, 64, byte(i >> 8), byte(i)})},
			Session: "established", HandshakeAge: &age, LastActive: statusTime.Add(-time.Duration(i) * time.Second),
			Path:   &admin.Path{Kind: admin.Direct, Local: netip.MustParseAddrPort("10.0.0.1:52625"), Remote: netip.MustParseAddrPort("198.51.100.7:1234")},
			Drops:  admin.Drops{"filtered": 3},
			Grants: []admin.Grant{{ResourceID: "resource-1", Name: "office", Kind: "cidr", Address: "10.0.0.0/8", ExpiresAt: statusTime.Add(time.Hour)}},
		}
		p.ToResources.Bytes, p.ToClient.Bytes = 1536, 5<<20
		s.Peers = append(s.Peers, p)
		s.Actors = append(s.Actors, admin.Actor{Path: "gateway/peers/" + p.ClientID, Kind: "peer", State: admin.ActorRunning})
		s.Actors = append(s.Actors, admin.Actor{Path: "gateway/peers/" + p.ClientID + "/nat.1", Kind: "nat", State: admin.ActorRunning})
	}
	return s
}

func says(t *testing.T, text string, wanted ...string) {
	t.Helper()
	for _, want := range wanted {
		if !strings.Contains(text, want) {
			t.Errorf("does not say %q:\n%s", want, text)
		}
	}
}

func TestDescribeAGatewayThatIsWell(t *testing.T) {
	text := describe(healthy(2), false)
	says(t, text, "Gateway\n", "1.2.3", "3h 12m", "number 2, PUBLICKEY=", "100.64.0.1", "joined by route v2, generation v2, for 1h 0m", "7 answered", "192.0.2.53",
		"stun_unknown 40, no_path 2", "relay-1", "192.0.2.1:50000", "Clients: 2, 2 with a session, 2 direct, 0 relayed",
		"client-0001", "direct 198.51.100.7:1234", "1s ago", "1.5 KiB", "5.0 MiB", "filtered 3", "Actors: 8, 0 dead letters", "      client-0000")
	if first, _, _ := strings.Cut(text, "\n"); first != "firezone-gateway: ready" {
		t.Errorf("the first line is %q", first)
	}
	if strings.Contains(text, "What is wrong") {
		t.Errorf("nothing is wrong:\n%s", text)
	}
	for line := range strings.Lines(text) {
		if line != strings.TrimRight(line, " \n")+"\n" {
			t.Errorf("spaces at the end of %q", line)
		}
	}
}

func TestDescribeSaysFirstWhatIsWrong(t *testing.T) {
	s := healthy(1)
	s.Ready, s.Missing, s.Portal.Joined = false, []string{"portal", "relay"}, false
	s.Relays[0].Usable = false
	s.DNS.Error = "no name server is configured"
	s.Omitted.Peers = 7
	s.Actors[1].State, s.Actors[1].Restarts, s.Actors[1].Failures = "failed", 4, 5
	s.Actors[1].LastFailure, s.Actors[1].FailedAt = "port is taken", statusTime.Add(-3*time.Second)
	s.Actors[2].Mailbox = 1000
	text := describe(s, false)
	head, _, _ := strings.Cut(text, "\nGateway")
	says(t, head, "firezone-gateway: NOT READY, missing: portal, relay\n\nWhat is wrong\n", "portal: not joined", "relay: no allocation",
		"actor gateway/dns is failed, restarted 4 times, failed 3s ago: port is taken", "actor gateway/peers has 1000 messages waiting",
		"relay relay-1 refuses", "dns: no name server", "left out: 7 clients")
	if n := strings.Count(head, "\n  - "); n != 7 {
		t.Errorf("%d problems, want 7:\n%s", n, head)
	}
	for phase, want := range map[admin.Phase]string{
		admin.PhaseStarting: "STARTING; NOT READY", admin.PhaseEnding: "ENDING; NOT READY", admin.PhaseResetting: "RESETTING; NOT READY",
	} {
		s.Phase = phase
		says(t, describe(s, false), "firezone-gateway: "+want)
	}
}

func TestAnOldFailureIsHistory(t *testing.T) {
	s := healthy(0)
	s.Actors[1].LastFailure, s.Actors[1].FailedAt, s.Actors[1].Failures = "port is taken", statusTime.Add(-time.Hour), 1
	text := describe(s, false)
	says(t, text, "1h 0m ago: port is taken")
	if strings.Contains(text, "What is wrong") {
		t.Errorf("it is wrong no more:\n%s", text)
	}
}

func TestDescribeAThousandClientsShortly(t *testing.T) {
	s := healthy(1000)
	s.Actors[len(s.Actors)-1].Failures, s.Actors[len(s.Actors)-1].LastFailure = 1, "out of ports"
	s.Peers[999].LastActive = statusTime.Add(time.Second) // shown first
	short := describe(s, false)
	if n := strings.Count(short, "\n"); n > 60 {
		t.Errorf("%d lines", n)
	}
	says(t, short, "Clients: 1000", "client-0999", "… and 980 more clients (--all)", "… and 1000 more of the kind peer, all running",
		"… and 999 more of the kind nat", "gateway/peers/client-0999/nat.1", "out of ports")
	long := describe(s, true)
	if n := strings.Count(long, "client-"); n < 2000 {
		t.Errorf("--all names clients %d times", n)
	}
	says(t, long, "resource-1 office (until 2026-11-21T10:38:48Z)")
	if strings.Contains(long, "--all") {
		t.Error("--all leaves something out")
	}
}

func TestNamesCannotSteerTheTerminal(t *testing.T) {
	s := healthy(1)
	s.Peers[0].Grants[0].Name = "evil\x1b[2J\t\n\u202ename\xff"
	s.Actors[1].LastFailure, s.Actors[1].FailedAt = "two\nlines", statusTime
	for _, text := range []string{describe(s, true), change{What: "x", To: s.Peers[0].Grants[0].Name}.cleanText()} {
		for _, r := range strings.ReplaceAll(text, "\n", "") {
			if r < ' ' || r == 0x7f || r == '\u202e' {
				t.Fatalf("%q is in the output", r)
			}
		}
		says(t, text, "evil?[2J???name")
	}
	says(t, describe(s, true), "two?lines")
}

func (c change) cleanText() string { return clean(c.text()) }

// serveStatus serves what status returns until the end of the test.
func serveStatus(t *testing.T, status func(context.Context) (admin.Status, error)) (path string) {
	t.Helper()
	return serveOperations(t, admin.Operations{Status: status})
}

func serveOperations(t *testing.T, ops admin.Operations) (path string) {
	t.Helper()
	path = socketPath(t)
	s, err := admin.ServeControl(path, ops)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return path
}

func TestStatusCommand(t *testing.T) {
	t.Setenv("FIREZONE_CONTROL_SOCKET", "")
	want := healthy(1000)
	working := serveStatus(t, func(context.Context) (admin.Status, error) { return want, nil })
	broken := serveStatus(t, func(context.Context) (admin.Status, error) { return admin.Status{}, errors.New("out of order") })
	hanging := serveStatus(t, func(ctx context.Context) (admin.Status, error) { <-ctx.Done(); return admin.Status{}, ctx.Err() })
	older := serveOperations(t, admin.Operations{})
	nobody := socketPath(t)
	for _, tc := range []struct {
		name string
		env  string
		args []string
		code int
		want []string
	}{
		{"an overview", "", []string{"--control-socket", working}, 0, []string{"firezone-gateway: ready", "Clients: 1000", "more clients"}},
		{"everything", working, []string{"--all"}, 0, []string{"client-0999"}},
		{"the gateway cannot", broken, nil, 1, []string{"out of order"}},
		{"the gateway does not answer", hanging, []string{"--timeout=20ms"}, 1, []string{"no answer within 20ms", "--timeout"}},
		{"an older gateway", older, nil, 1, []string{"different versions"}},
		{"no gateway", nobody, nil, 1, []string{nobody, "is the gateway running?"}},
		{"no socket wanted", "none", nil, 2, []string{"--control-socket", "status --help"}},
		{"an unknown flag", working, []string{"--force"}, 2, []string{"unknown flag --force", "status --help"}},
		{"an argument too many", working, []string{"now"}, 2, []string{"takes no argument", "status --help"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Setenv("FIREZONE_CONTROL_SOCKET", tc.env)
			args := append([]string{"status"}, tc.args...)
			code, stdout, stderr := command(args...)
			if code != tc.code {
				t.Errorf("exit code %d, want %d", code, tc.code)
			}
			said, silent := stdout, stderr
			if code != 0 {
				said, silent = stderr, stdout
			}
			says(t, said, tc.want...)
			if silent != "" {
				t.Errorf("the other stream says %q", silent)
			}
			code, stdout, _ = command(append(args, "--json")...)
			if code != tc.code {
				t.Errorf("with --json exit code %d, want %d", code, tc.code)
			}
			var got struct {
				admin.Status
				Error string `json:"error"`
			}
			if tc.code == exitUsage {
				return
			}
			if err := json.Unmarshal([]byte(stdout), &got); err != nil || strings.Count(stdout, "\n") != 1 {
				t.Fatalf("%.100q is not one line of JSON: %v", stdout, err)
			}
			if code == 0 && (len(got.Peers) != 1000 || got.Version != want.Version) || (code == 0) != (got.Error == "") {
				t.Errorf("%d clients, version %q, error %q", len(got.Peers), got.Version, got.Error)
			}
		})
	}
}

// TestStatusNamesAreStable holds the names that scripts rely on.
func TestStatusNamesAreStable(t *testing.T) {
	s := healthy(1)
	s.Actors[0].LastFailure, s.Actors[0].FailedAt = "x", statusTime
	s.Peers[0].LastHandshake, s.Peers[0].Path.Relay, s.DNS.Error = statusTime, "relay-1", "x"
	text, err := json.Marshal(s)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{
		"time", "version", "uptime_seconds", "phase", "ready", "missing", "key", "epoch", "public_key", "tunnel_addresses", "portal", "joined",
		"relays", "id", "usable", "server", "relayed_addresses", "peers", "client_id", "session", "path", "kind", "local", "remote", "relay",
		"last_handshake", "handshake_age_seconds", "last_active", "to_resources", "to_client", "packets", "bytes", "drops", "grants",
		"resource_id", "name", "address", "expires_at", "nat", "proxies", "sessions", "sessions_opened", "sessions_refused_full", "sessions_refused_exhausted", "route", "generation", "since", "clients", "packets_waiting", "dns",
		"name_servers", "error", "serving", "under_way", "answered", "truncated", "failed", "overflow", "refused", "malformed", "foreign",
		"connections_refused", "actors", "state", "restarts", "failures", "last_failure", "failed_at", "mailbox", "handled",
		"max_busy_seconds", "max_wait_seconds", "dead_letters", "omitted",
	} {
		if !strings.Contains(string(text), `"`+name+`":`) {
			t.Errorf("%s is missing", name)
		}
	}
}

func TestHelpOfTheLookingCommandsTeaches(t *testing.T) {
	t.Parallel()
	ns := namespace(t)
	for name, wanted := range map[string][]string{
		"status":  {"status --all", "jq", "0 the gateway answered", "1 it did not", "2 wrong usage", "as root"},
		"watch":   {"--interval", "Ctrl-C", "jq", "0 ended by SIGINT", "2 wrong usage"},
		"explain": {"--client", "--to", "HOST:PORT/PROTOCOL", "filtered, expired", "0 the packet would pass", "1 it would not", "firewall is not asked"},
	} {
		r := launch{args: []string{name, "--help"}}.start(t, ns)
		r.exits(t, exitOK)
		help := strings.Join(strings.Fields(r.stdout.String()), " ")
		says(t, help, append(wanted, "Usage: firezone-gateway "+name, "--json", "--control-socket", "$FIREZONE_CONTROL_SOCKET", "--timeout", "Exit codes:")...)
		for line := range strings.Lines(r.stdout.String()) {
			if n := len([]rune(strings.TrimRight(line, "\n"))); n > 100 {
				t.Errorf("%s: line of %d columns in a terminal of 100: %s", name, n, line)
			}
		}
	}
}

// TestLooksAtARunningGateway is about the real daemon, its socket and its kernel.
func TestLooksAtARunningGateway(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	r := s.startJoined(t, launch{})
	r.awaitControl(t)
	look := func(args ...string) (*running, string) {
		c := launch{args: args, control: r.control}.start(t, s.Namespace)
		<-c.Done()
		return c, c.stdout.String()
	}
	c, text := look("status", "--json")
	c.exits(t, exitOK)
	var got admin.Status
	if err := json.Unmarshal([]byte(text), &got); err != nil {
		t.Fatalf("%v: %s", err, text)
	}
	if got.Version != version || got.Uptime <= 0 || !got.Portal.Joined || got.Phase != admin.PhaseRunning || len(got.Actors) < 6 {
		t.Errorf("%+v", got)
	}
	c, text = look("status")
	c.exits(t, exitOK)
	says(t, text, "firezone-gateway: NOT READY, missing:", "relay", "transport")

	c, text = look("explain", "--client", "nobody", "--to", "10.0.0.5:443/tcp")
	c.exits(t, exitFailure)
	says(t, text, "would NOT pass: client", "none of the 0 clients")
	r.terminates(t, syscall.SIGTERM)
	c, _ = look("status")
	c.exits(t, exitFailure)
	says(t, c.stderr.String(), "is the gateway running?")
}
