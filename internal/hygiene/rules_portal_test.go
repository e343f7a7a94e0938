package hygiene

import (
	"go/ast"
	"go/parser"
	"go/token"
	"path/filepath"
	"strings"
	"testing"
)

const (
	inSocket   = "internal/portal/ws"
	inLabRelay = "internal/lab/relay"
	inHygiene  = "internal/hygiene"
)

// portal are the conformance rules of portal-protocol §9.
var portal = rules{
	1:  {{inPortal, "TestExternalID", "a lowercase UUID is hashed"}},
	2:  {{inPortal, "TestEndpointRequest", "rule 2: plus and slash of a key are escaped"}, {inPortal, "FuzzLoginURL", ""}},
	3:  {{inPortal, "TestEndpointRequest", "rule 3: the oldest portals get the token first in the query"}, {inSocket, "TestDialRoutes", "rules 3 and 5: the oldest portal gets the token in the query as well"}},
	4:  {{inPortal, "TestEndpointRequest", "Bearer .SFM+ab="}, {inDaemon, "TestTokenReachesThePortalHoweverItIsGiven", ""}},
	5:  {{inLabPortal, "TestRefusedLogins", "wrong header beats right query"}},
	6:  {{inPortal, "TestFrameEncode", "rule 6: a push has a null ref"}, {inPortal, "FuzzFrame", ""}, {inLabPortal, "TestFramesThatEndTheConnection", "missing ref"}},
	7:  {{inPortal, "TestSessionJoin", "rules 6 and 7: the first frame is a join with ref 0"}},
	8:  {{inPortal, "TestSessionJoin", "rule 8: application messages wait for the join reply, heartbeats do not"}},
	9:  {{inPortal, "TestSessionJoin", "rule 9: no reply for 5 s ends the session"}},
	10: {{inPortal, "TestSessionJoin", "rule 10: an error reply is fatal"}},
	11: {{inPortal, "TestSessionJoin", "rule 11: unmatched topic leads to one join on the same socket"}},
	12: {{inPortal, "TestSessionHeartbeats", "rule 12: every 10 s, whatever else is sent"}},
	13: {{inPortal, "TestSessionHeartbeats", "rule 13: the fourth without an answer ends the session"}},
	14: {{inPortal, "TestSessionHeartbeats", "rule 14: the session is never silent for 37 s"}, {inLabPortal, "TestSilentPeersAreClosed", ""}},
	15: {{inPortal, "TestClassifyHTTP", "rule 15: a 401 without a body is fatal"}, {inSocket, "TestDialRoutes", "rule 15: 401 is fatal and no other route is tried"}, {inDaemon, "TestRefusedTokenEndsTheGateway", ""}},
	16: {{inPortal, "TestClassifyHTTP", "rule 16: %d is retried"}, {inTour, "TestTourSurvivesARefusingPortal", ""}},
	17: {{inPortal, "TestParseRetryAfter", "a date"}, {inPortal, "TestBackoffBudget", "rule 17: Retry-After is not the delay:"}, {inSocket, "TestDialRoutes", "rule 17: a busy portal names the delay"}},
	18: {{inPortal, "TestBackoffBeforeTheFirstSuccess", "rule 18: a 16th retry"}},
	19: {{inPortal, "TestBackoffAfterSuccess", "rule 19: retry %d: %v is not in [%v, %v)"}, {inPortal, "TestBackoffNeverExceedsItsBudget", ""}},
	20: {{inPortal, "TestSessionControlEvents", "rule 20: an expired token is fatal"}},
	21: {{inPortal, "TestSessionControlEvents", "rule 21: phx_close asks for a re-connect"}, {inPortal, "TestSessionControlEvents", "rule 21: phx_error is ignored"}},
	22: {{inSocket, "TestConnEnds", "rule 22: a Close of the portal is answered with the same code and reported"}},
	23: {{inPortal, "TestSessionControlEvents", "rule 23: a payload that does not fit is dropped"}, {inTour, "TestTourSurvivesAMalformedPortal", ""}},
	24: {{inPortal, "TestDecodeOtherMessages", "rule 24: init with nothing but addresses"}},
	25: {{inPolicy, "TestGrants", "retain drops what is not listed"}, {inPolicy, "TestGrants", "retain of an empty list drops everything"}},
	26: {{inPolicy, "TestGrantsExpire", "a re-dated grant ended at its old end"}},
	27: {{inPortal, "TestOutgoing", "rule 27: authorize_flow is answered with flow_authorized"}, {inTour, "TestTour", ""}, {inTour, "TestTourWithAnOlderPortal", ""}},
	28: {{inPortal, "TestSessionSend", "rule 28: messages keep their order across the join"}, {inActors, "TestAnAuthorizationIsAcknowledgedBeforeTheCandidates", ""}},
	29: {{inActors, "TestWithoutAUsableRelayNothingIsAcknowledged", ""}},
	30: {{inActors, "TestTheSameParametersKeepTheSessionAndSignalEverythingAgain", ""}, {inActors, "TestAnyChangedParameterReplacesTheConnection", ""}},
	31: {{inActors, "TestAuthorizingAResourceAgainReplacesItsGrant", ""}},
	32: {{inActors, "TestAllowAccessMayOvertakeTheRequestForTheConnection", ""}},
	33: {{inActors, "TestRevokingTheLastResourceSendsTheClientAway", ""}},
	34: {{inPortal, "TestDecodeOtherMessages", "rule 34: bad candidates are skipped one by one"}},
	35: {{inPortal, "TestDecodeResource", "rule 35: ports default to all"}},
	36: {{inPortal, "TestMergeRelays", "rule 36: adjacent entries of one id are one relay"}, {inPortal, "TestRelayRealm", ""}},
	37: {{inPolicy, "TestOutboundExpiry", "rule 36: at the end"}, {inPolicy, "TestGrantsExpire", ""}, {inTour, "TestTour", ""}},
	38: {{inPortal, "TestFrameEncode", "rule 38: a heartbeat has an object for payload"}, {inPortal, "TestOutgoing", "rule 38: no_relays has an object for payload"}},
	39: {{inPortal, "TestSessionJoin", "rule 39: no join is followed by a capability that the gateway lacks"}},
	40: {{inPortal, "TestBacklog", "rule 40: candidates are sent in their order, by client"}, {inPortal, "TestBacklog", "rule 40: cancelled ones are not"}},
	41: {{inSocket, "TestConnEnds", "rule 41: Close flushes, says 1000 and waits for the answer"}, {inDaemon, "TestEndsInOrderWhenJoined", ""}, {inTour, "TestTour", ""}},
	42: {{inLabPortal, "TestSecondGatewayIsRefusedWhileTheFirstStays", ""}},
	43: {{inLabPortal, "TestRepliesOfTheChannel", "heartbeat"}},
	44: {{inLabPortal, "TestDeriveICEMatchesTheVector", ""}, {inLabPortal, "TestDerivePSKMatchesTheVector", ""}, {inLabPortal, "TestDeriveTURNMatchesTheVectors", ""}, {inLabRelay, "TestCredentialsMatchTheVectors", ""}},
	45: {{inLabPortal, "TestClientInitOfBothGenerations", "flow_logs"}, {inLabPortal, "TestAuthorization", "flow_logs_ingest_token"}, {inLabPortal, "TestIngestTokenIsAWellFormedJWT", ""}},
	46: {{inHygiene, "TestTheDevelopmentPortalSendsNoPings", ""}},
}

func TestEveryRuleOfThePortalProtocolHasATest(t *testing.T) { portal.check(t, "rule %d", 46) }

// TestTheDevelopmentPortalSendsNoPings looks for the one constant without which
// the websocket library sends none, because an absence cannot be waited for.
func TestTheDevelopmentPortalSendsNoPings(t *testing.T) {
	names, err := filepath.Glob(filepath.Join("..", "..", filepath.FromSlash(inLabPortal), "*.go"))
	if err != nil || len(names) == 0 {
		t.Fatal("no sources of the development portal", err)
	}
	for _, name := range names {
		if strings.HasSuffix(name, "_test.go") {
			continue
		}
		f, err := parser.ParseFile(token.NewFileSet(), name, nil, parser.SkipObjectResolution)
		if err != nil {
			t.Fatal(err)
		}
		ast.Inspect(f, func(n ast.Node) bool {
			if id, ok := n.(*ast.Ident); ok && id.Name == "PingMessage" {
				t.Errorf("rule 46: the development portal sends pings, %s", name)
			}
			return true
		})
	}
}
