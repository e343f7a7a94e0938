package portal

import (
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"time"
)

// DefaultSiteID is the id of the site that exists from the start. Gateways
// that log in with Config.GatewayToken and resources without a site belong to it.
const DefaultSiteID = "5f1c7d62-3a0e-4b7e-9a44-6c61622d7369"

// Config configures a Server. Its zero value, with either Listener or Addr
// set, is a portal of the recent generation that accepts any token.
type Config struct {
	// Listener carries the websockets; the Server owns and closes it. When it
	// is nil, Addr ("host:port") is listened on. Peers dial port 443 for a
	// clear-text URL on port 80 (portal-protocol §1.1), so that port is refused
	// without TLS.
	Listener net.Listener
	Addr     string
	TLS      *tls.Config // nil: clear text

	// ControlListener or ControlAddr carries the HTTP control interface. When
	// both are empty there is none.
	ControlListener net.Listener
	ControlAddr     string

	Logger *slog.Logger // nil: discard

	// V1Only makes this a portal of the 1.4 generation: no V2 paths (404),
	// plain-text errors, 422 for bad parameters, no identity conflicts, no
	// no_relays, no flow logs.
	V1Only bool
	// Legacy makes the portal ask gateways as for clients before 1.4. It needs
	// V1Only.
	Legacy Legacy
	// QueryTokenOnly ignores the X-Authorization header, as portals before
	// 2025-12-31 do.
	QueryTokenOnly bool

	// GatewayToken, ClientToken and RelayToken are the accepted tokens. An
	// empty GatewayToken or ClientToken accepts any non-empty token, an empty
	// RelayToken also none at all. Sites may have gateway tokens of their own.
	GatewayToken string
	ClientToken  string
	RelayToken   string

	// RateLimit limits connects per source address and token; nil means no limit.
	RateLimit *RateLimit

	AccountSlug string // default "lab"
	ClientDNS   ClientDNS
	FlowLogs    FlowLogs
	// Iceless is the account's feature flag: connections use the iceless mode
	// when it is set and both sides announced the capability.
	Iceless bool

	AckTimeout    time.Duration // for a gateway's acknowledgement; default 15 s
	RelayDebounce time.Duration // between a relay's change and relays_presence; default 1 s
	IdleLimit     time.Duration // replaces the limits of portal-protocol §1.7 when set
	ClientSession time.Duration // life of a client's session token; default 7 days

	// Now is the clock for expiry dates and the rate limit; nil means time.Now.
	// Time-outs and the time stamps of events always follow the real clock.
	Now func() time.Time
}

// RateLimit is a token bucket (portal-protocol §1.9).
type RateLimit struct {
	PerSecond float64 // refill; the real portal uses 1
	Burst     int     // capacity; the real portal uses 1
}

// ClientDNS is what clients are told about name resolution. At most one of
// Do53 and DoH may be filled.
type ClientDNS struct {
	SearchDomain string
	Do53         []netip.Addr
	DoH          []string // URLs
}

// FlowLogs is the flow-log configuration sent in init and in ingest tokens.
type FlowLogs struct {
	APIURL         string        // default "https://flow-api.invalid/"
	UploadInterval time.Duration // whole seconds; zero disables uploads
	BatchSize      int           // default 1000
	UploadsEnabled bool          // claim of the ingest tokens
}

func (c Config) withDefaults() (Config, error) {
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	setDefault(&c.AccountSlug, "lab")
	setDefault(&c.AckTimeout, 15*time.Second)
	setDefault(&c.RelayDebounce, time.Second)
	setDefault(&c.ClientSession, 7*24*time.Hour)
	setDefault(&c.FlowLogs.APIURL, "https://flow-api.invalid/")
	setDefault(&c.FlowLogs.BatchSize, 1000)
	switch {
	case c.Listener == nil && c.Addr == "":
		return c, errors.New("portal needs a listener or an address")
	case len(c.ClientDNS.Do53) > 0 && len(c.ClientDNS.DoH) > 0:
		return c, errors.New("clients take either plain or HTTPS name servers, not both")
	case c.RateLimit != nil && (c.RateLimit.PerSecond <= 0 || c.RateLimit.Burst < 1):
		return c, errors.New("rate limit needs a positive rate and burst")
	case c.Legacy != LegacyOff && !c.V1Only:
		return c, errors.New("legacy messages belong to the 1.4 generation")
	case min(c.AckTimeout, c.RelayDebounce, c.IdleLimit, c.ClientSession, c.FlowLogs.UploadInterval) < 0:
		return c, errors.New("negative duration")
	}
	return c, nil
}

// listen opens what the Config names and closes everything again on an error.
func (c Config) listen() (main, control net.Listener, err error) {
	main, control = c.Listener, c.ControlListener
	defer func() {
		if err == nil {
			return
		}
		for _, ln := range []net.Listener{main, control} {
			if ln != nil {
				ln.Close()
			}
		}
	}()
	if main == nil {
		if main, err = net.Listen("tcp", c.Addr); err != nil {
			return main, control, fmt.Errorf("listen for websockets: %w", err)
		}
	}
	if main, err = c.secure(main); err != nil {
		return main, control, err
	}
	if control == nil && c.ControlAddr != "" {
		if control, err = net.Listen("tcp", c.ControlAddr); err != nil {
			return main, control, fmt.Errorf("listen for control: %w", err)
		}
	}
	return main, control, nil
}

// secure puts TLS around a listener for websockets where it is configured, and
// refuses an address that peers would not dial.
func (c Config) secure(ln net.Listener) (net.Listener, error) {
	if c.TLS == nil {
		if tcp, ok := ln.Addr().(*net.TCPAddr); ok && tcp.Port == 80 {
			return ln, errors.New("clear text on port 80: peers would dial 443")
		}
		return ln, nil
	}
	// Websockets need HTTP/1.1, whatever else the configuration offers.
	tlsConfig := c.TLS.Clone()
	tlsConfig.NextProtos = []string{"http/1.1"}
	return tls.NewListener(ln, tlsConfig), nil
}

func setDefault[T comparable](field *T, value T) {
	var zero T
	if *field == zero {
		*field = value
	}
}
