package labnet

import (
	"errors"
	"net/netip"
)

// TwoHop is the smallest network with something in the middle, for benchmarks:
//
//	Client -- Middle -- Resource
//
// Middle forwards, Resource routes back through it, and Client has no route to
// the resource's network other than the tunnel it makes.
type TwoHop struct {
	Lab      *Lab
	Client   Host
	Middle   Host // with its addresses on the client's side
	Resource Host
}

// NewTwoHop builds a TwoHop. When it returns an error nothing is left behind.
func NewTwoHop() (*TwoHop, error) {
	t := &TwoHop{Lab: New()}
	if err := t.build(); err != nil {
		return nil, errors.Join(err, t.Lab.Close())
	}
	return t, nil
}

// Close removes the network; see Lab.Close.
func (t *TwoHop) Close() error { return t.Lab.Close() }

func (t *TwoHop) build() (err error) {
	t.Client.Addresses = Addresses{IPv4: nth(client4, 2), IPv6: nth(client6, 2)}
	t.Middle.Addresses = Addresses{IPv4: nth(client4, 1), IPv6: nth(client6, 1)}
	if t.Client.Namespace, err = t.Lab.AddNamespace("client"); err != nil {
		return err
	}
	if t.Middle.Namespace, err = t.Lab.AddNamespace("middle"); err != nil {
		return err
	}
	if err := t.Middle.EnableForwarding(); err != nil {
		return err
	}
	prefixes := func(a Addresses) []netip.Prefix {
		return []netip.Prefix{netip.PrefixFrom(a.IPv4, client4.Bits()), netip.PrefixFrom(a.IPv6, client6.Bits())}
	}
	err = t.Lab.Connect(
		End{Namespace: t.Client.Namespace, Device: uplink, Addresses: prefixes(t.Client.Addresses)},
		End{Namespace: t.Middle.Namespace, Device: uplink, Addresses: prefixes(t.Middle.Addresses)},
	)
	if err != nil {
		return err
	}
	gateway := Addresses{IPv4: nth(resource4, 1), IPv6: nth(resource6, 1)}
	if t.Resource, err = connectResource(t.Lab, t.Middle.Namespace, gateway); err != nil {
		return err
	}
	return t.Resource.defaultRoutes(gateway, uplink)
}

// connectResource adds a resource host to a gateway with the given addresses
// in the resource's network.
func connectResource(l *Lab, gateway *Namespace, a Addresses) (Host, error) {
	ns, err := l.AddNamespace("resource")
	host := Host{Namespace: ns, Addresses: Addresses{IPv4: nth(resource4, 10), IPv6: nth(resource6, 0x10)}}
	if err != nil {
		return host, err
	}
	prefixes := func(a Addresses) []netip.Prefix {
		return []netip.Prefix{netip.PrefixFrom(a.IPv4, resource4.Bits()), netip.PrefixFrom(a.IPv6, resource6.Bits())}
	}
	return host, l.Connect(
		End{Namespace: gateway, Device: ResourceDevice, Addresses: prefixes(a)},
		End{Namespace: ns, Device: uplink, Addresses: prefixes(host.Addresses)},
	)
}
