package tour

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"time"

	"firezone-gateway/internal/lab/portal"
	"firezone-gateway/internal/lab/resource"
)

// noGrantRefused promises that what was not granted is answered by ICMP
// "administratively prohibited" and never reaches the resource.
func noGrantRefused(ctx context.Context, w *World) (Measurement, error) {
	for _, secret := range []role{secret4, secret6} {
		if err := w.refused(ctx, 0, places[secret].address); err != nil {
			return Measurement{}, err
		}
	}
	return Measurement{Text: "ICMP 3/13 for IPv4, ICMPv6 1/1 for IPv6"}, nil
}

// filtersHold promises that a filter's port passes and any other is refused.
func filtersHold(ctx context.Context, w *World) (Measurement, error) {
	if err := w.access(ctx, 0, filtered); err != nil {
		return Measurement{}, err
	}
	open := filtered.at(resource.DefaultPorts.TCPEcho)
	flow, err := w.openFlow(ctx, filtered)
	if err != nil {
		return Measurement{}, fmt.Errorf("allowed port: %w", err)
	}
	defer flow.Close()
	if err := echoOnce(flow, time.Now().Add(pingPatience)); err != nil {
		return Measurement{}, fmt.Errorf("allowed port: %w", err)
	}
	closed := filtered.at(resource.DefaultPorts.HTTP)
	refusal, err := refusedTCP(ctx, w.host(0), closed)
	if err != nil {
		return Measurement{}, err
	}
	if !refusal.Prohibited() {
		return Measurement{}, fmt.Errorf("connection to %v: %w", closed, refusal)
	}
	if err := w.refused(ctx, 0, places[filtered].address); err != nil {
		return Measurement{}, err
	}
	return Measurement{Text: fmt.Sprintf("TCP %d passes, TCP %d and ICMP are prohibited", open.Port(), closed.Port())}, nil
}

// revocationBound is how long after the portal's push a packet may still pass.
// It covers the websocket and the pings' interval on a busy machine.
const revocationBound = 250 * time.Millisecond

// revocationCuts promises that after a revocation nothing passes any more, of
// flows that existed as of new ones.
func revocationCuts(ctx context.Context, w *World) (Measurement, error) {
	if err := w.access(ctx, 0, revocable); err != nil {
		return Measurement{}, err
	}
	target := places[revocable].address
	if _, err := w.reaches(ctx, 0, target); err != nil {
		return Measurement{}, err
	}
	flow, err := w.openFlow(ctx, revocable)
	if err != nil {
		return Measurement{}, err
	}
	defer flow.Close()
	if err := echoOnce(flow, time.Now().Add(pingPatience)); err != nil {
		return Measurement{}, fmt.Errorf("flow before the revocation: %w", err)
	}

	after := w.lastEvent()
	if err := w.portal.Revoke("", w.resources[revocable].ID); err != nil {
		return Measurement{}, err
	}
	refused, err := w.untilRefused(ctx, 0, target)
	if err != nil {
		return Measurement{}, err
	}
	pushed, err := w.portal.WaitEvent(ctx, after, func(e portal.Event) bool { return e.Kind == portal.AccessRejected })
	if err != nil {
		return Measurement{}, err
	}
	delay := refused.Sub(pushed.At)
	m := Measurement{
		Text:   fmt.Sprintf("prohibited %s after the push, established flow dead", milliseconds(delay)),
		Values: map[string]float64{"cut_ms": ms(delay)},
	}
	switch err := echoOnce(flow, time.Now().Add(300*time.Millisecond)); {
	case err == nil:
		return m, errors.New("the established flow goes on")
	case delay > revocationBound:
		return m, fmt.Errorf("took longer than %s", milliseconds(revocationBound))
	}
	for range pings {
		if err := w.refused(ctx, 0, target); err != nil {
			return m, err
		}
	}
	// The other grants are untouched.
	_, err = w.reaches(ctx, 0, places[files4].address)
	return m, err
}

const (
	// shortAccess is long enough to be used, and ends at a full second.
	shortAccess = 3 * time.Second
	// expiryBound is how late an expiry may take effect (dataplane rule 36).
	expiryBound = time.Second
)

// expiryEnds promises that access ends when the portal said it would.
func expiryEnds(ctx context.Context, w *World) (Measurement, error) {
	if err := w.portal.Grant("", w.resources[expiring].ID, shortAccess); err != nil {
		return Measurement{}, err
	}
	if err := w.access(ctx, 0, expiring); err != nil {
		return Measurement{}, err
	}
	var end time.Time
	for _, auth := range w.portal.State().Authorizations {
		if auth.ResourceID == w.resources[expiring].ID {
			end = time.Unix(auth.ExpiresAt.Unix(), 0) // as on the wire
		}
	}
	target := places[expiring].address
	if _, err := w.reaches(ctx, 0, target); err != nil {
		return Measurement{}, err
	}
	refused, err := w.untilRefused(ctx, 0, target)
	if err != nil {
		return Measurement{}, err
	}
	late := refused.Sub(end)
	m := Measurement{
		Text:   fmt.Sprintf("prohibited %s after the end", milliseconds(late)),
		Values: map[string]float64{"late_ms": ms(late)},
	}
	switch {
	case late < 0:
		return m, errors.New("access ended too early")
	case late > expiryBound:
		return m, fmt.Errorf("later than %s", milliseconds(expiryBound))
	}
	_, err = w.reaches(ctx, 0, places[files4].address)
	return m, err
}

// openFlow connects the main client to the echo service of a role.
func (w *World) openFlow(ctx context.Context, r role) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, pingPatience)
	defer cancel()
	return w.host(0).DialContext(ctx, "tcp4", r.at(resource.DefaultPorts.TCPEcho).String())
}

// echoOnce sends a word and wants it back before the deadline.
func echoOnce(conn net.Conn, deadline time.Time) error {
	const word = "still there?"
	if err := conn.SetDeadline(deadline); err != nil {
		return err
	}
	if _, err := io.WriteString(conn, word); err != nil {
		return err
	}
	answer := make([]byte, len(word))
	if _, err := io.ReadFull(conn, answer); err != nil {
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return errors.New("no echo")
		}
		return err
	}
	if string(answer) != word {
		return errors.New("the echo differs")
	}
	return nil
}
