package client

import (
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"sync/atomic"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/device"
	"golang.zx2c4.com/wireguard/tun"
)

const mtu = 1280

// wireguard is the client's engine with its TUN device.
type wireguard struct {
	dev  *device.Device
	bind *sharedBind
	tun  *controlTap
	name string
	ns   Namespace
}

// newWireguard makes the TUN device in the namespace and starts the engine.
func newWireguard(ns Namespace, name string, key device.NoisePrivateKey, onGoodbye func(), onStatus func([]byte), errorf func(string, ...any)) (*wireguard, error) {
	w := &wireguard{ns: ns, name: name, bind: newSharedBind(ns)}
	err := ns.Do(func() error {
		// water provisions the device, the engine attaches to it with offloads.
		if err := provision(name); err != nil {
			return err
		}
		real, err := tun.CreateTUN(name, mtu)
		if err != nil {
			return fmt.Errorf("attach to TUN device %s: %w", name, err)
		}
		if err := unix.IoctlSetInt(int(real.File().Fd()), unix.TUNSETPERSIST, 0); err != nil {
			return fmt.Errorf("clear persistence: %w", err)
		}
		// Fd put the file into blocking mode; the engine needs the poller.
		if err := unix.SetNonblock(int(real.File().Fd()), true); err != nil {
			return err
		}
		w.tun = &controlTap{Device: real, onGoodbye: onGoodbye, onStatus: onStatus}
		return nil
	})
	if err != nil {
		return nil, err
	}
	w.dev = device.NewDevice(w.tun, w.bind, &device.Logger{Verbosef: device.DiscardLogf, Errorf: errorf})
	if err := w.dev.SetPrivateKey(key); err != nil {
		w.close()
		return nil, err
	}
	if err := w.dev.Up(); err != nil {
		w.close()
		return nil, fmt.Errorf("bring up engine: %w", err)
	}
	return w, nil
}

func (w *wireguard) close() { w.dev.Close() }

// configure puts the tunnel addresses on the device.
func (w *wireguard) configure(addrs ...netip.Addr) error {
	return w.ns.Do(func() error {
		link, err := netlink.LinkByName(w.name)
		if err != nil {
			return err
		}
		for _, a := range addrs {
			ipn := &net.IPNet{IP: a.AsSlice(), Mask: net.CIDRMask(a.BitLen(), a.BitLen())}
			if err := netlink.AddrReplace(link, &netlink.Addr{IPNet: ipn}); err != nil {
				return fmt.Errorf("address %s: %w", a, err)
			}
		}
		return netlink.LinkSetUp(link)
	})
}

// route steers prefixes into the tunnel.
func (w *wireguard) route(prefixes []netip.Prefix) error {
	return w.ns.Do(func() error {
		link, err := netlink.LinkByName(w.name)
		if err != nil {
			return err
		}
		for _, p := range prefixes {
			dst := &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
			if err := netlink.RouteReplace(&netlink.Route{LinkIndex: link.Attrs().Index, Dst: dst, Scope: netlink.SCOPE_LINK}); err != nil {
				return fmt.Errorf("route %s: %w", p, err)
			}
		}
		return nil
	})
}

// setPeer adds the gateway at an address, which a peer must have from the start
// to be kept there, or changes it.
func (w *wireguard) setPeer(publicKey, presharedKey string, to netip.AddrPort, allowed []netip.Prefix) error {
	pub, err := base64.StdEncoding.DecodeString(publicKey)
	if err != nil {
		return fmt.Errorf("gateway key: %w", err)
	}
	psk, err := base64.StdEncoding.DecodeString(presharedKey)
	if err != nil {
		return fmt.Errorf("preshared key: %w", err)
	}
	var b strings.Builder
	fmt.Fprintf(&b, "public_key=%x\npreshared_key=%x\nendpoint=%s\nreplace_allowed_ips=true\n", pub, psk, to)
	for _, p := range allowed {
		fmt.Fprintf(&b, "allowed_ip=%s\n", p)
	}
	return w.dev.IpcSet(b.String())
}

// setEndpoint moves the gateway to another address, and starts a handshake if
// asked to.
func (w *wireguard) setEndpoint(publicKey string, to netip.AddrPort, handshake bool) error {
	pub, err := base64.StdEncoding.DecodeString(publicKey)
	if err != nil {
		return err
	}
	peer := w.dev.LookupPeer(device.NoisePublicKey(pub))
	if peer == nil {
		return fmt.Errorf("no WireGuard peer for the gateway")
	}
	if err := w.dev.IpcSet(fmt.Sprintf("public_key=%s\nupdate_only=true\nendpoint=%s\n", hex.EncodeToString(pub), to)); err != nil {
		return err
	}
	if !handshake {
		return nil
	}
	return peer.SendHandshakeInitiation(false)
}

// rebind moves the engine to sockets with other ports.
func (w *wireguard) rebind() error {
	w.bind.forgetPorts()
	return w.dev.BindUpdate()
}

func (w *wireguard) removePeer(publicKey string) {
	if pub, err := base64.StdEncoding.DecodeString(publicKey); err == nil && len(pub) == 32 {
		w.dev.RemovePeer(device.NoisePublicKey(pub))
	}
}

// controlTap takes in-tunnel control packets (dataplane §3.1) out of what the
// engine writes to the TUN device.
type controlTap struct {
	tun.Device
	goodbyes  atomic.Int64
	onGoodbye func()       // must not block
	onStatus  func([]byte) // gets the body of a domain status for its own while it lasts; must not block
	packetAt  atomic.Int64 // when the latest inner packet came or went, in nanoseconds since 1970
}

// lastPacket returns when the latest inner packet came or went. Control packets
// and the engine's keepalives are none.
func (t *controlTap) lastPacket() time.Time { return time.Unix(0, t.packetAt.Load()) }

// Read implements tun.Device.
func (t *controlTap) Read(bufs [][]byte, sizes []int, offset int) (int, error) {
	n, err := t.Device.Read(bufs, sizes, offset)
	if n > 0 {
		t.packetAt.Store(time.Now().UnixNano())
	}
	return n, err
}

// MTU is known; the engine would ask in whatever namespace it happens to run.
func (*controlTap) MTU() (int, error) { return mtu, nil }

func (t *controlTap) Write(bufs [][]byte, offset int) (int, error) {
	kept := bufs[:0:len(bufs)]
	for i, b := range bufs {
		if isControl(b[offset:]) {
			switch b[offset+40] {
			case controlDomainStatus:
				t.onStatus(b[offset+48:])
			case controlGoodbye:
				t.goodbyes.Add(1)
				t.onGoodbye()
			}
			if len(kept) == i { // first one: keep the order, stop aliasing
				kept = append(make([][]byte, 0, len(bufs)), bufs[:i]...)
			}
			continue
		}
		kept = append(kept, b)
	}
	if len(kept) == 0 {
		return len(bufs), nil
	}
	t.packetAt.Store(time.Now().UnixNano())
	return t.Device.Write(kept, offset)
}

func isControl(p []byte) bool {
	if len(p) < 48 || p[0]>>4 != 6 || p[6] != 255 {
		return false
	}
	for _, b := range p[8:40] {
		if b != 0 {
			return false
		}
	}
	return true
}
