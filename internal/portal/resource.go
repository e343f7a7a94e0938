package portal

import (
	"math"
	"net/netip"
	"strings"
)

// ResourceType says what a resource is. The zero value is none of them.
type ResourceType uint8

// The resource types (§3).
const (
	ResourceDNS ResourceType = iota + 1
	ResourceCIDR
	ResourceInternet
)

// String returns the name on the wire.
func (t ResourceType) String() string {
	switch t {
	case ResourceDNS:
		return "dns"
	case ResourceCIDR:
		return "cidr"
	case ResourceInternet:
		return "internet"
	default:
		return "unknown"
	}
}

// Resource is a resource as the portal shows it to gateways.
type Resource struct {
	ID      string
	Type    ResourceType
	Name    string       // for people, cut to 512 bytes; empty for the Internet resource
	Address string       // as received: the pattern of a DNS resource, the network of a CIDR resource
	Network netip.Prefix // CIDR resources only, host bits cleared

	// Filters admit traffic, one suffices. An empty list admits everything; it
	// is empty only if the portal's list was. If the portal sent filters and
	// none of them could be understood, the list is one FilterNone, which
	// admits nothing.
	Filters []Filter
}

// FilterProtocol is the protocol of a filter.
type FilterProtocol uint8

// The filter protocols. The zero value matches no packet.
const (
	FilterNone FilterProtocol = iota
	FilterTCP
	FilterUDP
	FilterICMP
)

// String returns the name on the wire, "none" for FilterNone.
func (p FilterProtocol) String() string {
	switch p {
	case FilterTCP:
		return "tcp"
	case FilterUDP:
		return "udp"
	case FilterICMP:
		return "icmp"
	default:
		return "none"
	}
}

// Filter admits one protocol. The zero value admits nothing.
type Filter struct {
	Protocol    FilterProtocol
	First, Last uint16 // ports, inclusive; both zero for ICMP and none
}

// Bounds of what one resource may carry.
const (
	maxFilters = 4096
	maxPattern = 512 // bytes, of names too; a domain name has at most 255
)

// resource refuses a resource that it does not understand as a whole. Bad
// filters are skipped and counted, which can only make the resource less open.
func (d *decoder) resource() Resource {
	var r Resource
	var kind, address []byte
	var filters mark // of the value; the type decides whether it matters
	listed := false
	for key := range d.fields {
		switch string(key) {
		case "id":
			r.ID = d.id()
		case "type":
			kind = d.text()
		case "name":
			r.Name = optional(d, (*decoder).resourceName)
		case "address":
			// One of another type is missing, which the type of the resource judges.
			m := d.mark()
			if address = d.text(); d.err != nil {
				d.reset(m)
				d.skip()
			}
		case "filters":
			filters, listed = d.mark(), true
			d.skip()
		default:
			d.skip()
		}
	}
	d.require(r.ID != "", "id")
	switch string(kind) {
	case "internet":
		return Resource{ID: r.ID, Type: ResourceInternet}
	case "dns":
		r.Type = ResourceDNS
		d.require(len(address) > 0 && len(address) <= maxPattern, "address")
	case "cidr":
		r.Type = ResourceCIDR
		r.Network = d.network(string(address))
	default:
		d.fail("unknown type")
	}
	// Absence would read as "allow everything", which only an explicit empty list
	// may say.
	d.require(listed, "filters")
	if d.err != nil {
		return Resource{}
	}
	r.Address = string(address)
	after := d.mark()
	d.reset(filters)
	r.Filters = d.filters()
	if d.err == nil {
		d.reset(after)
	}
	return r
}

func (d *decoder) resourceName() string {
	text := d.text()
	return strings.ToValidUTF8(string(text[:min(len(text), maxPattern)]), "")
}

func (d *decoder) filters() []Filter {
	if d.null() {
		d.fail("filters")
		return nil
	}
	before := d.skipped.Elements
	fs := elements(d, maxFilters, &d.skipped.Elements, (*decoder).filter)
	if len(fs) == 0 && d.skipped.Elements > before {
		return []Filter{{Protocol: FilterNone}}
	}
	return fs
}

func (d *decoder) filter() Filter {
	var protocol []byte
	var f Filter
	first, last := uint64(0), uint64(math.MaxUint16)
	for key := range d.fields {
		switch string(key) {
		case "protocol":
			protocol = d.text()
		case "port_range_start":
			if !d.null() {
				first = d.natural(math.MaxUint16)
			}
		case "port_range_end":
			if !d.null() {
				last = d.natural(math.MaxUint16)
			}
		default:
			d.skip()
		}
	}
	switch string(protocol) {
	case "tcp":
		f.Protocol = FilterTCP
	case "udp":
		f.Protocol = FilterUDP
	case "icmp":
		return Filter{Protocol: FilterICMP}
	default:
		d.fail("unknown protocol")
	}
	d.require(first <= last, "range ends before it starts")
	f.First, f.Last = uint16(first), uint16(last)
	return f
}

// network accepts a bare address as the network of one host, in case a
// portal does not add the prefix length.
func (d *decoder) network(s string) netip.Prefix {
	var p netip.Prefix
	var err error
	if strings.Contains(s, "/") {
		p, err = netip.ParsePrefix(s)
	} else {
		var a netip.Addr
		if a, err = netip.ParseAddr(s); err == nil {
			p = netip.PrefixFrom(a, a.BitLen())
		}
	}
	if err != nil || p.Addr().Zone() != "" || p.Addr().Is4In6() {
		d.fail("address is not a network")
		return netip.Prefix{}
	}
	return p.Masked()
}
