package tunnel

import (
	"bytes"
	"net/netip"
	"testing"

	enginetun "github.com/tailscale/wireguard-go/tun"

	"firezone-gateway/internal/drop"
	"firezone-gateway/internal/packet/packettest"
)

func TestToClient(t *testing.T) {
	own4, own6 := address4(1), address6(1)
	reply4, reply6 := udp(server4, own4, 1000, 5000, 20), udp(server6, own6, 1999, 5000, 20)
	fragment := bytes.Clone(reply4)
	fragment[6] = 0x20
	for _, c := range []struct {
		name   string
		packet []byte
		change func(*Client)
		reason drop.Reason // None: passes
		tunnel bool        // counted on the tunnel, not on the client
	}{
		{name: "reply over IPv4", packet: reply4},
		{name: "reply over IPv6", packet: reply6},
		{name: "from the gateway itself", packet: packettest.IP(gateway4, own4, 47, make([]byte, 8))},
		{name: "ICMP error from anywhere", packet: packettest.Unreachable(foreign4, own4, udp(own4, server4, 1, 1000, 0))},
		{name: "truncated", packet: reply4[:27], reason: drop.Malformed, tunnel: true},
		{name: "empty", packet: nil, reason: drop.Malformed, tunnel: true},
		{name: "fragment", packet: fragment, reason: drop.Fragment, tunnel: true},
		{name: "oversize", packet: udp(server4, own4, 1000, 1, 1281-28), reason: drop.Oversize, tunnel: true},
		{name: "tunnel address of nobody", packet: udp(server4, nobody4, 1000, 1, 0), reason: drop.NoPeerState, tunnel: true},
		{name: "no tunnel address", packet: udp(server4, foreign4, 1000, 1, 0), reason: drop.NotAPeer, tunnel: true},
		{name: "unspecified address", packet: udp(server6, netip.IPv6Unspecified(), 1000, 1, 0), reason: drop.NotAPeer, tunnel: true},
		{name: "client address mapped into IPv6", packet: udp(server6, netip.AddrFrom16(own4.As16()), 1000, 1, 0), reason: drop.NotAPeer, tunnel: true},
		{name: "source without a grant", packet: udp(other4, own4, 1000, 1, 0), reason: drop.NotAllowed},
		{name: "source port outside the filter", packet: udp(server4, own4, 999, 1, 0), reason: drop.NotAllowed},
		{name: "grant ended", packet: udp(expired4, own4, 1000, 1, 0), reason: drop.NotAllowed},
		{name: "from another client", packet: udp(address4(2), own4, 1000, 1, 0), reason: drop.NotAllowed},
		{name: "opaque protocol", packet: packettest.IP(server4, own4, 47, make([]byte, 8)), reason: drop.Unclassified},
		{name: "handshake under way", packet: reply4, change: func(c *Client) { c.session.Store(uint32(SessionHandshake)) }},
		{name: "session expired", packet: reply4, change: func(c *Client) { c.session.Store(uint32(SessionExpired)) }},
		{name: "keys wiped", packet: reply4, change: func(c *Client) { c.session.Store(uint32(SessionNone)) }, reason: drop.NotConnected},
		{name: "client not heard yet", packet: reply4, change: func(c *Client) { c.heard.Store(false) }, reason: drop.NotConnected},
		{name: "client closing", packet: reply4, change: func(c *Client) { c.closing.Store(true) }, reason: drop.NotConnected},
	} {
		t.Run(c.name, func(t *testing.T) {
			tun := plainTunnel()
			client := connect(t, tun, configOf(1, newHeardBy(), usualGrants()...))
			bystander := connect(t, tun, configOf(2, newHeardBy(), usualGrants()...))
			if c.change != nil {
				c.change(client)
			}
			around := udp(server4, address4(2), 1000, 5000, 1)
			slab, packets := fromTUN(around, c.packet, around)
			owners := make([]addressee, len(packets))
			kept := tun.toClient(slab, packets, owners, clock.UnixNano())

			wantOwners, wantPackets := []*Client{bystander, bystander}, [][]byte{around, around}
			drops := map[drop.Reason]uint64{c.reason: 1}
			if c.reason == drop.None {
				wantOwners, wantPackets = []*Client{bystander, client, bystander}, [][]byte{around, c.packet, around}
				drops = nil
			}
			if kept != len(wantOwners) {
				t.Fatalf("%d packets kept, want %d", kept, len(wantOwners))
			}
			for i, p := range packets[:kept] {
				if owners[i].client != wantOwners[i] || !bytes.Equal(slab[p.Offset:p.Offset+p.Size], wantPackets[i]) {
					t.Errorf("packet %d is %x for another client", i, slab[p.Offset:p.Offset+p.Size])
				}
			}
			ofClient, ofTunnel := drops, map[drop.Reason]uint64(nil)
			if c.tunnel {
				ofClient, ofTunnel = nil, drops
			}
			wantDrops(t, "client", client.Drops(), ofClient)
			wantDrops(t, "tunnel", tun.Drops(), ofTunnel)
			wantDrops(t, "bystander", bystander.Drops(), nil)
			if len(drain(t, tun)) != 0 {
				t.Error("something was answered")
			}
			n := bystander.Counters()
			if n.ToClientPackets.Load() != 2 || n.ToClientBytes.Load() != uint64(2*len(around)) || n.LastActive.Load() != clock.UnixNano() {
				t.Errorf("bystander counted %d packets of %d bytes", n.ToClientPackets.Load(), n.ToClientBytes.Load())
			}
			if got := client.Counters().ToClientPackets.Load(); got != uint64(kept-2) {
				t.Errorf("client counted %d packets", got)
			}
		})
	}
}

// route asks for the packets of a batch the way the engine does.
func route(tun *Tunnel, slab []byte, packets []enginetun.ReadPacket) (keys [][32]byte) {
	for _, p := range packets {
		pkt := slab[p.Offset : p.Offset+p.Size]
		key, ok := tun.route(source(pkt), destination(pkt), pkt)
		if !ok {
			key = [32]byte{}
		}
		keys = append(keys, key)
	}
	return keys
}

// readBatch lets the engine's side read packets from a device.
func readBatch(t *testing.T, tun *Tunnel, packets ...[]byte) ([]byte, []enginetun.ReadPacket) {
	t.Helper()
	slab, descriptors := fromTUN(packets...)
	tun.dev.count = tun.toClient(slab, descriptors, tun.dev.owners[:], clock.UnixNano())
	tun.dev.next = 0
	return slab, descriptors[:tun.dev.count]
}

func TestRouteNamesTheClientThatThePacketWasJudgedFor(t *testing.T) {
	tun := plainTunnel()
	clients := make([]*Client, 3)
	for i := range clients {
		clients[i] = connect(t, tun, configOf(i+1, newHeardBy(), usualGrants()...))
	}
	to := func(i int) []byte { return udp(server4, address4(i+1), 1000, 1, 0) }
	slab, packets := readBatch(t, tun, to(0), to(1), udp(other4, address4(2), 1000, 1, 0), to(1), to(2), to(0))
	got := route(tun, slab, packets)
	for i, want := range []int{0, 1, 1, 2, 0} {
		if got[i] != clients[want].PublicKey() {
			t.Errorf("packet %d goes to another client", i)
		}
	}

	slab, packets = readBatch(t, tun, to(0), to(1), to(2))
	for i, key := range route(tun, slab, packets[1:]) { // one that the engine did not ask about
		if key != clients[i+1].PublicKey() {
			t.Errorf("packet %d goes to another client", i+1)
		}
	}
	if key := route(tun, slab, packets[:1]); key[0] != [32]byte{} {
		t.Error("a packet beyond the batch was routed")
	}
	wantDrops(t, "tunnel", tun.Drops(), map[drop.Reason]uint64{drop.NoPeerState: 1})
}

func TestRouteRefusesClientsThatWentMeanwhile(t *testing.T) {
	for name, leave := range map[string]func(*Client){
		"removed": func(c *Client) { c.removed.Store(true) },
		"wiped":   func(c *Client) { c.session.Store(uint32(SessionNone)) },
		"closing": func(c *Client) { c.closing.Store(true) },
	} {
		t.Run(name, func(t *testing.T) {
			tun := plainTunnel()
			c := connect(t, tun, configOf(1, newHeardBy(), usualGrants()...))
			slab, packets := readBatch(t, tun, udp(server4, address4(1), 1000, 1, 0))
			leave(c)
			if got := route(tun, slab, packets); got[0] != [32]byte{} {
				t.Error("routed")
			}
			wantDrops(t, "client", c.Drops(), map[drop.Reason]uint64{drop.NotConnected: 1})
		})
	}
}
