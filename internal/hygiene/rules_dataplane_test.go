package hygiene

import "testing"

const (
	inPacket    = "internal/packet"
	inPolicy    = "internal/policy"
	inNAT       = "internal/nat"
	inDNS       = "internal/dns"
	inTunnel    = "internal/tunnel"
	inTransport = "internal/transport"
	inTUN       = "internal/tun"
	inActors    = "actors"
	inDaemon    = "cmd/firezone-gateway"
	inTour      = "internal/lab/tour"
)

// dataplane are the conformance rules of dataplane §10.
var dataplane = rules{
	1:  {{inPacket, "TestParseRefuses", "1281 bytes (rule 1)"}, {inTunnel, "TestToResource", "one byte more does not"}},
	2:  {{inTransport, "TestOversizeIsNeitherSentNorReceived", ""}},
	3:  {{inPacket, "TestParseRefuses", "IPv4 total length too small (rule 3)"}},
	4:  {{inPacket, "TestParseRefuses", "IPv6 payload length too small (rule 4)"}},
	5:  {{inPacket, "TestParseRefuses", "IPv4 with MF (rule 5)"}, {inPacket, "TestParseAcceptsAndClassifies", "DF alone (rule 5)"}},
	6:  {{inPacket, "TestParseAcceptsAndClassifies", "an atomic fragment (rule 6)"}, {inPacket, "TestParseRefuses", "IPv6 first fragment (rule 6)"}},
	7:  {{inPacket, "TestParseRefuses", "UDP length below the payload (rule 7)"}},
	8:  {{inPacket, "TestParseRefuses", "TCP data offset 4 (rule 8)"}},
	9:  {{inPacket, "TestParseRefuses", "ICMPv4 in IPv6 (rule 9)"}},
	10: {{inPacket, "TestParseAcceptsAndClassifies", "GRE (rule 10)"}, {inPolicy, "TestOutboundOrderOfChecks", "rule 10: "}},
	11: {{inPacket, "TestParseAcceptsAndClassifies", "a wrong IPv4 header checksum (rule 11)"}, {inPolicy, "TestOutboundOrderOfChecks", "rule 11: "}},
	12: {{inPacket, "TestRewritingKeepsChecksumsRight", ""}, {inNAT, "TestTranslationGoesThereAndBack", ""}, {inNAT, "FuzzTranslate", ""}},
	13: {{inPacket, "TestRewritingKeepsAnAbsentUDPChecksumAbsent", ""}, {inNAT, "TestUDPWithoutChecksumStaysWithout", ""}},
	14: {{inPacket, "TestDeltaNeverYieldsZero", ""}},
	15: {{inNAT, "TestTranslationGoesThereAndBack", ""}},
	16: {{inTunnel, "TestCongestionIsMarkedOnPacketsThatTakePart", ""}, {inTunnel, "TestECNThroughTheEngine", ""}},
	17: {{inTransport, "TestDataCarriesTheECNFieldOfItsPacket", ""}, {inTunnel, "TestECNThroughTheEngine", ""}},
	18: {{inPolicy, "TestOutboundOrderOfChecks", "rule 18: a foreign IPv4 source"}, {inTour, "TestTourDropsForeignSources", ""}},
	19: {{inPolicy, "TestOutboundToTheGatewayItself", "rule 19: any TCP port with the open door"}},
	20: {{inPolicy, "TestOutboundOrderOfChecks", "rule 20: another tunnel address"}},
	21: {{inPolicy, "TestOutboundOrderOfChecks", "rule 21: IPv4 multicast"}},
	22: {{inPolicy, "TestOutboundOrderOfChecks", "rule 22: an ICMP error"}},
	23: {{inPolicy, "TestOutboundOrderOfChecks", "rule 23: no resource over IPv4"}, {inPacket, "TestAnswerOverIPv4", "prohibited (rule 23)"}},
	24: {{inPacket, "TestAnswerOverIPv4", "(rule 24)"}, {inPacket, "TestAnswerOverIPv6", "(rule 24)"}},
	25: {{inPacket, "TestAnswerOverIPv4", "(rule 25)"}, {inPacket, "TestAnswerOverIPv6", "(rule 25)"}},
	26: {{inTunnel, "TestToResource", "no grant over IPv4"}, {inTunnel, "FuzzToResource", ""}},
	27: {{inPolicy, "TestOutboundFilters", "rule 27: an empty list admits GRE"}},
	28: {{inPolicy, "TestOutboundFilters", "rule 28: the last port"}},
	29: {{inPolicy, "TestOutboundFilters", "rule 29: the switch admits every type"}},
	30: {{inPolicy, "TestOutboundFilters", "rule 30: GRE with a list"}},
	31: {{inPolicy, "TestOutboundSeveralResources", "rule 31: the wider resource admits"}},
	32: {{inPolicy, "TestOutboundSeveralResources", "rule 32: the longest prefix is credited"}, {inPolicy, "TestOutboundToProxyAddresses", "rule 32: "}},
	33: {{inPolicy, "TestOutboundToProxyAddresses", "rule 33: "}, {inPolicy, "TestOutboundSeveralResources", "rule 33: "}},
	34: {{inPolicy, "TestOutboundToProxyAddresses", "rule 34: "}, {inPolicy, "TestOutboundSeveralResources", "rule 34: "}},
	35: {{inPolicy, "TestOutboundSeveralResources", "rule 35: a private network next to the Internet resource"}, {inPacket, "TestAnswerOverIPv4", "no route (rule 35)"}},
	36: {{inPolicy, "TestOutboundExpiry", "rule 36: before the end"}, {inTunnel, "TestToResourceExpiresByTimeAlone", ""}},
	37: {{inPolicy, "TestOutboundExpiry", "rule 37: "}},
	38: {{inPolicy, "TestOutboundExpiry", "rule 38: "}},
	39: {{inActors, "TestRevokingTheLastResourceSendsTheClientAway", ""}},
	40: {{inActors, "TestInitTellsEveryPeerWhatItMayKeep", ""}, {inActors, "TestRetainKeepsWhatIsListed", ""}},
	41: {{inPolicy, "TestUpdateFilters", ""}, {inTunnel, "TestPolicyIsInForceWithTheNextPacket", ""}},
	42: {{inActors, "TestAClientThatIsGoneLosesItsConnectionAndKeepsItsGrants", ""}},
	43: {{inActors, "TestAnyChangedParameterReplacesTheConnection", ""}, {inActors, "TestDomainsEndWithTheClient", "another address"}},
	44: {{inPacket, "TestControlPacketsAreRecognised", ""}, {inPolicy, "TestOutboundOrderOfChecks", "rule 44: goodbye"}},
	45: {{inPacket, "TestGoodbyeOnTheWire", ""}, {inActors, "TestAGoodbyeDropsConnectionAndGrants", ""}},
	46: {{inActors, "TestSetUpsThatAreRefusedAtOnce", "rule 46: another resource is granted"}},
	47: {{inActors, "TestSetUpsThatAreRefusedAtOnce", "rule 47: the domain is another one"}, {inPolicy, "TestMatchDomain", ""}},
	48: {{inPacket, "TestDecodeAssignedIPs", ""}, {inActors, "TestControlPacketsThatMeanNothingAreCounted", ""}},
	49: {{inPacket, "TestEventsOnTheWire", "(rule 49)"}},
	50: {{inActors, "TestWhatBecomesOfAResolution", "rule 50: none"}, {inTunnel, "TestPacketsToDomainsThatDoNotPass", "a domain without address"}},
	51: {{inDNS, "TestResolvingHasTenSeconds", ""}, {inActors, "TestWhatBecomesOfAResolution", "rule 51: too late"}},
	52: {{inNAT, "TestAssignPairsAddresses", ""}},
	53: {{inNAT, "TestAssignPairsAddresses", ""}},
	54: {{inNAT, "TestAssigningTheSameDomainAgain", ""}},
	55: {{inNAT, "TestAssigningAProxyAddressToAnotherDomain", ""}},
	56: {{inNAT, "TestResourcesShareAProxyAddress", ""}, {inPolicy, "TestOutboundToProxyAddresses", "rule 56: neither of two resources admits"}},
	57: {{inNAT, "TestOutsidePorts", ""}},
	58: {{inNAT, "TestOutsidePorts", ""}},
	59: {{inNAT, "TestLifetimes", ""}},
	60: {{inNAT, "TestLifetimes", ""}},
	61: {{inNAT, "TestLifetimes", ""}},
	62: {{inNAT, "TestLifetimes", "FIN both ways"}},
	63: {{inNAT, "TestLifetimes", ""}, {inTunnel, "TestPacketsFromTheNetworkWithoutASession", ""}},
	64: {{inNAT, "TestSessionAfterTheEndUsesTheCurrentMap", ""}},
	65: {{inNAT, "TestErrorsQuoteWhatTheClientSent", ""}},
	66: {{inPolicy, "TestInbound", "rule 66: an ICMP error passes the filter"}},
	67: {{inPolicy, "TestInbound", "rule 67: another client"}, {inTunnel, "TestToClient", ""}},
	68: {{inPolicy, "TestInbound", "rule 68: a reply from another port"}},
	69: {{inPolicy, "TestInbound", "rule 69: another client as source"}},
	70: {{inTunnel, "TestToClient", "client not heard yet"}},
	71: {{inDNS, "TestForwardsWhateverIsAsked", ""}, {inDNS, "TestUDPAndTCPShareAPort", ""}},
	72: {{inDNS, "TestAnswerSizes", ""}},
	73: {{inDNS, "TestQueriesOneAfterTheOther", ""}},
	74: {{inDNS, "TestServfailWhereNoNameServerHelps", ""}},
	75: {{inTUN, "TestConfigureToleratesOneFamilyFailing", ""}, {inTransport, "TestOneFamilyIsEnough", ""}},
	76: {{inTUN, "TestConfigureSetsUpLinkRulesAndRoutes", ""}},
	77: {{inDaemon, "TestSecondGatewayIsRefusedAndDoesNotDisturb", ""}},
	78: {{inDaemon, "TestHealthEndpoint", ""}},
	79: {{inDaemon, "TestEndsInOrderWhenJoined", ""}, {inActors, "TestAShutdownSaysGoodbyeToEverybody", ""}},
	80: {{inDaemon, "TestToken", "the value wins over the credential"}},
}

// defects are those of the original that are not copied (dataplane §11).
var defects = rules{
	1:  {{inActors, "TestSetUpsThatAreRefusedAtOnce", "defect 1: not a proxy address"}, {inNAT, "TestAssignRefusesWithoutChangingAnything", ""}},
	2:  {{inNAT, "TestMemoryOfEndedSessionsIsBounded", ""}},
	3:  {{inNAT, "TestLifetimes", ""}},
	4:  {{inNAT, "TestAssignPairsAddresses", ""}},
	5:  {{inPolicy, "TestOutboundExpiry", "rule 37: "}},
	6:  {{inActors, "TestInitTellsEveryPeerWhatItMayKeep", ""}, {inActors, "TestRetainKeepsWhatIsListed", ""}},
	7:  {{inTUN, "TestConfigureToleratesOneFamilyFailing", ""}},
	8:  {{inNAT, "TestAssignRefusesWithoutChangingAnything", ""}, {inActors, "TestWhatBecomesOfAResolution", "rule 51: too late"}},
	9:  {{inDNS, "TestADeadNameServerIsAvoided", ""}, {inDNS, "TestHealthOrdersNameServers", ""}},
	10: {{inDNS, "TestIdleConnectionsAreClosed", ""}, {inDNS, "TestConnectionsOfAllClientsAreLimited", ""}, {inDNS, "TestAThousandQueriesAtOnceAndNoMore", ""}},
	11: {{inNAT, "TestErrorsQuoteWhatTheClientSent", ""}},
	12: {{"internal/admin", "TestHealth", ""}},
	13: {{inDNS, "TestVet", ""}, {inNAT, "TestAssignVetsRealAddresses", ""}},
	14: {{inTunnel, "TestAnswersAreBounded", ""}, {inPacket, "TestSomePacketsAreNeverAnswered", ""}},
	15: {{inTUN, "TestRaiseNeverLowers", ""}},
}

func TestEveryRuleOfTheDataPlaneHasATest(t *testing.T) { dataplane.check(t, "rule %d", 80) }

func TestEveryDefectOfTheOriginalHasATest(t *testing.T) { defects.check(t, "defect %d", 15) }
