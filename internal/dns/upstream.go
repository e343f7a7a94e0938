package dns

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"slices"
	"sync"
	"syscall"

	"github.com/miekg/dns"

	"firezone-gateway/internal/drop"
)

// Errors of asking name servers.
var (
	ErrNoNameserver = errors.New("no name server is configured")
	errUnanswered   = errors.New("no name server answered")
)

// UpstreamsConfig is what Upstreams needs. The zero value asks the host's name
// servers with ordinary sockets.
type UpstreamsConfig struct {
	// ResolvConf is the path of a resolv.conf(5), /etc/resolv.conf if empty.
	ResolvConf string
	// Port is where name servers listen, 53 if zero.
	Port uint16
	// Control is applied to each socket before it connects, for instance to set
	// the mark that keeps it out of the tunnel. Its error fails the attempt.
	Control func(network, address string, c syscall.RawConn) error
	// Drops counts panics of the DNS library. May be nil.
	Drops *drop.Counters
}

// Upstreams asks the name servers of the host. It reads resolv.conf again
// whenever that has changed, prefers the server that answered fastest within
// the last minute, and asks the next one as well when an answer takes long.
// It has no goroutines of its own. All methods may be called concurrently.
type Upstreams struct {
	port   uint16
	dialer net.Dialer
	drops  *drop.Counters
	conf   watched[resolvConf]

	mu         sync.Mutex
	configured []netip.Addr // of both healths
	udp, tcp   health       // a server may be reached over one transport only

	measured measured
}

// NewUpstreams returns Upstreams that read resolv.conf on first use.
func NewUpstreams(cfg UpstreamsConfig) *Upstreams {
	u := &Upstreams{
		port:   cfg.Port,
		dialer: net.Dialer{Control: cfg.Control},
		drops:  cfg.Drops,
		conf:   watched[resolvConf]{path: cfg.ResolvConf, parse: parseResolvConf},
	}
	if u.port == 0 {
		u.port = 53
	}
	if u.conf.path == "" {
		u.conf.path = "/etc/resolv.conf"
	}
	if u.drops == nil {
		u.drops = new(drop.Counters)
	}
	return u
}

// Nameservers returns the usable name servers of resolv.conf in its order, at
// most 16. None is an error that wraps ErrNoNameserver. If the file cannot be
// read, the error says so and the servers are those that were read last.
func (u *Upstreams) Nameservers() ([]netip.Addr, error) {
	conf, err := u.config()
	if len(conf.nameservers) == 0 {
		err = errors.Join(ErrNoNameserver, err)
	}
	return slices.Clone(conf.nameservers), err
}

// config returns the current content of resolv.conf.
func (u *Upstreams) config() (resolvConf, error) {
	conf, err := u.conf.get()
	u.mu.Lock()
	defer u.mu.Unlock()
	if !slices.Equal(conf.nameservers, u.configured) {
		u.configured = conf.nameservers
		u.udp.configure(conf.nameservers)
		u.tcp.configure(conf.nameservers)
	}
	return conf, err
}

// note counts what an error about a message says about the DNS library.
func (u *Upstreams) note(err error) {
	if errors.Is(err, errPanicked) {
		u.drops.Add(drop.ThirdPartyPanic, 1)
	}
}

// reply is the answer of a name server.
type reply struct {
	wire    []byte // with the identifier of the query; the receiver owns it
	msg     *dns.Msg
	fetched bool // over TCP, because the answer over UDP was truncated
}

// ask sends query to name servers until one answers or ctx ends. wire is query
// as the client sent it and is only read. Answers with a code other than
// NOERROR or NXDOMAIN are returned if no server has a better one. The error
// wraps context.DeadlineExceeded if time was up, ErrNoNameserver if there is
// none.
func (u *Upstreams) ask(ctx context.Context, query *dns.Msg, wire []byte, overTCP bool) (reply, error) {
	conf, err := u.config()
	if len(conf.nameservers) == 0 {
		return reply{}, errors.Join(ErrNoNameserver, err)
	}
	ctx, cancel := context.WithCancel(ctx)
	x := exchange{
		u: u, health: &u.udp, ctx: ctx, query: query, wire: wire, overTCP: overTCP,
		outcomes: make(chan outcome),
	}
	if overTCP {
		x.health = &u.tcp
	}
	defer x.running.Wait()
	defer cancel()
	return x.run()
}
