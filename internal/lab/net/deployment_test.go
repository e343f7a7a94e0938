package labnet_test

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	labnet "firezone-gateway/internal/lab/net"
	"firezone-gateway/internal/lab/resource"
)

const (
	// arrival bounds the wait for something that must come, silence the wait
	// for something that must not: a namespace delivers within a millisecond.
	arrival = 3 * time.Second
	silence = 150 * time.Millisecond
)

func TestClientReachesTheInternetButNotThePrivateNetwork(t *testing.T) {
	for _, kind := range []labnet.NATKind{labnet.NoNAT, labnet.PortRestricted} {
		t.Run(kind.String(), func(t *testing.T) {
			d := deploy(t, labnet.Options{ClientNAT: kind, GatewayNAT: kind})
			client := d.Clients[0].Host
			for _, to := range []labnet.Host{d.Internet, d.Portal, d.Relays[0], d.Gateway.Router} {
				for _, address := range []netip.Addr{to.IPv4, to.IPv6} {
					reply, err := ping(t, client, address, arrival)
					if err != nil || reply.Error != nil {
						t.Errorf("%s at %v: error %v, ICMP %v", to.Name(), address, err, reply.Error)
					}
				}
			}
			for _, address := range []netip.Addr{d.Resource.IPv4, d.Resource.IPv6} {
				reply, err := ping(t, client, address, silence)
				if err == nil && reply.Error == nil {
					t.Errorf("client reaches the resource at %v without a tunnel", address)
				}
				if reply, err := ping(t, d.Gateway.Host, address, arrival); err != nil || reply.Error != nil {
					t.Errorf("gateway to resource at %v: error %v, ICMP %v", address, err, reply.Error)
				}
			}
		})
	}
}

func TestIPv4OnlyLeavesTheOutsideWithoutIPv6(t *testing.T) {
	d := deploy(t, labnet.Options{IPv4Only: true, Clients: 2, Relays: 2})
	for _, client := range d.Clients {
		if client.Host.IPv6.IsValid() || client.LAN6.IsValid() {
			t.Errorf("%s has IPv6", client.Host.Name())
		}
		for _, relay := range d.Relays {
			if reply, err := ping(t, client.Host, relay.IPv4, arrival); err != nil || reply.Error != nil {
				t.Errorf("%s to %s: error %v, ICMP %v", client.Host.Name(), relay.Name(), err, reply.Error)
			}
		}
	}
	if reply, err := ping(t, d.Gateway.Host, d.Resource.IPv6, arrival); err != nil || reply.Error != nil {
		t.Errorf("gateway to the resource's IPv6: error %v, ICMP %v", err, reply.Error)
	}
}

func TestResourceAnswersStrangersOnlyWhenItRoutesBack(t *testing.T) {
	for _, routes := range []bool{false, true} {
		d := deploy(t, labnet.Options{ResourceRoutesBack: routes})
		// The gateway's own public side stands for a tunnel address: it is
		// outside the resource's network.
		from := listen(t, d.Gateway.Host, d.Gateway.Host.IPv4)
		at := listen(t, d.Resource, d.Resource.IPv4)
		send(t, from, at)
		if peer := receive(t, at, arrival); peer != local(from) {
			t.Fatalf("resource sees %v, want %v", peer, local(from))
		}
		_, err := at.WriteToUDPAddrPort([]byte("back"), local(from))
		if routes && err != nil {
			t.Errorf("with a route back: %v", err)
		}
		if !routes && !errors.Is(err, unix.ENETUNREACH) {
			t.Errorf("without a route back: %v, want unreachable", err)
		}
	}
}

func TestPortRestrictedNAT(t *testing.T) {
	d := deploy(t, labnet.Options{ClientNAT: labnet.PortRestricted, GatewayNAT: labnet.PortRestricted})
	client, router := d.Clients[0].Host, d.Clients[0].Router
	inside := listen(t, client, client.IPv4)
	portal, portal2 := listen(t, d.Portal, d.Portal.IPv4), listen(t, d.Portal, d.Portal.IPv4)
	relay := listen(t, d.Relays[0], d.Relays[0].IPv4)
	mapping := netip.AddrPortFrom(router.IPv4, local(inside).Port())

	sendTo(t, portal, mapping)
	expectSilence(t, inside, "a packet nobody asked for")

	for _, outside := range []*net.UDPConn{portal, relay} {
		send(t, inside, outside)
		if seen := receive(t, outside, arrival); seen != mapping {
			t.Fatalf("%v sees mapping %v, want %v", local(outside), seen, mapping)
		}
		sendTo(t, outside, mapping)
		if from := receive(t, inside, arrival); from != local(outside) {
			t.Fatalf("answer comes from %v, want %v", from, local(outside))
		}
	}

	sendTo(t, portal2, mapping)
	expectSilence(t, inside, "a packet from a known address but an unknown port")
}

func TestPortRestrictedFiltersIPv6ByTheSameRule(t *testing.T) {
	d := deploy(t, labnet.Options{ClientNAT: labnet.PortRestricted})
	inside := listen(t, d.Clients[0].Host, d.Clients[0].Host.IPv6)
	portal, portal2 := listen(t, d.Portal, d.Portal.IPv6), listen(t, d.Portal, d.Portal.IPv6)

	send(t, portal, inside)
	expectSilence(t, inside, "a packet nobody asked for")
	send(t, inside, portal)
	if seen := receive(t, portal, arrival); seen != local(inside) {
		t.Fatalf("portal sees %v, want the client itself, %v", seen, local(inside))
	}
	send(t, portal2, inside)
	expectSilence(t, inside, "a packet from an unknown port")
	send(t, portal, inside)
	receive(t, inside, arrival)
}

func TestHolePunchingWorksWhoeverIsFirst(t *testing.T) {
	d := deploy(t, labnet.Options{ClientNAT: labnet.PortRestricted, GatewayNAT: labnet.PortRestricted})
	client, gateway := punch(t, d)

	// The first packet finds the far router closed, and must not spoil the
	// mapping that the answer to it makes there.
	sendTo(t, client.conn, gateway.mapping)
	expectSilence(t, gateway.conn, "a packet before the hole is punched")
	sendTo(t, gateway.conn, client.mapping)
	if from := receive(t, client.conn, arrival); from != gateway.mapping {
		t.Fatalf("client sees %v, want %v", from, gateway.mapping)
	}
	sendTo(t, client.conn, gateway.mapping)
	if from := receive(t, gateway.conn, arrival); from != client.mapping {
		t.Fatalf("gateway sees %v, want %v", from, client.mapping)
	}
}

func TestBlockDirectCutsEstablishedFlowsAndLeavesTheRelay(t *testing.T) {
	for _, kind := range []labnet.NATKind{labnet.NoNAT, labnet.PortRestricted} {
		t.Run(kind.String(), func(t *testing.T) {
			d := deploy(t, labnet.Options{ClientNAT: kind, GatewayNAT: kind})
			client, gateway := punch(t, d)
			relay := listen(t, d.Relays[0], d.Relays[0].IPv4)
			client6 := listen(t, d.Clients[0].Host, d.Clients[0].Host.IPv6)
			gateway6 := listen(t, d.Gateway.Host, d.Gateway.Host.IPv6)
			open := func() {
				t.Helper()
				sendTo(t, client.conn, gateway.mapping)
				sendTo(t, gateway.conn, client.mapping)
				receive(t, client.conn, arrival)
				send(t, client6, gateway6)
				send(t, gateway6, client6)
				receive(t, client6, arrival)
			}
			open()
			drain(t, gateway.conn, gateway6)

			for range 2 { // blocking twice is blocking
				if err := d.BlockDirect(true); err != nil {
					t.Fatal(err)
				}
			}
			sendTo(t, client.conn, gateway.mapping)
			expectSilence(t, gateway.conn, "IPv4 past the block")
			sendTo(t, gateway.conn, client.mapping)
			expectSilence(t, client.conn, "IPv4 past the block")
			send(t, client6, gateway6)
			expectSilence(t, gateway6, "IPv6 past the block")
			for _, side := range []*net.UDPConn{client.conn, gateway.conn} {
				send(t, side, relay)
				sendTo(t, relay, receive(t, relay, arrival))
				receive(t, side, arrival)
			}

			for range 2 {
				if err := d.BlockDirect(false); err != nil {
					t.Fatal(err)
				}
			}
			open()
		})
	}
}

func TestTwoHopForwardsAndRoutesBack(t *testing.T) {
	requireNamespaces(t)
	n, err := labnet.NewTwoHop()
	if err != nil {
		t.Fatal(err)
	}
	defer n.Close()
	if reply, err := ping(t, n.Client, n.Middle.IPv6, arrival); err != nil || reply.Error != nil {
		t.Errorf("client to middle: error %v, ICMP %v", err, reply.Error)
	}
	if _, err := ping(t, n.Client, n.Resource.IPv4, silence); err == nil {
		t.Error("client reaches the resource without a tunnel")
	}
	for _, resource := range []netip.Addr{n.Resource.IPv4, n.Resource.IPv6} {
		via := n.Middle.IPv4
		if resource.Is6() {
			via = n.Middle.IPv6
		}
		if err := n.Client.AddRoute(netip.PrefixFrom(resource, resource.BitLen()), via, "eth0"); err != nil {
			t.Fatal(err)
		}
		if reply, err := ping(t, n.Client, resource, arrival); err != nil || reply.Error != nil {
			t.Errorf("client to resource %v: error %v, ICMP %v", resource, err, reply.Error)
		}
	}
}

// side is one end of a direct path with the address the other end sends to.
type side struct {
	conn    *net.UDPConn
	mapping netip.AddrPort
}

func punch(t *testing.T, d *labnet.Deployment) (client, gateway side) {
	t.Helper()
	open := func(s labnet.Site) side {
		conn := listen(t, s.Host, s.Host.IPv4)
		witness := listen(t, d.Portal, d.Portal.IPv4)
		send(t, conn, witness)
		return side{conn, receive(t, witness, arrival)}
	}
	return open(d.Clients[0]), open(d.Gateway)
}

func deploy(t *testing.T, o labnet.Options) *labnet.Deployment {
	t.Helper()
	requireNamespaces(t)
	d, err := labnet.NewDeployment(o)
	if tun := labnet.CheckTUN(); err != nil && tun != nil && os.Getenv("CI") != "true" {
		t.Skip(tun)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	})
	return d
}

func ping(t *testing.T, from labnet.Host, to netip.Addr, patience time.Duration) (resource.Reply, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	return resource.Ping(ctx, from, to)
}

func listen(t *testing.T, at labnet.Host, address netip.Addr) *net.UDPConn {
	t.Helper()
	conn, err := at.ListenUDP(netip.AddrPortFrom(address, 0))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

func local(conn *net.UDPConn) netip.AddrPort {
	return conn.LocalAddr().(*net.UDPAddr).AddrPort()
}

func send(t *testing.T, from, to *net.UDPConn) { t.Helper(); sendTo(t, from, local(to)) }

func sendTo(t *testing.T, from *net.UDPConn, to netip.AddrPort) {
	t.Helper()
	if _, err := from.WriteToUDPAddrPort([]byte("hello"), to); err != nil {
		t.Fatal(err)
	}
}

func receive(t *testing.T, conn *net.UDPConn, patience time.Duration) netip.AddrPort {
	t.Helper()
	from, err := receiveWithin(conn, patience)
	if err != nil {
		t.Fatalf("%v receives nothing: %v", local(conn), err)
	}
	return from
}

func expectSilence(t *testing.T, conn *net.UDPConn, what string) {
	t.Helper()
	if from, err := receiveWithin(conn, silence); err == nil {
		t.Fatalf("%v receives %s from %v", local(conn), what, from)
	}
}

func drain(t *testing.T, conns ...*net.UDPConn) {
	t.Helper()
	for _, conn := range conns {
		for {
			if _, err := receiveWithin(conn, silence); err != nil {
				break
			}
		}
	}
}

func receiveWithin(conn *net.UDPConn, patience time.Duration) (netip.AddrPort, error) {
	if err := conn.SetReadDeadline(time.Now().Add(patience)); err != nil {
		return netip.AddrPort{}, err
	}
	_, from, err := conn.ReadFromUDPAddrPort(make([]byte, 64))
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return netip.AddrPort{}, os.ErrDeadlineExceeded
	}
	return from, err
}

func TestPingReportsWhoProhibitsIt(t *testing.T) {
	d := deploy(t, labnet.Options{ClientNAT: labnet.PortRestricted})
	err := d.Internet.Do(func() error {
		return errors.Join(
			netlink.RouteAdd(&netlink.Route{Dst: hostNet(d.Relays[0].IPv4), Type: unix.RTN_PROHIBIT, Table: unix.RT_TABLE_LOCAL}),
			netlink.RouteAdd(&netlink.Route{Dst: hostNet(d.Relays[0].IPv6), Type: unix.RTN_PROHIBIT, LinkIndex: 1, Priority: 1}),
		)
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, address := range []netip.Addr{d.Relays[0].IPv4, d.Relays[0].IPv6} {
		by := d.Internet.IPv4
		if address.Is6() {
			by = d.Internet.IPv6
		}
		reply, err := ping(t, d.Clients[0].Host, address, arrival)
		if err != nil || reply.Error == nil || !reply.Error.Prohibited() || reply.From != by {
			t.Errorf("%v: reply %+v, error %v, want prohibited by %v", address, reply, err, by)
		}
	}
}

func hostNet(a netip.Addr) *net.IPNet {
	return &net.IPNet{IP: a.AsSlice(), Mask: net.CIDRMask(a.BitLen(), a.BitLen())}
}
