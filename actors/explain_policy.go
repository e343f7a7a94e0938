package actors

import (
	"fmt"
	"strings"

	"firezone-gateway/internal/admin"
	"firezone-gateway/internal/drop"
	"firezone-gateway/internal/packet"
	"firezone-gateway/internal/policy"
)

// policy asks the policy in force, and for a refusal what each grant by itself
// would say.
func (e *explaining) policy() {
	if !e.dst.IsValid() {
		e.policyOfName()
		return
	}
	if !e.src.IsValid() {
		e.skip(admin.StagePolicy, "no packet of that family can come")
		return
	}
	rules := e.plane.compile(e.state)
	if e.client != nil {
		rules = e.client.Policy()
	}
	view, now := e.view(), e.now.UnixNano()
	verdict := rules.Outbound(&view, e.proxies(), now)
	if verdict.Action == policy.Forward {
		r, ok := rules.Credited(verdict)
		if !ok {
			e.pass(admin.StagePolicy, "%s is the gateway itself, where this port is open", e.dst)
			return
		}
		e.pass(admin.StagePolicy, "admitted by resource %s (%s)", r.ID, r.Name)
		if g, ok := e.state.Grants.Get(r.ID); ok {
			e.judged(judge(g, drop.None))
		}
		return
	}
	answer := "dropped without an answer"
	if verdict.Action == policy.Reject {
		answer = "the client is answered by ICMP"
	}
	covering, all := e.covering(&view, now)
	e.stop(admin.StagePolicy, verdict.Reason.String(), "%s; %s", e.refusal(verdict.Reason, all), answer)
	e.judged(covering...)
}

// policyOfName tells which resources cover a domain. The client makes up the
// address that stands for it, which decides about a packet.
func (e *explaining) policyOfName() {
	var covering []admin.Judged
	for _, g := range e.state.Grants.List() {
		if g.Resource.Kind == policy.DNS && policy.MatchDomain(g.Resource.Pattern, e.to.Name) && len(covering) < maxCovering {
			covering = append(covering, judge(g, drop.Unresolved))
		}
	}
	if len(covering) == 0 {
		e.stop(admin.StagePolicy, drop.NoResource.String(), "no granted DNS resource covers %s", e.to.Name)
		return
	}
	e.skip(admin.StagePolicy, fmt.Sprintf("%s is covered, but the client has not set it up: it does so when it resolves the name, and then sends to an address of %s or %s",
		e.to.Name, policy.ProxyV4, policy.ProxyV6))
	e.judged(covering...)
}

// covering returns what each grant that covers the destination says by itself, as
// many as an explanation lists, and how many there are.
func (e *explaining) covering(view *packet.View, now int64) (list []admin.Judged, all int) {
	for _, g := range e.state.Grants.List() {
		one := e.state
		one.Grants = policy.Grants{}.Upsert(g)
		verdict := e.plane.compile(one).Outbound(view, e.proxies(), now)
		switch verdict.Reason {
		case drop.Filtered, drop.Expired, drop.NotPublic:
			if all++; len(list) < maxCovering {
				list = append(list, judge(g, verdict.Reason))
			}
		}
	}
	return list, all
}

func (e *explaining) refusal(r drop.Reason, covering int) string {
	switch r {
	case drop.NoResource:
		return fmt.Sprintf("none of the %d granted resources covers %s", e.state.Grants.Len(), e.dst)
	case drop.Filtered:
		return fmt.Sprintf("of the %d resources that cover %s none admits %s", covering, e.dst, e.portText())
	case drop.Expired:
		return fmt.Sprintf("the access to the %d resources that cover %s has ended", covering, e.dst)
	case drop.NotPublic:
		return fmt.Sprintf("%s is not a public address, which is all that the Internet resource reaches", e.dst)
	case drop.Unresolved:
		return fmt.Sprintf("no domain has been set up at %s; the client does that when it resolves one", e.dst)
	case drop.GatewayClosed:
		return fmt.Sprintf("%s is the gateway itself, which is open to ping and port %d only", e.dst, policy.DNSPort)
	case drop.TunnelRange:
		return fmt.Sprintf("%s is a tunnel address: clients do not reach each other", e.dst)
	case drop.Multicast:
		return fmt.Sprintf("%s is a multicast address", e.dst)
	}
	return strings.ReplaceAll(r.String(), "_", " ")
}

func (e *explaining) portText() string {
	if e.to.Protocol == "icmp" {
		return "icmp"
	}
	return fmt.Sprintf("%s port %d", e.to.Protocol, e.to.Port)
}

func (e *explaining) judged(list ...admin.Judged) {
	e.out.Stages[len(e.out.Stages)-1].Resources = list
}

// judge describes a grant that refuses for a reason, or admits for none.
func judge(g policy.Grant, r drop.Reason) admin.Judged {
	j := admin.Judged{
		ResourceID: g.Resource.ID, Name: g.Resource.Name, Kind: g.Resource.Kind.String(),
		Address: resourceAddress(g.Resource), Admits: r == drop.None, ExpiresAt: g.ExpiresAt,
	}
	if r != drop.None {
		j.Reason = r.String()
	}
	for _, f := range g.Resource.Filters[:min(len(g.Resource.Filters), maxCovering)] {
		j.Filters = append(j.Filters, filterText(f))
	}
	return j
}

func filterText(f policy.Filter) string {
	switch {
	case f.Protocol == policy.FilterICMP || f.Ports == policy.PortRange{First: 0, Last: 65535}:
		return f.Protocol.String()
	case f.Ports.First == f.Ports.Last:
		return fmt.Sprintf("%s/%d", f.Protocol, f.Ports.First)
	}
	return fmt.Sprintf("%s/%d-%d", f.Protocol, f.Ports.First, f.Ports.Last)
}

func (e *explaining) proxies() policy.Proxies {
	if e.state.NAT == nil {
		return policy.NoProxies
	}
	return e.state.NAT.Table()
}

// view is the packet in question, as far as the policy looks at one.
func (e *explaining) view() packet.View {
	v := packet.View{Src: e.src, Dst: e.dst, DstPort: e.to.Port}
	switch {
	case e.to.Protocol == "tcp":
		v.Protocol, v.Kind = packet.TCP, packet.KindTCP
	case e.to.Protocol == "udp":
		v.Protocol, v.Kind = packet.UDP, packet.KindUDP
	case e.dst.Is6():
		v.Protocol, v.Kind = packet.ICMPv6, packet.KindEcho
	default:
		v.Protocol, v.Kind = packet.ICMP, packet.KindEcho
	}
	return v
}
