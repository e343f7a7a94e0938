package labnet_test

import (
	"fmt"
	"net"
	"net/netip"
	"testing"
	"time"

	"firezone-gateway/internal/lab/natbox"
	labnet "firezone-gateway/internal/lab/net"
)

// Each kind is classified as RFC 5780 §4.3 and §4.4 do it, from one socket on
// the private side and three outside: A1:P1, A1:P2 and A2:P1.
func TestNATKindsAreWhatTheirBehaviourSays(t *testing.T) {
	for _, kind := range labnet.NATKinds() {
		want, translates := kind.Behaviour()
		if !translates || kind == labnet.UDPBlocked {
			continue
		}
		for _, adjustable := range []bool{false, true} {
			t.Run(fmt.Sprintf("%v, adjustable %v", kind, adjustable), func(t *testing.T) {
				d := deploy(t, labnet.Options{ClientNAT: kind, Adjustable: adjustable})
				site := d.Clients[0]
				mapping, filtering := classify(t, d, site.Host.IPv4)
				if mapping != want.Mapping || filtering != want.Filtering {
					t.Errorf("mapping is %v, filtering %v, want %v", mapping, filtering, want)
				}
				// IPv6 is filtered by the same rule, and not rewritten.
				mapping, filtering = classify(t, d, site.Host.IPv6)
				if mapping != natbox.EndpointIndependent || filtering != want.Filtering {
					t.Errorf("IPv6: mapping is %v, filtering %v, want %v", mapping, filtering, want.Filtering)
				}
			})
		}
	}
}

func TestPublicEndpointsAreTheRoutersOwn(t *testing.T) {
	for _, kind := range []labnet.NATKind{labnet.FullCone, labnet.Symmetric, labnet.DoubleNAT} {
		t.Run(kind.String(), func(t *testing.T) {
			d := deploy(t, labnet.Options{ClientNAT: kind})
			site := d.Clients[0]
			inside := listen(t, site.Host, site.Host.IPv4)
			witness := listen(t, d.Portal, d.Portal.IPv4)
			send(t, inside, witness)
			seen := receive(t, witness, arrival)
			if seen.Addr() != site.Router.IPv4 {
				t.Errorf("seen as %v, want an endpoint of %v", seen, site.Router.IPv4)
			}
			if kept := seen.Port() == local(inside).Port(); kept != (kind != labnet.Symmetric) {
				t.Errorf("port %d is seen as %d", local(inside).Port(), seen.Port())
			}
			inside6, witness6 := listen(t, site.Host, site.Host.IPv6), listen(t, d.Portal, d.Portal.IPv6)
			send(t, inside6, witness6)
			if seen := receive(t, witness6, arrival); seen != local(inside6) {
				t.Errorf("%v is seen as %v", local(inside6), seen)
			}
		})
	}
}

func TestEveryKindLetsTCPAndPingsOut(t *testing.T) {
	for _, kind := range labnet.NATKinds() {
		t.Run(kind.String(), func(t *testing.T) {
			d := deploy(t, labnet.Options{ClientNAT: kind, Adjustable: true})
			for _, address := range []netip.Addr{d.Portal.IPv4, d.Portal.IPv6, d.Clients[0].Router.IPv4, d.Clients[0].Router.IPv6} {
				reply, err := ping(t, d.Clients[0].Host, address, arrival)
				if err != nil || reply.Error != nil {
					t.Errorf("ping %v: error %v, ICMP %v", address, err, reply.Error)
				}
			}
			for _, address := range []netip.Addr{d.Portal.IPv4, d.Portal.IPv6} {
				echoTCP(t, d, address)
			}
		})
	}
}

func TestRoutersAnswerForThemselvesFromOutside(t *testing.T) {
	d := deploy(t, labnet.Options{ClientNAT: labnet.Symmetric})
	router := d.Clients[0].Router
	for _, address := range []netip.Addr{router.IPv4, router.IPv6} {
		if reply, err := ping(t, d.Portal, address, arrival); err != nil || reply.Error != nil {
			t.Errorf("ping %v: error %v, ICMP %v", address, err, reply.Error)
		}
	}
	// A datagram to nobody falls silently, as before a hole is punched.
	stranger := listen(t, d.Portal, d.Portal.IPv4)
	sendTo(t, stranger, netip.AddrPortFrom(router.IPv4, 5000))
	expectSilence(t, stranger, "an answer to a datagram to nobody")
}

func TestUDPBlockedLeavesTheRelaysAndTCP(t *testing.T) {
	for _, adjustable := range []bool{false, true} {
		d := deploy(t, labnet.Options{ClientNAT: labnet.UDPBlocked, Relays: 2, Adjustable: adjustable})
		host := d.Clients[0].Host
		for _, family := range []func(labnet.Host) netip.Addr{
			func(h labnet.Host) netip.Addr { return h.IPv4 }, func(h labnet.Host) netip.Addr { return h.IPv6 },
		} {
			inside := listen(t, host, family(host))
			for _, relay := range d.Relays {
				outside := listen(t, relay, family(relay))
				send(t, inside, outside)
				sendTo(t, outside, receive(t, outside, arrival))
				receive(t, inside, arrival)
			}
			for _, to := range []labnet.Host{d.Portal, d.Gateway.Host} {
				if to.Name() == "gateway" && family(to).Is4() {
					continue // not a public address
				}
				outside := listen(t, to, family(to))
				send(t, inside, outside)
				expectSilence(t, outside, "a datagram that is not to a relay")
			}
			echoTCP(t, d, family(d.Portal))
		}
	}
}

func TestAnIPv6OnlyNetworkHasNoIPv4(t *testing.T) {
	for _, kind := range labnet.NATKinds() {
		t.Run(kind.String(), func(t *testing.T) {
			d := deploy(t, labnet.Options{ClientNAT: kind, GatewayNAT: kind, IPv6Only: true})
			for _, host := range []labnet.Host{d.Internet, d.Portal, d.Relays[0], d.Clients[0].Host, d.Clients[0].Router} {
				if host.IPv4.IsValid() {
					t.Errorf("%s has %v", host.Name(), host.IPv4)
				}
			}
			if reply, err := ping(t, d.Clients[0].Host, d.Portal.IPv6, arrival); err != nil || reply.Error != nil {
				t.Errorf("client to portal: error %v, ICMP %v", err, reply.Error)
			}
			if reply, err := ping(t, d.Gateway.Host, d.Resource.IPv4, arrival); err != nil || reply.Error != nil {
				t.Errorf("gateway to the resource's IPv4: error %v, ICMP %v", err, reply.Error)
			}
		})
	}
	requireNamespaces(t)
	if d, err := labnet.NewDeployment(labnet.Options{IPv4Only: true, IPv6Only: true}); err == nil {
		d.Close()
		t.Error("a network without IPv4 and IPv6 was built")
	}
}

// classify returns the behaviour that a host in a client's place observes.
func classify(t *testing.T, d *labnet.Deployment, at netip.Addr) (mapping, filtering natbox.Dependence) {
	t.Helper()
	a1, a2 := d.Portal.IPv4, d.Relays[0].IPv4
	if at.Is6() {
		a1, a2 = d.Portal.IPv6, d.Relays[0].IPv6
	}
	a1p1, a1p2, a2p1 := listen(t, d.Portal, a1), listen(t, d.Portal, a1), listen(t, d.Relays[0], a2)

	inside := listen(t, d.Clients[0].Host, at)
	seen := func(by *net.UDPConn) netip.AddrPort {
		send(t, inside, by)
		return receive(t, by, arrival)
	}
	switch first := seen(a1p1); {
	case seen(a2p1) == first:
		mapping = natbox.EndpointIndependent
	case seen(a1p2) == first:
		mapping = natbox.AddressDependent
	default:
		mapping = natbox.AddressAndPortDependent
	}

	inside = listen(t, d.Clients[0].Host, at)
	public := seen(a1p1)
	admitted := func(by *net.UDPConn) bool {
		sendTo(t, by, public)
		from, err := receiveWithin(inside, silence)
		if err == nil && from != local(by) {
			t.Errorf("a datagram of %v comes from %v", local(by), from)
		}
		return err == nil
	}
	sendTo(t, a1p1, public)
	receive(t, inside, arrival) // who was asked is admitted by every kind
	switch {
	case admitted(a2p1):
		filtering = natbox.EndpointIndependent
	case admitted(a1p2):
		filtering = natbox.AddressDependent
	default:
		filtering = natbox.AddressAndPortDependent
	}
	return mapping, filtering
}

// echoTCP sends something from a client to the portal's host and back.
func echoTCP(t *testing.T, d *labnet.Deployment, at netip.Addr) {
	t.Helper()
	listener, err := d.Portal.Listen("tcp", netip.AddrPortFrom(at, 0).String())
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	served := make(chan error, 1)
	go func() {
		served <- func() error {
			conn, err := listener.Accept()
			if err != nil {
				return err
			}
			defer conn.Close()
			word := make([]byte, 5)
			if _, err := conn.Read(word); err != nil {
				return err
			}
			_, err = conn.Write(word)
			return err
		}()
	}()
	conn, err := d.Clients[0].Host.DialContext(t.Context(), "tcp", listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(arrival))
	if _, err := conn.Write([]byte("hello")); err != nil {
		t.Fatal(err)
	}
	word := make([]byte, 5)
	if _, err := conn.Read(word); err != nil || string(word) != "hello" {
		t.Errorf("%q comes back, error %v", word, err)
	}
	if err := <-served; err != nil {
		t.Error(err)
	}
}
