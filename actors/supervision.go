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

// Table is the supervision table: what happens when an actor of each kind
// fails, and what its restart keeps.
var Table = mustTable(
	actorkit.Spec{
		Kind: KindGateway, Restart: actorkit.Never,
		ShutdownBudget: 5 * time.Second,
		Survives:       "nothing: it only wires its children",
		GiveUp:         actorkit.Exit(ExitGaveUp),
	},
	actorkit.Spec{
		Kind: KindPortal, Restart: actorkit.Always,
		Backoff:        actorkit.Backoff{Start: 100 * time.Millisecond, Factor: 2, Cap: 30 * time.Second, Jitter: 0.3, ResetAfter: time.Minute},
		ShutdownBudget: 2 * time.Second,
		Survives:       "grants (store of peers); the channel joins again and the portal repeats init",
		GiveUp:         actorkit.Exit(ExitGaveUp),
	},
	actorkit.Spec{
		Kind: KindTUN, Restart: actorkit.Always,
		Backoff:        actorkit.Backoff{Start: 100 * time.Millisecond, Factor: 2, Cap: 5 * time.Second, Jitter: 0.2, ResetAfter: time.Minute},
		Intensity:      actorkit.Intensity{Max: 10, Within: time.Minute},
		ShutdownBudget: 2 * time.Second,
		Survives:       "addresses (plane); the device is made again, the engine waits for it",
		GiveUp:         actorkit.Exit(ExitGaveUp),
	},
	actorkit.Spec{
		Kind: KindTransport, Restart: actorkit.Always,
		Backoff:        actorkit.Backoff{Start: 50 * time.Millisecond, Factor: 2, Cap: 5 * time.Second, Jitter: 0.2, ResetAfter: time.Minute},
		ShutdownBudget: 2 * time.Second,
		Survives:       "sockets and known relays (plane); relays allocate again",
		GiveUp:         actorkit.Exit(ExitGaveUp),
	},
	actorkit.Spec{
		Kind: KindRelay, Restart: actorkit.OnFailure,
		Backoff:        actorkit.Backoff{Start: 100 * time.Millisecond, Factor: 2, Cap: 30 * time.Second, Jitter: 0.3, ResetAfter: time.Minute},
		Intensity:      actorkit.Intensity{Max: 8, Within: 2 * time.Minute},
		ShutdownBudget: time.Second,
		Survives:       "credentials (producer); the allocation is made again",
		GiveUp:         actorkit.Degrade,
	},
	actorkit.Spec{
		Kind: KindPeers, Restart: actorkit.Always,
		Backoff:        actorkit.Backoff{Start: 20 * time.Millisecond, Factor: 2, Cap: 2 * time.Second, Jitter: 0.2, ResetAfter: time.Minute},
		ShutdownBudget: 3 * time.Second,
		Survives:       "all grants and connection parameters (store); every peer is started again from there",
		GiveUp:         actorkit.Exit(ExitGaveUp),
	},
	actorkit.Spec{
		Kind: KindPeer, Restart: actorkit.OnFailure,
		Backoff:        actorkit.Backoff{Start: 20 * time.Millisecond, Factor: 2, Cap: 5 * time.Second, Jitter: 0.3, ResetAfter: time.Minute},
		Intensity:      actorkit.Intensity{Max: 10, Within: time.Minute},
		ShutdownBudget: 2 * time.Second,
		Survives:       "grants and connection parameters (store of peers); WireGuard session and policy (packet path)",
		GiveUp:         actorkit.Degrade,
	},
	actorkit.Spec{
		Kind: KindNAT, Restart: actorkit.Always,
		Backoff:        actorkit.Backoff{Start: 10 * time.Millisecond, Factor: 2, Cap: 2 * time.Second, Jitter: 0.3, ResetAfter: time.Minute},
		Intensity:      actorkit.Intensity{Max: 10, Within: time.Minute},
		ShutdownBudget: time.Second,
		Survives:       "proxy addresses and sessions (store of peers); first packets wait",
		GiveUp:         actorkit.Degrade,
	},
	actorkit.Spec{
		Kind: KindDNS, Restart: actorkit.Always,
		Backoff:        actorkit.Backoff{Start: 50 * time.Millisecond, Factor: 2, Cap: 5 * time.Second, Jitter: 0.2, ResetAfter: time.Minute},
		ShutdownBudget: 2 * time.Second,
		Survives:       "addresses to serve and health of the name servers (plane); servers bind again",
		GiveUp:         actorkit.Exit(ExitGaveUp),
	},
	actorkit.Spec{
		Kind: KindDNSServer, Restart: actorkit.Always,
		Backoff:        actorkit.Backoff{Start: 100 * time.Millisecond, Factor: 2, Cap: 10 * time.Second, Jitter: 0.2, ResetAfter: time.Minute},
		ShutdownBudget: time.Second,
		Survives:       "nothing: it binds again; clients repeat queries",
		GiveUp:         actorkit.Degrade,
	},
	actorkit.Spec{
		Kind: KindResolver, Restart: actorkit.Always,
		Backoff:        actorkit.Backoff{Start: 50 * time.Millisecond, Factor: 2, Cap: 5 * time.Second, Jitter: 0.2, ResetAfter: time.Minute},
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
