package chaos

import (
	"context"
	"fmt"
	"time"

	labnet "firezone-gateway/internal/lab/net"
	"firezone-gateway/internal/lab/portal"
)

// Ending is what becomes of an actor that keeps failing.
type Ending string

// The endings, as the supervision table of the daemon promises them.
const (
	Stays Ending = "stays"   // restarted for ever
	Gone  Ending = "degrade" // given up, and the gateway goes on without it
	Exits Ending = "exit"    // takes the process along
)

// Endings says how each kind ends. The gateway actor ends at its first failure.
var Endings = map[string]Ending{
	"gateway": Exits, "portal": Stays, "tun": Exits, "transport": Stays, "relay": Gone, "peers": Stays,
	"peer": Gone, "nat": Gone, "dns": Stays, "dns_server": Stays, "resolver": Stays,
}

// GivenUp is what came of an actor that failed as soon as it was back.
type GivenUp struct {
	Kind     string `json:"kind"`
	Expected Ending `json:"expected"`
	Observed Ending `json:"observed"`
	Failures int    `json:"failures"` // that were asked for
	ExitCode int    `json:"exit_code"`
	// Goodbye says whether the client was told to go.
	Goodbye bool    `json:"goodbye"`
	Close   int     `json:"close_code"` // that the portal saw, of a process that ended; 0 for none
	Took    float64 `json:"took_ms"`    // from the first failure to the end of the actor or process
	Back    float64 `json:"back_ms"`    // until the client had traffic again, of a process that goes on
}

const (
	// exitGaveUp is the daemon's exit code when supervision gave up.
	exitGaveUp = 1
	// closeNormal is the code of the Close frame of a gateway that leaves for good
	// (RFC 6455 §7.4).
	closeNormal = 1000
	// rowOfFailures is how often an actor fails that is not given up: enough for
	// its back-off to be felt.
	rowOfFailures = 6
	// giveUpLimit bounds the time until an actor is given up.
	giveUpLimit = 90 * time.Second
)

// GiveUp has the actors of one kind fail again and again as soon as they are back.
func GiveUp(ctx context.Context, kind string, o Options) Result {
	o.Kinds = nil
	o, err := o.withDefaults()
	if err != nil {
		return Result{Name: "give up " + kind, Broken: []string{err.Error()}}
	}
	return part(ctx, "give up "+kind, shape{clients: 1, nat: labnet.PortRestricted}, o, func(ctx context.Context, w *world, r *Result) error {
		g := GivenUp{Kind: kind, Expected: Endings[kind]}
		err := w.giveUp(ctx, &g)
		r.Figures, r.Measured = g, g.String()
		if err != nil {
			return err
		}
		g.judge(r)
		return nil
	})
}

func (w *world) giveUp(ctx context.Context, g *GivenUp) error {
	proxies, active, err := w.clients[0].AccessDomain(ctx, w.house.ID, domain)
	if err != nil || !active {
		return fmt.Errorf("%s is not served (active: %v): %w", domain, active, err)
	}
	goodbyes, after := w.clients[0].Goodbyes(), w.lastEvent()
	limited, cancel := context.WithTimeout(ctx, giveUpLimit)
	defer cancel()
	began := time.Now()
	if err := w.failInRow(limited, g); err != nil {
		return err
	}
	g.Took = ms(time.Since(began))
	if g.Observed == Exits {
		code, err := w.daemon().Stop(stopGrace)
		if err != nil {
			return err
		}
		g.ExitCode = code
		g.Close = w.closeCode(ctx, after)
		g.Goodbye = w.toldToGo(ctx, goodbyes)
		return nil
	}
	began = time.Now()
	limited, cancel = context.WithTimeout(ctx, recovery)
	defer cancel()
	if err := w.awaitReady(limited); err != nil {
		return err
	}
	if err := w.awaitPing(limited, 0, filesAt); err != nil {
		return err
	}
	g.Back = ms(time.Since(began))
	g.Goodbye = w.clients[0].Goodbyes() > goodbyes
	// The domain is set up again as clients do, and works.
	if _, active, err := w.clients[0].AccessDomain(limited, w.house.ID, domain); err != nil || !active {
		return fmt.Errorf("%s is not served afterwards (active: %v): %w", domain, active, err)
	}
	return w.open(proxies[1])(limited, 0)
}

// failInRow lets one actor fail whenever it runs, until it is given up, or has
// proved that it is not.
func (w *world) failInRow(ctx context.Context, g *GivenUp) error {
	s, err := w.status(ctx)
	if err != nil {
		return err
	}
	paths := s.of(g.Kind)
	if len(paths) == 0 {
		return fmt.Errorf("there is no %s", g.Kind)
	}
	path := paths[0]
	last := uint64(0)
	failed := map[uint64]bool{} // incarnations, by the number of restarts
	for {
		s, err := w.status(ctx)
		switch {
		case !w.daemon().Running():
			g.Observed = Exits
			return nil
		case ctx.Err() != nil:
			return fmt.Errorf("%s is neither given up nor well after %d failures: %w", path, g.Failures, context.Cause(ctx))
		case err != nil:
			_ = pause(ctx, time.Millisecond) // it may be ending
			continue
		}
		a, there := s.find(path)
		switch {
		case !there || a.Restarts < last: // or another one has taken its place
			g.Observed = Gone
			return nil
		case a.State == running && a.Restarts >= rowOfFailures && g.Expected == Stays:
			g.Observed = Stays
			return nil
		case a.State == running && !failed[a.Restarts]:
			if _, err := w.inject(ctx, fault{Actor: path, Fault: Crash}); err == nil {
				failed[a.Restarts] = true
				g.Failures++
			}
		}
		last = a.Restarts
		_ = pause(ctx, 2*time.Millisecond)
	}
}

// toldToGo waits a moment for a goodbye at the client.
func (w *world) toldToGo(ctx context.Context, before int64) bool {
	limited, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	return await(limited, func() bool { return w.clients[0].Goodbyes() > before }) == nil
}

// closeCode returns the code of the Close frame that the portal got, 0 for none.
func (w *world) closeCode(ctx context.Context, after uint64) int {
	limited, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	e, err := w.portal.WaitEvent(limited, after, func(e portal.Event) bool {
		return e.Kind == portal.PeerLeft && e.Role == portal.Gateway
	})
	if err != nil {
		return 0
	}
	return e.Status
}

func (g GivenUp) judge(r *Result) {
	r.check(g.Observed == g.Expected, "%s after %d failures: the outcome is %q, promised is %q", g.Kind, g.Failures, g.Observed, g.Expected)
	switch g.Observed {
	case Exits:
		r.check(g.ExitCode == exitGaveUp, "exit code %d", g.ExitCode)
		r.check(g.Goodbye, "the client was not told to go")
		r.check(g.Close == closeNormal, "the portal saw Close %d", g.Close)
	case Gone:
		// A client that was dropped has to hear of it, to come back at once.
		dropped := g.Kind == "peer" || g.Kind == "nat"
		r.check(g.Goodbye == dropped, "goodbye to the client: %v", g.Goodbye)
	case Stays:
		r.check(!g.Goodbye, "the client was sent away")
	}
}

// String returns the figures in one line.
func (g GivenUp) String() string {
	text := fmt.Sprintf("%s after %d failures in a row, %.1f s", g.Observed, g.Failures, g.Took/1000)
	if g.Goodbye {
		text += ", client told to go"
	}
	if g.Observed == Exits {
		return text + fmt.Sprintf(", exit code %d, Close %d at the portal", g.ExitCode, g.Close)
	}
	return text + fmt.Sprintf(", traffic %.0f ms later", g.Back)
}
