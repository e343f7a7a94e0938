package labnet

import (
	"errors"
	"fmt"
	"net/netip"

	"firezone-gateway/internal/lab/natbox"
)

// Site is a host in a private network behind a router.
type Site struct {
	Host   Host
	Router Host // with its public addresses
	// Inner is the router between Host and Router where the NAT is double;
	// elsewhere its namespace is nil.
	Inner Host
	// LAN4 and LAN6 are the networks behind the router, that of Host among
	// them. Either is not valid where there is none.
	LAN4, LAN6 netip.Prefix

	box    *box // of Router, nil where its kernel does everything
	uplink func(mtu int) error
}

// ErrNotAdjustable says that a site's router is not made to shape its line.
var ErrNotAdjustable = errors.New("the line of this site cannot be shaped: build the deployment with Adjustable")

// SetLine changes what the line between the site and the internet does to
// packets, in each direction, from the next packet on. An MTU alone any site can
// be given.
func (s Site) SetLine(line natbox.Line) error {
	if err := line.Check(); err != nil {
		return err
	}
	if s.box == nil && line.Shapes() {
		return ErrNotAdjustable
	}
	if s.box != nil {
		s.box.set(line)
	}
	mtu := line.MTU
	if mtu == 0 {
		mtu = defaultMTU
	}
	return s.uplink(mtu)
}

const defaultMTU = 1500

func (d *Deployment) addSite(name string, number int, kind NATKind, line natbox.Line, o Options) (Site, error) {
	lan := siteNetwork(number, kind, o)
	site := Site{LAN4: lan.v4, LAN6: lan.v6}
	var err error
	if site.Router, err = d.addHost(name+"-router", public(number, o)); err != nil {
		return site, err
	}
	if site.Host, err = d.addHost(name, lan.host(2)); err != nil {
		return site, err
	}
	if err := d.attach(site.Router, routerWAN); err != nil {
		return site, err
	}
	if err := site.Router.EnableForwarding(); err != nil {
		return site, err
	}
	nearest := site.Router // to the host
	if kind == DoubleNAT {
		if err := d.addInner(&site, name, number, o); err != nil {
			return site, err
		}
		nearest = site.Inner
	}
	if err := d.connect(nearest, site.Host, uplink, lan); err != nil {
		return site, err
	}
	for _, visible := range []netip.Prefix{site.LAN4, site.LAN6} {
		if !visible.IsValid() || (visible.Addr().Is4() && kind != NoNAT) {
			continue
		}
		via := site.Router.IPv4
		if visible.Addr().Is6() {
			via = site.Router.IPv6
		}
		if err := d.Internet.AddRoute(visible, via, site.Router.Name()); err != nil {
			return site, err
		}
	}
	if err := d.equip(&site, kind, line, o); err != nil {
		return site, err
	}
	return site, site.SetLine(line)
}

// siteNetwork returns the network of a site's host.
func siteNetwork(number int, kind NATKind, o Options) (lan subnet) {
	switch {
	case o.IPv6Only:
	case kind == NoNAT:
		// Four addresses of the second documentation range: clients from its
		// beginning, the gateway (which counts below them) at its end.
		lan.v4 = netip.PrefixFrom(netip.AddrFrom4([4]byte{198, 51, 100, byte((number + 256 - clientNumber) * 4)}), 30)
	default:
		lan.v4 = netip.PrefixFrom(netip.AddrFrom4([4]byte{192, 168, byte(number), 0}), 24)
	}
	if !o.IPv4Only {
		lan.v6 = netip.PrefixFrom(netip.MustParseAddr(fmt.Sprintf("2001:db8:%d::", number)), 64)
	}
	return lan
}

// addInner puts another router between the site's host and its router, in a
// network of its own (RFC 6598).
func (d *Deployment) addInner(s *Site, name string, number int, o Options) (err error) {
	var middle subnet
	if !o.IPv6Only {
		middle.v4 = netip.PrefixFrom(netip.AddrFrom4([4]byte{100, 64, byte(number), 0}), 24)
	}
	if !o.IPv4Only {
		middle.v6 = netip.PrefixFrom(netip.MustParseAddr(fmt.Sprintf("2001:db8:%d:1::", number)), 64)
	}
	if s.Inner, err = d.addHost(name+"-inner", middle.host(2)); err != nil {
		return err
	}
	if err := s.Inner.EnableForwarding(); err != nil {
		return err
	}
	if err := d.connect(s.Router, s.Inner, routerWAN, middle); err != nil {
		return err
	}
	if s.LAN6.IsValid() {
		if err := s.Router.AddRoute(s.LAN6, s.Inner.IPv6, routerLAN); err != nil {
			return err
		}
	}
	return s.Inner.masquerade(routerLAN, routerWAN)
}

// connect links a router to what is behind it, and routes from there to the
// router.
func (d *Deployment) connect(router, behind Host, device string, lan subnet) error {
	at := lan.host(1)
	err := d.Lab.Connect(
		End{Namespace: router.Namespace, Device: routerLAN, Addresses: lan.prefixes(at)},
		End{Namespace: behind.Namespace, Device: device, Addresses: lan.prefixes(behind.Addresses)},
	)
	if err != nil {
		return err
	}
	return behind.defaultRoutes(at, device)
}

// equip makes the site's router a NAT of the kind, and its line adjustable where
// that is wanted: by the kernel where it can, which is faster.
func (d *Deployment) equip(s *Site, kind NATKind, line natbox.Line, o Options) (err error) {
	router := s.Router
	s.uplink = func(mtu int) error {
		return errors.Join(router.setMTU(routerWAN, mtu), d.Internet.setMTU(router.Name(), mtu))
	}
	if kind == UDPBlocked {
		var relays []netip.Prefix
		for _, relay := range d.Relays {
			relays = append(relays, relay.single()...)
		}
		if err := router.admitUDPOnlyTo(relays, routerLAN); err != nil {
			return err
		}
	}
	behaviour, translates := kind.Behaviour()
	switch {
	case !kind.inKernel() || o.Adjustable || line.Shapes():
		var nat *natbox.NAT
		if translates {
			nat = natbox.New(router.IPv4, behaviour, boxSeeds.Add(1))
		}
		s.box, err = d.Lab.addBox(router, nat, routerLAN, routerWAN)
		return err
	case translates:
		return router.masquerade(routerLAN, routerWAN)
	default:
		return nil
	}
}
