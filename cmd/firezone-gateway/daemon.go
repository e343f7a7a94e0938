package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"time"

	"firezone-gateway/actors"
	"firezone-gateway/internal/drop"
	"firezone-gateway/internal/portal"
	"firezone-gateway/internal/telemetry"
	"firezone-gateway/internal/transport"
	"firezone-gateway/internal/tun"
)

// Socket buffers of generation 1.6 (dataplane §8.6).
const (
	sendBuffer = tun.DefaultWmemMax
	recvBuffer = tun.DefaultRmemMax
)

// Limits of the end, in sum below the fifteen seconds that the service unit
// allows.
const (
	actorsLimit    = 8 * time.Second
	telemetryLimit = 2 * time.Second
)

// daemon is a gateway on a host that has all it needs.
type daemon struct {
	began        time.Time
	flags        *flags
	log          *slog.Logger
	drops        *drop.Counters
	plane        *actors.Plane
	providers    *telemetry.Providers
	endTelemetry func(context.Context) error
}

// prepare takes from the host what the gateway needs, so that everything that
// keeps it from working at all is found out here. The caller calls serve, which
// gives it back.
func prepare(ctx context.Context, f *flags, log *slog.Logger) (*daemon, error) {
	if !f.NoCheck && !tun.HasNetAdmin() {
		return nil, errNoNetAdmin
	}
	token, err := resolveToken(f.Token, os.Getenv("CREDENTIALS_DIRECTORY"))
	if err != nil {
		return nil, err
	}
	id, err := systemIdentity.resolve(f.ID)
	if err != nil {
		return nil, err
	}
	login, err := portal.NewLoginURL(portal.Login{
		BaseURL: f.APIURL, Token: token, ID: id, Name: f.name(), UserAgent: userAgent(f.ReportedVersion),
	})
	if err != nil {
		return nil, fmt.Errorf("login: %w", err)
	}
	d := &daemon{began: time.Now(), flags: f, log: log, drops: &drop.Counters{}}
	d.providers, d.endTelemetry, err = telemetry.Setup(ctx, telemetry.Config{
		ServiceName: "firezone-gateway", ServiceVersion: version, InstanceID: portal.ExternalID(id),
		Endpoint: f.OTLPEndpoint, Prometheus: f.MetricsAddr != noMetrics, Logger: log,
	})
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errUsage, err)
	}
	if d.plane, err = d.open(login); err != nil {
		d.flush()
		return nil, err
	}
	// Having got the device proves that no other gateway needs these.
	if err := tun.Cleanup(); err != nil {
		log.Warn("what an earlier gateway left behind cannot be removed", "error", err)
	}
	return d, nil
}

// open makes the packet path, the TUN device included.
func (d *daemon) open(login portal.LoginURL) (*actors.Plane, error) {
	f := d.flags
	if !f.NoIncBuf {
		if _, err := tun.RaiseSocketBuffers(recvBuffer, sendBuffer); err != nil {
			d.log.Info("kernel limits of socket buffers left as they are", "error", err)
		}
	}
	return actors.NewPlane(actors.PlaneConfig{
		Login:            login,
		MaxPartitionTime: time.Duration(f.MaxPartitionTime),
		TUN:              tun.Config{Name: tun.DefaultName, Driver: f.TUNDriver, Logger: d.log, Drops: d.drops},
		Masquerade:       f.Masquerade,
		GatewayOpen:      f.AllowGatewayAccess,
		NAT64:            f.NAT64,
		Transport: transport.Config{
			Port: transport.PreferredPort, Mark: tun.SocketMark,
			SendBuffer: f.UDPSendBuffer, RecvBuffer: f.UDPRecvBuffer,
		},
		Logger: d.log, Drops: d.drops,
	})
}

// serve runs the gateway until it decides to end or ctx does, then gives
// everything back to the host. Each of hangups resets it.
func (d *daemon) serve(ctx context.Context, hangups <-chan os.Signal) (code int, err error) {
	defer d.flush()
	defer d.end("packet path", d.plane.Close)
	tree, err := actors.Start(d.plane, d.log, d.providers.Tracer.Tracer(telemetry.TracerName))
	if err != nil {
		return exitFailure, err
	}
	defer d.openEndpoints(tree)()
	manager, leave := d.tellManager(ctx, tree)
	stop := d.allowControl(ctx, tree, hangups, manager.reloading)
	code, err = tree.Wait(ctx)
	stop()
	leave()
	// The rules go first: once the device is gone, they may be another gateway's.
	d.end("routes and rules", d.restoreHost)
	d.end("actors", within(actorsLimit, tree.Stop))
	d.drops.Each(func(r drop.Reason, n uint64) { d.log.Info("dropped in total", "reason", r.String(), "count", n) })
	return code, err
}

// restoreHost removes what outlives the TUN device.
func (d *daemon) restoreHost() error {
	err := tun.Cleanup()
	if d.flags.Masquerade {
		err = errors.Join(err, tun.Masquerade{}.Remove())
	}
	return err
}

// flush sends the last spans and metrics.
func (d *daemon) flush() { d.end("telemetry", within(telemetryLimit, d.endTelemetry)) }

// end takes a step of the ending. Its failure changes neither the rest of the
// ending nor the exit code.
func (d *daemon) end(what string, step func() error) {
	if err := step(); err != nil {
		d.log.Warn("did not end cleanly", "part", what, "error", err)
	}
}

func within(limit time.Duration, step func(context.Context) error) func() error {
	return func() error {
		ctx, cancel := context.WithTimeout(context.Background(), limit)
		defer cancel()
		return step(ctx)
	}
}
