package dns

import (
	"net/netip"

	"github.com/miekg/dns"
)

// maxChain bounds the CNAME records that are followed inside one answer.
const maxChain = 16

// resolverPayload is the size in bytes of UDP answers that the resolver takes.
// It avoids fragments on all usual paths.
const resolverPayload = 1232

// question returns a query for the addresses of one family.
func question(name string, qtype uint16) *dns.Msg {
	m := new(dns.Msg).SetQuestion(dns.Fqdn(name), qtype)
	return m.SetEdns0(resolverPayload, false)
}

// addresses returns the addresses in an answer to a question for one family.
// Those of the name itself count and those at the end of its CNAME chain, as
// far as the answer has it.
func addresses(m *dns.Msg) []netip.Addr {
	asked := m.Question[0]
	owner := dns.CanonicalName(asked.Name)
	for range maxChain {
		if addrs := addressesOf(m.Answer, owner, asked.Qtype); len(addrs) > 0 {
			return addrs
		}
		target, ok := alias(m.Answer, owner)
		if !ok {
			break
		}
		owner = target
	}
	return nil
}

func addressesOf(records []dns.RR, owner string, qtype uint16) []netip.Addr {
	var addrs []netip.Addr
	for _, rr := range records {
		h := rr.Header()
		if h.Rrtype != qtype || h.Class != dns.ClassINET || dns.CanonicalName(h.Name) != owner {
			continue
		}
		switch rr := rr.(type) {
		case *dns.A:
			if a, ok := netip.AddrFromSlice(rr.A.To4()); ok {
				addrs = append(addrs, a)
			}
		case *dns.AAAA:
			if a, ok := netip.AddrFromSlice(rr.AAAA); ok {
				addrs = append(addrs, a)
			}
		}
	}
	return addrs
}

func alias(records []dns.RR, owner string) (string, bool) {
	for _, rr := range records {
		if c, ok := rr.(*dns.CNAME); ok && c.Hdr.Class == dns.ClassINET && dns.CanonicalName(c.Hdr.Name) == owner {
			return dns.CanonicalName(c.Target), true
		}
	}
	return "", false
}
