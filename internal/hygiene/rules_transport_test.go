package hygiene

import "testing"

const (
	inICE       = "internal/transport/ice"
	inTURN      = "internal/transport/turn"
	inPortal    = "internal/portal"
	inLabPortal = "internal/lab/portal"
)

// transport are the conformance rules of transport §8, T-01 to T-62.
var transport = rules{
	1:  {{inTransport, "TestTakenPortLeadsToAnEphemeralOneInThatFamilyOnly", ""}, {inTransport, "TestNumbersOfTheProtocol", ""}},
	2:  {{inTransport, "TestOneFamilyIsEnough", ""}},
	3:  {{inTransport, "TestOversizeIsNeitherSentNorReceived", ""}, {inTransport, "TestNumbersOfTheProtocol", ""}},
	4:  {{inTransport, "TestDataCarriesTheECNFieldOfItsPacket", ""}, {inTransport, "TestControlDatagramsAreNotECT", ""}, {inTunnel, "TestCongestionIsMarkedOnPacketsThatTakePart", ""}, {inTunnel, "TestECNThroughTheEngine", ""}},
	5:  {{inTransport, "TestMarkIsSet", ""}, {inTransport, "TestNumbersOfTheProtocol", ""}},
	6:  {{inTransport, "TestReplyComesFromTheAddressThatWasAsked", ""}},
	7:  {{inICE, "TestDeliverSortsMessages", "a request with a wrong password"}, {inTransport, "TestDemultiplexing", "noise"}, {inTunnel, "TestOnlyAdmittedClientsConnect", ""}},
	8:  {{inTransport, "TestEngineFollowsARoamingClient", ""}, {inTunnel, "TestPathFollowsARoamingClient", ""}},
	9:  {{inTransport, "TestDemultiplexing", "STUN from a relay"}, {inTransport, "TestDemultiplexing", "STUN from a peer"}, {inTransport, "TestRemovedRelayIsAStranger", ""}},
	10: {{inICE, "TestConnectsToAControllingAgent", ""}, {inICE, "TestALateCandidateOfTheClientIsPunched", ""}},
	11: {{inICE, "TestALateCandidateOfTheClientIsPunched", ""}, {inICE, "TestDeliverSortsMessages", "an authentic request"}, {inActors, "TestAnyChangedParameterReplacesTheConnection", "local ufrag"}},
	12: {{inICE, "TestALateCandidateOfTheClientIsPunched", ""}, {inICE, "TestChecksAreWhatClientsParse", ""}},
	13: {{inICE, "TestRequestsAreAnsweredOnEveryAddressAndAfterChanges", ""}, {inICE, "TestAnswersAreWhatClientsParse", ""}},
	14: {{inICE, "TestT14NoIndicationIsEverSent", ""}},
	15: {{inICE, "TestRequestsAreAnsweredOnEveryAddressAndAfterChanges", ""}, {inActors, "TestAnAgentThatGaveUpDoesNotEndASession", ""}, {inICE, "TestAddressesOfTheClient", "however many there are, all are answered and the best pair stays"}},
	16: {{inICE, "TestRequestsAreAnsweredOnEveryAddressAndAfterChanges", ""}},
	17: {{inICE, "TestT17PunchingFollowsTheSchedule", ""}, {inICE, "TestALateCandidateOfTheClientIsPunched", ""}, {inICE, "TestACheckOfTheClientTriggersOurs", ""}},
	18: {{inICE, "TestDownwardSelectionNeedsSilence", ""}, {inTransport, "TestEndpointFollowsTheAuthenticatedPath", ""}, {inICE, "TestNominationIsEnoughToBeTheBest", ""}},
	19: {{inTransport, "TestEndpointFollowsTheAuthenticatedPath", ""}, {inICE, "TestDownwardSelectionNeedsSilence", ""}, {inTour, "TestTour", ""}, {inICE, "TestABlockedDirectPathIsLeftAndFoundAgain", ""}, {inICE, "TestWhatIsTakenAwayIsGoneAtOnce", ""}, {inTour, "TestTourMovesToTheOtherRelay", ""}},
	20: {{inICE, "TestMarshalWritesWhatClientsParse", "a host candidate has no related address"}},
	21: {{inICE, "TestMarshalWritesWhatClientsParse", "a relayed IPv6 candidate"}},
	22: {{inICE, "TestPrioritiesAreThoseOfTheProtocol", ""}},
	23: {{inActors, "TestAnAuthorizationIsAcknowledgedBeforeTheCandidates", ""}},
	24: {{inActors, "TestAnAuthorizationIsAcknowledgedBeforeTheCandidates", ""}, {inActors, "TestCandidatesAreRepeatedForAClientThatIsNotHeard", ""}},
	25: {{inActors, "TestLocalCandidatesAreSharedButForTheRelayed", ""}},
	26: {{inActors, "TestChangesOfRelaysAreSignalled", "the allocation was lost"}, {inICE, "TestKeyFollowsWhatAnInvalidationRepeats", ""}, {inTURN, "TestT46MismatchIsRepaired", "on REFRESH by ALLOCATE"}},
	27: {{inActors, "TestChangesOfRelaysAreSignalled", "host and reflexive addresses are never taken back"}, {inActors, "TestNewOffer", ""}},
	28: {{inActors, "TestTheSameParametersKeepTheSessionAndSignalEverythingAgain", ""}},
	29: {{inActors, "TestAnyChangedParameterReplacesTheConnection", ""}},
	30: {{inTunnel, "TestT30AClientThatLostItsStateComesBack", "at once"}, {inICE, "TestRequestsAreAnsweredOnEveryAddressAndAfterChanges", ""}, {inActors, "TestTheSameParametersKeepTheSessionAndSignalEverythingAgain", ""}},
	31: {{inActors, "TestCandidatesWithoutAConnectionAreDropped", ""}, {inActors, "TestMessagesForUnknownClientsAreCounted", ""}},
	32: {{inICE, "TestT32OptimisticCandidates", "two at most"}, {inActors, "TestCandidatesAreTakenOneByOneAndGetTheirChannels", ""}},
	33: {{inActors, "TestCandidatesAreTakenOneByOneAndGetTheirChannels", ""}, {inPortal, "TestDecodeOtherMessages", "rule 34: bad candidates are skipped one by one"}},
	34: {{inICE, "TestT34AnAgentOutlivesTheClientsPatience", "idle"}, {inTunnel, "TestT34ASessionOutlivesTheClientsPatience", ""}},
	35: {{inICE, "TestT35IdleConnectionsAreCheckedEvery25Seconds", "a client that is asleep"}, {inICE, "TestIdleConnections", "one check in 25 s for all pairs together"}},
	36: {{inPortal, "TestSessionJoin", "rule 39: no join is followed by a capability that the gateway lacks"}, {inLabPortal, "TestIcelessNeedsBothSidesAndTheFlag", ""}},
	37: {{inPortal, "TestDecodeGrants", "create_authorization without expires_at"}, {inTour, "TestTourWithAnOlderPortal", ""}},
	38: {{inTURN, "FuzzClient", ""}, {inActors, "TestAnAllocationThatIsNotIntactIsMadeAnew", ""}, {inActors, "TestUpdatesAddReplaceAndDropRelays", ""}},
	39: {{inTURN, "TestT39ChannelsAreTheOnlyWay", ""}, {inActors, "TestAChannelIsBoundOnDemand", ""}, {inActors, "TestChannelsCarryDatagramsOfAgents", "through the relay"}},
	40: {{inTransport, "TestRelayedSending", ""}, {inTransport, "TestDemultiplexing", "padded ChannelData"}},
	41: {{inTURN, "TestT41NumbersRiseWrapAndEnd", ""}, {inTransport, "TestChannelTable", ""}, {inTransport, "TestNumbersOfTheProtocol", ""}},
	42: {{inTURN, "TestT42PairingsAreKeptFor15Minutes", "a peer comes back with its number"}, {inTURN, "FuzzClient", ""}},
	43: {{inTURN, "TestT43ActiveChannelsAreRenewed", "at five minutes when data was received"}},
	44: {{inTURN, "TestT44RefreshAtHalfTheLifetime", ""}},
	45: {{inTURN, "TestT45NonceIsAdoptedForEveryMethod", "CHANNEL-BIND"}},
	46: {{inTURN, "TestT46MismatchIsRepaired", "on ALLOCATE by REFRESH 0 and ALLOCATE"}},
	47: {{inTURN, "TestT47UnauthenticatedResponsesAreIgnored", "unsigned 401"}, {inTURN, "TestOtherErrorsThatNobodySignedChangeNothing", ""}, {inTURN, "TestForgedRefusalsDoNotHideATrueAnswer", ""}},
	48: {{inTURN, "TestT48AllocateAsksForBothFamiliesAndAcceptsEither", "both"}},
	49: {{inTURN, "TestT49FirstBindingAnswerSelectsTheFamily", ""}, {inTURN, "TestT49SilenceOfOneFamilyDoesNotHurt", ""}},
	50: {{inTURN, "TestT50KeepaliveEvery25Seconds", ""}},
	51: {{inActors, "TestUpdatesAddReplaceAndDropRelays", ""}, {inActors, "TestChangesOfRelaysAreSignalled", "the relay was replaced by another one"}},
	52: {{inPortal, "TestMergeRelays", "rule 36: adjacent entries of one id are one relay"}},
	53: {{inActors, "TestChangesOfRelaysAreSignalled", "another one takes over from a relay that failed"}},
	54: {{inActors, "TestWithoutAUsableRelayNothingIsAcknowledged", ""}, {inActors, "TestTheLossOfTheLastRelayIsReportedOnce", ""}, {inActors, "TestThePortalIsNotAskedForRelaysInALoop", ""}},
	55: {{inActors, "TestCandidatesAreTakenOneByOneAndGetTheirChannels", ""}},
	56: {{inActors, "TestT56EachProcessHasItsOwnKeys", ""}, {inTunnel, "TestT56NothingIsSentToAClientThatWasNotHeard", ""}, {inTunnel, "TestToClient", "client not heard yet"}, {inTransport, "TestInitiationPathIsForResponsesOnly", ""}},
	57: {{inTransport, "TestInitiationPathIsForResponsesOnly", ""}, {inTunnel, "TestOnlyAdmittedClientsConnect", ""}},
	58: {{inTunnel, "TestT58AnIdleSessionIsSilent", ""}, {inTunnel, "TestOnlyAdmittedClientsConnect", ""}, {inPortal, "TestDecodeRefusesPayloads", "a preshared key with a line break"}},
	59: {{inTunnel, "TestLargestPacketsPassBothWays", ""}, {inTunnel, "TestToClient", "oversize"}, {inTUN, "TestOpenCreatesTheDeviceAndCloseRemovesIt", ""}},
	60: {{inActors, "TestRevokingTheLastResourceSendsTheClientAway", ""}, {inActors, "TestAShutdownSaysGoodbyeToEverybody", ""}, {inActors, "TestAGoodbyeDropsConnectionAndGrants", ""}, {inTunnel, "TestGoodbyeWithoutASession", ""}},
	61: {{inActors, "TestAClientThatIsGoneLosesItsConnectionAndKeepsItsGrants", "its keys were wiped"}, {inActors, "TestAClientWithoutCandidatesLosesItsConnectionAndKeepsItsGrants", ""}},
	62: {{inActors, "TestCandidatesAreNettedWhileThePortalIsAway", ""}, {inPortal, "TestBacklogSendsTheNetChange", ""}},
}

func TestEveryRuleOfTheTransportHasATest(t *testing.T) { transport.check(t, "T-%02d", 62) }
