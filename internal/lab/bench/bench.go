// Package bench compares the gateway with plain golang.zx2c4.com/wireguard in
// its place: one TCP stream from a client to a resource and back, through the
// same network, with the same client engine, in the same run, alternating.
//
//	client namespace -- middle namespace -- resource namespace
//
// Both middle processes stand in the same namespace all the time; each has a
// resource address of its own that the client routes into its tunnel, so only
// one of them works at any moment. Neither translates addresses.
//
// Two runs compare the gateway with itself, by the ways of two clients: a relayed
// run has one that reaches the gateway through a relay only, a DNS run one that
// reaches the resource by a domain, through the gateway's address translation. A
// telemetry run compares a gateway that tells all about itself with one that
// tells nothing, each in a network of its own.
package bench

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"time"

	"github.com/vishvananda/netlink"

	labnet "firezone-gateway/internal/lab/net"
	"firezone-gateway/internal/lab/portal"
	"firezone-gateway/internal/lab/relay"
	"firezone-gateway/internal/lab/resource"
)

// Options shape a run.
type Options struct {
	Gateway   string // path of the daemon's executable
	TUNDriver string // of the daemon; "" is its default
	Plain     []string
	Rounds    int
	Seconds   float64 // of each direction of each round
	// Relayed, DNS and Telemetry compare the gateway with itself, so that Plain is
	// not used: through a relay and directly, by a DNS resource and by a CIDR
	// resource, or with and without telemetry. One excludes the others.
	Relayed   bool
	DNS       bool
	Telemetry bool
	LogDir    string // for the daemon's log; "" keeps none
	// Progress is told what happens, in words; nil for nobody.
	Progress func(format string, args ...any)
}

// WarmUp is how long each way runs in each direction before the first round.
const WarmUp = time.Second

// Run builds the network, measures, and removes the network again.
func Run(ctx context.Context, o Options) (Report, error) {
	if o.Rounds < 1 || o.Seconds <= 0 {
		return Report{}, errors.New("at least one round of some seconds is needed")
	}
	if o.Relayed && o.DNS || o.Relayed && o.Telemetry || o.DNS && o.Telemetry {
		return Report{}, errors.New("a relayed run, a DNS run and a telemetry run are different runs")
	}
	if o.Progress == nil {
		o.Progress = func(string, ...any) {}
	}
	rig, err := newRig(ctx, o)
	if err != nil {
		return Report{}, err
	}
	report, err := rig.measure(ctx)
	if err == nil {
		err = rig.observer.complete()
	}
	return report, errors.Join(err, rig.close())
}

// Addresses of the resource host: one behind each way.
var (
	throughGateway = netip.MustParseAddr("10.20.0.10")
	throughPlain   = netip.MustParseAddr("10.20.0.11")
)

// rig is everything a run needs.
type rig struct {
	options  Options
	net      *labnet.TwoHop
	ways     []way
	relay    *relay.Server
	observer *observer      // of a telemetry run
	files    []labnet.File  // that the daemon sees in the place of the system's
	env      []string       // of the daemon
	closers  []func() error // in the order of their making
}

// way is one of the two things compared.
type way struct {
	name    string
	client  labnet.Host // where the stream begins
	relayed bool
	granted portal.Resource // what the client asks the gateway for, if it does
	target  netip.Addr      // of the stream; follows from granted
	process interface {
		PID() int
		Usage() (labnet.Usage, error)
		Done() <-chan struct{}
	}
}

func newRig(ctx context.Context, o Options) (*rig, error) {
	r := &rig{options: o}
	if err := r.build(ctx); err != nil {
		return nil, errors.Join(err, r.close())
	}
	return r, nil
}

func (r *rig) build(ctx context.Context) error {
	if err := r.addNetwork(); err != nil {
		return err
	}
	switch {
	case r.options.Relayed:
		return r.buildRelayed(ctx)
	case r.options.DNS:
		return r.buildDNS(ctx)
	case r.options.Telemetry:
		return r.buildTelemetry(ctx)
	}
	// The relay has the client's address, so that a path to the middle is
	// certainly direct.
	ours := way{name: "firezone-gateway", client: r.net.Client, granted: byAddress}
	if err := r.addGateway(ctx, r.net.Middle, r.net.Client, ours); err != nil {
		return err
	}
	if err := r.addPlain(ctx); err != nil {
		return fmt.Errorf("plain WireGuard: %w", err)
	}
	return nil
}

// addNetwork makes the network with the resource in it.
func (r *rig) addNetwork() (err error) {
	if r.net, err = labnet.NewTwoHop(); err != nil {
		return err
	}
	r.closers = append(r.closers, r.net.Close)
	if err := r.addAddress(throughPlain); err != nil {
		return err
	}
	for _, address := range []netip.Addr{throughGateway, throughPlain} {
		server, err := resource.Serve(r.net.Resource, address, resource.DefaultPorts, slog.New(slog.DiscardHandler))
		if err != nil {
			return err
		}
		r.closers = append(r.closers, server.Close)
	}
	return nil
}

func (r *rig) close() error {
	var errs []error
	for i := len(r.closers) - 1; i >= 0; i-- {
		errs = append(errs, r.closers[i]())
	}
	r.closers = nil
	return errors.Join(errs...)
}

// addAddress puts a second address on the resource host.
func (r *rig) addAddress(address netip.Addr) error {
	return r.net.Resource.Do(func() error {
		link, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		return netlink.AddrAdd(link, &netlink.Addr{IPNet: &net.IPNet{IP: address.AsSlice(), Mask: net.CIDRMask(24, 32)}})
	})
}

// measure runs the warm-up and all rounds. The two ways of a direction follow
// each other at once, so that they meet the same machine, and another begins in
// each round, so that none is always the second.
func (r *rig) measure(ctx context.Context) (Report, error) {
	report := newReport(r.options, r.ways)
	r.options.Progress("warming up")
	for _, w := range r.ways {
		if err := r.warmUp(ctx, w); err != nil {
			return report, fmt.Errorf("%s: %w", w.name, err)
		}
	}
	for round := range r.options.Rounds {
		for _, direction := range directions {
			for i := range r.ways {
				n := (i + round) % len(r.ways)
				w := r.ways[n]
				sample, err := r.sample(ctx, w, direction)
				if err != nil {
					return report, fmt.Errorf("%s, round %d: %w", w.name, round+1, err)
				}
				report.add(n, direction, sample)
				r.options.Progress("round %d: %-16s %-18v %6.2f Gbit/s, %5.2f CPU-s", round+1, w.name, direction, sample.Gigabits, sample.CPUSeconds)
			}
		}
	}
	report.finish()
	return report, nil
}

var directions = []resource.Direction{resource.ToResource, resource.FromResource}

func (r *rig) warmUp(ctx context.Context, w way) error {
	for _, direction := range directions {
		if _, err := r.stream(ctx, w, direction, WarmUp); err != nil {
			return err
		}
	}
	return nil
}

func (r *rig) sample(ctx context.Context, w way, d resource.Direction) (Sample, error) {
	before, err := w.process.Usage()
	if err == nil {
		err = resetPeak(w.process.PID())
	}
	if err != nil {
		return Sample{}, err
	}
	forwarded := r.forwarded(d)
	stream, err := r.stream(ctx, w, d, time.Duration(r.options.Seconds*float64(time.Second)))
	if err != nil {
		return Sample{}, err
	}
	after, err := w.process.Usage()
	if err != nil {
		return Sample{}, err
	}
	s := Sample{
		Gigabits: stream.BitsPerSecond() / 1e9, Bytes: uint64(stream.Bytes), Seconds: stream.Elapsed.Seconds(), CPUSeconds: (after.CPU - before.CPU).Seconds(),
		PeakRSS: after.PeakRSS, peakBefore: before.PeakRSS, Forwarded: r.forwarded(d) - forwarded,
	}
	return s, w.checkPath(s.Bytes, s.Forwarded)
}

// resetPeak makes the peak of a process's resident memory begin anew
// (proc_pid_clear_refs(5)), so that each stream has its own.
func resetPeak(pid int) error {
	if err := os.WriteFile(fmt.Sprintf("/proc/%d/clear_refs", pid), []byte("5"), 0); err != nil {
		return fmt.Errorf("reset peak memory: %w", err)
	}
	return nil
}

func (r *rig) stream(ctx context.Context, w way, d resource.Direction, duration time.Duration) (resource.Throughput, error) {
	ctx, cancel := context.WithTimeout(ctx, duration+10*time.Second)
	defer cancel()
	defer endWith(w.process.Done(), cancel)()
	port := resource.DefaultPorts.Sink
	if d == resource.FromResource {
		port = resource.DefaultPorts.Source
	}
	return resource.TCPThroughput(ctx, w.client, netip.AddrPortFrom(w.target, port), d, duration)
}

// endWith calls cancel when done is closed, until the returned function is
// called.
func endWith(done <-chan struct{}, cancel func()) (stop func()) {
	over := make(chan struct{})
	go func() {
		select {
		case <-done:
			cancel()
		case <-over:
		}
	}()
	return func() { close(over) }
}

// discardLines reads a stream to its end so that its writer never waits.
func discardLines(in io.Reader) { _, _ = io.Copy(io.Discard, in) }
