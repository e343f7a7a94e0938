package tour

import (
	"context"
	"errors"
	"fmt"
	"time"

	"firezone-gateway/internal/lab/portal"
)

// gatewayRejoins promises that a lost portal connection is made again, and that
// traffic does not care meanwhile.
func gatewayRejoins(ctx context.Context, w *World) (Measurement, error) {
	flow, err := w.openFlow(ctx, files4)
	if err != nil {
		return Measurement{}, err
	}
	defer flow.Close()
	after, begin := w.lastEvent(), time.Now()
	// Clients stay connected: what changes about relays has to reach them.
	if err := w.portal.DisconnectGateway("", "", closeRestart); err != nil {
		return Measurement{}, err
	}
	if err := echoOnce(flow, time.Now().Add(pingPatience)); err != nil {
		return Measurement{}, fmt.Errorf("flow without portal: %w", err)
	}
	e, err := w.portal.WaitEvent(ctx, after, joined)
	if err != nil {
		return Measurement{}, fmt.Errorf("gateway did not come back: %w", err)
	}
	away := e.At.Sub(begin)
	m := Measurement{
		Text:   fmt.Sprintf("joined again after %.1f s, flow went on", away.Seconds()),
		Values: map[string]float64{"away_seconds": away.Seconds()},
	}
	if err := echoOnce(flow, time.Now().Add(pingPatience)); err != nil {
		return m, fmt.Errorf("flow after joining again: %w", err)
	}
	_, err = w.reaches(ctx, 0, places[files4].address)
	return m, err
}

// Codes of Close frames (RFC 6455 §7.4).
const (
	closeNormal  = 1000 // of a peer that leaves for good
	closeRestart = 1012 // of a portal that restarts
)

// gatewayLeaves promises that SIGTERM ends the daemon in order: clients get a
// goodbye, the portal a Close frame, the operating system the exit code 0.
func gatewayLeaves(ctx context.Context, w *World) (Measurement, error) {
	if len(w.clients) == 0 {
		return Measurement{}, errors.New("no client is connected")
	}
	goodbyes, after, begin := w.clients[0].Goodbyes(), w.lastEvent(), time.Now()
	code, err := w.gateway.Stop(stopGrace)
	elapsed := time.Since(begin)
	m := Measurement{
		Text:   fmt.Sprintf("exit code %d after %s", code, milliseconds(elapsed)),
		Values: map[string]float64{"exit_code": float64(code), "stop_ms": ms(elapsed)},
	}
	switch {
	case err != nil:
		return m, err
	case code != 0:
		return m, fmt.Errorf("exit code is %d", code)
	}
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	if err := await(ctx, "no goodbye at the client", func() bool { return w.clients[0].Goodbyes() > goodbyes }); err != nil {
		return m, err
	}
	m.Text += ", goodbye received"
	left, err := w.portal.WaitEvent(ctx, after, func(e portal.Event) bool {
		return e.Kind == portal.PeerLeft && e.Role == portal.Gateway
	})
	if err != nil {
		return m, fmt.Errorf("no Close frame at the portal: %w", err)
	}
	m.Text += fmt.Sprintf(", portal saw Close %d", left.Status)
	if left.Status != closeNormal {
		return m, fmt.Errorf("Close code is not %d", closeNormal)
	}
	return m, nil
}
