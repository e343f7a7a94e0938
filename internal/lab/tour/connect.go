package tour

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	labnet "firezone-gateway/internal/lab/net"
	"firezone-gateway/internal/lab/portal"
)

// arrival is how a client's first authorization went.
type arrival struct {
	acknowledged time.Duration // from the push to the gateway to its acknowledgement
	delivered    time.Duration // from that push to the first inner packet at the resource
}

func joined(e portal.Event) bool {
	return e.Kind == portal.PeerJoined && e.Role == portal.Gateway
}

// gatewayJoins promises that the daemon logs in on the socket of the portal's
// generation, says who it is, and uses the relay that it is told about.
func gatewayJoins(ctx context.Context, w *World) (Measurement, error) {
	begin := time.Now()
	e, err := w.portal.WaitEvent(ctx, 0, joined)
	if err != nil {
		return Measurement{}, fmt.Errorf("gateway did not join: %w", err)
	}
	generation, path := "V2", "/gateway/v2/websocket"
	if w.options.V1 {
		generation, path = "V1", "/gateway/websocket"
	}
	m := Measurement{
		Text:   fmt.Sprintf("%s socket, %q", generation, e.UserAgent),
		Values: map[string]float64{"join_seconds": max(0, e.At.Sub(begin)).Seconds()},
	}
	switch {
	case e.Path != path:
		err = fmt.Errorf("joined on %s, not on %s", e.Path, path)
	case !strings.Contains(e.UserAgent, " gateway/"):
		err = errors.New("user agent names no gateway")
	}
	if err != nil {
		return m, err
	}
	return m, w.awaitAllocation(ctx, 0)
}

// awaitAllocation waits for one more allocation at the relay than before.
func (w *World) awaitAllocation(ctx context.Context, before uint64) error {
	return await(ctx, "no allocation at the relay", func() bool { return w.relay.Stats().Allocated > before })
}

// clientsAuthorized promises that every client gets access, by a portal that
// waits for the gateway's acknowledgement, and a path to the gateway.
func clientsAuthorized(ctx context.Context, w *World) (Measurement, error) {
	for i := range w.net.Clients {
		if err := w.connect(ctx, i); err != nil {
			return Measurement{}, err
		}
		if err := w.authorize(ctx, i); err != nil {
			return Measurement{}, fmt.Errorf("%s: %w", clientID(i), err)
		}
	}
	if err := w.access(ctx, 0, files6); err != nil {
		return Measurement{}, err
	}
	slowest := slices.MaxFunc(w.arrived, func(a, b arrival) int { return cmp.Compare(a.acknowledged, b.acknowledged) })
	return Measurement{
		Text:   fmt.Sprintf("%d clients, acknowledged within %s", len(w.arrived), milliseconds(slowest.acknowledged)),
		Values: map[string]float64{"clients": float64(len(w.arrived)), "acknowledged_ms": ms(slowest.acknowledged)},
	}, nil
}

// authorize is the first access of client i. Its first packet leaves when the
// client says that traffic can flow, because what its engine is given earlier
// than a path costs a handshake that goes nowhere, and the next is due after
// 5 s only.
func (w *World) authorize(ctx context.Context, i int) error {
	after := w.lastEvent()
	if err := w.access(ctx, i, files4); err != nil {
		return err
	}
	delivered, err := w.firstDelivery(ctx, i, places[files4].address)
	if err != nil {
		return err
	}
	event := func(kind portal.EventKind) (portal.Event, error) {
		return w.portal.WaitEvent(ctx, after, func(e portal.Event) bool {
			return e.Kind == kind && e.ResourceID == w.resources[files4].ID
		})
	}
	pushed, err := event(portal.AuthorizationPushed)
	if err != nil {
		return fmt.Errorf("no authorization at the portal: %w", err)
	}
	acknowledged, err := event(portal.AuthorizationAcked)
	if err != nil {
		return fmt.Errorf("no acknowledgement at the portal: %w", err)
	}
	w.arrived = append(w.arrived, arrival{acknowledged.At.Sub(pushed.At), delivered.Sub(pushed.At)})
	return nil
}

// firstPacket promises that the first inner packet is delivered soon after the
// portal's authorization. Options.FirstPacket bounds the median of the clients.
func firstPacket(_ context.Context, w *World) (Measurement, error) {
	var times []time.Duration
	var words []string
	for _, a := range w.arrived {
		times = append(times, a.delivered)
		words = append(words, milliseconds(a.delivered))
	}
	if len(times) == 0 {
		return Measurement{}, errors.New("no client was authorized")
	}
	slices.Sort(times)
	median := times[len(times)/2]
	m := Measurement{
		Text:   strings.Join(words, ", "),
		Values: map[string]float64{"median_ms": ms(median), "slowest_ms": ms(times[len(times)-1])},
	}
	if limit := w.options.FirstPacket; limit > 0 && median > limit {
		return m, fmt.Errorf("median %s is above %s", milliseconds(median), milliseconds(limit))
	}
	return m, nil
}

// pathIsDirect promises that the main client's traffic goes to the gateway
// itself: to its router's address where that translates.
func pathIsDirect(ctx context.Context, w *World) (Measurement, error) {
	expected := w.net.Gateway.Router.IPv4
	if w.options.NAT == labnet.NoNAT {
		expected = w.net.Gateway.Host.IPv4
	}
	return w.awaitPath(ctx, fmt.Sprintf("NAT %v on both sides", w.options.NAT), func(to netip.AddrPort, relayed bool) bool {
		return !relayed && (to.Addr() == expected || to.Addr() == w.net.Gateway.Host.IPv6)
	})
}

// awaitPath waits until the path is as wanted, and says where it goes.
func (w *World) awaitPath(ctx context.Context, detail string, wanted func(to netip.AddrPort, relayed bool) bool) (Measurement, error) {
	if len(w.clients) == 0 {
		return Measurement{}, errors.New("no client is connected")
	}
	ctx, cancel := context.WithTimeout(ctx, pathPatience)
	defer cancel()
	begin := time.Now()
	var to netip.AddrPort
	var relayed, ok bool
	err := await(ctx, "path is not as promised", func() bool {
		to, relayed, ok = w.clients[0].Path()
		return ok && wanted(to, relayed)
	})
	return Measurement{
		Text:   fmt.Sprintf("%s to %v, %s", way(relayed), to, detail),
		Values: map[string]float64{"waited_ms": ms(time.Since(begin))},
	}, err
}

const pathPatience = 10 * time.Second

func way(relayed bool) string {
	if relayed {
		return "relayed"
	}
	return "direct"
}

func ms(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

func milliseconds(d time.Duration) string { return fmt.Sprintf("%.1f ms", ms(d)) }
