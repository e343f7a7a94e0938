package bench

import (
	"bufio"
	"context"
	"crypto/ecdh"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"golang.zx2c4.com/wireguard/conn"

	"firezone-gateway/internal/lab/client"
	"firezone-gateway/internal/lab/gateway"
	labnet "firezone-gateway/internal/lab/net"
	"firezone-gateway/internal/lab/portal"
	"firezone-gateway/internal/lab/relay"
)

// Of the plain tunnel.
const plainPort = 51820

var (
	plainClient = netip.MustParsePrefix("10.99.0.2/32")
	plainMiddle = netip.MustParsePrefix("10.99.0.1/32")
)

const (
	startPatience = 20 * time.Second
	stopGrace     = 5 * time.Second
)

// addPlain starts plain WireGuard in the middle and its client end.
func (r *rig) addPlain(ctx context.Context) error {
	middleKey, clientKey := newKey(), newKey()
	if len(r.options.Plain) == 0 {
		return errors.New("no command")
	}
	cmd := exec.Command(r.options.Plain[0], append(r.options.Plain[1:len(r.options.Plain):len(r.options.Plain)],
		"--name=tun-plain", "--address="+plainMiddle.String(), "--route="+plainClient.String())...)
	cmd.Stdin = strings.NewReader(fmt.Sprintf("private_key=%s\nlisten_port=%d\npublic_key=%s\nallowed_ip=%s\n",
		secret(middleKey), plainPort, public(clientKey), plainClient))
	cmd.Stderr = os.Stderr
	out, in := io.Pipe()
	cmd.Stdout = in
	process, err := r.net.Middle.StartProcess(cmd)
	if err != nil {
		return errors.Join(err, in.Close())
	}
	r.closers = append(r.closers, func() error {
		defer in.Close()
		return process.Stop(stopGrace)
	})
	if err := awaitLine(ctx, out, ready, process.Done()); err != nil {
		return err
	}

	var end *engine
	err = r.net.Client.Do(func() error {
		bind := namespaceBind{Bind: conn.NewStdNetBind(), in: r.net.Client}
		end, err = newEngine("tun-plain", bind, []netip.Prefix{plainClient}, []netip.Prefix{host(throughPlain)},
			fmt.Sprintf("private_key=%s\npublic_key=%s\nendpoint=%v:%d\nallowed_ip=%v\n",
				secret(clientKey), public(middleKey), r.net.Middle.IPv4, plainPort, host(throughPlain)))
		return err
	})
	if err != nil {
		return err
	}
	r.closers = append(r.closers, func() error { end.Close(); return nil })
	r.ways = append(r.ways, way{name: "plain WireGuard", client: r.net.Client, target: throughPlain, process: process})
	return nil
}

// byAddress is the resource as most runs grant it.
var byAddress = portal.Resource{Type: portal.CIDR, Name: "bench", Address: throughGateway.String()}

// addGateway starts a portal on one host and a relay on another, the daemon in
// the middle, and for each way a client with access to its resource.
func (r *rig) addGateway(ctx context.Context, portalAt, relayAt labnet.Host, ways ...way) error {
	ctx, cancel := context.WithTimeout(ctx, startPatience)
	defer cancel()
	server, err := r.startPortal(portalAt, relayAt)
	if err != nil {
		return err
	}
	daemon, err := r.startGateway(server)
	if err != nil {
		return err
	}
	defer endWith(daemon.Done(), cancel)()
	if _, err := server.WaitEvent(ctx, 0, func(e portal.Event) bool {
		return e.Kind == portal.PeerJoined && e.Role == portal.Gateway
	}); err != nil {
		return explained(fmt.Errorf("gateway did not join the portal: %w", err), daemon)
	}
	for _, w := range ways {
		w.process = daemon
		if w.target, err = r.connectClient(ctx, server, w); err != nil {
			return explained(fmt.Errorf("%s: %w", w.name, err), daemon)
		}
		r.ways = append(r.ways, w)
	}
	return nil
}

// startPortal starts a portal on one host and a relay on another.
func (r *rig) startPortal(at, relayAt labnet.Host) (*portal.Server, error) {
	listener, err := at.Listen("tcp", netip.AddrPortFrom(at.IPv4, 8081).String())
	if err != nil {
		return nil, err
	}
	server, err := portal.New(portal.Config{Listener: listener})
	if err != nil {
		return nil, err
	}
	r.closers = append(r.closers, server.Close)
	key := relay.NewSecret()
	r.relay, err = relay.Start(relay.Options{Secret: key, IPv4: relayAt.IPv4, Port: relay.Port, ListenPacket: relayAt.ListenPacket})
	if err != nil {
		return nil, err
	}
	r.closers = append(r.closers, r.relay.Close)
	return server, server.SetRelays([]portal.Relay{{StampSecret: key, V4: r.relay.Addrs()[0]}})
}

func (r *rig) startGateway(server *portal.Server) (*gateway.Gateway, error) {
	log, err := r.logFile()
	if err != nil {
		return nil, err
	}
	daemon, err := gateway.Start(r.net.Middle.Namespace, gateway.Options{
		Binary: r.options.Gateway, Portal: server.URL(), Token: "bench", ID: "bench-gateway", Name: "bench",
		TUNDriver: r.options.TUNDriver, Log: log, Files: r.files, Env: r.env,
	})
	if err != nil {
		return nil, err
	}
	r.closers = append(r.closers, func() error {
		code, err := daemon.Stop(stopGrace)
		if err == nil && code != 0 {
			err = fmt.Errorf("exit code %d", code)
		}
		return err
	})
	return daemon, nil
}

// connectClient starts the client of w with access to its resource, holds that
// the path is of the kind that w is about, and returns the address of the resource
// for the client.
func (r *rig) connectClient(ctx context.Context, server *portal.Server, w way) (target netip.Addr, err error) {
	name := "bench-" + w.name
	granted, err := server.AddResource(w.granted)
	if err != nil {
		return target, err
	}
	if err := server.Grant(name, granted.ID, 24*time.Hour); err != nil {
		return target, err
	}
	c, err := client.Connect(ctx, client.Config{
		Portal: server.URL(), Token: "bench", ID: name, Name: name,
		Namespace: w.client.Namespace, Addresses: []netip.Addr{w.client.IPv4}, TUNName: fmt.Sprintf("tun-client%d", len(r.ways)),
	})
	if err != nil {
		return target, err
	}
	r.closers = append(r.closers, c.Close)
	if target, err = access(ctx, c, granted); err != nil {
		return target, err
	}
	if to, relayed, ok := c.Path(); !ok || relayed != w.relayed {
		return target, fmt.Errorf("path to %v is not %s", to, w.kind())
	}
	return target, nil
}

// access asks for a resource and returns its address, or a proxy address of its
// domain.
func access(ctx context.Context, c *client.Client, granted portal.Resource) (netip.Addr, error) {
	if granted.Type != portal.DNS {
		return throughGateway, c.Access(ctx, granted.ID, host(throughGateway))
	}
	proxies, active, err := c.AccessDomain(ctx, granted.ID, granted.Address)
	switch {
	case err != nil:
		return netip.Addr{}, err
	case !active:
		return netip.Addr{}, fmt.Errorf("%s is not served", granted.Address)
	}
	return proxies[0], nil
}

func (w way) kind() string {
	if w.relayed {
		return "relayed"
	}
	return "direct"
}

// explained adds the daemon's last words to an error.
func explained(err error, daemon *gateway.Gateway) error {
	return fmt.Errorf("%w\n%s", err, strings.Join(daemon.Tail(20), "\n"))
}

func (r *rig) logFile() (io.Writer, error) {
	if r.options.LogDir == "" {
		return nil, nil
	}
	if err := os.MkdirAll(r.options.LogDir, 0o755); err != nil {
		return nil, fmt.Errorf("log directory: %w", err)
	}
	file, err := os.Create(filepath.Join(r.options.LogDir, "bench-gateway.log"))
	if err != nil {
		return nil, fmt.Errorf("log: %w", err)
	}
	r.closers = append(r.closers, file.Close)
	return file, nil
}

// awaitLine waits for a line and reads on behind it.
func awaitLine(ctx context.Context, out *io.PipeReader, line string, ended <-chan struct{}) error {
	found := make(chan bool, 1)
	go func() {
		lines := bufio.NewScanner(out)
		for lines.Scan() {
			if lines.Text() == line {
				found <- true
				break
			}
		}
		discardLines(out)
	}()
	timer := time.NewTimer(startPatience)
	defer timer.Stop()
	select {
	case <-found:
		return nil
	case <-ended:
		return errors.New("the process ended")
	case <-timer.C:
		return fmt.Errorf("did not say %q in time", line)
	case <-ctx.Done():
		return ctx.Err()
	}
}

func newKey() *ecdh.PrivateKey {
	key, err := ecdh.X25519().GenerateKey(rand.Reader)
	if err != nil {
		panic(err) // the system's random source does not fail
	}
	return key
}

func secret(key *ecdh.PrivateKey) string { return hex.EncodeToString(key.Bytes()) }
func public(key *ecdh.PrivateKey) string { return hex.EncodeToString(key.PublicKey().Bytes()) }
func host(a netip.Addr) netip.Prefix     { return netip.PrefixFrom(a, a.BitLen()) }
