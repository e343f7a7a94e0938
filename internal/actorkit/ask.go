package actorkit

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"time"

	"github.com/asynkron/protoactor-go/actor"
)

var (
	// ErrTimeout is returned by Ask when no answer came in time.
	ErrTimeout = errors.New("no answer in time")
	// ErrDeadLetter is returned by Ask when the actor is gone, or went
	// without handling the message.
	ErrDeadLetter = errors.New("no such actor")
)

// Ask sends msg to pid and waits for the answer, at most for timeout and until
// ctx ends. It is for the control path and blocks: an actor uses
// Context.Request, or Ask within Go. The first answer counts, later ones are
// dead letters. An answer that is an error, and the Fault of an actor that
// panics on msg, are returned as the error.
func Ask[T any](ctx context.Context, sys *System, pid PID, msg any, timeout time.Duration) (T, error) {
	var zero T
	answer, err := sys.ask(ctx, pid, msg, timeout)
	if err != nil {
		return zero, fmt.Errorf("ask %s for %s: %w", Path(pid), typeName(msg), err)
	}
	if typed, ok := answer.(T); ok {
		return typed, nil
	}
	if err, ok := answer.(error); ok {
		return zero, fmt.Errorf("ask %s for %s: %w", Path(pid), typeName(msg), err)
	}
	return zero, fmt.Errorf("ask %s for %s: answer is a %s", Path(pid), typeName(msg), typeName(answer))
}

// askPrefix marks the PIDs of waiting askers.
const askPrefix = "ask"

func (s *System) ask(ctx context.Context, pid PID, msg any, timeout time.Duration) (any, error) {
	r := &reply{sys: s, answer: make(chan any, 1)}
	self, _ := s.lib.ProcessRegistry.Add(r, askPrefix+s.lib.ProcessRegistry.NextID())
	defer s.lib.ProcessRegistry.Remove(self)

	s.post(pid, traced(ctx, msg, self))
	expiry := time.NewTimer(timeout)
	defer expiry.Stop()
	select {
	case a := <-r.answer:
		switch a := a.(type) {
		case *actor.DeadLetterResponse:
			return nil, ErrDeadLetter
		case *Fault:
			return nil, a
		}
		return a, nil
	case <-expiry.C:
		return nil, ErrTimeout
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// refuse answers an asker whose message failed its receiver.
func (s *System) refuse(sender PID, f *Fault) {
	if sender != nil && strings.HasPrefix(sender.Id, askPrefix+"$") {
		s.post(sender, f)
	}
}

// reply waits for one answer. It takes the place of the library's future,
// whose second answer races with the first and wins.
type reply struct {
	sys      *System
	answered atomic.Bool
	answer   chan any
}

var _ actor.Process = (*reply)(nil)

func (r *reply) SendUserMessage(pid *actor.PID, msg any) {
	answer := actor.UnwrapEnvelopeMessage(msg)
	if !r.answered.CompareAndSwap(false, true) {
		if _, fault := answer.(*Fault); !fault {
			r.sys.lib.DeadLetter.SendUserMessage(pid, answer)
		}
		return
	}
	r.answer <- answer
}

func (r *reply) SendSystemMessage(*actor.PID, any) {}

func (r *reply) Stop(*actor.PID) {}
