package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
	"unicode"

	"github.com/alecthomas/kong"

	"firezone-gateway/actors"
	"firezone-gateway/internal/admin"
)

const statusDescription = `Show what the gateway that runs on this host is doing, first of all what is wrong with it.

  firezone-gateway status                                   what is wrong, and an overview
  firezone-gateway status --all                             every client and every part
  firezone-gateway status --json | jq '.missing'            what keeps it from serving clients
  firezone-gateway status --json | jq '.peers[] | select(.path.kind == "relayed") | .client_id'
  firezone-gateway status --json | jq '.actors[] | select(.restarts > 0)'

A gateway that says "ready" serves clients. The tables show the clients that were active last, their way here (direct or through a relay), how long ago they made new keys, what was carried both ways, and what was dropped and why; docs/operation.md says what the reasons mean. Secrets are never shown. It has to run as the gateway's user or as root, and in a container inside of it.

Exit codes:

  0  the gateway answered, ready or not
  1  it did not: no gateway there, not permitted, no answer in time
  2  wrong usage`

// The commands besides reset.
const (
	statusCommand  = "status"
	watchCommand   = "watch"
	explainCommand = "explain"
	faultCommand   = "fault"
)

// commands are the processes that talk to a running gateway.
var commands = map[string]func(args []string, stdout, stderr io.Writer) int{
	resetCommand: runReset, statusCommand: runStatus, watchCommand: runWatch, explainCommand: runExplain,
	faultCommand: runFault,
}

// controlFlags are common to the commands that look at a running gateway.
type controlFlags struct {
	ControlSocket string    `name:"control-socket" env:"FIREZONE_CONTROL_SOCKET" default:"${control_socket}" help:"Control socket of the gateway, as the gateway itself was told."`
	JSON          bool      `name:"json" help:"Print JSON, for scripts."`
	Timeout       humanSpan `name:"timeout" default:"10s" help:"How long to wait for an answer (10s, 1m)."`
}

type statusFlags struct {
	controlFlags
	All bool `name:"all" help:"Show every client and every part, not an extract."`
}

// looks are the operations that change nothing. ctx ends when the gateway does.
func (d *daemon) looks(ctx context.Context, tree *actors.Tree) admin.Operations {
	return admin.Operations{
		Status: func(context.Context) (admin.Status, error) {
			s := tree.Status(time.Now())
			s.Version, s.Uptime = version, time.Since(d.began).Seconds()
			if ctx.Err() != nil {
				s.Phase = admin.PhaseEnding
			}
			return s, nil
		},
		Explain: func(_ context.Context, q admin.Question) (admin.Explanation, error) {
			return tree.Explain(q, actors.KernelRoute, time.Now()), nil
		},
	}
}

// runStatus is the process of the command status: it returns the exit code.
func runStatus(args []string, stdout, stderr io.Writer) int {
	f := &statusFlags{}
	if err := f.parse(f, statusCommand, statusDescription, args, stdout, stderr); err != nil {
		return misused(statusCommand, err, stderr)
	}
	s, err := f.ask(context.Background())
	switch {
	case err != nil:
		return f.fail(err, stdout, stderr)
	case f.JSON:
		err = json.NewEncoder(stdout).Encode(s)
	default:
		_, err = io.WriteString(stdout, describe(s, f.All))
	}
	if err != nil {
		return exitFailure
	}
	return exitOK
}

// parse fills in all flags of a command, of which f is a part.
func (f *controlFlags) parse(all any, command, description string, args []string, stdout, stderr io.Writer) error {
	parser := kong.Must(all, kong.Name("firezone-gateway "+command), kong.Description(description), kong.Writers(stdout, stderr),
		kong.Vars{"control_socket": defaultControlSocket})
	if err := parseArgs(parser, args); err != nil {
		if unexpectedArgument(err) {
			err = fmt.Errorf("the command %s takes no argument", command)
		}
		return err
	}
	return f.check()
}

func (f *controlFlags) check() error {
	if f.ControlSocket == noControlSocket {
		return errors.New("--control-socket: a gateway with none takes no commands")
	}
	return checkControlSocket(f.ControlSocket)
}

func misused(command string, err error, stderr io.Writer) int {
	fmt.Fprintf(stderr, "firezone-gateway: %v\nRun with %s --help for usage.\n", err, command)
	return exitUsage
}

// fail reports why there is no answer and returns the exit code.
func (f *controlFlags) fail(err error, stdout, stderr io.Writer) int {
	if f.JSON {
		_ = json.NewEncoder(stdout).Encode(map[string]string{"error": err.Error()}) // the exit code says it as well
	} else {
		fmt.Fprintf(stderr, "firezone-gateway: %v\n", err)
	}
	return exitFailure
}

// ask asks the gateway for its status.
func (f *controlFlags) ask(ctx context.Context) (admin.Status, error) {
	limited, cancel := context.WithTimeout(ctx, time.Duration(f.Timeout))
	defer cancel()
	s, err := admin.Control{Path: f.ControlSocket}.Status(limited)
	return s, f.advise(err)
}

func (f *controlFlags) advise(err error) error {
	if errors.Is(err, context.DeadlineExceeded) {
		return fmt.Errorf("no answer within %v; --timeout waits longer", f.Timeout)
	}
	return advise(err)
}

// Bounds of what is shown without --all.
const (
	shownPeers    = 20
	shownSiblings = 8 // actors of one kind under one parent
	shownProblems = 15
	recentFailure = 10 * time.Minute
	longMailbox   = 100
)

// describe makes text of s.
func describe(s admin.Status, all bool) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s\n\n", headline(s))
	if list := problems(s); len(list) > 0 {
		section(&b, "What is wrong", func(t table) {
			shown := list[:min(len(list), shownProblems)]
			if all {
				shown = list
			}
			for _, p := range shown {
				t.row("- " + p)
			}
			t.rest(len(list)-len(shown), "more problems")
		})
	}
	section(&b, "Gateway", func(t table) {
		t.row("version", s.Version)
		t.row("up", ago(s.Uptime))
		t.row("key", fmt.Sprintf("number %d, %s", s.Key.Epoch, s.Key.Public))
		t.row("tunnel", list(s.Tunnel))
		t.row("portal", portalText(s.Portal)+sinceText(s.Portal, s.Time))
		t.row("dns", fmt.Sprintf("%d answered, %d failed, %d over limits, %d under way; asks %s", s.DNS.Answered, s.DNS.Failed,
			s.DNS.Overflow+s.DNS.Connections, s.DNS.UnderWay, list(s.DNS.Nameservers)))
		t.row("nat", natText(s.NAT))
		t.row("drops", dropsText(s.Drops))
	})
	section(&b, "Relays", func(t table) {
		if len(s.Relays) == 0 {
			t.row("none")
			return
		}
		t.row("ID", "USABLE", "SERVER", "RELAYED ADDRESSES")
		for _, r := range s.Relays {
			t.row(r.ID, yesNo(r.Usable), addrText(r.Server), list(r.Relayed))
		}
	})
	describePeers(&b, s, all)
	describeActors(&b, s, all)
	return b.String()
}

func headline(s admin.Status) string {
	state := "ready"
	if !s.Ready {
		state = "NOT READY, missing: " + strings.Join(s.Missing, ", ")
	}
	if s.Phase != admin.PhaseRunning {
		state = strings.ToUpper(string(s.Phase)) + "; " + state
	}
	return clean(fmt.Sprintf("firezone-gateway: %s", state))
}

// problems are what an operator should know first, the worst first.
func problems(s admin.Status) (out []string) {
	add := func(format string, args ...any) { out = append(out, fmt.Sprintf(format, args...)) }
	for _, m := range s.Missing {
		add("%s", cmp.Or(map[string]string{
			"portal": "portal: not joined; without it no new client gets in, see the log for the cause",
			"tun":    "tun: the device is not ready, no packet passes",
			"relay":  "relay: no allocation, clients are not answered; is outgoing UDP 3478 open?",
		}[m], m))
	}
	for _, a := range s.Actors {
		failed := a.State != admin.ActorRunning && a.State != "starting"
		recent := !a.FailedAt.IsZero() && s.Time.Sub(a.FailedAt) < recentFailure
		if failed || recent {
			add("actor %s is %s, restarted %d times%s", a.Path, a.State, a.Restarts, lastFailure(a, s.Time))
		}
		if a.Mailbox >= longMailbox {
			add("actor %s has %d messages waiting", a.Path, a.Mailbox)
		}
	}
	for _, r := range s.Relays {
		if !r.Usable {
			add("relay %s refuses service or does not answer", r.ID)
		}
	}
	if s.DNS.Error != "" {
		add("dns: %s", s.DNS.Error)
	}
	if o := s.Omitted; o != (admin.Omitted{}) {
		add("too large to be shown whole, left out: %d clients, %d grants, %d actors", o.Peers, o.Grants, o.Actors)
	}
	return out
}

func lastFailure(a admin.Actor, now time.Time) string {
	if a.LastFailure == "" {
		return ""
	}
	return fmt.Sprintf(", failed %s ago: %s", ago(now.Sub(a.FailedAt).Seconds()), a.LastFailure)
}

func describePeers(b *strings.Builder, s admin.Status, all bool) {
	count := map[string]int{}
	for _, p := range s.Peers {
		count[p.Session]++
		if p.Path != nil {
			count[string(p.Path.Kind)]++
		}
	}
	title := fmt.Sprintf("Clients: %d, %d with a session, %d direct, %d relayed", len(s.Peers)+s.Omitted.Peers,
		count["established"], count[string(admin.Direct)], count[string(admin.Relayed)])
	section(b, title, func(t table) {
		if len(s.Peers) == 0 {
			t.row("none")
			return
		}
		peers := slices.Clone(s.Peers)
		slices.SortStableFunc(peers, func(a, b admin.Peer) int { return b.LastActive.Compare(a.LastActive) })
		if !all {
			peers = peers[:min(len(peers), shownPeers)]
		}
		t.row("CLIENT", "TUNNEL ADDRESS", "SESSION", "PATH", "HANDSHAKE", "TO RESOURCES", "TO CLIENT", "GRANTS", "DROPS")
		for _, p := range peers {
			handshake := "never"
			if p.HandshakeAge != nil {
				handshake = ago(*p.HandshakeAge) + " ago"
			}
			t.row(p.ClientID, firstOf(p.Addresses), p.Session, pathText(p.Path), handshake,
				size(p.ToResources.Bytes), size(p.ToClient.Bytes), grantsText(p.Grants, all), dropsText(p.Drops))
		}
		t.rest(len(s.Peers)-len(peers), "more clients (--all)")
	})
}

// describeActors draws the tree. Of many actors of a kind under one parent that
// are well it tells the number only.
func describeActors(b *strings.Builder, s admin.Status, all bool) {
	group := map[string]int{}
	key := func(a admin.Actor) string { return parent(a.Path) + " " + a.Kind }
	for _, a := range s.Actors {
		group[key(a)]++
	}
	section(b, fmt.Sprintf("Actors: %d, %d dead letters", len(s.Actors)+s.Omitted.Actors, s.Dead), func(t table) {
		t.row("ACTOR", "STATE", "RESTARTS", "WAITING", "LAST FAILURE")
		hidden, omitted := map[string]bool{}, map[string]int{} // by path, by kind
		for _, a := range s.Actors {
			above := parent(a.Path)
			crowd := group[key(a)] > shownSiblings || hidden[above]
			if crowd && !all && a.State == admin.ActorRunning && a.Failures == 0 && a.Mailbox < longMailbox {
				hidden[a.Path] = true
				omitted[a.Kind]++
				continue
			}
			name := a.Path
			if !hidden[above] {
				name = strings.Repeat("  ", strings.Count(a.Path, "/")) + a.Path[strings.LastIndexByte(a.Path, '/')+1:]
			}
			failure := ""
			if a.LastFailure != "" {
				failure = ago(s.Time.Sub(a.FailedAt).Seconds()) + " ago: " + a.LastFailure
			}
			t.row(name, a.State, fmt.Sprint(a.Restarts), fmt.Sprint(a.Mailbox), failure)
		}
		for _, kind := range slices.Sorted(maps.Keys(omitted)) {
			t.rest(omitted[kind], "more of the kind "+kind+", all running (--all)")
		}
	})
}

func parent(path string) string { return path[:max(0, strings.LastIndexByte(path, '/'))] }

func portalText(p admin.Portal) string {
	if !p.Joined {
		return "not joined"
	}
	return "joined by route " + p.Route + ", generation " + p.Generation
}

func sinceText(p admin.Portal, now time.Time) string {
	if p.Since.IsZero() {
		return ""
	}
	return ", for " + ago(now.Sub(p.Since).Seconds())
}

func natText(n admin.NAT) string {
	return fmt.Sprintf("%d clients with domains, %d addresses, %d sessions, %d refused, %d packets waiting",
		n.Clients, n.Proxies, n.Sessions, n.RefusedFull+n.RefusedExhausted, n.Waiting)
}

func pathText(p *admin.Path) string {
	if p == nil {
		return "-"
	}
	if p.Kind == admin.Relayed {
		return "relayed " + cmp.Or(p.Relay, p.Local.String())
	}
	return "direct " + p.Remote.String()
}

func grantsText(grants []admin.Grant, all bool) string {
	if !all {
		return fmt.Sprint(len(grants))
	}
	var parts []string
	for _, g := range grants {
		end := "no end"
		if !g.ExpiresAt.IsZero() {
			end = "until " + g.ExpiresAt.UTC().Format(time.RFC3339)
		}
		parts = append(parts, fmt.Sprintf("%s %s (%s)", g.ResourceID, g.Name, end))
	}
	return cmp.Or(strings.Join(parts, ", "), "-")
}

// dropsText puts the largest first.
func dropsText(d admin.Drops) string {
	reasons := slices.SortedFunc(maps.Keys(d), func(a, b string) int { return cmp.Or(cmp.Compare(d[b], d[a]), cmp.Compare(a, b)) })
	var parts []string
	for _, r := range reasons {
		parts = append(parts, fmt.Sprintf("%s %d", r, d[r]))
	}
	return cmp.Or(strings.Join(parts, ", "), "-")
}

// table is aligned text. Its cells are cleaned: names come from outside.
type table struct{ w *tabwriter.Writer }

func section(b *strings.Builder, title string, fill func(table)) {
	fmt.Fprintln(b, clean(title))
	t := table{tabwriter.NewWriter(b, 0, 0, 2, ' ', 0)}
	fill(t)
	_ = t.w.Flush() // into memory
	b.WriteByte('\n')
}

func (t table) row(cells ...string) {
	for i := range cells {
		cells[i] = clean(cells[i])
	}
	fmt.Fprintln(t.w, "  "+strings.TrimRight(strings.Join(cells, "\t"), "\t"))
}

func (t table) rest(n int, what string) {
	if n > 0 {
		t.row(fmt.Sprintf("… and %d %s", n, what))
	}
}

// clean keeps a text in its cell and from steering the terminal.
func clean(s string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return '?'
	}, s)
}

func firstOf(addrs []netip.Addr) string {
	if len(addrs) == 0 {
		return "-"
	}
	return addrs[0].String()
}

func addrText(a netip.AddrPort) string {
	if !a.IsValid() {
		return "-"
	}
	return a.String()
}

func list[T fmt.Stringer](items []T) string {
	var parts []string
	for _, i := range items {
		parts = append(parts, i.String())
	}
	return cmp.Or(strings.Join(parts, ", "), "none")
}

func yesNo(b bool) string {
	if b {
		return "yes"
	}
	return "NO"
}

// ago rounds seconds to what people care about.
func ago(seconds float64) string {
	d := time.Duration(max(0, seconds) * float64(time.Second)).Round(time.Second)
	switch {
	case d < time.Minute:
		return fmt.Sprintf("%ds", int(d.Seconds()))
	case d < time.Hour:
		return fmt.Sprintf("%dm", int(d.Minutes()))
	case d < 2*day:
		return fmt.Sprintf("%dh %dm", int(d.Hours()), int(d.Minutes())%60)
	}
	return fmt.Sprintf("%dd %dh", int(d/day), int(d.Hours())%24)
}

func size(bytes uint64) string {
	const step = 1024
	if bytes < step {
		return fmt.Sprintf("%d B", bytes)
	}
	value, unit := float64(bytes)/step, 0
	for value >= step && unit < 4 {
		value, unit = value/step, unit+1
	}
	return fmt.Sprintf("%.1f %ciB", value, "KMGTP"[unit])
}
