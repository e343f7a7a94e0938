package actorkit

import (
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"
	"sync/atomic"
	"time"
)

// FaultKind says what Inject does to an actor.
type FaultKind string

// The kinds of faults.
const (
	// Crash makes the actor panic instead of handling a message.
	Crash FaultKind = "crash"
	// Hang keeps the actor's turn for a time, or until it is replaced.
	Hang FaultKind = "hang"
	// Delay keeps each message for a time before it is handled.
	Delay FaultKind = "delay"
	// Drop loses messages.
	Drop FaultKind = "drop"
)

// MaxInjected bounds Injection.Messages.
const MaxInjected = 1000

// Injection is a fault to bring about, to see how the rest bears it.
type Injection struct {
	// Actor is a pattern over paths: path.Match for each element between
	// slashes. "**" as the last element stands for everything below.
	Actor string
	Fault FaultKind
	// For is how long a Hang lasts, zero until the actor is replaced, and how
	// long a Delay keeps each message. Other faults take no time.
	For time.Duration
	// Messages is how many messages a Delay or Drop concerns, and how many
	// times in a row the actor crashes or hangs. Zero stands for one.
	Messages int
}

// Validate reports what makes no sense.
func (i Injection) Validate() error {
	if err := checkPattern(i.Actor); err != nil {
		return fmt.Errorf("pattern %q: %w", i.Actor, err)
	}
	switch i.Fault {
	case Crash, Hang, Delay, Drop:
	default:
		return fmt.Errorf("fault %q is none of crash, hang, delay and drop", i.Fault)
	}
	switch {
	case i.For < 0:
		return errors.New("negative time")
	case i.Fault == Delay && i.For == 0:
		return errors.New("a delay needs a time")
	case i.Messages < 0 || i.Messages > MaxInjected:
		return fmt.Errorf("%d messages are not between 1 and %d", i.Messages, MaxInjected)
	}
	return nil
}

// Inject brings about a fault in every actor whose path matches, and returns
// their paths. Crash and Hang are put into the mailbox: they come after what
// waits there. Delay and Drop concern what the actor takes next from others, be
// it waiting already: not the ticks of its timers and not the results of Go. An
// injection of these replaces the one before, and ends with the incarnation
// that gets stuck. Each effect is counted and an EventInjected.
func (s *System) Inject(i Injection) (paths []string, err error) {
	if err := i.Validate(); err != nil {
		return nil, fmt.Errorf("inject: %w", err)
	}
	i.Messages = max(1, i.Messages)
	pattern := strings.Split(i.Actor, "/")
	paths = []string{}
	for _, c := range s.matching(pattern) {
		paths = append(paths, c.path)
		fault := &Fault{Reason: fmt.Errorf("%w %s", ErrInjected, i.Fault)}
		switch i.Fault {
		case Crash, Hang:
			for range i.Messages {
				c.mailbox.PostUserMessage(&injection{i.Fault, i.For, fault})
			}
		default:
			f := &faults{kind: i.Fault, delay: i.For, fault: fault}
			f.left.Store(int64(i.Messages))
			c.faults.Store(f)
		}
	}
	slices.Sort(paths)
	return paths, nil
}

// matching returns the actors that match and do not end.
func (s *System) matching(pattern []string) []*cell {
	s.mu.Lock()
	defer s.mu.Unlock()
	var found []*cell
	for p, c := range s.cells {
		if c.phase() < phaseStopping && matches(pattern, strings.Split(p, "/")) {
			found = append(found, c)
		}
	}
	return found
}

const below = "**"

func checkPattern(pattern string) error {
	elements := strings.Split(pattern, "/")
	for n, e := range elements {
		switch {
		case e == "":
			return errors.New("empty element")
		case e == below && n == len(elements)-1:
		case strings.Contains(e, below):
			return errors.New("** stands for more than one element only as the last")
		}
		if _, err := path.Match(e, ""); err != nil {
			return err
		}
	}
	return nil
}

// matches expects a valid pattern.
func matches(pattern, elements []string) bool {
	if last := len(pattern) - 1; pattern[last] == below {
		if len(elements) <= last {
			return false
		}
		pattern, elements = pattern[:last], elements[:last]
	}
	return slices.EqualFunc(pattern, elements, func(p, e string) bool {
		ok, _ := path.Match(p, e)
		return ok
	})
}

// injection is a Crash or a Hang in a mailbox.
type injection struct {
	kind  FaultKind
	lasts time.Duration
	fault *Fault
}

func (*injection) Untraced() {}

// act takes the place of the actor's handler.
func (i *injection) act(c *cell) {
	c.injected(i.fault, nil)
	if i.kind == Crash {
		panic(&Fault{Reason: i.fault.Reason})
	}
	c.pause(i.lasts)
}

// faults are a Delay or a Drop of the next messages.
type faults struct {
	kind  FaultKind
	delay time.Duration
	left  atomic.Int64
	fault *Fault
}

// meet is called for a message that is about to be handled, and reports whether
// it is lost.
func (f *faults) meet(c *cell, msg any) (lost bool) {
	n := f.left.Add(-1)
	if n <= 0 {
		c.faults.CompareAndSwap(f, nil)
	}
	if n < 0 {
		return false
	}
	c.injected(f.fault, msg)
	if f.kind == Drop {
		return true
	}
	c.lastEnd = 0 // it counts as time in the mailbox
	c.pause(f.delay)
	return false
}

// injected counts and tells.
func (c *cell) injected(f *Fault, msg any) {
	c.stats.injected.Add(1)
	e := Event{Type: EventInjected, Kind: c.kind.spec.Kind, Path: c.path, Fault: f}
	if msg != nil {
		e.Message = typeName(msg)
	}
	c.sys.emit(e)
}

// pause keeps the turn for d, zero for ever, or until it is taken away.
func (c *cell) pause(d time.Duration) {
	var expiry <-chan time.Time
	if d > 0 {
		t := time.NewTimer(d)
		defer t.Stop()
		expiry = t.C
	}
	select {
	case <-expiry:
	case <-c.lifetime().Done():
	}
}
