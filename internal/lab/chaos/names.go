package chaos

import (
	"context"
	"fmt"
	"io"
	"net/netip"
	"time"

	"github.com/miekg/dns"

	"firezone-gateway/internal/lab/resource"
)

// Asking is what came of asking for something again and again, as clients do
// that got no answer.
type Asking struct {
	Asked    int `json:"asked"`
	Repeated int `json:"repeated"` // attempts beyond the first
	// Unanswered were not answered within the limit.
	Unanswered int     `json:"unanswered"`
	Slowest    float64 `json:"slowest_ms"` // until answered, repetitions included
	LastError  string  `json:"last_error,omitempty"`
}

// asking bounds one sort of question.
type asking struct {
	pace    time.Duration // between questions
	patient time.Duration // until it is repeated
	limit   time.Duration // until it counts as unanswered
}

var (
	// A stub resolver repeats after some seconds; this one is less patient, to ask
	// more often.
	queryManner = asking{pace: 50 * time.Millisecond, patient: 500 * time.Millisecond, limit: 5 * time.Second}
	// Clients repeat set-ups every 2 s (dataplane §3.2).
	setUpManner = asking{pace: 300 * time.Millisecond, patient: 5 * time.Second, limit: 10 * time.Second}
	// A new flow's first packet waits for the nat actor, and TCP repeats it after 1 s.
	flowManner = asking{pace: 200 * time.Millisecond, patient: 5 * time.Second, limit: 10 * time.Second}
)

// ask puts questions until ctx ends. slack is added to the limit.
func (m asking) ask(ctx context.Context, slack time.Duration, question func(ctx context.Context, number int) error) (a Asking) {
	for number := 0; ctx.Err() == nil; number++ {
		begin := time.Now()
		for {
			limited, cancel := context.WithTimeout(ctx, m.patient)
			err := question(limited, number)
			cancel()
			if ctx.Err() != nil {
				return a
			}
			if err == nil {
				break
			}
			a.LastError = err.Error()
			if time.Since(begin) > m.limit+slack {
				a.Unanswered++
				break
			}
			a.Repeated++
			_ = pause(ctx, 10*time.Millisecond) // one that fails at once
		}
		a.Asked++
		a.Slowest = max(a.Slowest, ms(time.Since(begin)))
		_ = pause(ctx, m.pace-time.Since(begin)%m.pace)
	}
	return a
}

// query asks the gateway's DNS service, over UDP and TCP in turns.
func (w *world) query(ctx context.Context, number int) error {
	network := []string{"udp4", "tcp4", "udp6", "tcp6"}[number%4]
	answer, err := w.clients[0].Query(ctx, network, new(dns.Msg).SetQuestion(textName+".", dns.TypeTXT))
	switch {
	case err != nil:
		return fmt.Errorf("%s: %w", network, err)
	case answer.Rcode != dns.RcodeSuccess || len(answer.Answer) != 1:
		return fmt.Errorf("%s: answer is %s with %d records", network, dns.RcodeToString[answer.Rcode], len(answer.Answer))
	}
	return nil
}

// setUp has the gateway set a domain up that it does not know yet.
func (w *world) setUp(ctx context.Context, number int) error {
	name := fmt.Sprintf("n%d.%s", number%setUps, zone)
	if number < setUps {
		if err := w.names.SetAddresses(name, houseAt); err != nil {
			return err
		}
	}
	active, err := w.clients[0].SetUp(ctx, w.house.ID, name)
	if err == nil && !active {
		err = fmt.Errorf("%s is not served", name)
	}
	return err
}

// setUps is how many domains there are: the addresses that stand for them are
// bounded.
const setUps = 20

// open makes a new connection to the DNS resource, which needs a new NAT session,
// and uses it once.
func (w *world) open(proxy netip.Addr) func(context.Context, int) error {
	return func(ctx context.Context, _ int) error {
		conn, err := w.host(0).DialContext(ctx, "tcp", netip.AddrPortFrom(proxy, resource.DefaultPorts.TCPEcho).String())
		if err != nil {
			return err
		}
		defer conn.Close()
		defer context.AfterFunc(ctx, func() { conn.Close() })()
		const word = "still there?"
		if _, err := io.WriteString(conn, word); err != nil {
			return err
		}
		answer := make([]byte, len(word))
		if _, err := io.ReadFull(conn, answer); err != nil {
			return err
		}
		if string(answer) != word {
			return fmt.Errorf("the echo differs: %q", answer)
		}
		return nil
	}
}
