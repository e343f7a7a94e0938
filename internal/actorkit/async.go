package actorkit

import (
	"context"
	"fmt"
	"sync"

	"github.com/asynkron/protoactor-go/actor"
	"go.opentelemetry.io/otel/trace"
)

// Go runs f, which may block, in a goroutine of its own. The context carries
// the handler's span and is cancelled when the actor fails, restarts or stops;
// f must then return soon. A non-nil result arrives as a message, unless the
// incarnation that called Go has ended. A panic in f fails the actor. Go does
// nothing when the actor is ending.
func Go(ctx Context, f func(context.Context) any) {
	c := ctx.kit()
	owner := c.current
	if owner == nil || c.phase() != phaseRunning {
		return
	}
	life := c.lifetime()
	if c.span.span != nil {
		life = trace.ContextWithSpan(life, c.span.span)
	}
	header := c.span.headerFor(nil)
	c.sys.work.begin()
	go func() {
		defer c.sys.work.end()
		r := call(life, f)
		if r.value == nil && r.fault == nil {
			return
		}
		r.owner = owner
		c.mailbox.PostUserMessage(&actor.MessageEnvelope{Header: header, Message: r})
	}()
}

// result is what a goroutine of an incarnation returned.
type result struct {
	owner *shell
	value any
	fault *Fault
}

func call(ctx context.Context, f func(context.Context) any) (r *result) {
	r = &result{}
	defer func() {
		if p := recover(); p != nil {
			r.fault = asFault(p)
		}
	}()
	r.value = f(ctx)
	return r
}

// work counts goroutines. Unlike a sync.WaitGroup it may be waited for while
// it grows, and the wait can be given up.
type work struct {
	mu   sync.Mutex
	n    int           // guarded by mu
	idle chan struct{} // guarded by mu; closed when n falls to zero
}

func (w *work) begin() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.n == 0 {
		w.idle = make(chan struct{})
	}
	w.n++
}

func (w *work) end() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.n--
	if w.n == 0 {
		close(w.idle)
	}
}

func (w *work) count() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.n
}

func (w *work) wait(ctx context.Context) error {
	w.mu.Lock()
	n, idle := w.n, w.idle
	w.mu.Unlock()
	if n == 0 {
		return nil
	}
	select {
	case <-idle:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("%d goroutines of actors still run: %w", w.count(), ctx.Err())
	}
}
