package labnet

import (
	"errors"
	"fmt"
	"net/netip"

	"firezone-gateway/internal/lab/natbox"
)

// Options shapes a Deployment. The zero value is one client and one relay,
// without NAT, over IPv4 and IPv6.
type Options struct {
	ClientNAT  NATKind
	GatewayNAT NATKind
	Clients    int // at most 50; 0 means 1
	Relays     int // at most 50; 0 means 1

	// ClientLine and GatewayLine are the lines between the sites and the
	// internet; see Site.SetLine.
	ClientLine  natbox.Line
	GatewayLine natbox.Line
	// Adjustable lets lines that are perfect at first become worse. It costs
	// throughput.
	Adjustable bool

	// IPv4Only leaves the internet and the sides of clients and gateway
	// without IPv6, so that every path crosses the address translation.
	IPv4Only bool
	// IPv6Only leaves them without IPv4. It excludes the other.
	IPv6Only bool

	// ResourceRoutesBack gives the resource a default route to the gateway.
	// Without it the resource answers its own network only, so the gateway
	// has to masquerade.
	ResourceRoutesBack bool
}

// Deployment is a gateway with what surrounds it:
//
//	Clients[i].Host -- Clients[i].Router --.
//	                                       +-- Internet --+-- Portal
//	        Gateway.Host -- Gateway.Router --'              +-- Relays[i]
//	              |
//	          Resource
//
// A site with DoubleNAT has one router more, Inner, between Host and Router.
//
// Public addresses are 203.0.113.0/24 and 2001:db8::/32, the resource's
// private network is 10.20.0.0/24 and fd00:20::/64. Routers and the internet
// forward packets; whether Gateway.Host does is the gateway's business.
type Deployment struct {
	Lab      *Lab
	Internet Host
	Portal   Host
	Relays   []Host
	Clients  []Site
	Gateway  Site
	Resource Host
	// ResourceGateway holds the gateway's addresses in the resource's network.
	ResourceGateway Addresses
}

// Host is a namespace with the addresses of its main device.
type Host struct {
	*Namespace
	Addresses
}

// NewDeployment builds a Deployment. When it returns an error nothing is left
// behind.
func NewDeployment(o Options) (*Deployment, error) {
	o.Clients, o.Relays = max(o.Clients, 1), max(o.Relays, 1)
	if o.Clients > maxOfAKind || o.Relays > maxOfAKind {
		return nil, fmt.Errorf("at most %d clients and relays", maxOfAKind)
	}
	if o.IPv4Only && o.IPv6Only {
		return nil, errors.New("a network with neither IPv4 nor IPv6")
	}
	for _, kind := range []NATKind{o.ClientNAT, o.GatewayNAT} {
		if int(kind) >= len(natNames) {
			return nil, fmt.Errorf("%v is unknown", kind)
		}
	}
	if err := errors.Join(o.ClientLine.Check(), o.GatewayLine.Check()); err != nil {
		return nil, err
	}
	d := &Deployment{Lab: New()}
	if err := d.build(o); err != nil {
		return nil, errors.Join(err, d.Lab.Close())
	}
	return d, nil
}

// Close removes the deployment; see Lab.Close.
func (d *Deployment) Close() error { return d.Lab.Close() }

const (
	maxOfAKind = 50

	// Names of the devices: every host has its uplink, every router a device
	// to each side, the gateway one more to its resources.
	uplink    = "eth0"
	routerLAN = "lan"
	routerWAN = "wan"
	// ResourceDevice is the gateway's device to its private network.
	ResourceDevice = "eth1"
)

func (d *Deployment) build(o Options) (err error) {
	if d.Internet, err = d.addHost("internet", public(internetNumber, o)); err != nil {
		return err
	}
	if err := d.Internet.EnableForwarding(); err != nil {
		return err
	}
	if d.Portal, err = d.addPublic("portal", portalNumber, o); err != nil {
		return err
	}
	for i := range o.Relays {
		relay, err := d.addPublic(numbered("relay", i, o.Relays), relayNumber+i, o)
		if err != nil {
			return err
		}
		d.Relays = append(d.Relays, relay)
	}
	for i := range o.Clients {
		client, err := d.addSite(numbered("client", i, o.Clients), clientNumber+i, o.ClientNAT, o.ClientLine, o)
		if err != nil {
			return err
		}
		d.Clients = append(d.Clients, client)
	}
	if d.Gateway, err = d.addSite("gateway", gatewayNumber, o.GatewayNAT, o.GatewayLine, o); err != nil {
		return err
	}
	return d.addResource(o)
}

func (d *Deployment) addHost(name string, a Addresses) (Host, error) {
	ns, err := d.Lab.AddNamespace(name)
	return Host{Namespace: ns, Addresses: a}, err
}

// addPublic adds a host whose uplink goes to the internet.
func (d *Deployment) addPublic(name string, number int, o Options) (Host, error) {
	host, err := d.addHost(name, public(number, o))
	if err != nil {
		return host, err
	}
	return host, d.attach(host, uplink)
}

// attach links a host to the internet. Both ends have host addresses only, and
// the internet a route to each host: it is a router, not a shared medium.
func (d *Deployment) attach(host Host, device string) error {
	port := host.Name()
	err := d.Lab.Connect(
		End{Namespace: d.Internet.Namespace, Device: port, Addresses: d.Internet.single()},
		End{Namespace: host.Namespace, Device: device, Addresses: host.single()},
	)
	if err != nil {
		return err
	}
	for _, address := range host.single() {
		if err := d.Internet.AddRoute(address, netip.Addr{}, port); err != nil {
			return err
		}
	}
	return host.defaultRoutes(d.Internet.Addresses, device)
}

func (d *Deployment) addResource(o Options) (err error) {
	d.ResourceGateway = Addresses{IPv4: resource4.Addr().Next(), IPv6: resource6.Addr().Next()}
	d.Resource, err = connectResource(d.Lab, d.Gateway.Host.Namespace, d.ResourceGateway)
	if err != nil || !o.ResourceRoutesBack {
		return err
	}
	return d.Resource.defaultRoutes(d.ResourceGateway, uplink)
}

// defaultRoutes routes everything through the device: a family that via has no
// address of is left out.
func (n *Namespace) defaultRoutes(via Addresses, device string) error {
	for _, address := range via.all() {
		if err := n.AddRoute(netip.PrefixFrom(unspecified(address), 0), address, device); err != nil {
			return err
		}
	}
	return nil
}

func numbered(name string, i, of int) string {
	if of == 1 {
		return name
	}
	return fmt.Sprintf("%s%d", name, i+1)
}
