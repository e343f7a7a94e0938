package actors

import (
	"fmt"
	"slices"
	"time"

	enginetun "github.com/tailscale/wireguard-go/tun"

	"firezone-gateway/internal/dns"
	"firezone-gateway/internal/transport"
	"firezone-gateway/internal/tun"
)

// host is what actors do to the machine.
type host struct {
	sockets   func(transport.Config) (*transport.Sockets, error)
	open      func(tun.Config) (tunDevice, error)
	configure func(tun.Network) (tun.Families, error)
	forward   func(link string, f tun.Families) error
	// missing names what of configure's and, with masquerade, of forward's work is
	// undone.
	missing   func(n tun.Network, masquerade bool) ([]string, error)
	listenDNS func(dns.ServerConfig) (*dns.Server, error)
}

// tunDevice is a TUN device whose loss can be waited for.
type tunDevice interface {
	enginetun.Device
	Gone() <-chan struct{}
}

// heldDevice is the device for the next incarnation of its owner.
type heldDevice struct {
	device  tunDevice // nil: there is none
	adopted time.Time // by the latest incarnation, zero if that one made it
}

// usable reports whether there is a device that exists.
func (h heldDevice) usable() bool {
	if h.device == nil {
		return false
	}
	select {
	case <-h.device.Gone():
		return false
	default:
		return true
	}
}

// onTrial reports whether the device was adopted just before: the fault of an actor
// that does not live with it for long may be in it.
func (h heldDevice) onTrial() bool {
	return !h.adopted.IsZero() && time.Since(h.adopted) < adoptionTrial
}

var thisHost = host{
	sockets: transport.Open,
	open: func(cfg tun.Config) (tunDevice, error) {
		d, err := tun.Open(cfg)
		if err != nil {
			return nil, err // a nil device in the interface would not be nil
		}
		return d, nil
	},
	configure: tun.Configure,
	forward:   forward,
	missing:   missing,
	listenDNS: dns.Listen,
}

// forward lets the host route between clients and resources.
func forward(name string, f tun.Families) error {
	if _, err := tun.EnableForwarding(); err != nil {
		return fmt.Errorf("enable forwarding: %w", err)
	}
	return tun.Masquerade{Link: name, V4: f.V4, V6: f.V6}.Install()
}

// missing names what of the configuration of the TUN device is undone on this host.
func missing(n tun.Network, masquerade bool) ([]string, error) {
	list, err := n.Missing()
	if err != nil || !masquerade {
		return list, err
	}
	rules, err := tun.Masquerade{Link: n.Link, V4: n.V4.IsValid(), V6: n.V6.IsValid()}.Missing()
	return slices.Concat(list, tun.ForwardingMissing(), rules), err
}
