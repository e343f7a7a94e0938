package actors

import (
	"firezone-gateway/internal/policy"
	"firezone-gateway/internal/portal"
)

// compile returns the policy of a client.
func (p *Plane) compile(s clientState) *policy.Snapshot {
	return policy.Compile(policy.Peer{
		ClientV4: s.Client.IPv4, ClientV6: s.Client.IPv6,
		GatewayV4: s.Gateway.V4, GatewayV6: s.Gateway.V6, GatewayOpen: p.GatewayOpen,
	}, s.Grants.List(), s.Grants.Version())
}

// policyResource translates a resource of the portal. A filter that the portal
// package did not understand admits nothing, here as there.
func policyResource(r portal.Resource) policy.Resource {
	out := policy.Resource{ID: r.ID, Name: r.Name, Network: r.Network, Pattern: r.Address}
	switch r.Type {
	case portal.ResourceCIDR:
		out.Kind = policy.CIDR
	case portal.ResourceDNS:
		out.Kind = policy.DNS
	case portal.ResourceInternet:
		out.Kind = policy.Internet
	}
	for _, f := range r.Filters {
		n := policy.Filter{Ports: policy.PortRange{First: f.First, Last: f.Last}}
		switch f.Protocol {
		case portal.FilterTCP:
			n.Protocol = policy.FilterTCP
		case portal.FilterUDP:
			n.Protocol = policy.FilterUDP
		case portal.FilterICMP:
			n.Protocol = policy.FilterICMP
		}
		out.Filters = append(out.Filters, n)
	}
	return out
}
