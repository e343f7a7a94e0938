package actors

import (
	"errors"
	"net/netip"
	"slices"
	"testing"
	"time"

	"firezone-gateway/internal/actorkit"
	"firezone-gateway/internal/dns"
	"firezone-gateway/internal/drop"
	"firezone-gateway/internal/nat"
	"firezone-gateway/internal/packet"
	"firezone-gateway/internal/portal"
	"firezone-gateway/messages"
)

const (
	siteID  = "0ab3a3a7-6a49-4b1c-8c0f-0a3d9ac7c2f4"
	otherID = "7c0e6f2e-5a2f-4a40-9d0f-3a4a8f5d6e11"
)

var (
	proxy4, proxy6 = netip.MustParseAddr("100.96.0.1"), netip.MustParseAddr("fd00:2021:1111:8000::1")
	real4, real6   = netip.MustParseAddr("10.0.0.5"), netip.MustParseAddr("2001:db8::5")
)

// site grants client 1 a DNS resource.
func site(id, pattern string) portal.Authorize {
	return authorization(1, 10, func(a *portal.Authorize) {
		a.Resource = portal.Resource{ID: id, Name: "site", Type: portal.ResourceDNS, Address: pattern}
	})
}

func setUp(domain string, proxies ...netip.Addr) messages.DomainSetup {
	if proxies == nil {
		proxies = []netip.Addr{proxy4, proxy6}
	}
	return messages.DomainSetup{ResourceID: siteID, Domain: domain, Proxies: proxies}
}

// asks sends a set-up as client 1 does.
func (r *peerRig) asks(s messages.DomainSetup) {
	r.t.Helper()
	pkt, err := packet.AppendAssignedIPs(nil, packet.AssignedIPsEvent{Resource: s.ResourceID, Domain: s.Domain, ProxyIPs: s.Proxies})
	if err != nil {
		r.t.Fatal(err)
	}
	r.tell(messages.ControlReceived{Key: authorization(1, 0).Client.PublicKey, Packet: pkt})
}

// answered returns how many answers were given; without a session they have no
// way.
func (r *peerRig) answered() uint64 {
	r.settle(r.pid)
	return r.client().Drops().Load(drop.NotConnected)
}

// table is the client's translation, nil if there is none.
func (r *peerRig) table() *nat.Table {
	if n := r.plane.store.get(clientID(1)).NAT; n != nil {
		return n.Table()
	}
	return nil
}

// leads waits until proxy4 leads to an address.
func (r *peerRig) leads(to netip.Addr) {
	r.t.Helper()
	eventually(r.t, func() bool {
		if r.table() == nil {
			return false
		}
		m := r.table().Lookup(proxy4)
		return m != nil && m.Real == to
	}, "the proxy address leads to "+to.String())
}

// hasDomain has client 1 set up a domain.
func (r *peerRig) hasDomain() {
	r.t.Helper()
	r.tell(authorize(site(siteID, "*.example.com")))
	r.asks(setUp("www.example.com"))
	m := next[messages.Resolve](r.t, r.dns)
	r.tell(messages.Resolved{Setup: m.Setup, Addresses: []netip.Addr{real4, real6}})
	r.leads(real4)
}

func TestADomainIsSetUp(t *testing.T) {
	r := newPeerRig(t)
	r.hasDomain()
	if m := r.table().Lookup(proxy6); m == nil || m.Real != real6 || !slices.Equal(m.Resources, []string{siteID}) || m.Domain != "www.example.com" {
		t.Errorf("the IPv6 proxy address has %+v", m)
	}
	eventually(t, func() bool { return r.answered() == 1 }, "an answer")
}

// Rules 46 and 47; defect 1.
func TestSetUpsThatAreRefusedAtOnce(t *testing.T) {
	for _, tt := range []struct {
		name  string
		grant portal.Authorize
		ask   messages.DomainSetup
	}{
		{"rule 46: another resource is granted", site(otherID, "**.example.com"), setUp("www.example.com")},
		{"rule 46: the resource is a network", authorization(1, 10, func(a *portal.Authorize) { a.Resource.ID = siteID }), setUp("www.example.com")},
		{"rule 47: the domain is another one", site(siteID, "*.example.com"), setUp("www.example.org")},
		{"rule 47: the domain is deeper", site(siteID, "*.example.com"), setUp("a.b.example.com")},
		{"defect 1: not a proxy address", site(siteID, "*.example.com"), setUp("www.example.com", proxy4, netip.MustParseAddr("10.0.0.1"))},
		{"defect 1: a tunnel address", site(siteID, "*.example.com"), setUp("www.example.com", netip.MustParseAddr("100.64.0.1"))},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := newPeerRig(t)
			r.tell(authorize(tt.grant))
			r.asks(tt.ask)
			if got := r.answered(); got != 1 {
				t.Errorf("%d answers, want 1", got)
			}
			r.dns.do(func(actorkit.Context) {})
			r.dns.quiet("nothing is to be resolved")
			if r.table() != nil {
				t.Error("there is a translation")
			}
		})
	}
}

func TestWhatBecomesOfAResolution(t *testing.T) {
	for _, tt := range []struct {
		name    string
		before  any // what happens while it is under way
		result  messages.Resolved
		answers uint64
		mapped  bool
	}{
		{"addresses", nil, messages.Resolved{Addresses: []netip.Addr{real4}}, 1, true},
		{"rule 50: none", nil, messages.Resolved{}, 1, true},
		{"rule 51: too late", nil, messages.Resolved{Failed: true}, 1, false},
		{"the resolver is busy", nil, messages.Resolved{Failed: true, Busy: true}, 0, false},
		{"the resource was revoked", messages.Revoke{ResourceID: siteID}, messages.Resolved{Addresses: []netip.Addr{real4}}, 1, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := newPeerRig(t)
			r.tell(authorize(authorization(1, 11)), authorize(site(siteID, "*.example.com")))
			r.asks(setUp("www.example.com"))
			m := next[messages.Resolve](t, r.dns)
			if tt.before != nil {
				r.tell(tt.before)
			}
			tt.result.Setup = m.Setup
			r.tell(tt.result)
			eventually(t, func() bool { return r.answered() == tt.answers }, "the answer")
			if mapped := r.table() != nil && r.table().Lookup(proxy4) != nil; mapped != tt.mapped {
				t.Errorf("mapped: %v", mapped)
			}
			r.look(r.pid, func(actorkit.Context) {
				if n := len(r.peer.resolving); n != 0 {
					t.Errorf("%d still under way", n)
				}
			})
		})
	}
}

func TestOneClientLeavesTheResolverToOthers(t *testing.T) {
	r := newPeerRig(t)
	r.tell(authorize(site(siteID, "*.example.com")))
	for range maxResolving + 3 {
		r.asks(setUp("www.example.com"))
	}
	for range maxResolving {
		next[messages.Resolve](t, r.dns)
	}
	r.dns.quiet("more than a client's share")
	if got := r.dropped(drop.ResolverBusy); got != 3 {
		t.Errorf("%d counted, want 3", got)
	}
}

func TestAnswersThatGetLostGiveTheirPlaceBack(t *testing.T) {
	var l lookups
	begin := time.Now()
	for range maxResolving {
		if !l.take(begin) {
			t.Fatal("refused below the limit")
		}
	}
	if l.take(begin.Add(dns.ResolveTimeout)) {
		t.Error("taken above the limit")
	}
	l.giveBack()
	if !l.take(begin) || l.take(begin) {
		t.Error("an answer gives back one place")
	}
	if !l.take(begin.Add(dns.ResolveTimeout+resolveSlack)) || len(l) != 1 {
		t.Errorf("%d look-ups that nobody answers any more are kept", len(l)-1)
	}
}

func TestDomainsOutliveTheirActors(t *testing.T) {
	r := newPeerRig(t)
	r.hasDomain()
	table := r.table()
	for _, which := range []string{"nat", "peer"} {
		victim := r.pid
		r.look(r.pid, func(actorkit.Context) {
			if which == "nat" {
				victim = r.peer.nat
			}
		})
		r.system.Send(victim, boom{})
		r.asks(setUp("www.example.com"))
		m := next[messages.Resolve](t, r.dns)
		moved := netip.AddrFrom4([4]byte{10, 0, 1, which[0]})
		r.tell(messages.Resolved{Setup: m.Setup, Addresses: []netip.Addr{moved}})
		r.leads(moved)
		if r.table() != table {
			t.Errorf("the table was lost with %s", which)
		}
	}
}

func TestDomainsEndWithTheClient(t *testing.T) {
	for name, end := range map[string]any{
		"goodbye":             messages.ControlReceived{Key: authorization(1, 0).Client.PublicKey, Packet: packet.AppendGoodbye(nil)},
		"the last revocation": messages.Revoke{ResourceID: siteID},
		"another address": authorize(authorization(1, 10, func(a *portal.Authorize) {
			a.Client.IPv4 = netip.MustParseAddr("100.64.9.9")
		})),
	} {
		t.Run(name, func(t *testing.T) {
			r := newPeerRig(t)
			r.hasDomain()
			r.tell(end)
			eventually(t, func() bool { return r.table() == nil }, "the translation is gone")
			r.look(r.pid, func(ctx actorkit.Context) {
				if r.peer.nat != nil {
					t.Error("its actor is kept")
				}
			})
		})
	}
}

func TestAClientWhoseNATCannotBeKeptAliveIsSentAway(t *testing.T) {
	r := newPeerRig(t)
	r.hasDomain()
	var child actorkit.PID
	r.look(r.pid, func(actorkit.Context) { child = r.peer.nat })
	r.tell(&actorkit.ChildGaveUp{PID: child, Kind: KindNAT, Name: "nat.1", Fault: &actorkit.Fault{Reason: errors.New("broken")}})
	eventually(t, func() bool { return r.client() == nil && r.table() == nil }, "the client is gone")
}

// The first generation's set-up comes over the portal and is not answered.
func TestLegacyMessagesSetUpADomain(t *testing.T) {
	d := portal.Domain{Name: "www.example.com", ProxyIPs: []netip.Addr{proxy4}}
	a := site(siteID, "*.example.com")
	request := messages.RequestConnection{Request: portal.RequestConnection{
		Ref: a.Ref, Resource: a.Resource, Client: a.Client, ClientICE: a.ClientICE, Domain: d, ExpiresAt: a.ExpiresAt,
	}, Gateway: ownAddresses, Connection: 7}
	allow := messages.AllowAccess{Access: portal.AllowAccess{
		ClientID: a.Client.ID, IPv4: a.Client.IPv4, IPv6: a.Client.IPv6, Resource: a.Resource, Domain: d, ExpiresAt: a.ExpiresAt,
	}, Gateway: ownAddresses}
	for name, msgs := range map[string][]any{"request_connection": {request}, "allow_access before the connection": {allow}} {
		t.Run(name, func(t *testing.T) {
			r := newPeerRig(t)
			r.tell(msgs...)
			m := next[messages.Resolve](t, r.dns)
			r.tell(messages.Resolved{Setup: m.Setup, Addresses: []netip.Addr{real4}})
			r.leads(real4)
			if c := r.client(); c != nil && r.answered() != 0 {
				t.Error("it was answered")
			}
		})
	}
}
