package actors

import (
	"encoding/binary"
	"net/netip"
	"runtime"
	"testing"

	"firezone-gateway/internal/actorkit"
	"firezone-gateway/internal/nat"
	"firezone-gateway/internal/packet/packettest"
	"firezone-gateway/internal/policy"
	"firezone-gateway/internal/transport"
	"firezone-gateway/internal/tunnel"
	"firezone-gateway/messages"
)

// BenchmarkNewSessions has the nat actor make sessions for first packets as the
// packet path hands them over.
func BenchmarkNewSessions(b *testing.B) {
	s := newStage(b, newTestPlane(b, ""))
	a := site(siteID, "*.example.com")
	client, err := s.plane.Tunnel.Add(tunnel.ClientConfig{
		PublicKey: a.Client.PublicKey, TunnelV4: a.Client.IPv4, TunnelV6: a.Client.IPv6,
		Policy: policy.Compile(policy.Peer{ClientV4: a.Client.IPv4, ClientV6: a.Client.IPv6},
			[]policy.Grant{{Resource: policyResource(a.Resource)}}, 1),
		Callbacks: tunnel.Callbacks{
			Control: func([]byte) bool { return true }, Session: func(tunnel.Session) {}, Path: func(*transport.Path) {},
		},
	})
	if err != nil {
		b.Fatal(err)
	}
	table := nat.New(nat.Config{})
	if _, err := table.Assign(nat.Assignment{Resource: siteID, Domain: "www.example.com", ProxyIPs: []netip.Addr{proxy4}, RealIPs: []netip.Addr{real4}}); err != nil {
		b.Fatal(err)
	}
	n := tunnel.NewNAT(table)
	pid := s.peers.spawn(KindNAT, "nat", func() actorkit.Actor { return faulty{newNAT(s.plane.Plane, n)} })
	settled := func() {
		for n.Waiting() > 0 {
			runtime.Gosched()
		}
		s.settle(pid)
	}
	pkt := packettest.UDP(netip.AddrPortFrom(a.Client.IPv4, 1), netip.AddrPortFrom(proxy4, 53), []byte("question"))
	const batch, ports = 128, 60_000
	port, made := uint16(0), 0
	b.ReportAllocs()
	for b.Loop() {
		for range batch {
			port++
			binary.BigEndian.PutUint16(pkt[20:], 1024+port)
			n.Hold(client, pkt)
		}
		if made += batch; port > ports {
			settled()
			s.system.Send(pid, messages.EndSessions{ResourceID: siteID})
			s.settle(pid)
			port = 0
		}
		for n.Waiting() > 2*batch {
			runtime.Gosched()
		}
	}
	settled()
	if opened := table.Stats().Opened; opened != uint64(made) {
		b.Errorf("%d of %d sessions were made", opened, made)
	}
	b.ReportMetric(float64(made)/b.Elapsed().Seconds(), "sessions/s")
}
