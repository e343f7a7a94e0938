package chaos

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"sync"
	"syscall"
	"time"

	labnet "firezone-gateway/internal/lab/net"
	"firezone-gateway/internal/lab/portal"
	"firezone-gateway/internal/lab/resource"
)

// Killed is what came of killing the daemon.
type Killed struct {
	Restart float64 `json:"restart_ms"` // from the kill until the next process runs
	Refused int     `json:"logins_refused"`
	// Join is from the kill until the portal let the gateway in. It holds the
	// refusals and the gateway's own back-off.
	Join float64 `json:"join_ms"`
	// Traffic is from there until a datagram of the client was answered.
	Traffic float64 `json:"traffic_ms"`
	// Gap is the whole time without an answer.
	Gap   float64 `json:"gap_ms"`
	Leaks int     `json:"leaks"` // packets to a revoked resource that passed in the new process
}

// Options of the killing.
const (
	// loginsRefused is how often the portal answers that this gateway is still
	// connected, as a portal does that has not noticed the end of the old one.
	loginsRefused = 2
	// trafficLimit is the promise: from the portal's acceptance to traffic.
	trafficLimit = 3 * time.Second
	killLimit    = 60 * time.Second
)

// Kill kills the daemon with SIGKILL while it works, and starts it again at once,
// as a service manager does.
func Kill(ctx context.Context, o Options) Result {
	o, err := o.withDefaults()
	if err != nil {
		return Result{Name: "kill", Broken: []string{err.Error()}}
	}
	return part(ctx, "kill -9 and restart", shape{clients: 1, nat: labnet.PortRestricted}, o, func(ctx context.Context, w *world, r *Result) error {
		ctx, cancel := context.WithTimeout(ctx, killLimit)
		defer cancel()
		k, err := w.kill(ctx)
		r.Figures, r.Measured = k, k.String()
		if err != nil {
			return err
		}
		r.check(k.Refused >= loginsRefused, "the portal refused %d logins, not %d", k.Refused, loginsRefused)
		r.check(k.Traffic <= ms(trafficLimit), "traffic %.0f ms after the portal let the gateway in, promised are %v", k.Traffic, trafficLimit)
		r.check(k.Leaks == 0, "%d packets to a revoked resource passed", k.Leaks)
		return nil
	})
}

func (w *world) kill(ctx context.Context) (k Killed, err error) {
	l := &load{w: w, revoked: &probe{name: "revoked", at: revokedAt}}
	ctx, stop := context.WithCancel(ctx)
	var running sync.WaitGroup
	defer func() {
		stop()
		running.Wait()
		k.Leaks = l.revoked.account().Leaks
	}()
	done, err := l.revoked.start(ctx, w.host(0), w.net.Resource.Namespace)
	if err != nil {
		return k, err
	}
	running.Go(done)
	if err := l.revokeOnce(ctx); err != nil {
		return k, err
	}
	flow, done, err := startEcho(ctx, w.host(0), netip.AddrPortFrom(filesAt, resource.DefaultPorts.UDPEcho), w.options.Echoes)
	if err != nil {
		return k, err
	}
	running.Go(done)
	if err := pause(ctx, time.Second); err != nil {
		return k, err
	}

	after := w.lastEvent()
	if err := w.portal.SetFaults(portal.Faults{
		Roles:  []portal.Role{portal.Gateway},
		Refuse: &portal.Refusal{Status: http.StatusConflict, Code: "gateway_already_connected", Times: loginsRefused},
	}); err != nil {
		return k, err
	}
	began := time.Now()
	g := w.daemon()
	if err := g.Signal(syscall.SIGKILL); err != nil {
		return k, err
	}
	<-g.Done()
	if err := w.startGateway(); err != nil {
		return k, err
	}
	k.Restart = ms(time.Since(began))
	joined, err := w.portal.WaitEvent(ctx, after, gatewayJoined)
	if err != nil {
		return k, fmt.Errorf("the portal did not let the gateway in: %w", err)
	}
	k.Join = ms(joined.At.Sub(began))
	for _, e := range w.portal.Events(after) {
		if e.Kind == portal.ConnectRefused && e.Role == portal.Gateway {
			k.Refused++
		}
	}
	if err := w.comeBack(ctx, flow, began); err != nil {
		return k, err
	}
	k.Gap = ms(time.Since(began))
	k.Traffic = ms(time.Since(joined.At))
	return k, nil
}

// comeBack asks for access again, as a client does that has found out that its
// connection is dead, until datagrams are answered that were sent since.
func (w *world) comeBack(ctx context.Context, flow *echoFlow, since time.Time) error {
	for {
		limited, cancel := context.WithTimeout(ctx, time.Second)
		err := w.clients[0].Access(limited, w.files.ID, private)
		if err == nil {
			err = await(limited, func() bool { return flow.answeredAfter(since) })
		}
		cancel()
		switch {
		case err == nil:
			return nil
		case ctx.Err() != nil:
			return fmt.Errorf("no traffic: %w", errors.Join(err, ctx.Err()))
		}
		_ = pause(ctx, 50*time.Millisecond)
	}
}

// answeredAfter reports whether a datagram came back that was sent after t.
func (f *echoFlow) answeredAfter(t time.Time) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	for i := len(f.sent) - 1; i >= 0 && f.begin.Add(f.sent[i]).After(t); i-- {
		if f.trips[i] > 0 {
			return true
		}
	}
	return false
}

// String returns the figures in one line.
func (k Killed) String() string {
	return fmt.Sprintf("the next process ran after %.0f ms, %d logins refused, joined after %.0f ms, traffic %.0f ms after that (%.0f ms without in all)",
		k.Restart, k.Refused, k.Join, k.Traffic, k.Gap)
}
