package traces

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"firezone-gateway/internal/lab/portal"
)

// Options say what to run.
type Options struct {
	Gateway   string // path of the daemon's executable
	Collector string // path of the Collector's executable
	TUNDriver string // of the daemon; "" is its default
	LogDir    string // the daemon's log goes here; "" keeps none
	// Progress is told what happens, like Printf; nil for nothing.
	Progress func(format string, args ...any)
}

// Report is what arrived.
type Report struct {
	OK bool `json:"ok"`
	// Problems say what the traces should show and do not.
	Problems []string `json:"problems,omitempty"`
	// Faults says whether the daemon could be made to fail.
	Faults bool `json:"faults"`
	// Authorization is the trace of the client's first authorisation.
	Authorization Trace `json:"authorization"`
	// Related are other traces, which lead to one another.
	Related []Related `json:"related,omitempty"`
	Spans   int       `json:"spans"`
	Traces  int       `json:"traces"`
}

// Related is a trace with what it is about.
type Related struct {
	About string `json:"about"`
	Trace Trace  `json:"trace"`
}

// Run lets a client use a DNS resource through the gateway, then has the actor
// of that client fail and the portal connection break, lets the client ask for
// another resource, and returns what reached the Collector of it. A report whose
// OK is false is no error.
func Run(ctx context.Context, o Options) (*Report, error) {
	if o.Progress == nil {
		o.Progress = func(string, ...any) {}
	}
	w, err := newWorld(ctx, o)
	if err != nil {
		return nil, err
	}
	report, err := w.run(ctx, o)
	return report, errors.Join(err, w.close())
}

func (w *world) run(ctx context.Context, o Options) (*Report, error) {
	report := &Report{}
	o.Progress("a client asks for %s, which the gateway resolves and translates", domain)
	if err := w.useDomain(ctx); err != nil {
		return nil, err
	}
	switch err := w.crash(ctx, "gateway/peers/*"); {
	case err == nil:
		o.Progress("the client's actor has crashed; the client goes on")
		report.Faults = true
		if err := w.survive(ctx); err != nil {
			return nil, err
		}
	case errors.Is(err, errNoFaults):
		o.Progress("no actor crashes: %v", err)
	default:
		return nil, err
	}
	o.Progress("the portal cuts the connection")
	if err := w.reconnect(ctx); err != nil {
		return nil, err
	}
	o.Progress("the client asks for another resource")
	if err := w.client.Access(ctx, w.host.ID, w.host4()); err != nil {
		return nil, fmt.Errorf("access: %w", err)
	}
	if err := w.reach(ctx, w.net.Resource.IPv4); err != nil {
		return nil, err
	}
	// The ends flush what is under way.
	if _, err := w.daemon.Stop(stopGrace); err != nil {
		return nil, fmt.Errorf("gateway: %w", err)
	}
	if err := w.collector.flush(); err != nil {
		return nil, err
	}
	spans := w.sink.Spans()
	all := Traces(spans)
	report.Spans, report.Traces = len(spans), len(all)
	report.judge(all)
	return report, nil
}

// useDomain reaches the resource by its name, which takes an authorisation.
func (w *world) useDomain(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	proxies, active, err := w.client.AccessDomain(ctx, w.app.ID, domain)
	if err != nil {
		return fmt.Errorf("access: %w", err)
	}
	if !active {
		return fmt.Errorf("the gateway does not serve %s", domain)
	}
	return w.reach(ctx, proxies[0])
}

// survive waits for the restart and sends through it.
func (w *world) survive(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	restarted := func(s Span) bool { return s.Name == "actor restart" }
	if err := await(ctx, "no restart arrives", func() bool { return slices.ContainsFunc(w.sink.Spans(), restarted) }); err != nil {
		return err
	}
	return w.reach(ctx, w.client.Proxies(domain)[0])
}

func (w *world) reconnect(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	var after uint64
	for _, e := range w.portal.Events(0) {
		after = e.Seq
	}
	if err := w.portal.DisconnectGateway("", "", closeRestart); err != nil {
		return err
	}
	if _, err := w.portal.WaitEvent(ctx, after, func(e portal.Event) bool { return joined(e) }); err != nil {
		return fmt.Errorf("gateway did not come back: %w", err)
	}
	return nil
}

// closeRestart is the code of a portal that restarts (RFC 6455 §7.4, registry).
const closeRestart = 1012

// stages are the spans of an authorisation, each with where it belongs: the
// nearest of its ancestors that is named.
var stages = []struct{ name, under string }{
	{"portal pushed", ""},
	{"peers FromPortal", "portal pushed"},
	{"peer start", "peers FromPortal"},
	{"peer Authorize", "peers FromPortal"},
	{"portal SendToPortal", "peer Authorize"},
	{"client connect", "peer Authorize"},
	{"peer AddCandidates", "client connect"},
	{"relay channel", "peer AddCandidates"},
	{"ice checks", "client connect"},
	{"wireguard handshake", "client connect"},
	{"resolver Resolve", "client connect"},
	{"nat AssignDomain", "resolver Resolve"},
	{"first packet", "client connect"},
}

// judge finds the traces that matter and what is missing in them.
func (r *Report) judge(all []Trace) {
	problem := func(format string, args ...any) { r.Problems = append(r.Problems, fmt.Sprintf(format, args...)) }
	defer func() { r.OK = len(r.Problems) == 0 }()

	i := slices.IndexFunc(all, func(t Trace) bool { return t.Find("client connect") != nil })
	if i < 0 {
		problem("no trace of an authorisation arrived")
		return
	}
	r.Authorization = all[i]
	if n := len(r.Authorization.Roots); n != 1 {
		problem("the authorisation has %d roots: parents are missing", n)
	}
	for _, s := range stages {
		if !r.Authorization.has(s.name, s.under) {
			problem("the authorisation has no span %q below %q", s.name, s.under)
		}
	}
	r.relate(all, problem)
}

func (r *Report) relate(all []Trace, problem func(string, ...any)) {
	add := func(about string, t Trace) { r.Related = append(r.Related, Related{about, t}) }
	var connects []Trace
	again, restarted := false, false
	for _, t := range all {
		switch {
		case t.Find("portal connect") != nil:
			connects = append(connects, t)
		case t.ID != r.Authorization.ID && t.Find("peer Authorize") != nil && t.Leads(r.Authorization):
			again = true
			add("another authorisation, which leads back to the first", t)
		case t.Find("actor restart") != nil && t.Find("actor restart").Attributes["actor.kind"] == "peer":
			restarted = true
			add("the restart of the client's actor", t)
			j := slices.IndexFunc(all, func(cause Trace) bool { return cause.ID != t.ID && t.Leads(cause) })
			if j < 0 || !all[j].failed() {
				problem("the restart does not lead to the failure before it")
			} else {
				add("the failure that it leads to", all[j])
			}
		}
	}
	if !again {
		problem("no authorisation leads back to the first")
	}
	if r.Faults && !restarted {
		problem("the restart of the client's actor did not arrive")
	}
	for i, t := range connects {
		add(fmt.Sprintf("connection %d to the portal", i+1), t)
		if i > 0 && !t.Leads(connects[i-1]) {
			problem("connection %d to the portal does not lead back to the one before", i+1)
		}
	}
	if len(connects) < 2 {
		problem("%d connections to the portal arrived, there were 2", len(connects))
	}
}

// has reports whether a span of that name has an ancestor of the other name.
func (t Trace) has(name, under string) bool {
	var search func(n *Node, below bool) bool
	search = func(n *Node, below bool) bool {
		if n.Name == name && below {
			return true
		}
		below = below || n.Name == under
		return slices.ContainsFunc(n.Children, func(c *Node) bool { return search(c, below) })
	}
	return slices.ContainsFunc(t.Roots, func(n *Node) bool { return search(n, under == "") })
}

// failed reports whether a span ended with an error.
func (t Trace) failed() bool {
	return slices.ContainsFunc(t.Nodes(), func(n *Node) bool { return n.Error != "" })
}

// Write draws the report for people.
func (r *Report) Write(w io.Writer) error {
	if err := section(w, "One authorisation, until the client's first packet", r.Authorization); err != nil {
		return err
	}
	for _, related := range r.Related {
		if err := section(w, related.About, related.Trace); err != nil {
			return err
		}
	}
	for _, p := range r.Problems {
		if _, err := fmt.Fprintln(w, "✗ "+p); err != nil {
			return err
		}
	}
	_, err := fmt.Fprintf(w, "%d spans of %d traces arrived through the Collector.\n", r.Spans, r.Traces)
	return err
}

func section(w io.Writer, title string, t Trace) error {
	var begin time.Time
	if len(t.Roots) > 0 {
		begin = t.Roots[0].Start
	}
	if _, err := fmt.Fprintf(w, "%s (trace %s, at %s)\n", title, t.ID, begin.UTC().Format("15:04:05.000")); err != nil {
		return err
	}
	if err := t.Write(w); err != nil {
		return err
	}
	_, err := fmt.Fprintln(w)
	return err
}
