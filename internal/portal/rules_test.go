package portal

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

// Folders of tests that rules are held by.
const (
	here         = "internal/portal"
	socket       = "internal/portal/ws"
	policyTests  = "internal/policy"
	labPortal    = "internal/lab/portal"
	labRelay     = "internal/lab/relay"
	demonstrated = "internal/lab/tour"
	process      = "cmd/firezone-gateway"
	actorTests   = "actors"
)

// rules says for each rule of §9 which tests fail without it. A case is a
// string in that test, most often the name of a subtest.
var rules = map[int][]struct{ dir, test, inside string }{
	1:  {{here, "TestExternalID", "a lowercase UUID is hashed"}},
	2:  {{here, "TestEndpointRequest", "rule 2: plus and slash of a key are escaped"}, {here, "FuzzLoginURL", ""}},
	3:  {{here, "TestEndpointRequest", "rule 3: the oldest portals get the token first in the query"}, {socket, "TestDialRoutes", "rules 3 and 5: the oldest portal gets the token in the query as well"}},
	4:  {{here, "TestEndpointRequest", "Bearer .SFM+ab="}, {process, "TestTokenReachesThePortalHoweverItIsGiven", ""}},
	5:  {{labPortal, "TestRefusedLogins", "wrong header beats right query"}},
	6:  {{here, "TestFrameEncode", "rule 6: a push has a null ref"}, {here, "FuzzFrame", ""}, {labPortal, "TestFramesThatEndTheConnection", "missing ref"}},
	7:  {{here, "TestSessionJoin", "rules 6 and 7: the first frame is a join with ref 0"}},
	8:  {{here, "TestSessionJoin", "rule 8: application messages wait for the join reply, heartbeats do not"}},
	9:  {{here, "TestSessionJoin", "rule 9: no reply for 5 s ends the session"}},
	10: {{here, "TestSessionJoin", "rule 10: an error reply is fatal"}},
	11: {{here, "TestSessionJoin", "rule 11: unmatched topic leads to one join on the same socket"}},
	12: {{here, "TestSessionHeartbeats", "rule 12: every 10 s, whatever else is sent"}},
	13: {{here, "TestSessionHeartbeats", "rule 13: the fourth without an answer ends the session"}},
	14: {{here, "TestSessionHeartbeats", "rule 14: the session is never silent for 37 s"}, {labPortal, "TestSilentPeersAreClosed", ""}},
	15: {{here, "TestClassifyHTTP", "rule 15: a 401 without a body is fatal"}, {socket, "TestDialRoutes", "rule 15: 401 is fatal and no other route is tried"}, {process, "TestRefusedTokenEndsTheGateway", ""}},
	16: {{here, "TestClassifyHTTP", "rule 16: %d is retried"}, {demonstrated, "TestTourSurvivesARefusingPortal", ""}},
	17: {{here, "TestParseRetryAfter", "a date"}, {here, "TestBackoffBudget", "rule 17: Retry-After is not the delay:"}, {socket, "TestDialRoutes", "rule 17: a busy portal names the delay"}},
	18: {{here, "TestBackoffBeforeTheFirstSuccess", "rule 18: a 16th retry"}},
	19: {{here, "TestBackoffAfterSuccess", "rule 19: retry %d: %v is not in [%v, %v)"}, {here, "TestBackoffNeverExceedsItsBudget", ""}},
	20: {{here, "TestSessionControlEvents", "rule 20: an expired token is fatal"}},
	21: {{here, "TestSessionControlEvents", "rule 21: phx_close asks for a re-connect"}, {here, "TestSessionControlEvents", "rule 21: phx_error is ignored"}},
	22: {{socket, "TestConnEnds", "rule 22: a Close of the portal is answered with the same code and reported"}},
	23: {{here, "TestSessionControlEvents", "rule 23: a payload that does not fit is dropped"}, {demonstrated, "TestTourSurvivesAMalformedPortal", ""}},
	24: {{here, "TestDecodeOtherMessages", "rule 24: init with nothing but addresses"}},
	25: {{policyTests, "TestGrants", "retain drops what is not listed"}, {policyTests, "TestGrants", "retain of an empty list drops everything"}},
	26: {{policyTests, "TestGrantsExpire", "a re-dated grant ended at its old end"}},
	27: {{here, "TestOutgoing", "rule 27: authorize_flow is answered with flow_authorized"}, {demonstrated, "TestTour", ""}, {demonstrated, "TestTourWithAnOlderPortal", ""}},
	28: {{here, "TestSessionSend", "rule 28: messages keep their order across the join"}, {actorTests, "TestAnAuthorizationIsAcknowledgedBeforeTheCandidates", ""}},
	29: {{actorTests, "TestWithoutAUsableRelayNothingIsAcknowledged", ""}},
	30: {{actorTests, "TestTheSameParametersKeepTheSessionAndSignalEverythingAgain", ""}, {actorTests, "TestAnyChangedParameterReplacesTheConnection", ""}},
	31: {{actorTests, "TestAuthorizingAResourceAgainReplacesItsGrant", ""}},
	32: {{actorTests, "TestAllowAccessMayOvertakeTheRequestForTheConnection", ""}},
	33: {{actorTests, "TestRevokingTheLastResourceSendsTheClientAway", ""}},
	34: {{here, "TestDecodeOtherMessages", "rule 34: bad candidates are skipped one by one"}},
	35: {{here, "TestDecodeResource", "rule 35: ports default to all"}},
	36: {{here, "TestMergeRelays", "rule 36: adjacent entries of one id are one relay"}, {here, "TestRelayRealm", ""}},
	37: {{policyTests, "TestOutboundExpiry", "rule 36: at the end"}, {policyTests, "TestGrantsExpire", ""}, {demonstrated, "TestTour", ""}},
	38: {{here, "TestFrameEncode", "rule 38: a heartbeat has an object for payload"}, {here, "TestOutgoing", "rule 38: no_relays has an object for payload"}},
	39: {{here, "TestSessionJoin", "rule 39: no join is followed by a capability that the gateway lacks"}},
	40: {{here, "TestBacklog", "rule 40: candidates are sent in their order, by client"}, {here, "TestBacklog", "rule 40: cancelled ones are not"}},
	41: {{socket, "TestConnEnds", "rule 41: Close flushes, says 1000 and waits for the answer"}, {process, "TestEndsInOrderWhenJoined", ""}, {demonstrated, "TestTour", ""}},
	42: {{labPortal, "TestSecondGatewayIsRefusedWhileTheFirstStays", ""}},
	43: {{labPortal, "TestRepliesOfTheChannel", "heartbeat"}},
	44: {{labPortal, "TestDeriveICEMatchesTheVector", ""}, {labPortal, "TestDerivePSKMatchesTheVector", ""}, {labPortal, "TestDeriveTURNMatchesTheVectors", ""}, {labRelay, "TestCredentialsMatchTheVectors", ""}},
	45: {{labPortal, "TestClientInitOfBothGenerations", "flow_logs"}, {labPortal, "TestAuthorization", "flow_logs_ingest_token"}, {labPortal, "TestIngestTokenIsAWellFormedJWT", ""}},
	46: {{here, "TestTheDevelopmentPortalSendsNoPings", ""}},
}

// TestEveryRuleHasATest fails if a test of the table does not exist. Where no
// release is made from, a rule without any test is only reported.
func TestEveryRuleHasATest(t *testing.T) {
	const count = 46
	for n := range rules {
		if n < 1 || n > count {
			t.Errorf("there is no rule %d", n)
		}
	}
	sources := make(map[string]map[string]*ast.FuncDecl)
	for n := 1; n <= count; n++ {
		t.Run(fmt.Sprint("rule ", n), func(t *testing.T) {
			if len(rules[n]) == 0 {
				if os.Getenv("CI") == "true" {
					t.Fatal("no test")
				}
				t.Skip("no test")
			}
			for _, r := range rules[n] {
				if sources[r.dir] == nil {
					sources[r.dir] = testFunctions(t, r.dir)
				}
				switch f := sources[r.dir][r.test]; {
				case f == nil:
					t.Errorf("%s has no %s", r.dir, r.test)
				case r.inside != "" && !contains(f, r.inside):
					t.Errorf("%s in %s has no %q", r.test, r.dir, r.inside)
				}
			}
		})
	}
}

func TestRelayRealm(t *testing.T) {
	if RelayRealm != "firezone" {
		t.Errorf("rule 36: the realm is %q", RelayRealm)
	}
}

// TestTheDevelopmentPortalSendsNoPings looks for the one constant without which
// the websocket library sends none, because an absence can not be waited for.
func TestTheDevelopmentPortalSendsNoPings(t *testing.T) {
	files := 0
	for _, f := range parsed(t, labPortal, func(name string) bool { return !strings.HasSuffix(name, "_test.go") }) {
		files++
		ast.Inspect(f, func(n ast.Node) bool {
			if id, ok := n.(*ast.Ident); ok && id.Name == "PingMessage" {
				t.Error("rule 46: the development portal sends pings")
			}
			return true
		})
	}
	if files == 0 {
		t.Error("no sources of the development portal")
	}
}

func testFunctions(t *testing.T, dir string) map[string]*ast.FuncDecl {
	t.Helper()
	found := make(map[string]*ast.FuncDecl)
	for _, f := range parsed(t, dir, func(name string) bool { return strings.HasSuffix(name, "_test.go") }) {
		for _, d := range f.Decls {
			if fn, ok := d.(*ast.FuncDecl); ok && fn.Recv == nil {
				found[fn.Name.Name] = fn
			}
		}
	}
	return found
}

func parsed(t *testing.T, dir string, wanted func(name string) bool) (files []*ast.File) {
	t.Helper()
	names, err := filepath.Glob(filepath.Join("..", "..", dir, "*.go"))
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		if !wanted(name) {
			continue
		}
		f, err := parser.ParseFile(token.NewFileSet(), name, nil, parser.SkipObjectResolution)
		if err != nil {
			t.Fatal(err)
		}
		files = append(files, f)
	}
	return files
}

func contains(f *ast.FuncDecl, text string) (found bool) {
	ast.Inspect(f, func(n ast.Node) bool {
		if l, ok := n.(*ast.BasicLit); ok && l.Kind == token.STRING {
			s, err := strconv.Unquote(l.Value)
			found = found || err == nil && s == text
		}
		return !found
	})
	return found
}
