package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"time"

	"firezone-gateway/internal/admin"
)

const explainDescription = `Tell what the gateway that runs on this host would do with a packet of a client, stage by stage, and why. Nothing is sent.

  firezone-gateway explain --client 100.64.3.7 --to 10.0.0.5:443/tcp
  firezone-gateway explain --client fd00:2021:1111::3:7 --to '[2001:db8::5]:53/udp'
  firezone-gateway explain --client xTIBA5rb --to 10.0.0.5/icmp --json

The stages: is the client known, has it a session, by which path, from which address does it send, which resource admits the packet or why does each that covers the destination refuse it (filtered, expired), what stands behind the address of a domain, and where does the kernel send the packet then. The host's firewall is not asked, nor the resource. A domain stands for the address that the client has made up for it, of 100.96.0.0/11 or fd00:2021:1111:8000::/107, once it has resolved the name.

Exit codes:

  0  the packet would pass
  1  it would not; or no gateway there, not permitted, no answer in time
  2  wrong usage`

type explainFlags struct {
	controlFlags
	Client string `name:"client" required:"" placeholder:"WHO" help:"Client: its ID, one of its tunnel addresses, or the beginning of its public key."`
	To     string `name:"to" required:"" placeholder:"HOST:PORT/PROTOCOL" help:"Destination: an address or domain, a port, and tcp, udp or icmp (without port)."`
}

// runExplain is the process of the command explain: it returns the exit code.
func runExplain(args []string, stdout, stderr io.Writer) int {
	f := &explainFlags{}
	q, err := f.question(args, stdout, stderr)
	if err != nil {
		return misused(explainCommand, err, stderr)
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Duration(f.Timeout))
	defer cancel()
	e, err := admin.Control{Path: f.ControlSocket}.Explain(ctx, q)
	switch {
	case err != nil:
		return f.fail(f.advise(err), stdout, stderr)
	case f.JSON:
		err = json.NewEncoder(stdout).Encode(e)
	default:
		_, err = io.WriteString(stdout, tell(e))
	}
	if err != nil || !e.Passes {
		return exitFailure
	}
	return exitOK
}

func (f *explainFlags) question(args []string, stdout, stderr io.Writer) (admin.Question, error) {
	if err := f.parse(f, explainCommand, explainDescription, args, stdout, stderr); err != nil {
		return admin.Question{}, err
	}
	to, err := admin.ParseDestination(f.To)
	if err != nil {
		return admin.Question{}, fmt.Errorf("--to: %w", err)
	}
	q := admin.Question{Client: f.Client, To: to}
	if err := q.Validate(); err != nil {
		return admin.Question{}, fmt.Errorf("--client: %w", err)
	}
	return q, nil
}

// tell makes text of e.
func tell(e admin.Explanation) string {
	var b strings.Builder
	verdict := "would pass"
	if !e.Passes {
		verdict = "would NOT pass"
		for _, s := range e.Stages {
			if s.Verdict == admin.Stop {
				verdict += ": " + string(s.Stage)
				break
			}
		}
	}
	section(&b, fmt.Sprintf("A packet to %s %s", e.To, verdict), func(t table) {
		for _, s := range e.Stages {
			t.row(string(s.Stage), string(s.Verdict), detail(s))
		}
	})
	for _, s := range e.Stages {
		if len(s.Resources) == 0 {
			continue
		}
		section(&b, "Resources", func(t table) {
			t.row("ID", "NAME", "KIND", "ADDRESS", "ADMITS", "FILTERS", "ENDS")
			for _, r := range s.Resources {
				t.row(r.ResourceID, r.Name, r.Kind, r.Address, admitsText(r), filtersText(r), endText(r.ExpiresAt))
			}
		})
	}
	return b.String()
}

func detail(s admin.Stage) string {
	if s.Reason == "" {
		return s.Detail
	}
	return s.Detail + " [" + s.Reason + "]"
}

func admitsText(r admin.Judged) string {
	if r.Admits {
		return "yes"
	}
	return "no, " + r.Reason
}

func filtersText(r admin.Judged) string {
	if len(r.Filters) == 0 {
		return "everything"
	}
	return strings.Join(r.Filters, " ")
}

func endText(t time.Time) string {
	if t.IsZero() {
		return "never"
	}
	return t.UTC().Format(time.RFC3339)
}
