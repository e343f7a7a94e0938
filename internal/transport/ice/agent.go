package ice

import (
	"errors"
	"log/slog"
	"net/netip"
	"slices"

	pion "github.com/pion/ice/v2"
)

// Agent is the controlled ICE agent of one client. Its methods return at once;
// the work happens in a goroutine of the agent, in order, and changes that come
// while it is busy are merged. All methods may be called concurrently, also
// from the callbacks and after Close.
type Agent interface {
	// AddRemote adds a candidate of the client. Known ones are ignored, and so
	// are new ones when there are MaxRemotes already.
	AddRemote(Candidate)
	// RemoveRemote removes the candidate with the same Key. Requests from its
	// address are ignored from then on, until it is added again.
	RemoveRemote(Candidate)
	// SetLocals replaces the local addresses. The client notices nothing but a
	// few milliseconds without answers (transport §7.3).
	SetLocals([]netip.AddrPort)
	// Close ends the agent. No callback begins after it.
	Close()
	// Done is closed when everything of the agent has ended.
	Done() <-chan struct{}
}

// MaxRemotes is how many candidates of a client are kept (transport §2.7).
const MaxRemotes = 100

// maxLocals bounds the addresses of one agent; there are two hosts and two
// relayed addresses at most in the normal case (transport §2.3).
const maxLocals = 16

// Config describes one agent. The credentials are those of the authorization,
// verbatim (T-11).
type Config struct {
	LocalUfrag, LocalPwd   string
	RemoteUfrag, RemotePwd string
	// Locals are the host addresses, and the relayed addresses of the
	// connection's relay.
	Locals []netip.AddrPort
	Mux    *Mux
	// Logger gets what the ICE library says. It never says above debug what a
	// client can provoke.
	Logger *slog.Logger
	// OnState and OnSelected report what the library believes; either may be
	// nil. They are called one at a time each, from goroutines of the library.
	// The data path must not depend on them: it follows WireGuard.
	OnState    func(State)
	OnSelected func(local, remote netip.AddrPort)
}

// LogValue hides the passwords.
func (c Config) LogValue() slog.Value { return slog.StringValue(c.String()) }

// String names the agent without its passwords.
func (c Config) String() string { return "ice agent " + c.LocalUfrag }

// State is the state of an agent.
type State uint8

// The states. A failed agent answers nothing any more; it fails when nothing was
// heard on the selected pair for more than ten minutes. Replace it, or leave it
// to the next SetLocals or RemoveRemote, which restart it.
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

// New starts an agent. Its requests are routed to it when New returns, instead
// of to an older agent with the same credentials. Errors come from unusable
// credentials.
func New(cfg Config) (Agent, error) {
	if cfg.LocalUfrag == "" || cfg.LocalPwd == "" || cfg.RemoteUfrag == "" || cfg.RemotePwd == "" {
		return nil, errors.New("ice: credentials are missing")
	}
	return newAgent(cfg)
}

func stateOf(s pion.ConnectionState) (State, bool) {
	switch s {
	case pion.ConnectionStateChecking:
		return StateChecking, true
	case pion.ConnectionStateConnected, pion.ConnectionStateCompleted:
		return StateConnected, true
	case pion.ConnectionStateDisconnected:
		return StateDisconnected, true
	case pion.ConnectionStateFailed:
		return StateFailed, true
	}
	return 0, false
}

// normalise returns the usable addresses of list, each once.
func normalise(list []netip.AddrPort) []netip.AddrPort {
	var out []netip.AddrPort
	for _, a := range list {
		if a = unmap(a); Usable(a) && !slices.Contains(out, a) && len(out) < maxLocals {
			out = append(out, a)
		}
	}
	return out
}

// remotes is the ordered set of a client's candidates.
type remotes []Candidate

func (r remotes) index(k Key) int {
	return slices.IndexFunc(r, func(c Candidate) bool { return c.Key() == k })
}

func (r remotes) hasAddr(a netip.AddrPort) bool {
	return slices.ContainsFunc(r, func(c Candidate) bool { return c.Addr == a })
}
