// Package actorkit is what actors are written with. It is the only package
// that imports the actor library; an actor imports nothing else of it.
//
// # Writing an actor
//
// An actor is a value with one method. Receive is a table of contents: one
// line per message, each calling a method.
//
//	type relay struct {
//		timers actorkit.Timers
//	}
//
//	func (r *relay) Receive(ctx actorkit.Context) {
//		switch m := ctx.Message().(type) {
//		case *actorkit.Started:
//			r.bind(ctx)
//		case *actorkit.Stopping, *actorkit.Restarting:
//			r.close()
//		case Refresh:
//			r.refresh(ctx, m)
//		}
//	}
//
// The Context, Timers and Stash belong to the actor's turn: they must not be
// used from another goroutine. A handler must not block; see Go.
//
// # Lifecycle
//
//	Started → messages → Stopping → Stopped
//	             ↓ panic
//	   (suspended, mailbox kept) → Restarting → Started (new value) …
//
// A panic fails the actor. Its Timers and goroutines end at once, the message
// that panicked is dropped, those behind it wait, and the supervisor decides
// by the Spec of the actor's kind. A restart makes a new value from the
// producer and stops all children. An actor that is stopped while it waits for
// its restart, or while its children end, receives Stopping after Restarting,
// or without it: releasing resources must be idempotent. After Stopping or
// Restarting an actor receives no message but the end of its own lifecycle.
// A panic in Stopping, Stopped or Restarting is reported and swallowed.
//
// # Stuck actors
//
// A handler that runs for longer than its Spec says is stuck: the actor has
// failed, with ErrStuck, and what its row says about failures applies. Nothing
// can end the handler, so a restart replaces the actor: children end first, then
// another value from the producer takes over the path, the mailbox and all
// PIDs. TraceContext of the handler is cancelled, whoever waits for its answer
// hears of the failure, and the message that it is stuck in is dropped. When it
// returns after all, nothing is left of it but its goroutine: what it does
// through its Context, Timers, Stash and Go from then on has no effect and is
// counted. Out of reach is what it does otherwise: to state that it shares with
// other goroutines, and through System or Gate. An actor that overruns its
// shutdown budget in a handler is left behind in the same way, and its name is
// free as soon as its children have ended.
//
// # Children
//
// SpawnChild starts a child under a row of the Table. The parent receives
// *Terminated when a child has ended (Watch is for other actors), and
// *ChildGaveUp before that when the child's restarts were used up and its row
// says Degrade. A name is free again once Terminated has arrived.
//
// # Messages
//
// A message is a value, or a pointer nobody writes through any more. Send
// never blocks and mailboxes are unbounded, so whoever sends on behalf of the
// network bounds itself with a Gate. Messages to a dead actor, and those that
// were queued when it stopped, are counted as dead letters and give back what
// they hold: a Gate's place, or the wait of an Ask.
//
// # Faults on purpose
//
// Inject crashes or hangs actors, or delays or drops their messages. It costs
// nothing when it is not used.
//
// # Tracing
//
// Every message runs in a span whose parent is the span of the handler that
// sent it (W3C trace context in the envelope's headers), except for messages
// with a method Untraced(), for timer ticks and for lifecycle messages.
package actorkit
