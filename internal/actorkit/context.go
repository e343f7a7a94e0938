package actorkit

import (
	"log/slog"
	"slices"

	"github.com/asynkron/protoactor-go/actor"

	"firezone-gateway/internal/telemetry"
)

var _ Context = (*cell)(nil)

func (c *cell) kit() *cell      { return c }
func (c *cell) Message() any    { return c.msg }
func (c *cell) Sender() PID     { return c.lib.Sender() }
func (c *cell) Self() PID       { return c.pid }
func (c *cell) Name() string    { return c.name }
func (c *cell) Kind() string    { return c.kind.spec.Kind }
func (c *cell) System() *System { return c.sys }

func (c *cell) Parent() PID {
	if c.parent == nil {
		return nil
	}
	return c.parent.pid
}

// Children copies, because the library's own slice changes in place.
func (c *cell) Children() []PID { return slices.Clone(c.lib.Children()) }

func (c *cell) Logger() *slog.Logger {
	if c.logger == nil {
		c.logger = telemetry.For(c.sys.logger, c.kind.spec.Kind).With("actor", c.path)
	}
	return c.withSpan(c.logger)
}

func (c *cell) Send(pid PID, msg any)    { c.post(pid, msg, nil) }
func (c *cell) Request(pid PID, msg any) { c.post(pid, msg, c.pid) }
func (c *cell) Respond(msg any)          { c.post(c.Sender(), msg, nil) }
func (c *cell) Forward(pid PID)          { c.post(pid, c.msg, c.Sender()) }

func (c *cell) post(pid PID, msg any, sender PID) {
	if !c.suppressed() {
		c.sys.post(pid, c.wrap(msg, sender))
	}
}

// stale reports whether the handler that is running was left behind.
func (c *cell) stale() bool { return c.mailbox.work.Load()&taken != 0 }

// suppressed counts what a handler that was left behind wants to do, and must
// not do any more.
func (c *cell) suppressed() bool {
	if !c.stale() {
		return false
	}
	c.stats.suppressed.Add(1)
	return true
}

// Watch ignores children: a stopping child would answer at once, and the
// library would take that for its end.
func (c *cell) Watch(pid PID) {
	if _, child := c.children[Path(pid)]; pid != nil && !child && !c.suppressed() {
		c.lib.Watch(pid)
	}
}

func (c *cell) Unwatch(pid PID) {
	if pid != nil && !c.suppressed() {
		c.lib.Unwatch(pid)
	}
}

func (c *cell) Stop(pid PID) {
	switch {
	case pid == nil, c.suppressed():
	case c.endsItself(pid):
		c.quitting = true
	default:
		c.lib.Stop(pid)
	}
}

func (c *cell) Poison(pid PID) {
	switch {
	case pid == nil, c.suppressed():
	case c.endsItself(pid):
		c.sys.post(pid, quit{})
	default:
		c.lib.Poison(pid)
	}
}

func (c *cell) endsItself(pid PID) bool {
	return c.kind.spec.Restart == Always && c.phase() == phaseRunning && Same(pid, c.pid)
}

// wrap puts msg into an envelope if there is something to put on it.
func (c *cell) wrap(msg any, sender PID) any {
	header := c.span.headerFor(msg)
	if header == nil && sender == nil {
		return msg
	}
	return &actor.MessageEnvelope{Header: header, Message: msg, Sender: sender}
}
