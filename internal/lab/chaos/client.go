package chaos

import (
	"context"
	"fmt"
	"net/netip"

	"firezone-gateway/internal/lab/client"
	labnet "firezone-gateway/internal/lab/net"
)

// connect logs client i in.
func (w *world) connect(ctx context.Context, i int) error {
	log, err := w.logger(clientID(i))
	if err != nil {
		return err
	}
	host := w.net.Clients[i].Host
	forking.Lock()
	defer forking.Unlock()
	c, err := client.Connect(ctx, client.Config{
		Portal: w.portal.URL(), Token: "client-" + w.token, ID: clientID(i), Name: clientID(i),
		Original: true, Persistent: true, Namespace: host.Namespace, Addresses: []netip.Addr{host.IPv4}, Logger: log,
	})
	if err != nil {
		return fmt.Errorf("%s: %w", clientID(i), err)
	}
	w.clients = append(w.clients, c)
	return nil
}

func clientID(i int) string { return fmt.Sprintf("chaos-client-%d", i+1) }

// host returns the namespace of client i.
func (w *world) host(i int) *labnet.Namespace { return w.net.Clients[i].Host.Namespace }

// peerPath returns the path of the actor of client i.
func (w *world) peerPath(i int) (string, error) {
	for _, c := range w.portal.State().Clients {
		if c.ExternalID == clientID(i) {
			return "gateway/peers/" + c.ID, nil
		}
	}
	return "", fmt.Errorf("the portal does not know %s", clientID(i))
}

// sites is how many clients a deployment has at most. Those beyond have no router
// of their own.
const sites = 50

// addPublicClient links a host to the internet itself.
func (w *world) addPublicClient(i int) error {
	name, at := clientID(i), netip.AddrFrom4([4]byte{203, 0, 113, byte(200 + i - sites)})
	ns, err := w.net.Lab.AddNamespace(name)
	if err != nil {
		return err
	}
	internet, device := w.net.Internet, fmt.Sprintf("public%d", i)
	single := func(a netip.Addr) netip.Prefix { return netip.PrefixFrom(a, a.BitLen()) }
	err = w.net.Lab.Connect(
		labnet.End{Namespace: internet.Namespace, Device: device, Addresses: []netip.Prefix{single(internet.IPv4)}},
		labnet.End{Namespace: ns, Device: "eth0", Addresses: []netip.Prefix{single(at)}},
	)
	if err == nil {
		err = internet.AddRoute(single(at), netip.Addr{}, device)
	}
	if err == nil {
		err = ns.AddRoute(netip.PrefixFrom(netip.IPv4Unspecified(), 0), internet.IPv4, "eth0")
	}
	host := labnet.Host{Namespace: ns, Addresses: labnet.Addresses{IPv4: at}}
	w.net.Clients = append(w.net.Clients, labnet.Site{Host: host})
	return err
}
