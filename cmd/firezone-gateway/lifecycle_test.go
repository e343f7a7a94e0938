package main

import (
	"net/netip"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"

	labnet "firezone-gateway/internal/lab/net"
	"firezone-gateway/internal/lab/portal"
	"firezone-gateway/internal/tun"
)

var loopback = netip.MustParseAddr("127.0.0.1")

func TestHealthEndpoint(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	if err := s.portal.SetFaults(portal.Faults{Refuse: &portal.Refusal{Status: 503}}); err != nil {
		t.Fatal(err)
	}
	r := launch{}.start(t, s.Namespace)
	r.await(t, "an answer", func() bool { status, _ := health(t, s.Namespace, "/healthz"); return status == 200 })
	r.awaitEvent(t, s.portal, portal.ConnectRefused)
	if status, body := health(t, s.Namespace, "/readyz"); status != 503 || !strings.Contains(body, `"portal"`) {
		t.Errorf("without portal /readyz is %d %s", status, body)
	}

	if err := s.portal.SetFaults(portal.Faults{}); err != nil {
		t.Fatal(err)
	}
	r.await(t, "only the relay is missing", func() bool {
		status, body := health(t, s.Namespace, "/readyz")
		return status == 503 && strings.HasPrefix(body, `{"ready":false,"missing":["relay"],"help":{"relay":"`)
	})
	s.addRelay(t)
	r.await(t, "ready", func() bool {
		status, body := health(t, s.Namespace, "/readyz")
		return status == 200 && body == `{"ready":true,"missing":[]}`+"\n"
	})
	if status, body := health(t, s.Namespace, "/healthz"); status != 200 || body != `{"alive":true}`+"\n" {
		t.Errorf("/healthz is %d %s", status, body)
	}
	r.terminates(t, syscall.SIGTERM)
}

func TestRunsWithoutHealthEndpoint(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	silent(t, s.Namespace, healthAddr)
	r := s.startJoined(t, launch{})
	if !r.stdout.has("going on without health endpoint") {
		t.Error("nothing was said about it")
	}
	r.terminates(t, syscall.SIGTERM)
}

func TestEndsInOrderWhenJoined(t *testing.T) {
	t.Parallel()
	for _, sig := range []syscall.Signal{syscall.SIGTERM, syscall.SIGINT} {
		t.Run(sig.String(), func(t *testing.T) {
			t.Parallel()
			s := newSite(t)
			r := s.startJoined(t, launch{env: variablesOf{"FIREZONE_LOG_FORMAT": "json", "FIREZONE_MASQUERADE": "true", "RUST_LOG": "trace"}})
			r.await(t, "rules and firewall", func() bool {
				return len(ourRules(t, s.Namespace)) == 6 && slices.Contains(tables(t, s.Namespace), "firezone_gateway")
			})
			r.terminates(t, sig)

			if e := r.left(t, s.portal); e.Status != 1000 {
				t.Errorf("the portal saw close code %d, want 1000", e.Status)
			}
			records := checkJSON(t, r.stdout.String())
			if first := records[0]; first["message"] != "starting" || first["version"] != version {
				t.Errorf("first record %v", first)
			}
			if last := records[len(records)-1]; last["message"] != "goodbye" {
				t.Errorf("last record %v", last)
			}
			if r.stderr.String() != "" {
				t.Errorf("stderr: %s", r.stderr)
			}
			if left := ourRules(t, s.Namespace); len(left) != 0 {
				t.Errorf("rules left behind: %v", left)
			}
			if left := tables(t, s.Namespace); len(left) != 0 {
				t.Errorf("firewall left behind: %v", left)
			}
		})
	}
}

func TestEndsPromptlyWhileConnecting(t *testing.T) {
	t.Parallel()
	requireTUN(t)
	ns := namespace(t)
	accepted := silent(t, ns, portalAddr)
	r := launch{}.start(t, ns)
	select {
	case <-accepted:
	case <-time.After(patience):
		t.Fatal("no connection to the portal")
	}
	began := time.Now()
	r.terminates(t, syscall.SIGTERM)
	if took := time.Since(began); took > 3*time.Second {
		t.Errorf("took %v", took)
	}
}

func TestSecondSignalEndsAtOnce(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	// A collector that does not answer holds the end for two seconds.
	silent(t, s.Namespace, "127.0.0.1:4317")
	r := s.startJoined(t, launch{env: variablesOf{"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:4317"}})
	if err := r.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	r.left(t, s.portal)
	began := time.Now()
	if err := r.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	r.exits(t, exitFailure)
	if took := time.Since(began); took > time.Second {
		t.Errorf("took %v", took)
	}
	if r.stdout.has("goodbye") {
		t.Error("the end was orderly")
	}
}

func TestRefusedTokenEndsTheGateway(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	const wrong = "wr0ng-token-of-the-pr0cess-tests"
	began := time.Now()
	r := launch{env: variablesOf{"FIREZONE_TOKEN": wrong}}.start(t, s.Namespace)
	r.exits(t, exitFailure)
	if took := time.Since(began); took > 5*time.Second {
		t.Errorf("took %v", took)
	}
	if !r.stdout.has("token invalid") || !r.stdout.has("deploy a new one") || !r.stdout.has("exit_code=1") {
		t.Error("the log does not say why, or what to do")
	}
	if r.stdout.has(wrong) || r.stderr.has(wrong) {
		t.Error("the token is in the output")
	}
}

func TestTokenReachesThePortalHoweverItIsGiven(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	put(t, dir+"/FIREZONE_TOKEN", " "+testToken+"\n")
	put(t, dir+"/folded", testToken[:5]+"\n"+testToken[5:]+"\n")
	for name, l := range map[string]launch{
		"argument":                        {env: variablesOf{"FIREZONE_TOKEN": ""}, args: []string{testToken}},
		"argument before the variable":    {env: variablesOf{"FIREZONE_TOKEN": "wrong"}, args: []string{testToken}},
		"file":                            {env: variablesOf{"FIREZONE_TOKEN": dir + "/FIREZONE_TOKEN"}},
		"credential":                      {env: variablesOf{"FIREZONE_TOKEN": "", "CREDENTIALS_DIRECTORY": dir}},
		"variable with white space in it": {env: variablesOf{"FIREZONE_TOKEN": " " + testToken[:4] + "\n\t" + testToken[4:8] + " " + testToken[8:]}},
		"file with white space in it":     {env: variablesOf{"FIREZONE_TOKEN": dir + "/folded"}},
		"variable before the credential":  {env: variablesOf{"CREDENTIALS_DIRECTORY": "/nonexistent"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			newSite(t).startJoined(t, l).terminates(t, syscall.SIGTERM)
		})
	}
}

func TestSecondGatewayIsRefusedAndDoesNotDisturb(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	first := s.startJoined(t, launch{})
	first.await(t, "rules", func() bool { return len(ourRules(t, s.Namespace)) == 6 })

	second := launch{}.start(t, s.Namespace)
	second.exits(t, exitFailure)
	checkRefusal(t, second, "human", exitFailure, "held by another process", "another gateway is running on this host")
	if rules := ourRules(t, s.Namespace); len(rules) != 6 {
		t.Errorf("rules of the first: %v", rules)
	}
	first.terminates(t, syscall.SIGTERM)
}

func TestRemovesWhatACrashLeftBehind(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	first := s.startJoined(t, launch{})
	first.await(t, "rules", func() bool { return len(ourRules(t, s.Namespace)) == 6 })
	if err := first.Signal(syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	<-first.Done()
	if rules := ourRules(t, s.Namespace); len(rules) != 6 {
		t.Fatalf("rules after a crash: %v", rules)
	}

	if err := s.portal.SetFaults(portal.Faults{Refuse: &portal.Refusal{Status: 503}}); err != nil {
		t.Fatal(err)
	}
	second := launch{}.start(t, s.Namespace)
	second.await(t, "an answer", func() bool { status, _ := health(t, s.Namespace, "/healthz"); return status == 200 })
	if rules := ourRules(t, s.Namespace); len(rules) != 0 {
		t.Errorf("rules left: %v", rules)
	}
	second.terminates(t, syscall.SIGTERM)
}

func TestLivesOnWhenNobodyReadsTheLog(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	reader, writer, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	r := s.startJoined(t, launch{stdout: writer, env: variablesOf{"RUST_LOG": "trace"}})
	if err := writer.Close(); err != nil {
		t.Fatal(err)
	}
	if err := reader.Close(); err != nil {
		t.Fatal(err)
	}
	s.portal.DropConnections() // which is logged
	r.await(t, "joined again", func() bool {
		joins := 0
		for _, e := range s.portal.Events(0) {
			if e.Kind == portal.PeerJoined {
				joins++
			}
		}
		return joins == 2
	})
	r.terminates(t, syscall.SIGTERM)
}

// left waits for the portal's record of the end of the connection, which may
// come after the end of the process.
func (r *running) left(t *testing.T, p *portal.Server) portal.Event {
	t.Helper()
	deadline := time.Now().Add(patience)
	for time.Now().Before(deadline) {
		for _, e := range p.Events(0) {
			if e.Kind == portal.PeerLeft {
				return e
			}
		}
		time.Sleep(time.Millisecond)
	}
	t.Fatal("the portal did not see the gateway leave")
	return portal.Event{}
}

// ourRules lists the policy rules that lead to the gateway's tables.
func ourRules(t *testing.T, ns *labnet.Namespace) []string {
	t.Helper()
	var found []string
	err := ns.Do(func() error {
		rules, err := netlink.RuleList(netlink.FAMILY_ALL)
		for _, rule := range rules {
			if slices.Contains([]int{tun.TableUser, tun.TableLink, tun.TableInternet}, rule.Table) {
				found = append(found, rule.String())
			}
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}

// tables lists the firewall tables.
func tables(t *testing.T, ns *labnet.Namespace) []string {
	t.Helper()
	var names []string
	err := ns.Do(func() error {
		c, err := nftables.New()
		if err != nil {
			return err
		}
		all, err := c.ListTables()
		for _, table := range all {
			names = append(names, table.Name)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return names
}
