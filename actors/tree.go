package actors

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"go.opentelemetry.io/otel/trace"

	"firezone-gateway/internal/actorkit"
	"firezone-gateway/internal/admin"
	"firezone-gateway/messages"
)

// Tree is a running tree of actors.
type Tree struct {
	system *actorkit.System
	plane  *Plane
	root   actorkit.PID
	ended  chan end
}

type end struct {
	code  int
	cause error
}

// Start starts the tree on p.
func Start(p *Plane, log *slog.Logger, tracer trace.Tracer) (*Tree, error) {
	return start(p, actorkit.Config{Logger: log, Tracer: tracer, Table: Table})
}

func start(p *Plane, cfg actorkit.Config) (*Tree, error) {
	t := &Tree{plane: p, ended: make(chan end, 1)}
	t.system = actorkit.NewSystem(cfg)
	root, err := t.system.Spawn(KindGateway, "gateway", func() actorkit.Actor { return newGateway(p, t.end) })
	if err != nil {
		return nil, fmt.Errorf("start actors: %w", err)
	}
	t.root = root
	return t, nil
}

func (t *Tree) end(code int, cause error) {
	select {
	case t.ended <- end{code, cause}:
	default: // the first end counts
	}
}

// Wait returns when the tree decided to end the process, with its exit code and
// the reason of a failure. When ctx ends, it first asks for an orderly end:
// goodbye to all clients and a Close to the portal; when supervision ends the
// process, clients and portal are told as far as that is possible.
func (t *Tree) Wait(ctx context.Context) (code int, cause error) {
	done := ctx.Done()
	for {
		select {
		case <-done:
			done = nil
			t.system.Send(t.root, messages.Shutdown{})
		case r := <-t.system.ExitRequests():
			t.leave(r)
			return r.Code, fmt.Errorf("%s: %w", r.Path, r.Reason)
		case e := <-t.ended:
			return e.code, e.cause
		}
	}
}

// resetPatience bounds a reset: peers that end, goodbyes, and a restart that
// happens meanwhile.
const resetPatience = 10 * time.Second

// Reset gives the gateway a new key pair, new sockets and a new connection to the
// portal; clients are sent away and come back. cause is for log and trace. It
// returns nil once the new key is in use and the portal is being dialled.
func (t *Tree) Reset(ctx context.Context, cause string) error {
	peers := t.plane.siblings.load().Peers
	if peers == nil {
		return errors.New("reset: the gateway is starting")
	}
	if _, err := actorkit.Ask[messages.ResetDone](ctx, t.system, peers, messages.Reset{Cause: cause}, resetPatience); err != nil {
		return fmt.Errorf("reset: %w", err)
	}
	return nil
}

// Inject has something go wrong in the actors that f means, and returns their
// paths. It fails if the pattern makes no sense.
func (t *Tree) Inject(f admin.Fault) ([]string, error) {
	return t.system.Inject(actorkit.Injection{
		Actor: f.Actor, Fault: actorkit.FaultKind(f.Fault), For: f.For, Messages: f.Messages,
	})
}

// Stop stops all actors and waits for them.
func (t *Tree) Stop(ctx context.Context) error { return t.system.Shutdown(ctx) }
