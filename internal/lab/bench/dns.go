package bench

import (
	"context"
	"errors"
	"fmt"
	"os"

	labnet "firezone-gateway/internal/lab/net"
	"firezone-gateway/internal/lab/portal"
	"firezone-gateway/internal/lab/resource"
)

// byDomain is the same resource as byAddress, by its name.
var byDomain = portal.Resource{Type: portal.DNS, Name: "bench", Address: "bench.example.test"}

// buildDNS puts the gateway alone in the middle, with two clients on one host:
// one reaches the resource by a proxy address of its domain, the other by its
// own address. The other is a client without DNS resources, because the gateway
// looks for a session in every packet to a client that has some.
func (r *rig) buildDNS(ctx context.Context) error {
	if err := r.serveName(); err != nil {
		return fmt.Errorf("name server: %w", err)
	}
	return r.addGateway(ctx, r.net.Middle, r.net.Client,
		way{name: "DNS resource", client: r.net.Client, granted: byDomain},
		way{name: "CIDR resource", client: r.net.Client, granted: byAddress})
}

// serveName starts a name server beside the resource, for the daemon alone.
func (r *rig) serveName() error {
	const port = 53 // a resolv.conf names no other
	names, err := resource.ServeDNS(r.net.Resource, throughGateway, port)
	if err != nil {
		return err
	}
	r.closers = append(r.closers, names.Close)
	if err := names.SetAddresses(byDomain.Address, throughGateway); err != nil {
		return err
	}
	conf, err := os.CreateTemp("", "bench-resolv-*.conf")
	if err != nil {
		return err
	}
	r.closers = append(r.closers, func() error { return os.Remove(conf.Name()) })
	r.files = append(r.files, labnet.File{Source: conf.Name(), Target: "/etc/resolv.conf"})
	_, err = fmt.Fprintf(conf, "nameserver %v\n", throughGateway)
	return errors.Join(err, conf.Close())
}
