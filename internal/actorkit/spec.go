package actorkit

import (
	"errors"
	"fmt"
	"time"
)

// Class says which ends of an actor are followed by a restart.
type Class uint8

// The restart classes.
const (
	_ Class = iota // a row without a class is refused
	// Always restarts after a failure and after the actor stopped itself.
	Always
	// OnFailure restarts after a failure.
	OnFailure
	// Never gives up at the first failure.
	Never
)

// String returns the name of the class.
func (c Class) String() string {
	switch c {
	case Always:
		return "always"
	case OnFailure:
		return "on failure"
	case Never:
		return "never"
	}
	return "unset"
}

// GiveUp says what follows when an actor will not be restarted any more. A top
// actor has no parent: whatever it gives up with ends the process.
type GiveUp struct {
	verb giveUpVerb
	code int
}

type giveUpVerb uint8

const (
	giveUpUnset giveUpVerb = iota
	giveUpDegrade
	giveUpEscalate
	giveUpExit
)

var (
	// Degrade stops the child and sends *ChildGaveUp to its parent.
	Degrade = GiveUp{verb: giveUpDegrade}
	// Escalate fails the parent, whose own row decides about it.
	Escalate = GiveUp{verb: giveUpEscalate}
)

// Exit stops the child and asks the process to end with code.
func Exit(code int) GiveUp { return GiveUp{verb: giveUpExit, code: code} }

// String returns the name of g.
func (g GiveUp) String() string {
	switch g.verb {
	case giveUpDegrade:
		return "degrade"
	case giveUpEscalate:
		return "escalate"
	case giveUpExit:
		return fmt.Sprintf("exit %d", g.code)
	}
	return "unset"
}

// Backoff is the delay before the n-th restart in a row:
// Start·Factor^(n-1), at most Cap, shortened by a random share of up to Jitter
// (0 to 1). A row ends when an incarnation has lived for ResetAfter, without the
// time in a handler that got stuck; zero means that it never ends.
type Backoff struct {
	Start      time.Duration
	Factor     float64
	Cap        time.Duration
	Jitter     float64
	ResetAfter time.Duration
}

// Intensity admits Max restarts in a row, see Backoff, within any span of length
// Within; the failure after that gives up. A zero Max admits any number. An actor
// that lives for ResetAfter each time is in no crash loop, and is restarted for
// ever.
type Intensity struct {
	Max    int
	Within time.Duration
}

// Spec is one row of the supervision table.
type Spec struct {
	Kind      string
	Restart   Class
	Backoff   Backoff
	Intensity Intensity
	// Stuck is how long a handler may run, that of Started and a producer that
	// runs again included. After that the actor is treated as failed, with
	// ErrStuck, and its restart replaces it. Zero stands for DefaultStuck.
	Stuck time.Duration
	// ShutdownBudget is the time from the request to stop until Stopped,
	// children included. An actor that needs longer is left behind, so that
	// its parent can end.
	ShutdownBudget time.Duration
	// Survives documents what outlives a restart, and who keeps it.
	Survives string
	GiveUp   GiveUp
}

// DefaultStuck is the Stuck of a Spec that gives none. Handlers take
// microseconds.
const DefaultStuck = 5 * time.Second

// Validate reports every field that does not make sense.
func (s Spec) Validate() error {
	var errs []error
	check := func(ok bool, what string) {
		if !ok {
			errs = append(errs, fmt.Errorf("kind %q: %s", s.Kind, what))
		}
	}
	check(s.Kind != "", "no kind")
	check(s.Restart >= Always && s.Restart <= Never, "no restart class")
	check(s.GiveUp.verb != giveUpUnset, "no give-up")
	check(s.ShutdownBudget > 0, "no shutdown budget")
	check(s.Stuck >= 0, "negative time until stuck")
	check(s.Intensity.Max >= 0, "negative intensity")
	check(s.Intensity.Max == 0 || s.Intensity.Within > 0, "intensity without a span")
	if s.Restart != Never {
		b := s.Backoff
		check(b.Start >= 0, "negative first delay")
		check(b.Factor >= 1, "back-off factor below 1")
		check(b.Cap >= b.Start, "back-off cap below the first delay")
		check(b.Jitter >= 0 && b.Jitter <= 1, "jitter outside 0 to 1")
		check(b.ResetAfter >= 0, "negative reset time")
	}
	return errors.Join(errs...)
}

// Table holds the Spec of every kind, by Spec.Kind.
type Table map[string]Spec

// NewTable builds a Table, in which no Stuck is zero, and reports duplicate and
// senseless rows.
func NewTable(specs ...Spec) (Table, error) {
	t := make(Table, len(specs))
	var errs []error
	for _, s := range specs {
		if _, dup := t[s.Kind]; dup {
			errs = append(errs, fmt.Errorf("kind %q: second row", s.Kind))
		}
		t[s.Kind] = s.withDefaults()
	}
	return t, errors.Join(append(errs, t.Validate())...)
}

func (s Spec) withDefaults() Spec {
	if s.Stuck == 0 {
		s.Stuck = DefaultStuck
	}
	return s
}

// Validate checks every row, and that its key is its kind.
func (t Table) Validate() error {
	var errs []error
	for kind, s := range t {
		if kind != s.Kind {
			errs = append(errs, fmt.Errorf("kind %q: stored as %q", s.Kind, kind))
		}
		errs = append(errs, s.Validate())
	}
	return errors.Join(errs...)
}
