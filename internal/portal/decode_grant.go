package portal

import "net/netip"

func (d *decoder) authorize(g Generation) Authorize {
	m := Authorize{Generation: g}
	// Only V2 lets a missing key mean "never" (§3.3).
	ends := g == V2
	for key := range d.fields {
		switch string(key) {
		case "ref":
			m.Ref = d.ref()
		case "resource":
			m.Resource = d.resource()
		case "client":
			m.Client = d.client(d.peer())
		case "client_ice_credentials":
			m.ClientICE = d.remoteICE()
		case "gateway_ice_credentials":
			m.GatewayICE = d.localICE()
		case "expires_at":
			m.ExpiresAt, ends = d.time(), true
		case "use_iceless":
			m.UseIceless = optional(d, (*decoder).boolean)
		default:
			d.skip()
		}
	}
	d.require(m.Ref != "", "ref")
	d.require(ends, "expires_at")
	d.require(m.Resource.ID != "", "resource")
	d.require(m.Client.ID != "", "client")
	d.require(m.ClientICE.Username != "", "client_ice_credentials")
	d.require(m.GatewayICE.Username != "", "gateway_ice_credentials")
	return m
}

func (d *decoder) requestConnection() RequestConnection {
	var m RequestConnection
	ends := false
	for key := range d.fields {
		switch string(key) {
		case "ref":
			m.Ref = d.ref()
		case "expires_at":
			m.ExpiresAt, ends = d.time(), true
		case "resource":
			m.Resource = d.resource()
		case "client":
			d.legacyClient(&m)
		default:
			d.skip()
		}
	}
	d.require(m.Ref != "", "ref")
	d.require(ends, "expires_at")
	d.require(m.Resource.ID != "", "resource")
	d.require(m.Client.ID != "", "client")
	return m
}

// legacyClient reads the client of a RequestConnection, whose id stands beside
// the peer and whose ICE parameters stand in a payload of their own.
func (d *decoder) legacyClient(m *RequestConnection) {
	var id []byte
	var p peer
	for key := range d.fields {
		switch string(key) {
		case "id":
			id = d.text()
		case "peer":
			p = d.peer()
		case "payload":
			m.ClientICE, m.Domain = ICECredentials{}, Domain{}
			for key := range d.fields {
				switch string(key) {
				case "ice_parameters":
					m.ClientICE = d.remoteICE()
				case "domain":
					m.Domain = optional(d, (*decoder).domain)
				default:
					d.skip()
				}
			}
		default:
			d.skip()
		}
	}
	d.require(m.ClientICE.Username != "", "payload")
	p.id = id
	m.Client = d.client(p)
}

func (d *decoder) allowAccess() AllowAccess {
	var m AllowAccess
	var in addresses
	ends := false
	for key := range d.fields {
		switch string(key) {
		case "client_id":
			m.ClientID = d.id()
		case "client_ipv4":
			in.v4 = d.address()
		case "client_ipv6":
			in.v6 = d.address()
		case "expires_at":
			m.ExpiresAt, ends = d.time(), true
		case "payload":
			m.Domain = optional(d, (*decoder).domain)
		case "resource":
			m.Resource = d.resource()
		default:
			d.skip()
		}
	}
	d.require(m.ClientID != "", "client_id")
	d.require(ends, "expires_at")
	d.require(m.Resource.ID != "", "resource")
	m.IPv4, m.IPv6 = d.pair(in)
	return m
}

// maxRef is several times the length of what a portal sends.
const maxRef = 16 << 10

func (d *decoder) ref() Ref {
	text := d.text()
	d.require(len(text) <= maxRef, "too long")
	return Ref(text)
}

// domain reads a domain or null. It is optional: without it a DNS resource is
// reached under fewer addresses, never more.
func (d *decoder) domain() Domain {
	var m Domain
	if d.null() {
		return m
	}
	for key := range d.fields {
		switch string(key) {
		case "name":
			m.Name = string(d.text())
		case "proxy_ips":
			m.ProxyIPs = elements(d, maxProxyIPs, &d.skipped.Elements, (*decoder).proxyIP)
		default:
			d.skip()
		}
	}
	d.require(m.Name != "" && len(m.Name) <= maxPattern, "name")
	return m
}

func (d *decoder) proxyIP() netip.Addr {
	a, err := netip.ParseAddr(string(d.quoted()))
	if err != nil || a.Zone() != "" || a.Is4In6() {
		d.fail("not an address")
	}
	return a
}
