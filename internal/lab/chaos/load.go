package chaos

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"strings"
	"sync"
	"time"

	"firezone-gateway/internal/lab/resource"
)

// Load is what the clients of a part did, and what became of it.
type Load struct {
	Echo    Echo   `json:"echo"`    // to the resource by its address
	House   Echo   `json:"house"`   // to the resource by its name
	Outside Echo   `json:"outside"` // the control flow: not through the gateway
	Down    Stream `json:"download"`
	Up      Stream `json:"upload"`

	Secret  Access `json:"never_granted"`
	Revoked Access `json:"revoked"`
	Cycled  Access `json:"revoked_again_and_again"`
	Cycles  Cycles `json:"cycles"`

	Queries Asking `json:"dns_queries"`
	SetUps  Asking `json:"domain_set_ups"`
	Flows   Asking `json:"new_flows"` // each needs a NAT session
}

// load is a Load under way.
type load struct {
	w         *world
	stop      context.CancelFunc // of everything
	idle      context.CancelFunc // of everything but the transfers, which end by themselves
	wait      func()
	transfers func() // waits for them

	echo, house, outside    *echoFlow
	secret, revoked, cycled *probe
	result                  Load
}

// outsidePace is how many datagrams per second tell how well the machine does.
const outsidePace = 250

// houseShare is the part of the datagrams that goes to the DNS resource besides.
const houseShare = 10

// startLoad brings everything to work; the transfers take the given time.
func (w *world) startLoad(ctx context.Context, during time.Duration, seed uint64) (*load, error) {
	proxies, active, err := w.clients[0].AccessDomain(ctx, w.house.ID, domain)
	if err != nil || !active {
		return nil, errors.Join(fmt.Errorf("%s is not served (active: %v)", domain, active), err)
	}
	l := &load{
		w: w, secret: &probe{name: "secret", at: secretAt}, revoked: &probe{name: "revoked", at: revokedAt}, cycled: &probe{name: "cycled", at: cycledAt},
	}
	l.secret.forbid()
	all, stop := context.WithCancel(ctx)
	ctx, idle := context.WithCancel(all)
	var running, transfers sync.WaitGroup
	l.stop, l.idle, l.wait, l.transfers = stop, idle, running.Wait, transfers.Wait
	fail := func(err error) (*load, error) {
		l.stop()
		l.wait()
		return nil, err
	}
	client := w.host(0)
	for _, p := range []*probe{l.secret, l.revoked, l.cycled} {
		done, err := p.start(ctx, client, w.net.Resource.Namespace)
		if err != nil {
			return fail(err)
		}
		running.Go(done)
	}
	if err := l.revokeOnce(ctx); err != nil {
		return fail(err)
	}
	for _, f := range []struct {
		flow *(*echoFlow)
		to   netip.AddrPort
		rate int
	}{
		{&l.echo, netip.AddrPortFrom(filesAt, resource.DefaultPorts.UDPEcho), w.options.Echoes},
		{&l.house, netip.AddrPortFrom(proxies[0], resource.DefaultPorts.UDPEcho), max(w.options.Echoes/houseShare, 1)},
		{&l.outside, netip.AddrPortFrom(w.net.Portal.IPv4, outsidePort), outsidePace},
	} {
		flow, done, err := startEcho(ctx, client, f.to, f.rate)
		if err != nil {
			return fail(err)
		}
		*f.flow = flow
		running.Go(done)
	}
	chance := rand.New(rand.NewPCG(seed, 1))
	run := &l.result
	transfers.Go(func() { run.Down = transfer(all, client, resource.Download, during, seed) })
	transfers.Go(func() { run.Up = transfer(all, client, resource.Upload, during, seed+1) })
	running.Go(func() { run.Cycles = w.cycle(ctx, l.cycled, chance) })
	running.Go(func() { run.Queries = queryManner.ask(ctx, w.slack(), w.query) })
	running.Go(func() { run.SetUps = setUpManner.ask(ctx, w.slack(), w.setUp) })
	running.Go(func() { run.Flows = flowManner.ask(ctx, w.slack(), w.open(proxies[1])) })
	return l, nil
}

// revokeOnce lets the client use a resource and then takes it away for good.
func (l *load) revokeOnce(ctx context.Context) error {
	if err := l.w.portal.Grant("", l.w.revoked.ID, longAccess); err != nil {
		return err
	}
	if _, err := l.w.use(ctx, l.revoked, l.w.revoked.ID); err != nil {
		return err
	}
	if err := l.w.portal.Revoke("", l.w.revoked.ID); err != nil {
		return err
	}
	if _, err := l.w.untilRefused(ctx, revokedAt); err != nil {
		return err
	}
	l.revoked.forbid()
	return nil
}

// finish ends the load, transfers when they are through, and sums it up.
func (l *load) finish() Load {
	l.transfers()
	l.idle()
	l.wait()
	l.stop()
	r := &l.result
	spans := l.outside.disturbances()
	r.Outside = l.outside.account(nil)
	r.Echo, r.House = l.echo.account(spans), l.house.account(spans)
	r.Secret, r.Revoked, r.Cycled = l.secret.account(), l.revoked.account(), l.cycled.account()
	return *r
}

// judge holds the load to what users may expect. lossy says that messages of the
// gateway itself were lost on purpose, a revocation perhaps among them.
func (l Load) judge(r *Result, tolerance float64, lossy bool) {
	for name, s := range map[string]Stream{"download": l.Down, "upload": l.Up} {
		r.check(!s.reset, "%s: the TCP connection was reset: %s", name, s.Error)
		r.check(s.reset || s.Error == "", "%s: %s", name, s.Error)
		r.check(s.Error != "" || (s.Whole && s.Intact), "%s: %d bytes, intact: %v", name, s.Bytes, s.Intact)
	}
	both := l.Echo
	both.add(l.House)
	r.check(l.Echo.Sent > 0 && l.House.Sent > 0, "%d and %d datagrams were sent", l.Echo.Sent, l.House.Sent)
	r.check(both.Share() <= tolerance, "%d of %d datagrams lost, allowed are %.2f %%; %d more while the machine stood still",
		both.Lost-both.Excused, both.Sent, tolerance*100, both.Excused)
	for name, a := range map[string]Access{"a resource without a grant": l.Secret, "a revoked resource": l.Revoked} {
		r.check(a.Leaks == 0, "%s: %d of %d packets passed", name, a.Leaks, a.Sent)
	}
	r.check(l.Revoked.Arrived > 0, "the resource to be revoked was never reached")
	if !lossy {
		r.check(l.Cycled.Leaks == 0, "a resource between revocation and grant: %d packets passed", l.Cycled.Leaks)
		r.check(l.Cycles.Error == "", "grants and revocations: %s", l.Cycles.Error)
		r.check(l.Cycles.Done > 0, "nothing was granted and revoked")
		for name, a := range map[string]Asking{"DNS queries": l.Queries, "set-ups of domains": l.SetUps, "new flows to the DNS resource": l.Flows} {
			r.check(a.Asked > 0 && a.Unanswered == 0, "%s: %d of %d unanswered, %s", name, a.Unanswered, a.Asked, a.LastError)
		}
	}
}

// String returns the figures in one line.
func (l Load) String() string {
	parts := []string{
		fmt.Sprintf("lost %d of %d datagrams", l.Echo.Lost-l.Echo.Excused, l.Echo.Sent),
		fmt.Sprintf("%d of %d by name", l.House.Lost-l.House.Excused, l.House.Sent),
	}
	if n := l.Echo.Excused + l.House.Excused; n > 0 {
		parts = append(parts, fmt.Sprintf("%d more while the machine stood still", n))
	}
	parts = append(parts,
		fmt.Sprintf("longest stall %.0f ms (outside %.0f, download %.0f, upload %.0f)", max(l.Echo.Stall, l.House.Stall), l.Outside.Stall, l.Down.Stall, l.Up.Stall),
		fmt.Sprintf("%.1f MB down and %.1f MB up intact", float64(l.Down.Bytes)/1e6, float64(l.Up.Bytes)/1e6),
		fmt.Sprintf("%d leaks in %d probes, %d revocations within %.0f ms", l.Secret.Leaks+l.Revoked.Leaks+l.Cycled.Leaks,
			l.Secret.Sent+l.Revoked.Sent+l.Cycled.Sent, l.Cycles.Done, l.Cycles.Slowest),
		fmt.Sprintf("%d DNS queries within %.0f ms, %d set-ups within %.0f ms, %d new flows within %.0f ms",
			l.Queries.Asked, l.Queries.Slowest, l.SetUps.Asked, l.SetUps.Slowest, l.Flows.Asked, l.Flows.Slowest))
	return strings.Join(parts, "; ")
}
