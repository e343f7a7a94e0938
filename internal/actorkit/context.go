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
	return c.logger
}

func (c *cell) Send(pid PID, msg any)    { c.sys.post(pid, c.wrap(msg, nil)) }
func (c *cell) Request(pid PID, msg any) { c.sys.post(pid, c.wrap(msg, c.pid)) }
func (c *cell) Respond(msg any)          { c.sys.post(c.Sender(), c.wrap(msg, nil)) }
func (c *cell) Forward(pid PID)          { c.sys.post(pid, c.wrap(c.msg, c.Sender())) }

// Watch ignores children: a stopping child would answer at once, and the
// library would take that for its end.
func (c *cell) Watch(pid PID) {
	if _, child := c.children[Path(pid)]; pid != nil && !child {
		c.lib.Watch(pid)
	}
}

func (c *cell) Unwatch(pid PID) {
	if pid != nil {
		c.lib.Unwatch(pid)
	}
}

func (c *cell) Stop(pid PID) {
	switch {
	case pid == nil:
	case c.endsItself(pid):
		c.quitting = true
	default:
		c.lib.Stop(pid)
	}
}

func (c *cell) Poison(pid PID) {
	switch {
	case pid == nil:
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
