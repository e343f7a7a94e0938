package telemetry

import "go.opentelemetry.io/otel/attribute"

// Attributes of spans and their events only. None carries what a client sends
// or what is secret.
const (
	AttrActorRestart = attribute.Key("actor.restart")       // on the span of a restart: which one, from 1
	AttrActorDelay   = attribute.Key("actor.restart.delay") // seconds until the restart
	AttrActorStuck   = attribute.Key("actor.stuck")         // seconds that the handler had run
	AttrFailures     = attribute.Key("actor.failures")      // failures in a row
	AttrGiveUp       = attribute.Key("actor.give_up")       // degrade, escalate or exit

	AttrCandidates = attribute.Key("ice.candidates")    // how many
	AttrPathKind   = attribute.Key("network.path")      // direct or relayed
	AttrCause      = attribute.Key("cause")             // in words: why something ended
	AttrRoute      = attribute.Key("portal.route")      // of the portal: v1 or v2
	AttrConnection = attribute.Key("portal.connection") // number of the connection to the portal
	AttrLink       = attribute.Key("link")              // what a link is for

	AttrKept      = attribute.Key("sampling.kept")      // true: exported because of an error in its trace
	AttrSpansLost = attribute.Key("sampling.truncated") // spans missing before this one
)
