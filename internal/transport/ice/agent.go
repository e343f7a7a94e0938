package ice

import (
	"errors"
	"log/slog"
	"net/netip"
	"time"
)

// Agent is the controlled ICE agent of one client. It has no goroutine: the Mux
// gives it messages and time. All methods return at once and may be called
// concurrently, also from the callbacks and after Close.
type Agent interface {
	// AddRemote adds a candidate of the client. Known ones are ignored, and so
	// are new ones when there are MaxRemotes already.
	AddRemote(Candidate)
	// RemoveRemote removes the candidate with the same Key, and at once all pairs
	// with its address. Requests from there are ignored from then on, until it is
	// added again.
	RemoveRemote(Candidate)
	// SetLocals replaces our candidates. Pairs of those that stay are not
	// touched, those of the others end at once.
	SetLocals([]Candidate)
	// Close ends the agent.
	Close()
	// Done is closed by Close. One callback that was due already may be running
	// then.
	Done() <-chan struct{}
}

// MaxRemotes is how many candidates of a client are kept (transport §2.7).
const MaxRemotes = 100

// Config describes one agent. The credentials are those of the authorization,
// verbatim (T-11).
type Config struct {
	LocalUfrag, LocalPwd   string
	RemoteUfrag, RemotePwd string
	// Locals are our candidates with the priorities that the client was told: the
	// host addresses, and the relayed addresses of the connection's relay.
	// Server-reflexive ones may be among them and are passed over, because checks
	// leave from their base.
	Locals []Candidate
	Mux    *Mux
	// Logger gets the changes of state and path at debug level; nil discards them.
	Logger *slog.Logger
	// OnState gets the state when it changes, OnBest the best pair: the one of the
	// highest priority among those that the client nominated and that are alive.
	// As long as no pair is, the last one stays the best. Either may be nil. They
	// are called one at a time, in order, from the goroutine of the Mux that
	// serves all agents, so they must not wait for anything.
	OnState func(State)
	OnBest  func(local, remote netip.AddrPort)
	// LastData returns when an inner packet passed last, in either direction; nil
	// stands for never. After 20 s without one a connection is idle and causes one
	// check in 25 s at most (T-35).
	LastData func() time.Time
}

// LogValue hides the passwords.
func (c Config) LogValue() slog.Value { return slog.StringValue(c.String()) }

// String names the agent without its passwords.
func (c Config) String() string { return "ice agent " + c.LocalUfrag }

// State is the state of an agent.
type State uint8

// The states. An agent is connected once a check of ours was answered or the
// client nominated a pair, disconnected when the client was not heard for a
// minute, and failed after eleven minutes. A failed agent sends no checks but
// answers as ever, and the client's next check or candidate ends the state.
const (
	StateChecking State = iota
	StateConnected
	StateDisconnected
	StateFailed
)

// String returns the state as it appears in logs.
func (s State) String() string {
	return [...]string{"checking", "connected", "disconnected", "failed"}[s]
}

// Least and greatest lengths of credentials. The least are the 24 and 128 bits
// of randomness that RFC 8445 §5.3 demands, at eight bits a character.
const (
	minUfrag = 3
	minPwd   = 16
	maxCred  = 255
)

var errCredentials = errors.New("ice: unusable credentials")

// New starts an agent. Its requests are routed to it when New returns, instead
// of to an older agent with the same credentials. Errors come from unusable
// credentials.
func New(cfg Config) (Agent, error) {
	for _, ufrag := range []string{cfg.LocalUfrag, cfg.RemoteUfrag} {
		if len(ufrag) < minUfrag || len(ufrag) > maxCred {
			return nil, errCredentials
		}
	}
	for _, pwd := range []string{cfg.LocalPwd, cfg.RemotePwd} {
		if len(pwd) < minPwd || len(pwd) > maxCred {
			return nil, errCredentials
		}
	}
	return newAgent(cfg), nil
}
