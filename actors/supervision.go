// Package actors is the control side of the gateway: one actor per file. Actors
// own every decision and all state; the packet path reads what they publish
// (docs/architecture.md).
package actors

import (
	"time"

	"firezone-gateway/internal/actorkit"
)

// The kinds of actors.
const (
	KindGateway   = "gateway"
	KindPortal    = "portal"
	KindTUN       = "tun"
	KindTransport = "transport"
	KindRelay     = "relay"
	KindPeers     = "peers"
	KindPeer      = "peer"
	KindNAT       = "nat"
	KindDNS       = "dns"
	KindDNSServer = "dns_server"
	KindResolver  = "resolver"
)

// ExitGaveUp is the exit code when supervision cannot keep the gateway going.
const ExitGaveUp = 1

// healthy is how long an incarnation has to live for its failure not to be one of a
// crash loop: an actor that works for longer may fail every second, and is back
// after its shortest delay each time.
const healthy = 500 * time.Millisecond

// Table is the supervision table: what happens when an actor of each kind
// fails, or gets stuck, and what its restart keeps. Order follows from the tree:
// an actor starts its children in its own Started, which the time until stuck
// bounds, gateway first; it tells them to stop before it stops, the one started
// last first, and ends when they have, so that the tree ends from its leaves and
// no child has a larger budget than its parent.
var Table = mustTable(
	actorkit.Spec{
		Kind: KindGateway, Restart: actorkit.Never,
		ShutdownBudget: 5 * time.Second,
		Survives:       "nothing: it only wires its children",
		GiveUp:         actorkit.Exit(ExitGaveUp),
	},
	actorkit.Spec{
		Kind: KindPortal, Restart: actorkit.Always,
		Backoff:        actorkit.Backoff{Start: 100 * time.Millisecond, Factor: 2, Cap: 30 * time.Second, Jitter: 0.3, ResetAfter: healthy},
		ShutdownBudget: 2 * time.Second,
		Survives:       "grants (store of peers); the channel joins again and the portal repeats init",
		GiveUp:         actorkit.Exit(ExitGaveUp),
	},
	actorkit.Spec{
		Kind: KindTUN, Restart: actorkit.Always,
		Backoff:        actorkit.Backoff{Start: 100 * time.Millisecond, Factor: 2, Cap: 5 * time.Second, Jitter: 0.2, ResetAfter: healthy},
		Intensity:      actorkit.Intensity{Max: 10, Within: time.Minute},
		ShutdownBudget: 2 * time.Second,
		Survives:       "the device with its addresses, routes and rules (plane); a lost one is made again, the engine waits for it",
		GiveUp:         actorkit.Exit(ExitGaveUp),
	},
	actorkit.Spec{
		Kind: KindTransport, Restart: actorkit.Always,
		Backoff:        actorkit.Backoff{Start: 50 * time.Millisecond, Factor: 2, Cap: 5 * time.Second, Jitter: 0.2, ResetAfter: healthy},
		ShutdownBudget: 2 * time.Second,
		Survives:       "sockets, known relays and their allocations (plane); relays adopt these",
		GiveUp:         actorkit.Exit(ExitGaveUp),
	},
	actorkit.Spec{
		Kind: KindRelay, Restart: actorkit.OnFailure,
		Backoff:        actorkit.Backoff{Start: 100 * time.Millisecond, Factor: 2, Cap: 30 * time.Second, Jitter: 0.3, ResetAfter: healthy},
		Intensity:      actorkit.Intensity{Max: 8, Within: 2 * time.Minute},
		ShutdownBudget: time.Second,
		Survives:       "credentials (producer); the allocation with its channels (plane)",
		GiveUp:         actorkit.Degrade,
	},
	actorkit.Spec{
		Kind: KindPeers, Restart: actorkit.Always,
		Backoff:        actorkit.Backoff{Start: 20 * time.Millisecond, Factor: 2, Cap: 2 * time.Second, Jitter: 0.2, ResetAfter: healthy},
		ShutdownBudget: 3 * time.Second,
		Survives:       "all grants and connection parameters (store), what waits for clients (inbox); every peer is started again from there",
		GiveUp:         actorkit.Exit(ExitGaveUp),
	},
	actorkit.Spec{
		Kind: KindPeer, Restart: actorkit.OnFailure,
		Backoff:        actorkit.Backoff{Start: 20 * time.Millisecond, Factor: 2, Cap: 5 * time.Second, Jitter: 0.3, ResetAfter: healthy},
		Intensity:      actorkit.Intensity{Max: 10, Within: time.Minute},
		ShutdownBudget: 2 * time.Second,
		Survives:       "grants and connection parameters (store of peers); WireGuard session and policy (packet path)",
		GiveUp:         actorkit.Degrade,
	},
	actorkit.Spec{
		Kind: KindNAT, Restart: actorkit.Always,
		Backoff:        actorkit.Backoff{Start: 10 * time.Millisecond, Factor: 2, Cap: 2 * time.Second, Jitter: 0.3, ResetAfter: healthy},
		Intensity:      actorkit.Intensity{Max: 10, Within: time.Minute},
		ShutdownBudget: time.Second,
		Survives:       "proxy addresses and sessions (store of peers); first packets wait",
		GiveUp:         actorkit.Degrade,
	},
	actorkit.Spec{
		Kind: KindDNS, Restart: actorkit.Always,
		Backoff:        actorkit.Backoff{Start: 50 * time.Millisecond, Factor: 2, Cap: 5 * time.Second, Jitter: 0.2, ResetAfter: healthy},
		ShutdownBudget: 2 * time.Second,
		Survives:       "addresses to serve and health of the name servers (plane); servers bind again",
		GiveUp:         actorkit.Exit(ExitGaveUp),
	},
	actorkit.Spec{
		Kind: KindDNSServer, Restart: actorkit.Always,
		Backoff:        actorkit.Backoff{Start: 100 * time.Millisecond, Factor: 2, Cap: 10 * time.Second, Jitter: 0.2, ResetAfter: healthy},
		ShutdownBudget: time.Second,
		Survives:       "nothing: it binds again; clients repeat queries",
		GiveUp:         actorkit.Degrade,
	},
	actorkit.Spec{
		Kind: KindResolver, Restart: actorkit.Always,
		Backoff:        actorkit.Backoff{Start: 50 * time.Millisecond, Factor: 2, Cap: 5 * time.Second, Jitter: 0.2, ResetAfter: healthy},
		ShutdownBudget: time.Second,
		Survives:       "health of the name servers (plane); clients repeat what is not answered",
		GiveUp:         actorkit.Escalate,
	},
)

func mustTable(specs ...actorkit.Spec) actorkit.Table {
	t, err := actorkit.NewTable(specs...)
	if err != nil {
		panic(err)
	}
	return t
}
