package tour

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"time"

	labnet "firezone-gateway/internal/lab/net"
	"firezone-gateway/internal/lab/resource"
)

const pings = 5

// pingAnswered promises that echo requests of both IP versions are answered.
func pingAnswered(ctx context.Context, w *World) (Measurement, error) {
	m := Measurement{Values: make(map[string]float64)}
	for _, target := range []struct {
		version string
		role    role
	}{{"IPv4", files4}, {"IPv6", files6}} {
		var times []time.Duration
		for range pings {
			rtt, err := w.reaches(ctx, 0, places[target.role].address)
			if err != nil {
				return m, err
			}
			times = append(times, rtt)
		}
		slices.Sort(times)
		median := times[len(times)/2]
		if m.Text != "" {
			m.Text += ", "
		}
		m.Text += fmt.Sprintf("%s %s", target.version, milliseconds(median))
		m.Values["rtt_"+target.version+"_ms"] = ms(median)
	}
	return m, nil
}

// download promises that a file arrives at the client as the resource sent it.
func download(ctx context.Context, w *World) (Measurement, error) {
	return w.transfer(ctx, resource.Download, w.options.Transfer, 1)
}

// upload promises that a file arrives at the resource as the client sent it.
func upload(ctx context.Context, w *World) (Measurement, error) {
	return w.transfer(ctx, resource.Upload, w.options.Transfer, 2)
}

type mover func(ctx context.Context, n resource.Network, server netip.AddrPort, size int64, seed uint64) (resource.Transfer, error)

func (w *World) transfer(ctx context.Context, move mover, size int64, seed uint64) (Measurement, error) {
	t, err := move(ctx, w.host(0), files4.at(resource.DefaultPorts.HTTP), size, seed)
	if err != nil {
		return Measurement{}, err
	}
	m := Measurement{
		Text: fmt.Sprintf("%d MB in %.2f s, %s, SHA-256 %.8s… of both ends", t.Bytes/1e6, t.Elapsed.Seconds(), rate(t.BitsPerSecond()), t.Received),
		Values: map[string]float64{
			"bytes": float64(t.Bytes), "bits_per_second": t.BitsPerSecond(),
		},
	}
	if t.Bytes != size {
		return m, fmt.Errorf("%d of %d bytes arrived", t.Bytes, size)
	}
	if !t.Intact() {
		m.Text = fmt.Sprintf("sent %s, received %s", t.Sent, t.Received)
		return m, errors.New("the checksums differ")
	}
	return m, nil
}

// echoSize is the payload of an echo datagram in bytes: a full inner packet's,
// less some room.
const echoSize = 1200

// echoKept is the part of the rate that the senders have to keep up, on average
// over a run.
const echoKept = 0.9

// errSlowSender says that the machine was too busy to send as fast as wanted,
// which says nothing about the gateway.
var errSlowSender = errors.New("the senders did not keep up the rate")

// echoWithoutLoss promises that all clients' datagrams come back while all of
// them send at the same time. Only where the senders fell behind, and nothing
// was lost, it tries again.
func echoWithoutLoss(ctx context.Context, w *World) (m Measurement, err error) {
	const attempts = 6
	for range attempts {
		if m, err = w.echo(ctx); !errors.Is(err, errSlowSender) {
			break
		}
	}
	return m, err
}

func (w *World) echo(ctx context.Context) (Measurement, error) {
	n := len(w.clients)
	if n == 0 {
		return Measurement{}, errors.New("no client is connected")
	}
	load := resource.EchoLoad{BitsPerSecond: w.options.EchoRate / float64(n), Duration: w.options.EchoTime, Size: echoSize}
	reports, errs := make([]resource.EchoReport, n), make([]error, n)
	var flows sync.WaitGroup
	for i := range n {
		flows.Go(func() {
			reports[i], errs[i] = resource.UDPEcho(ctx, w.host(i), files4.at(resource.DefaultPorts.UDPEcho), load)
		})
	}
	flows.Wait()
	var total resource.EchoReport
	var kept float64
	for _, r := range reports {
		total.Sent += r.Sent
		total.Lost += r.Lost
		total.Repeated += r.Repeated
		total.Foreign += r.Foreign
		total.Median, total.P99, total.Max = max(total.Median, r.Median), max(total.P99, r.P99), max(total.Max, r.Max)
		kept += float64(r.Sent) * echoSize * 8 / max(r.Elapsed.Seconds(), 1e-3)
	}
	m := Measurement{
		Text: fmt.Sprintf("%d flows, %s each way, %d of %d lost, median %s, p99 %s",
			n, rate(kept), total.Lost, total.Sent, milliseconds(total.Median), milliseconds(total.P99)),
		Values: map[string]float64{
			"bits_per_second": kept, "sent": float64(total.Sent), "lost": float64(total.Lost),
			"rtt_median_ms": ms(total.Median), "rtt_p99_ms": ms(total.P99), "rtt_max_ms": ms(total.Max),
		},
	}
	err := errors.Join(errs...)
	switch {
	case err != nil:
	case total.Lost > 0:
		err = fmt.Errorf("%d datagrams were lost", total.Lost)
	case total.Repeated+total.Foreign > 0:
		err = fmt.Errorf("%d datagrams came twice, %d were not what was sent", total.Repeated, total.Foreign)
	case kept < echoKept*w.options.EchoRate:
		err = errSlowSender
	}
	return m, err
}

// relayWhenBlocked promises that a client finds a way through the relay when
// the direct one is blocked, and that the traffic really goes there.
func relayWhenBlocked(ctx context.Context, w *World) (m Measurement, err error) {
	if len(w.clients) == 0 {
		return m, errors.New("no client is connected")
	}
	if err := w.net.BlockDirect(true); err != nil {
		return m, err
	}
	defer func() { err = errors.Join(err, w.net.BlockDirect(false)) }()
	begin := time.Now()
	if err := w.clients[0].Reconnect(ctx); err != nil {
		return m, err
	}
	if m, err = w.awaitPath(ctx, "", func(_ netip.AddrPort, relayed bool) bool { return relayed }); err != nil {
		return m, err
	}
	if _, err := w.reaches(ctx, 0, places[files4].address); err != nil {
		return m, err
	}
	found := time.Since(begin)
	before := w.relay.Stats()
	t, err := w.transfer(ctx, resource.Download, w.options.RelayTransfer, 3)
	after := w.relay.Stats()
	moved := after.ToPeers.Bytes - before.ToPeers.Bytes + after.FromPeers.Bytes - before.FromPeers.Bytes
	m.Text = fmt.Sprintf("ping after %s, %s", milliseconds(found), t.Text)
	m.Values = map[string]float64{"switch_ms": ms(found), "relay_bytes": float64(moved)}
	for key, value := range t.Values {
		m.Values[key] = value
	}
	if err == nil && moved < uint64(w.options.RelayTransfer) {
		err = fmt.Errorf("only %d bytes went through the relay", moved)
	}
	return m, err
}

// directAgain promises that the path is direct again once nothing is blocked.
func directAgain(ctx context.Context, w *World) (Measurement, error) {
	if len(w.clients) == 0 {
		return Measurement{}, errors.New("no client is connected")
	}
	if err := w.clients[0].Reconnect(ctx); err != nil {
		return Measurement{}, err
	}
	m, err := pathIsDirect(ctx, w)
	if err != nil {
		return m, err
	}
	_, err = w.reaches(ctx, 0, places[files4].address)
	return m, err
}

// withoutNAT promises a direct path where nothing translates, over IPv6 as
// well, in a deployment of its own.
func withoutNAT(ctx context.Context, w *World) (m Measurement, err error) {
	o := w.options
	o.NAT, o.IPv4Only, o.Clients = labnet.NoNAT, false, 1
	if o.LogDir != "" {
		o.LogDir += "/no-nat"
	}
	other, err := New(o)
	if err != nil {
		return m, err
	}
	defer func() { err = errors.Join(err, other.Close()) }()
	for _, run := range []func(context.Context, *World) (Measurement, error){gatewayJoins, clientsAuthorized, pathIsDirect} {
		if m, err = run(ctx, other); err != nil {
			return m, tailed(err, other)
		}
	}
	p, err := pingAnswered(ctx, other)
	m.Text += ", ping " + p.Text
	return m, tailed(err, other)
}

// tailed adds the end of another World's log to an error, because observers
// see that of the main one only.
func tailed(err error, w *World) error {
	if err == nil {
		return nil
	}
	for _, line := range w.gateway.Tail(logLines) {
		err = fmt.Errorf("%w\n%s", err, line)
	}
	return err
}

func rate(bitsPerSecond float64) string {
	if bitsPerSecond >= 1e9 {
		return fmt.Sprintf("%.2f Gbit/s", bitsPerSecond/1e9)
	}
	return fmt.Sprintf("%.1f Mbit/s", bitsPerSecond/1e6)
}
