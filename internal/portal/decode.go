package portal

import (
	"strconv"
	"strings"
	"unicode/utf8"

	"firezone-gateway/internal/drop"
)

// Skipped counts list elements and optional parts that Decode left out of a message that it
// otherwise accepted.
type Skipped struct {
	Elements   int // filters, relays, authorizations, ids, proxy addresses, optional parts
	Candidates int // ICE candidates
}

// AddTo adds the counts to c under their drop reasons.
func (s Skipped) AddTo(c *drop.Counters) {
	c.Add(drop.ElementMalformed, uint64(s.Elements))
	c.Add(drop.CandidateUnusable, uint64(s.Candidates))
}

// Decode turns a push of the portal into a typed message (§3). An event that is
// not in the protocol yields Unknown. A bad element of a list is skipped and
// counted, and so is a bad part that the message makes sense without; anything
// else that does not fit yields a *DecodeError with drop.PayloadMalformed. Unknown keys are ignored, and of a key that repeats the
// last one counts. The message shares no memory with f.
//
// Leniency never widens access: an unknown filter is left out, a resource whose
// filters are all unknown admits nothing, and a resource that is not understood
// fails the message.
func Decode(f Frame) (Message, Skipped, error) {
	decode, ok := decoders[f.Event]
	if !ok {
		return Unknown{Event: printable(f.Event, maxText)}, Skipped{}, nil
	}
	if !utf8.Valid(f.Payload) {
		return nil, Skipped{}, malformed(f.Event, errNotUTF8)
	}
	d := decoder{scanner: scanner{b: f.Payload}}
	m := decode(&d)
	if err := d.end(); err != nil {
		return nil, Skipped{}, malformed(f.Event, err)
	}
	return m, d.skipped, nil
}

// decoder reads the payload of one message.
type decoder struct {
	scanner
	skipped Skipped
}

var decoders = map[string]func(*decoder) Message{
	"init":                                func(d *decoder) Message { return d.init() },
	"authorize_flow":                      func(d *decoder) Message { return d.authorize(V1) },
	"create_authorization":                func(d *decoder) Message { return d.authorize(V2) },
	"request_connection":                  func(d *decoder) Message { return d.requestConnection() },
	"allow_access":                        func(d *decoder) Message { return d.allowAccess() },
	"reject_access":                       func(d *decoder) Message { return d.rejectAccess() },
	"ice_candidates":                      func(d *decoder) Message { return d.candidates() },
	"invalidate_ice_candidates":           func(d *decoder) Message { return InvalidateICECandidates(d.candidates()) },
	"relays_presence":                     func(d *decoder) Message { return d.relaysPresence() },
	"resource_updated":                    func(d *decoder) Message { return ResourceUpdated{Resource: d.resource()} },
	"access_authorization_expiry_updated": func(d *decoder) Message { return d.expiryUpdated() },
	"disconnect":                          func(d *decoder) Message { return d.disconnect() },
}

// Bounds of lists, far above what a portal sends, so that one message can not
// occupy the gateway for long. Elements beyond count as skipped.
const (
	maxAuthorizations = 100_000
	maxCandidates     = 256
	maxCandidate      = 512 // bytes
	maxProxyIPs       = 256
)

func (d *decoder) init() Init {
	var m Init
	var in addresses
	for key := range d.fields {
		switch string(key) {
		case "account_slug":
			m.AccountSlug = optional(d, (*decoder).shortText)
		case "interface":
			in = d.addresses()
		case "relays":
			m.Relays = optional(d, (*decoder).relays)
		case "authorizations":
			m.Authorizations = elements(d, maxAuthorizations, &d.skipped.Elements, (*decoder).authorization)
		default:
			d.skip()
		}
	}
	m.IPv4, m.IPv6 = d.pair(in)
	return m
}

// authorization takes null for "never", as a grant does.
func (d *decoder) authorization() Authorization {
	m, ends := d.expiry()
	d.require(ends, "expires_at")
	return Authorization(m)
}

func (d *decoder) rejectAccess() RejectAccess {
	var m RejectAccess
	for key := range d.fields {
		switch string(key) {
		case "client_id":
			m.ClientID = d.id()
		case "resource_id":
			m.ResourceID = d.id()
		default:
			d.skip()
		}
	}
	d.require(m.ClientID != "", "client_id")
	d.require(m.ResourceID != "", "resource_id")
	return m
}

// expiryUpdated requires a time: the message moves an end, and one that is lost
// here would leave the grant open for ever.
func (d *decoder) expiryUpdated() ExpiryUpdated {
	m, _ := d.expiry()
	d.require(!m.ExpiresAt.IsZero(), "expires_at")
	return m
}

// expiry reads the end of one grant. ends says whether the key is there.
func (d *decoder) expiry() (m ExpiryUpdated, ends bool) {
	for key := range d.fields {
		switch string(key) {
		case "client_id":
			m.ClientID = d.id()
		case "resource_id":
			m.ResourceID = d.id()
		case "expires_at":
			m.ExpiresAt, ends = d.time(), true
		default:
			d.skip()
		}
	}
	d.require(m.ClientID != "", "client_id")
	d.require(m.ResourceID != "", "resource_id")
	return m, ends
}

func (d *decoder) candidates() ICECandidates {
	var m ICECandidates
	present := false
	for key := range d.fields {
		switch string(key) {
		case "client_id":
			m.ClientID = d.id()
		case "candidates":
			present = true
			m.Candidates = elements(d, maxCandidates, &d.skipped.Candidates, (*decoder).candidate)
		default:
			d.skip()
		}
	}
	d.require(m.ClientID != "", "client_id")
	d.require(present, "candidates")
	return m
}

// candidate asks for no more than the reference does (§3.7): the prefix and an
// integer priority. Whether the ICE agent can use it is decided there.
func (d *decoder) candidate() string {
	text := d.quoted()
	if len(text) > maxCandidate {
		d.fail("candidate is too long")
		return ""
	}
	s := string(text)
	if !strings.HasPrefix(s, "candidate:") || !isPrintable(s) {
		d.fail("not a candidate line")
		return ""
	}
	i := 0
	for token := range strings.FieldsSeq(s) {
		if i == 3 {
			if _, err := strconv.ParseUint(token, 10, 32); err != nil {
				break
			}
			return s
		}
		i++
	}
	d.fail("candidate without a priority")
	return ""
}

func (d *decoder) relaysPresence() RelaysPresence {
	var m RelaysPresence
	for key := range d.fields {
		switch string(key) {
		case "disconnected_ids":
			m.DisconnectedIDs = elements(d, maxRelays, &d.skipped.Elements, (*decoder).id)
		case "connected":
			m.Connected = d.relays()
		default:
			d.skip()
		}
	}
	return m
}

func (d *decoder) disconnect() Disconnect {
	var m Disconnect
	for key := range d.fields {
		if string(key) == "reason" {
			m.Reason = optional(d, (*decoder).shortText)
		} else {
			d.skip()
		}
	}
	return m
}
