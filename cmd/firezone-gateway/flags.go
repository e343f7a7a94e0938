package main

import (
	"errors"
	"fmt"
	"io"
	"math"
	"net/netip"
	"net/url"
	"os"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/alecthomas/kong"

	"firezone-gateway/internal/tun"
)

const description = `Gateway of a Firezone account: clients reach private resources through it.

It needs a token, CAP_NET_ADMIN and /dev/net/tun, and connects out only: to the portal over a websocket, to relays and clients over UDP (port 52625, no inbound rule needed). Packets of clients leave through the host's routing; let the host forward and masquerade them, or use --masquerade.

  FIREZONE_TOKEN=... firezone-gateway --masquerade
  firezone-gateway status   what the running gateway does, and what is wrong with it
  firezone-gateway watch    what changes in it, line by line
  firezone-gateway explain  what it would do with a packet of a client, and why
  firezone-gateway reset    give it a new key; each of these has a --help
  firezone-gateway fault    let parts of it fail, if it was started for that

The token comes from the command line, else from FIREZONE_TOKEN, else from a systemd credential of that name (LoadCredential=FIREZONE_TOKEN:/etc/firezone/gateway-token). A value that names a file or a pipe stands for its content.

Flags win over the environment. An empty variable counts as unset. Accepted without effect: FIREZONE_NO_TELEMETRY, FIREZONE_FLOW_LOGS, FIREZONE_METRICS, FIREZONE_VALIDATE_CHECKSUMS. OTEL_* variables have their standard meaning.

Exit codes:

  0  ended by SIGINT or SIGTERM
  1  cannot work: no token, no CAP_NET_ADMIN, no TUN device or one in use,
     token refused, portal not reached in 15 s after the start or for
     longer than --max-partition-time; or a second signal while ending
  2  wrong usage: bad flag, URL, log directive or telemetry endpoint

A service manager should restart it after 1. It may take up to 15 s to end. SIGHUP does what the command reset does. systemd is told when it is ready, resetting, alive (WatchdogSec=) and ending: use Type=notify.`

// flags are the command line and environment of the gateway. Names follow the
// original (dataplane §8.1), so that an operator can swap binaries.
type flags struct {
	Token string `arg:"" optional:"" env:"FIREZONE_TOKEN" help:"Gateway token, or the path of a file that holds it. A command line is visible to other users."`

	APIURL             string      `name:"api-url" short:"u" env:"FIREZONE_API_URL" default:"wss://api.firezone.dev" help:"Portal to connect to (ws, wss, http or https). The port is 443 unless given, for ws as well."`
	Name               string      `name:"firezone-name" short:"n" env:"FIREZONE_NAME" help:"Name shown in the admin portal. Default: host name."`
	ID                 string      `name:"firezone-id" short:"i" env:"FIREZONE_ID" help:"Identity of this gateway. Default: from /var/lib/firezone/gateway_id, else derived from /etc/machine-id, else made up and stored."`
	NoTelemetry        bool        `name:"no-telemetry" env:"FIREZONE_NO_TELEMETRY" help:"Accepted for compatibility: this gateway sends nothing to the vendor in any case."`
	NoCheck            bool        `name:"no-check" help:"Skip the check for CAP_NET_ADMIN at start."`
	HealthCheckAddr    string      `name:"health-check-addr" env:"HEALTH_CHECK_ADDR" default:"0.0.0.0:8080" help:"IP address and port of the health endpoint: /healthz is 200 while the gateway does its work, /readyz while it can serve clients, else 503."`
	MetricsAddr        string      `name:"metrics-addr" env:"FIREZONE_METRICS_ADDR" placeholder:"IP:PORT" help:"IP address and port of /metrics for Prometheus. none: no such endpoint. Default: that of the health endpoint."`
	ControlSocket      string      `name:"control-socket" env:"FIREZONE_CONTROL_SOCKET" default:"${control_socket}" help:"Unix socket on which this gateway takes commands such as reset, from its own user and root. none: no such socket."`
	FaultInjection     bool        `name:"enable-fault-injection" env:"FIREZONE_ENABLE_FAULT_INJECTION" help:"Let the command fault crash, hang and delay parts of this gateway, to see how it bears that. For tests."`
	LogFormat          string      `name:"log-format" env:"FIREZONE_LOG_FORMAT" enum:"human,json" default:"human" help:"Log format: human or json."`
	LogDirectives      string      `name:"log-level" env:"RUST_LOG" default:"info" help:"Log level (off, error, warn, info, debug, trace), or directives per target: info,portal=debug,transport=warn."`
	FlowLogs           bool        `name:"flow-logs" env:"FIREZONE_FLOW_LOGS" hidden:""`
	Metrics            string      `name:"metrics" env:"FIREZONE_METRICS" hidden:""`
	ValidateChecksum   bool        `name:"validate-checksums" env:"FIREZONE_VALIDATE_CHECKSUMS" hidden:""`
	OTLPEndpoint       string      `name:"otlp-grpc-endpoint" env:"OTLP_GRPC_ENDPOINT" placeholder:"HOST:PORT" help:"OpenTelemetry collector (gRPC) for traces and metrics. OTEL_EXPORTER_OTLP_ENDPOINT works as well. Default: none."`
	MaxPartitionTime   humanSpan   `name:"max-partition-time" short:"m" env:"FIREZONE_MAX_PARTITION_TIME" default:"24h" help:"How long to go on without the portal before giving up (5m, 1h 30m, 30d)."`
	NoIncBuf           bool        `name:"no-inc-buf" env:"FIREZONE_NO_INC_BUF" help:"Do not raise net.core.rmem_max and wmem_max."`
	UDPSendBuffer      int         `name:"udp-send-buffer-size" env:"FIREZONE_UDP_SEND_BUFFER_SIZE" default:"${send_buffer}" help:"Send buffer of each UDP socket in bytes."`
	UDPRecvBuffer      int         `name:"udp-recv-buffer-size" env:"FIREZONE_UDP_RECV_BUFFER_SIZE" default:"${recv_buffer}" help:"Receive buffer of each UDP socket in bytes."`
	Masquerade         bool        `name:"masquerade" env:"FIREZONE_MASQUERADE" help:"Switch on forwarding and install masquerade rules for client addresses (nftables table firezone_gateway)."`
	TUNDriver          tun.Driver  `name:"tun-driver" env:"FIREZONE_TUN_DRIVER" default:"auto" help:"How packets move through the TUN device: auto uses kernel offloads where they work, water moves one packet per system call."`
	AllowGatewayAccess bool        `name:"allow-gateway-access" env:"FIREZONE_ALLOW_GATEWAY_ACCESS" help:"Open every port of the gateway's own tunnel addresses to clients, as the original does. By default they reach ping and DNS only."`
	NAT64              bool        `name:"nat64" env:"FIREZONE_NAT64" help:"Translate between IPv4 and IPv6 (RFC 7915), so that clients reach a DNS resource that has addresses of one family by its proxy addresses of both. By default those of the other family are unreachable, which current clients expect."`
	NoHostWatch        bool        `name:"no-host-watch" env:"FIREZONE_NO_HOST_WATCH" help:"Do not reset when the host resumes from suspension or its default route changes."`
	ReportedVersion    string      `name:"reported-version" env:"FIREZONE_REPORTED_VERSION" default:"${reported}" hidden:""`
	Version            versionFlag `name:"version" help:"Print the version and exit."`
}

// versionFlag prints the version and ends the process.
type versionFlag bool

// BeforeReset implements the parser's hook that runs before anything else.
func (versionFlag) BeforeReset(app *kong.Kong) error {
	fmt.Fprintf(app.Stdout, "firezone-gateway %s (%s, reports %s)\n", version, runtime.Version(), reportedVersion)
	app.Exit(exitOK)
	return nil
}

// parse reads the command line and the environment. Its errors are usage errors
// and do not contain the token.
func parse(args []string, stdout, stderr io.Writer) (*flags, error) {
	f := &flags{}
	parser := kong.Must(f, kong.Name("firezone-gateway"), kong.Description(description), kong.Writers(stdout, stderr), kong.Vars{
		"control_socket": defaultControlSocket,
		"reported":       reportedVersion,
		"send_buffer":    fmt.Sprint(sendBuffer),
		"recv_buffer":    fmt.Sprint(recvBuffer),
	})
	if err := parseArgs(parser, args); err != nil {
		if unexpectedArgument(err) {
			err = errors.New("more than one argument: the only one is the token")
		}
		return nil, err
	}
	return f, f.validate()
}

// parseArgs lets the parser fill in its flags. An empty variable counts as unset.
func parseArgs(parser *kong.Kong, args []string) error {
	values := parser.Model.Positional
	for _, flag := range parser.Model.Flags {
		values = append(values, flag.Value)
	}
	for _, v := range values {
		if err := unsetEmpty(v.Tag.Envs); err != nil {
			return err
		}
	}
	_, err := parser.Parse(args)
	return err
}

// unexpectedArgument reports whether the parser quotes an argument, which may be
// the token.
func unexpectedArgument(err error) bool { return strings.HasPrefix(err.Error(), "unexpected argument") }

// unsetEmpty removes empty variables, which the parser would take for a value.
func unsetEmpty(names []string) error {
	for _, name := range names {
		if os.Getenv(name) == "" {
			if err := os.Unsetenv(name); err != nil {
				return fmt.Errorf("unset %s: %w", name, err)
			}
		}
	}
	return nil
}

// maxText bounds names and identities (portal protocol §1.1).
const maxText = 255

// semver is the form of a version that the portal takes (portal protocol §5.3).
var semver = regexp.MustCompile(`^(0|[1-9]\d{0,5})\.(0|[1-9]\d{0,5})\.(0|[1-9]\d{0,5})$`)

// validate checks what the parser cannot. Its errors are usage errors.
func (f *flags) validate() error {
	for name := range commands {
		if f.Token == name {
			return fmt.Errorf("a command comes before its flags: firezone-gateway %s --help", name)
		}
	}
	if err := checkURL(f.APIURL); err != nil {
		return fmt.Errorf("--api-url: %w, expected something like wss://api.firezone.dev", err)
	}
	if _, err := netip.ParseAddrPort(f.HealthCheckAddr); err != nil {
		return fmt.Errorf("--health-check-addr: %w, expected something like 127.0.0.1:8080", err)
	}
	if _, err := netip.ParseAddrPort(f.MetricsAddr); err != nil && f.MetricsAddr != "" && f.MetricsAddr != noMetrics {
		return fmt.Errorf("--metrics-addr: %w, expected something like 127.0.0.1:9464, or none", err)
	}
	if err := checkControlSocket(f.ControlSocket); err != nil && f.ControlSocket != noControlSocket {
		return err
	}
	if utf8.RuneCountInString(f.Name) > maxText {
		return fmt.Errorf("--firezone-name: longer than %d characters", maxText)
	}
	if len(f.ID) > maxText {
		return fmt.Errorf("--firezone-id: longer than %d bytes", maxText)
	}
	if !semver.MatchString(f.ReportedVersion) {
		return fmt.Errorf("--reported-version: %q is not of the form 1.2.3", f.ReportedVersion)
	}
	for name, size := range map[string]int{"send": f.UDPSendBuffer, "recv": f.UDPRecvBuffer} {
		// The kernel takes the double of what it is told, as a signed number.
		if size < 1 || size > math.MaxInt32/2 {
			return fmt.Errorf("--udp-%s-buffer-size: %d is not between 1 and %d", name, size, math.MaxInt32/2)
		}
	}
	return nil
}

// checkURL does not repeat the URL, which may contain a password.
func checkURL(text string) error {
	u, err := url.Parse(text)
	if err != nil {
		return errors.New("not a URL")
	}
	switch u.Scheme {
	case "ws", "wss", "http", "https":
	default:
		return errors.New("scheme is none of ws, wss, http and https")
	}
	if u.Hostname() == "" {
		return errors.New("no host")
	}
	if strings.Contains(u.Hostname(), ":") && !strings.HasPrefix(u.Host, "[") {
		return errors.New("an IPv6 address needs brackets")
	}
	if port, err := strconv.ParseUint(u.Port(), 10, 16); u.Port() != "" && (err != nil || port == 0) {
		return errors.New("port is not between 1 and 65535")
	}
	if u.User != nil {
		return errors.New("user name and password are not supported")
	}
	return nil
}
