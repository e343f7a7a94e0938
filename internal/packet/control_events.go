package packet

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"strings"

	"github.com/google/uuid"
)

// AssignedIPsEvent is the body of an AssignedIPs control packet: the client
// asks for the domain of a DNS resource behind the proxy addresses it made up.
// Whether these lie in the proxy ranges is for the receiver to check.
type AssignedIPsEvent struct {
	Resource string       `json:"resource"`  // resource ID, a UUID in canonical form
	Domain   string       `json:"domain"`    // without trailing dot
	ProxyIPs []netip.Addr `json:"proxy_ips"` // any number, without zones
}

// DomainStatusEvent is the body of a DomainStatus control packet, the answer to
// an AssignedIPsEvent.
type DomainStatusEvent struct {
	Resource string `json:"resource"`
	Domain   string `json:"domain"`
	Status   Status `json:"status"`
}

// Status says whether the gateway serves a domain. The zero value is Inactive.
type Status uint8

// The statuses.
const (
	Inactive Status = iota
	Active
)

// String returns the status as it is written on the wire.
func (s Status) String() string {
	if s == Active {
		return "Active"
	}
	return "Inactive"
}

// MarshalText writes the status for JSON.
func (s Status) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// UnmarshalText reads a status. Every unknown one is Inactive.
func (s *Status) UnmarshalText(b []byte) error {
	*s = Inactive
	if string(b) == "Active" {
		*s = Active
	}
	return nil
}

// Errors of the decoders. They carry no value from the body.
var (
	errResource = errors.New("resource is not a UUID")
	errDomain   = errors.New("not a domain name")
	errProxyIPs = errors.New("proxy addresses missing or with a zone")
)

// AppendAssignedIPs appends the control packet for e to dst. It fails if the
// event does not fit into one packet.
func AppendAssignedIPs(dst []byte, e AssignedIPsEvent) ([]byte, error) {
	if e.ProxyIPs == nil {
		e.ProxyIPs = []netip.Addr{} // null is not a list to the other side
	}
	return appendEvent(dst, AssignedIPs, e)
}

// AppendDomainStatus appends the control packet for e to dst. It fails if the
// event does not fit into one packet.
func AppendDomainStatus(dst []byte, e DomainStatusEvent) ([]byte, error) {
	return appendEvent(dst, DomainStatus, e)
}

// DecodeAssignedIPs reads the body of an AssignedIPs control packet. Unknown
// keys are ignored. The resource comes back in canonical form, the domain as it
// was written but without trailing dot.
func DecodeAssignedIPs(body []byte) (AssignedIPsEvent, error) {
	var e AssignedIPsEvent
	if err := decodeEvent(body, &e); err != nil {
		return AssignedIPsEvent{}, fmt.Errorf("assigned IPs: %w", err)
	}
	if e.ProxyIPs == nil {
		return AssignedIPsEvent{}, fmt.Errorf("assigned IPs: %w", errProxyIPs)
	}
	for _, ip := range e.ProxyIPs {
		if !ip.IsValid() || ip.Zone() != "" {
			return AssignedIPsEvent{}, fmt.Errorf("assigned IPs: %w", errProxyIPs)
		}
	}
	if err := normalise(&e.Resource, &e.Domain); err != nil {
		return AssignedIPsEvent{}, fmt.Errorf("assigned IPs: %w", err)
	}
	return e, nil
}

// DecodeDomainStatus reads the body of a DomainStatus control packet, like
// DecodeAssignedIPs.
func DecodeDomainStatus(body []byte) (DomainStatusEvent, error) {
	var e DomainStatusEvent
	if err := decodeEvent(body, &e); err != nil {
		return DomainStatusEvent{}, fmt.Errorf("domain status: %w", err)
	}
	if err := normalise(&e.Resource, &e.Domain); err != nil {
		return DomainStatusEvent{}, fmt.Errorf("domain status: %w", err)
	}
	return e, nil
}

func appendEvent(dst []byte, t ControlType, e any) ([]byte, error) {
	body, err := json.Marshal(e)
	if err != nil {
		return dst, fmt.Errorf("%v event: %w", t, err)
	}
	if len(body) > MaxControlBody {
		return dst, fmt.Errorf("%v event of %d bytes exceeds %d", t, len(body), MaxControlBody)
	}
	return AppendControl(dst, t, body), nil
}

// decodeEvent keeps the offending value out of the error: address errors quote
// the text that a client sent.
func decodeEvent(body []byte, e any) error {
	err := json.Unmarshal(body, e)
	var syntax *json.SyntaxError
	var typ *json.UnmarshalTypeError
	switch {
	case err == nil:
		return nil
	case errors.As(err, &syntax):
		return fmt.Errorf("invalid JSON at byte %d", syntax.Offset)
	case errors.As(err, &typ):
		return fmt.Errorf("value of the wrong type at byte %d", typ.Offset)
	}
	return errors.New("unusable value")
}

// normalise checks and rewrites the two fields that both events share.
func normalise(resource, domain *string) error {
	id, err := uuid.Parse(*resource)
	if err != nil {
		return errResource
	}
	*resource = id.String()
	*domain = strings.TrimSuffix(*domain, ".")
	if !validDomain(*domain) {
		return errDomain
	}
	return nil
}

// validDomain applies the length limits of RFC 1035 §2.3.4 and admits every
// visible ASCII character, since names in the field are not only host names.
func validDomain(name string) bool {
	const maxName, maxLabel = 253, 63
	if len(name) > maxName {
		return false
	}
	for label := range strings.SplitSeq(name, ".") {
		if label == "" || len(label) > maxLabel {
			return false
		}
		for i := range len(label) {
			if label[i] <= ' ' || label[i] > '~' {
				return false
			}
		}
	}
	return true
}
