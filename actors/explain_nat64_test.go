package actors

import (
	"net/netip"
	"testing"
	"time"

	"firezone-gateway/internal/admin"
	"firezone-gateway/internal/nat"
	"firezone-gateway/internal/tunnel"
)

func TestExplainAnAddressOfTheOtherFamily(t *testing.T) {
	tree, p := explainable(t)
	state := p.store.get(clientID(1))
	table := nat.New(nat.Config{NAT64: true})
	state.NAT = tunnel.NewNAT(table)
	if _, err := table.Assign(nat.Assignment{Resource: siteID, Domain: "db.example.com", ProxyIPs: []netip.Addr{proxy4}, RealIPs: []netip.Addr{real6}}); err != nil {
		t.Fatal(err)
	}
	p.store.put(clientID(1), state)
	question := admin.Question{Client: clientID(1), To: to(t, proxy4.String()+":443/tcp")}
	var source, leads netip.Addr
	e := tree.Explain(question, func(_ string, src, dst netip.Addr) (string, error) {
		source, leads = src, dst
		return "interface eth0", nil
	}, time.Now())
	if s := stageOf(t, e, admin.StageNAT); s.Verdict != admin.Pass || source != state.Client.IPv6 || leads != real6 {
		t.Errorf("%+v, routed from %v to %v", s, source, leads)
	}
	state.Client.IPv6 = netip.Addr{}
	p.store.put(clientID(1), state)
	e = tree.Explain(question, routed, time.Now())
	if s := stageOf(t, e, admin.StageNAT); s.Verdict != admin.Stop || s.Reason != "unresolved" {
		t.Errorf("%+v", s)
	}
}
