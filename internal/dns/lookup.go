package dns

import (
	"context"
	"errors"
	"net/netip"
	"strings"
	"time"

	"github.com/miekg/dns"
)

// familyGrace is for how long the other family may still answer when one has.
// Some name servers never answer AAAA queries.
const familyGrace = 2 * time.Second

// resolve looks a canonical name up.
func (r *Resolver) resolve(name string) Resolution {
	ctx, cancel := context.WithTimeout(r.ctx, r.timeout)
	defer cancel()
	// A hosts file that cannot be read is like one without the name, as for the
	// C library.
	table, _ := r.hosts.get()
	if addrs := table[strings.TrimSuffix(name, ".")]; len(addrs) > 0 {
		return r.found(addrs)
	}
	conf, _ := r.up.config() // without name servers, asking them tells
	var worst Outcome
	for _, candidate := range conf.candidates(name) {
		addrs, outcome := r.families(ctx, candidate)
		if outcome == Found {
			return r.found(addrs)
		}
		worst = max(worst, outcome)
		if ctx.Err() != nil {
			worst = TimedOut
			break
		}
	}
	return Resolution{Outcome: worst}
}

func (r *Resolver) found(addrs []netip.Addr) Resolution {
	res := Resolution{Outcome: Found}
	res.V4, res.V6, res.Refused = vet(addrs, r.own)
	return res
}

// result is what one family of one name has.
type result struct {
	addrs   []netip.Addr
	outcome Outcome
}

// families asks for both families of an absolute name. When one has addresses,
// or says that the name does not exist, the other has a short time left; if
// neither has addresses, the outcome is what says more.
func (r *Resolver) families(ctx context.Context, name string) ([]netip.Addr, Outcome) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	results := make(chan result, 2)
	for _, qtype := range [...]uint16{dns.TypeA, dns.TypeAAAA} {
		r.work.Go(func() { results <- r.family(ctx, name, qtype) })
	}
	first := <-results
	settled := first.outcome == Found || first.outcome == NoSuchName
	if settled {
		timer := time.AfterFunc(r.grace, cancel)
		defer timer.Stop()
	}
	second := <-results
	if settled && second.outcome == TimedOut {
		return first.addrs, first.outcome
	}
	return append(first.addrs, second.addrs...), max(first.outcome, second.outcome)
}

// family asks for one family. TimedOut stands for every end of ctx.
func (r *Resolver) family(ctx context.Context, name string, qtype uint16) result {
	query := question(name, qtype)
	wire, err := query.Pack()
	if err != nil {
		return result{outcome: Failed} // canonical names can be packed
	}
	answer, err := r.up.ask(ctx, query, wire, false)
	switch {
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled):
		return result{outcome: TimedOut}
	case err != nil, refusal(answer.msg):
		return result{outcome: Failed}
	}
	addrs := addresses(answer.msg)
	switch {
	case len(addrs) > 0:
		return result{addrs, Found}
	case answer.msg.Rcode == dns.RcodeNameError:
		return result{outcome: NoSuchName}
	case answer.msg.Truncated:
		return result{outcome: Failed}
	}
	return result{outcome: NoData}
}
