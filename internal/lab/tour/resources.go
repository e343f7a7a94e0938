package tour

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"firezone-gateway/internal/lab/portal"
	"firezone-gateway/internal/lab/resource"
)

// role names a private address by the part it plays.
type role uint8

const (
	files4    role = iota // transfers and echoes, granted for the whole tour
	files6                // the same over IPv6
	revocable             // granted, then revoked
	filtered              // granted for TCP to the echo port only
	expiring              // granted for some seconds
	secret4               // never granted
	secret6
)

// place is where a role lives in the resource's network.
type place struct {
	name    string
	address netip.Addr
	filters []portal.Filter
	grant   time.Duration // 0: not at the start
}

var places = map[role]place{
	files4:    {name: "files", address: netip.MustParseAddr("10.20.0.10"), grant: longAccess},
	files6:    {name: "files over IPv6", address: netip.MustParseAddr("fd00:20::10"), grant: longAccess},
	revocable: {name: "revocable", address: netip.MustParseAddr("10.20.0.11"), grant: longAccess},
	filtered: {name: "echo only", address: netip.MustParseAddr("10.20.0.12"), grant: longAccess,
		filters: []portal.Filter{portal.Ports(portal.TCP, resource.DefaultPorts.TCPEcho, resource.DefaultPorts.TCPEcho)}},
	expiring: {name: "expiring", address: netip.MustParseAddr("10.20.0.13")},
	secret4:  {name: "secret", address: netip.MustParseAddr("10.20.0.14")},
	secret6:  {name: "secret over IPv6", address: netip.MustParseAddr("fd00:20::14")},
}

// private is what clients route into the tunnel: the whole network of the
// resources, so that what is not granted reaches the gateway as well.
var private = []netip.Prefix{netip.MustParsePrefix("10.20.0.0/24"), netip.MustParsePrefix("fd00:20::/64")}

// addResources gives the resource host its addresses and services, and makes
// them known to the portal.
func (w *World) addResources() error {
	for role, place := range places {
		if err := w.addAddress(place.address); err != nil {
			return err
		}
		server, err := resource.Serve(w.net.Resource, place.address, resource.DefaultPorts, slog.New(slog.DiscardHandler))
		if err != nil {
			return err
		}
		w.servers = append(w.servers, server)
		r, err := w.portal.AddResource(portal.Resource{
			Type: portal.CIDR, Name: place.name, Address: place.address.String(), Filters: place.filters,
		})
		if err != nil {
			return err
		}
		w.resources[role] = r
		if place.grant > 0 {
			if err := w.portal.Grant("", r.ID, place.grant); err != nil {
				return err
			}
		}
	}
	return nil
}

// addAddress puts one more address on the resource host's device.
func (w *World) addAddress(address netip.Addr) error {
	if address == w.net.Resource.IPv4 || address == w.net.Resource.IPv6 {
		return nil
	}
	err := w.net.Resource.Do(func() error {
		link, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		bits := private[0].Bits()
		if address.Is6() {
			bits = private[1].Bits()
		}
		added := &netlink.Addr{IPNet: &net.IPNet{IP: address.AsSlice(), Mask: net.CIDRMask(bits, address.BitLen())}}
		if address.Is6() {
			added.Flags = unix.IFA_F_NODAD
		}
		return netlink.AddrAdd(link, added)
	})
	if err != nil {
		return fmt.Errorf("resource address %v: %w", address, err)
	}
	return nil
}

// access asks for a resource in the name of client i.
func (w *World) access(ctx context.Context, i int, r role) error {
	if i >= len(w.clients) {
		return errors.New("no such client is connected")
	}
	if err := w.clients[i].Access(ctx, w.resources[r].ID, private...); err != nil {
		return fmt.Errorf("access to %s: %w", places[r].name, err)
	}
	return nil
}

func (r role) at(port uint16) netip.AddrPort { return netip.AddrPortFrom(places[r].address, port) }
