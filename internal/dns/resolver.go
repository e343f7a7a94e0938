package dns

import (
	"context"
	"errors"
	"net/netip"
	"sync"
	"time"
)

// Errors of Resolve.
var (
	ErrBusy   = errors.New("too many domains are being resolved")
	ErrName   = errors.New("not a host name")
	ErrClosed = errors.New("resolver is closed")
)

// Outcome says how a resolution ended. Only TimedOut makes a set-up Inactive;
// all others make it Active, maybe without addresses (dataplane §3.3).
type Outcome uint8

// Outcomes, from the one that says least about a name to the one that says
// most; with search domains the last one of all names tried counts.
const (
	NoSuchName Outcome = iota // NXDOMAIN
	NoData                    // the name exists without addresses
	Failed                    // SERVFAIL, or no name server that could be asked
	TimedOut                  // no answer within ResolveTimeout
	Found                     // at least one address, which vetting may have refused
)

// String returns the outcome as it belongs into a log line.
func (o Outcome) String() string {
	switch o {
	case NoSuchName:
		return "no such name"
	case NoData:
		return "no addresses"
	case Failed:
		return "failed"
	case TimedOut:
		return "timed out"
	case Found:
		return "found"
	default:
		return "invalid"
	}
}

// Resolution is what is known of a domain's addresses.
type Resolution struct {
	Outcome Outcome
	// V4 and V6 are sorted, without duplicates, vetted, and at most MaxAddresses
	// each. Callers that asked at the same time share them: they are not to be
	// written to.
	V4, V6 []netip.Addr
	// Refused is the number of addresses that a DNS resource must not lead to.
	Refused int
}

// ResolverConfig is what a Resolver needs.
type ResolverConfig struct {
	Upstreams *Upstreams
	// Hosts is the path of a hosts(5) file, /etc/hosts if empty. A name in it is
	// not asked for anywhere else, in neither family.
	Hosts string
	// Own reports addresses of the gateway that DNS resources must not lead to,
	// besides tunnel and loopback addresses. May be nil; is called concurrently.
	Own func(netip.Addr) bool
}

// Resolver finds the addresses of DNS resources the way the host does: hosts
// file, then the name servers of resolv.conf with its search domains, A and
// AAAA at once. It keeps nothing, so a changed record counts for the next
// set-up; requests for a domain that is being resolved share the result. All
// methods may be called concurrently.
type Resolver struct {
	up      *Upstreams
	hosts   watched[hosts]
	own     func(netip.Addr) bool
	timeout time.Duration
	grace   time.Duration
	ctx     context.Context
	cancel  context.CancelFunc
	work    sync.WaitGroup

	mu       sync.Mutex
	closed   bool
	requests int
	lookups  map[string]*lookup // by canonical name
}

// lookup is the resolution of one domain, for all who wait for it.
type lookup struct {
	done       chan struct{}
	resolution Resolution // set before done is closed
}

// NewResolver returns a Resolver without goroutines of its own. Each lookup has
// some while it lasts.
func NewResolver(cfg ResolverConfig) *Resolver {
	if cfg.Hosts == "" {
		cfg.Hosts = "/etc/hosts"
	}
	r := &Resolver{
		up:      cfg.Upstreams,
		hosts:   watched[hosts]{path: cfg.Hosts, parse: parseHosts},
		own:     cfg.Own,
		timeout: ResolveTimeout,
		grace:   familyGrace,
		lookups: make(map[string]*lookup),
	}
	r.ctx, r.cancel = context.WithCancel(context.Background())
	return r
}

// Resolve finds the addresses of a domain. It blocks for up to ResolveTimeout.
// The error is ErrBusy if MaxResolving requests are under way, ErrName, ErrClosed
// or that of ctx; what name servers say is in the Resolution. A lookup goes on
// for others when ctx ends.
func (r *Resolver) Resolve(ctx context.Context, domain string) (Resolution, error) {
	name, ok := canonicalName(domain)
	if !ok {
		return Resolution{}, ErrName
	}
	l, err := r.join(name)
	if err != nil {
		return Resolution{}, err
	}
	defer r.leave()
	select {
	case <-l.done:
		if r.ctx.Err() != nil {
			return Resolution{}, ErrClosed
		}
		return l.resolution, nil
	case <-ctx.Done():
		return Resolution{}, ctx.Err()
	}
}

// Close ends all lookups and waits for them. Requests that wait get ErrClosed.
// It may be called more than once.
func (r *Resolver) Close() {
	r.mu.Lock()
	r.closed = true
	r.mu.Unlock()
	r.cancel()
	r.work.Wait()
}

// join adds a request to the lookup of name, which it starts if necessary.
func (r *Resolver) join(name string) (*lookup, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case r.closed:
		return nil, ErrClosed
	case r.requests >= MaxResolving || len(r.lookups) >= MaxResolving:
		// Lookups outlive requests that were given up, so both are counted.
		return nil, ErrBusy
	}
	r.requests++
	l := r.lookups[name]
	if l == nil {
		l = &lookup{done: make(chan struct{})}
		r.lookups[name] = l
		r.work.Go(func() {
			began := time.Now()
			l.resolution = r.resolve(name)
			if r.ctx.Err() == nil { // what Close cut short tells nothing
				r.up.measured.lookups[l.resolution.Outcome].add(time.Since(began))
			}
			r.mu.Lock()
			delete(r.lookups, name)
			r.mu.Unlock()
			close(l.done)
		})
	}
	return l, nil
}

func (r *Resolver) leave() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.requests--
}
