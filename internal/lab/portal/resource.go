package portal

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"

	"github.com/google/uuid"
)

// ResourceType is the "type" of a resource on the wire.
type ResourceType string

// The resource types that gateways know (portal-protocol §3).
const (
	CIDR     ResourceType = "cidr"
	DNS      ResourceType = "dns"
	Internet ResourceType = "internet"
)

// Protocol is the "protocol" of a filter on the wire.
type Protocol string

// The protocols of filters.
const (
	TCP  Protocol = "tcp"
	UDP  Protocol = "udp"
	ICMP Protocol = "icmp"
)

// Filter admits one protocol and, for TCP and UDP, a range of ports. Nil ports
// are left out of the message and mean 0 and 65535.
type Filter struct {
	Protocol  Protocol `json:"protocol"`
	PortStart *uint16  `json:"port_range_start,omitempty"`
	PortEnd   *uint16  `json:"port_range_end,omitempty"`
}

// Ports returns a filter for the ports from first to last.
func Ports(protocol Protocol, first, last uint16) Filter {
	return Filter{Protocol: protocol, PortStart: &first, PortEnd: &last}
}

// Resource is something behind the gateways of a site. Filters empty means
// that everything is allowed.
type Resource struct {
	ID          string       `json:"id"` // UUID; made up when empty
	Type        ResourceType `json:"type"`
	Name        string       `json:"name"`
	Address     string       `json:"address,omitempty"` // prefix or address for cidr, pattern for dns
	Description string       `json:"address_description,omitempty"`
	IPStack     string       `json:"ip_stack,omitempty"` // dns only: dual (default), ipv4_only, ipv6_only
	Filters     []Filter     `json:"filters"`
	SiteID      string       `json:"site_id"` // DefaultSiteID when empty
}

// Site groups gateways.
type Site struct {
	ID   string `json:"id"` // UUID; made up when empty
	Name string `json:"name"`
	// GatewayToken makes gateways that log in with it members of this site.
	GatewayToken string `json:"gateway_token,omitempty"`
}

// String hides the token.
func (s Site) String() string { return "Site{" + s.ID + " " + s.Name + "}" }

// reserved ranges may not hold resources (portal-protocol §6.5).
var reserved = []netip.Prefix{
	netip.MustParsePrefix("100.64.0.0/10"),
	netip.MustParsePrefix("fd00:2021:1111::/48"),
}

// normalized validates the resource and fills in what has a default.
func (r Resource) normalized() (Resource, error) {
	id, err := normalizedID(r.ID)
	if err != nil {
		return r, fmt.Errorf("resource: %w", err)
	}
	r.ID = id
	setDefault(&r.SiteID, DefaultSiteID)
	setDefault(&r.Name, string(r.Type))
	switch r.Type {
	case CIDR:
		prefix, err := parsePrefix(r.Address)
		if err != nil {
			return r, fmt.Errorf("resource %s: %w", r.ID, err)
		}
		r.Address = prefix.String()
	case DNS:
		setDefault(&r.IPStack, "dual")
		if r.Address == "" || strings.ContainsAny(r.Address, " \t\r\n/:") {
			return r, fmt.Errorf("resource %s: address is no domain pattern", r.ID)
		}
		switch r.IPStack {
		case "dual", "ipv4_only", "ipv6_only":
		default:
			return r, fmt.Errorf("resource %s: unknown ip_stack", r.ID)
		}
	case Internet:
		r.Address, r.Filters = "", nil
	default:
		return r, fmt.Errorf("resource %s: unknown type", r.ID)
	}
	filters := make([]Filter, len(r.Filters)) // never nil: the wire wants a list
	for i, f := range r.Filters {
		if filters[i], err = f.normalized(); err != nil {
			return r, fmt.Errorf("resource %s: %w", r.ID, err)
		}
	}
	r.Filters = filters
	return r, nil
}

// breaks reports whether the change from r to next cannot be expressed as an
// update, so that access ends and has to be asked for again.
func (r Resource) breaks(next Resource) bool {
	return r.Type != next.Type || r.Address != next.Address || r.IPStack != next.IPStack || r.SiteID != next.SiteID
}

func (f Filter) normalized() (Filter, error) {
	switch f.Protocol {
	case ICMP:
		f.PortStart, f.PortEnd = nil, nil
	case TCP, UDP:
		if f.PortStart != nil && f.PortEnd != nil && *f.PortStart > *f.PortEnd {
			return f, errors.New("filter: port range runs backwards")
		}
	default:
		return f, errors.New("filter: unknown protocol")
	}
	return f, nil
}

func parsePrefix(s string) (netip.Prefix, error) {
	prefix, err := netip.ParsePrefix(s)
	if addr, addrErr := netip.ParseAddr(s); addrErr == nil && addr.Zone() == "" {
		prefix, err = netip.PrefixFrom(addr, addr.BitLen()), nil
	}
	if err != nil {
		return prefix, errors.New("address is neither an address nor a prefix")
	}
	for _, r := range reserved {
		if r.Bits() <= prefix.Bits() && r.Contains(prefix.Addr()) {
			return prefix, fmt.Errorf("address lies in the reserved range %s", r)
		}
	}
	return prefix.Masked(), nil
}

// normalizedID makes an id up when there is none and renders it in lowercase.
func normalizedID(id string) (string, error) {
	if id == "" {
		return uuid.NewString(), nil
	}
	parsed, err := uuid.Parse(id)
	if err != nil {
		return "", errors.New("id is not a UUID")
	}
	return parsed.String(), nil
}
