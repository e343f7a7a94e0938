package admin

import (
	"errors"
	"fmt"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"time"
)

// Question asks what would happen to a packet of a client.
type Question struct {
	// Client is a client's ID, one of its tunnel addresses, or the beginning of
	// its public key in base64.
	Client string
	To     Destination
}

// Destination is where a packet would go.
type Destination struct {
	Addr     netip.Addr // invalid if Name is given
	Name     string     // a domain, lower case, without trailing dot
	Port     uint16     // 0 for ICMP
	Protocol string     // tcp, udp or icmp
}

// Explanation says stage by stage what would happen to a packet, see Question.
// Nothing is sent to find out.
type Explanation struct {
	Client string  `json:"client_id"` // "" if it is not known
	To     string  `json:"to"`
	Passes bool    `json:"passes"` // every stage
	Stages []Stage `json:"stages"` // in the order in which a packet meets them
}

// Stage is one step of a packet's way. Stages behind one that stops the packet
// say what they would do if it did not.
type Stage struct {
	Stage   StageName `json:"stage"`
	Verdict Verdict   `json:"verdict"`
	// Reason is that of the drop counter that a stopped packet would be found in,
	// or a short name of what is missing.
	Reason string `json:"reason,omitempty"`
	Detail string `json:"detail"` // for people
	// Resources are those that the policy has looked at: the one that admits
	// the packet, or all that cover its destination.
	Resources []Judged `json:"resources,omitempty"`
}

// StageName names a Stage.
type StageName string

// The stages.
const (
	StageClient  StageName = "client"
	StageSession StageName = "session"
	StagePath    StageName = "path"
	StageSource  StageName = "source"
	StagePolicy  StageName = "policy"
	StageNAT     StageName = "nat"
	StageRoute   StageName = "route"
)

// Verdict is the outcome of a Stage.
type Verdict string

// The verdicts. Skipped is a stage that cannot be judged because of an earlier
// one; it does not pass.
const (
	Pass    Verdict = "pass"
	Stop    Verdict = "stop"
	Skipped Verdict = "skipped"
)

// Judged is what the policy makes of one resource.
type Judged struct {
	ResourceID string    `json:"resource_id"`
	Name       string    `json:"name"`
	Kind       string    `json:"kind"`
	Address    string    `json:"address"`
	Admits     bool      `json:"admits"`
	Reason     string    `json:"reason,omitempty"`  // why not: filtered, expired, not_public or unresolved
	Filters    []string  `json:"filters,omitempty"` // such as tcp/443; none admits everything
	ExpiresAt  time.Time `json:"expires_at,omitzero"`
}

// maxClientText bounds Question.Client: the longest is an ID of 64 bytes.
const maxClientText = 64

// Validate says what is wrong with q.
func (q Question) Validate() error {
	switch {
	case q.Client == "":
		return errors.New("client: none, expected an ID, a tunnel address or the beginning of a public key")
	case len(q.Client) > maxClientText:
		return fmt.Errorf("client: longer than %d bytes", maxClientText)
	}
	return nil
}

var errDestination = errors.New("expected host:port/protocol, such as 10.0.0.5:443/tcp, [2001:db8::5]:53/udp, db.example.com:5432/tcp or 10.0.0.5/icmp")

// ParseDestination parses host:port/protocol: an IP address, IPv6 in brackets, or
// a domain; tcp, udp or icmp, which takes no port. Without protocol it is tcp.
func ParseDestination(text string) (Destination, error) {
	place, protocol, given := strings.Cut(text, "/")
	if !given {
		protocol = "tcp"
	}
	d := Destination{Protocol: strings.ToLower(protocol)}
	host := place
	switch d.Protocol {
	case "icmp":
	case "tcp", "udp":
		at := strings.LastIndexByte(place, ':')
		if at < 0 {
			return Destination{}, errDestination
		}
		port, err := strconv.ParseUint(place[at+1:], 10, 16)
		if err != nil || port == 0 {
			return Destination{}, fmt.Errorf("port is not between 1 and 65535: %w", errDestination)
		}
		host, d.Port = place[:at], uint16(port)
	default:
		return Destination{}, fmt.Errorf("protocol is none of tcp, udp and icmp: %w", errDestination)
	}
	inner, bracketed := strings.CutPrefix(host, "[")
	if bracketed {
		if inner, bracketed = strings.CutSuffix(inner, "]"); !bracketed {
			return Destination{}, errDestination
		}
	}
	a, err := netip.ParseAddr(inner)
	switch {
	case err == nil && a.Zone() == "" && (a.Is4() && !bracketed || a.Is6() && (bracketed || d.Port == 0)):
		d.Addr = a.Unmap()
		return d, nil
	case err == nil || bracketed:
		return Destination{}, errDestination
	}
	d.Name = strings.ToLower(strings.TrimSuffix(host, "."))
	if !isDomain(d.Name) {
		return Destination{}, errDestination
	}
	return d, nil
}

// String returns the form that ParseDestination takes.
func (d Destination) String() string {
	host := d.Name
	if d.Addr.IsValid() {
		host = d.Addr.String()
		if d.Addr.Is6() {
			host = "[" + host + "]"
		}
	}
	if d.Protocol == "icmp" {
		return host + "/icmp"
	}
	return fmt.Sprintf("%s:%d/%s", host, d.Port, d.Protocol)
}

// isDomain reports whether name, in lower case, can be one. What only looks like
// an address cannot.
func isDomain(name string) bool {
	if name == "" || len(name) > 253 {
		return false
	}
	last := ""
	for label := range strings.SplitSeq(name, ".") {
		if label == "" || len(label) > 63 || strings.Trim(label, "abcdefghijklmnopqrstuvwxyz0123456789-_") != "" {
			return false
		}
		last = label
	}
	return strings.Trim(last, "0123456789") != ""
}

// query is the question as the request carries it.
func (q Question) query() string {
	return url.Values{"client": {q.Client}, "to": {q.To.String()}}.Encode()
}

func parseQuestion(values url.Values) (Question, error) {
	for name, given := range values {
		if name != "client" && name != "to" || len(given) > 1 {
			return Question{}, errors.New("expected client and to, once each")
		}
	}
	to, err := ParseDestination(values.Get("to"))
	if err != nil {
		return Question{}, fmt.Errorf("to: %w", err)
	}
	q := Question{Client: values.Get("client"), To: to}
	return q, q.Validate()
}
