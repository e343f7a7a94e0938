package main

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"time"

	"firezone-gateway/internal/admin"
)

const watchDescription = `Show what changes in the gateway that runs on this host, a line each, until Ctrl-C.

  firezone-gateway watch
  firezone-gateway watch --interval 500ms
  firezone-gateway watch --json | jq 'select(.what == "peer.path")'

It looks every two seconds and tells what is different: readiness, portal, key, relays, clients that come and go, their sessions, paths and grants, restarts and failures of the gateway's parts, and drops by reason. What comes and goes between two looks is not seen. A gateway that ends, or is restarted, is a change like others.

Each line of --json is one object: {"time":"2026-11-21T09:38:48Z","what":"peer.path","subject":"CLIENT","from":"relayed ...","to":"direct ..."}. What was not there before, or is not there any more, is "".

Exit codes:

  0  ended by SIGINT or SIGTERM
  1  no gateway answered at the start, or nobody reads the output
  2  wrong usage`

const (
	shortestInterval = 100 * time.Millisecond
	maxChanges       = 200 // in one look
)

type watchFlags struct {
	controlFlags
	Interval humanSpan `name:"interval" default:"2s" help:"Time between two looks (500ms, 10s)."`
}

// change is one difference between two looks.
type change struct {
	Time    time.Time `json:"time"`
	What    string    `json:"what"`
	Subject string    `json:"subject"` // which one of many, "" where there is one
	From    string    `json:"from"`
	To      string    `json:"to"`
}

// runWatch is the process of the command watch: it returns the exit code.
func runWatch(args []string, stdout, stderr io.Writer) int {
	f := &watchFlags{}
	err := f.parse(f, watchCommand, watchDescription, args, stdout, stderr)
	if err == nil && time.Duration(f.Interval) < shortestInterval {
		err = fmt.Errorf("--interval: shorter than %v", shortestInterval)
	}
	if err != nil {
		return misused(watchCommand, err, stderr)
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	return f.watch(ctx, stdout, stderr)
}

// watch reports changes until ctx ends.
func (f *watchFlags) watch(ctx context.Context, stdout, stderr io.Writer) int {
	last, err := f.ask(ctx)
	if ctx.Err() != nil {
		return exitOK
	}
	if err != nil {
		return f.fail(err, stdout, stderr)
	}
	if err := f.print(stdout, []change{{Time: last.Time, What: "gateway", To: gatewayText(last)}}); err != nil {
		return exitFailure
	}
	ticks := time.NewTicker(time.Duration(f.Interval))
	defer ticks.Stop()
	gone := ""
	for {
		select {
		case <-ctx.Done():
			return exitOK
		case <-ticks.C:
		}
		next, err := f.ask(ctx)
		var found []change
		switch {
		case ctx.Err() != nil:
			return exitOK
		case err != nil && gone == "":
			gone = "gone: " + err.Error()
			found = []change{{Time: time.Now(), What: "gateway", From: gatewayText(last), To: gone}}
		case err != nil:
		default:
			if gone != "" {
				found = []change{{Time: next.Time, What: "gateway", From: "gone", To: gatewayText(next)}}
				gone = ""
			}
			found = append(found, differences(last, next)...)
			last = next
		}
		if err := f.print(stdout, found); err != nil {
			return exitFailure
		}
	}
}

func (f *watchFlags) print(w io.Writer, changes []change) error {
	var b strings.Builder
	enc := json.NewEncoder(&b)
	for _, c := range changes {
		if f.JSON {
			_ = enc.Encode(c) // into memory
			continue
		}
		fmt.Fprintln(&b, clean(c.text()))
	}
	_, err := io.WriteString(w, b.String())
	return err
}

func (c change) text() string {
	line := c.Time.Local().Format(time.TimeOnly) + "  " + c.What
	if c.Subject != "" {
		line += " " + c.Subject
	}
	switch {
	case c.From == "":
		return line + ": " + c.To
	case c.To == "":
		return line + ": no more " + c.From
	}
	return line + ": " + c.From + " → " + c.To
}

// differences are what changed from a to b, at most maxChanges and how many more
// there are.
func differences(a, b admin.Status) []change {
	d := &differing{at: b.Time}
	d.note("phase", "", string(a.Phase), string(b.Phase))
	d.note("ready", "", readyText(a), readyText(b))
	d.note("key", "", a.Key.Public, b.Key.Public)
	d.note("portal", "", portalText(a.Portal), portalText(b.Portal))
	d.note("tunnel_addresses", "", list(a.Tunnel), list(b.Tunnel))
	compare(d, "relay", a.Relays, b.Relays, func(r admin.Relay) string { return r.ID }, relayText)
	d.peers(a.Peers, b.Peers)
	d.actors(a.Actors, b.Actors)
	d.note("dns.name_servers", "", list(a.DNS.Nameservers), list(b.DNS.Nameservers))
	d.note("dns.error", "", a.DNS.Error, b.DNS.Error)
	d.drops("", a.Drops, b.Drops)
	d.grown("dead_letters", "", a.Dead, b.Dead)
	if more := len(d.found) - maxChanges; more > 0 {
		d.found = append(d.found[:maxChanges], change{Time: d.at, What: "more", To: fmt.Sprintf("%d changes that are not shown", more)})
	}
	return d.found
}

type differing struct {
	at    time.Time
	found []change
}

func (d *differing) note(what, subject, from, to string) {
	if from != to {
		d.found = append(d.found, change{d.at, what, subject, from, to})
	}
}

// grown notes a counter, unless the gateway began anew.
func (d *differing) grown(what, subject string, from, to uint64) {
	if to > from {
		d.found = append(d.found, change{d.at, what, subject, fmt.Sprint(from), fmt.Sprint(to)})
	}
}

func (d *differing) drops(subject string, from, to admin.Drops) {
	for _, reason := range slices.Sorted(maps.Keys(to)) {
		d.grown("drops."+reason, subject, from[reason], to[reason])
	}
}

func (d *differing) peers(from, to []admin.Peer) {
	id := func(p admin.Peer) string { return p.ClientID }
	compare(d, "peer", from, to, id, func(admin.Peer) string { return "present" })
	before := byKey(from, id)
	for _, p := range to {
		old := before[p.ClientID] // without anything if it is new
		d.note("peer.session", p.ClientID, old.Session, p.Session)
		d.note("peer.path", p.ClientID, pathOrNone(old.Path), pathOrNone(p.Path))
		grants := &differing{at: d.at}
		compare(grants, "peer.grant", old.Grants, p.Grants, func(g admin.Grant) string { return g.ResourceID }, grantText)
		for _, c := range grants.found {
			c.From, c.To = prefixed(c.Subject, c.From), prefixed(c.Subject, c.To)
			c.Subject = p.ClientID
			d.found = append(d.found, c)
		}
		d.drops(p.ClientID, old.Drops, p.Drops)
	}
}

// actors tells of troubles, and not of actors that come and go with clients.
func (d *differing) actors(from, to []admin.Actor) {
	before := byKey(from, func(a admin.Actor) string { return a.Path })
	for _, a := range to {
		old, known := before[a.Path]
		if known || a.State != admin.ActorRunning {
			d.note("actor.state", a.Path, old.State, a.State)
		}
		d.grown("actor.restarts", a.Path, old.Restarts, a.Restarts)
		if a.Failures > old.Failures {
			d.found = append(d.found, change{d.at, "actor.failure", a.Path, "", a.LastFailure})
		}
	}
}

// compare notes what came, went and changed its text, in the order of the keys.
func compare[T any](d *differing, what string, from, to []T, key, text func(T) string) {
	before, after := byKey(from, key), byKey(to, key)
	all := slices.Sorted(maps.Keys(before))
	for k := range after {
		if _, known := before[k]; !known {
			all = append(all, k)
		}
	}
	slices.Sort(all)
	for _, k := range all {
		var old, now string
		if v, ok := before[k]; ok {
			old = text(v)
		}
		if v, ok := after[k]; ok {
			now = text(v)
		}
		d.note(what, k, old, now)
	}
}

func byKey[T any](items []T, key func(T) string) map[string]T {
	m := make(map[string]T, len(items))
	for _, i := range items {
		m[key(i)] = i
	}
	return m
}

func gatewayText(s admin.Status) string { return string(s.Phase) + ", " + readyText(s) }

func readyText(s admin.Status) string {
	if s.Ready {
		return "ready"
	}
	return "missing " + strings.Join(s.Missing, ", ")
}

func relayText(r admin.Relay) string {
	if !r.Usable {
		return "not usable"
	}
	return "relayed addresses " + list(r.Relayed)
}

func grantText(g admin.Grant) string {
	if g.ExpiresAt.IsZero() {
		return cmp.Or(g.Name, g.Kind) + " without end"
	}
	return cmp.Or(g.Name, g.Kind) + " until " + g.ExpiresAt.UTC().Format(time.RFC3339)
}

func pathOrNone(p *admin.Path) string {
	if p == nil {
		return ""
	}
	return pathText(p)
}

func prefixed(id, text string) string {
	if text == "" {
		return ""
	}
	return id + " " + text
}
