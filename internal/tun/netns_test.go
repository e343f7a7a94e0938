package tun

import (
	"encoding/binary"
	"net"
	"net/netip"
	"os"
	"runtime"
	"sync/atomic"
	"testing"
	"time"

	wgtun "github.com/tailscale/wireguard-go/tun"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"firezone-gateway/internal/drop"
)

const (
	testName  = "tun-test"
	deadline  = 60 * time.Second
	slabBytes = 2 * 65535 // what the engine passes to Read
)

var (
	gatewayV4 = netip.MustParseAddr("100.64.0.1")
	gatewayV6 = netip.MustParseAddr("fd00:2021:1111::1")
	clientV4  = netip.MustParseAddr("100.64.0.9")
	clientV6  = netip.MustParseAddr("fd00:2021:1111::9")
)

// namespace is a network namespace of its own with loopback up.
type namespace struct {
	tb     testing.TB
	home   netns.NsHandle
	handle netns.NsHandle
}

// enterNamespace moves the test's goroutine into a new namespace until the test
// ends. Sockets and devices have to be created on that goroutine; they may be
// used on any.
func enterNamespace(tb testing.TB) *namespace {
	tb.Helper()
	ns := newNamespace(tb)
	ns.enter()
	return ns
}

// newNamespace creates a namespace without staying in it. The thread stays
// locked until the test ends.
func newNamespace(tb testing.TB) *namespace {
	tb.Helper()
	if !HasNetAdmin() {
		missing(tb, "CAP_NET_ADMIN is needed")
	}
	if _, err := os.Stat(nodePath); err != nil {
		missing(tb, err.Error())
	}
	runtime.LockOSThread()
	home, err := netns.Get()
	if err != nil {
		tb.Fatal(err)
	}
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		missing(tb, "unshare: "+err.Error())
	}
	handle, err := netns.Get()
	if err != nil {
		tb.Fatal(err)
	}
	ns := &namespace{tb: tb, home: home, handle: handle}
	tb.Cleanup(func() {
		// On failure the thread stays locked and ends with the goroutine.
		if err := netns.Set(home); err != nil {
			tb.Errorf("return to the first namespace: %v", err)
			return
		}
		handle.Close()
		home.Close()
		runtime.UnlockOSThread()
	})
	ns.must(netlink.LinkSetUp(ns.link("lo")))
	ns.must(netns.Set(home))
	return ns
}

// requireOwnNamespace fails a test that is about to change the namespace the
// tests were started in, as a subtest does that runs on its own goroutine.
func requireOwnNamespace(tb testing.TB) {
	tb.Helper()
	current, err := netns.Get()
	if err != nil {
		tb.Fatal(err)
	}
	defer current.Close()
	if current.Equal(startNamespace) {
		tb.Fatal("not in a namespace of the test's own")
	}
}

func missing(tb testing.TB, reason string) {
	tb.Helper()
	if os.Getenv("CI") == "true" {
		tb.Fatal(reason)
	}
	tb.Skip(reason)
}

func (n *namespace) enter() {
	n.must(netns.Set(n.handle))
	requireOwnNamespace(n.tb)
}

func (n *namespace) must(err error) {
	n.tb.Helper()
	if err != nil {
		n.tb.Fatal(err)
	}
}

func (n *namespace) link(name string) netlink.Link {
	n.tb.Helper()
	link, err := netlink.LinkByName(name)
	if err != nil {
		n.tb.Fatalf("link %s: %v", name, err)
	}
	return link
}

// testDevice is an open device in the current namespace, configured.
type testDevice struct {
	*Device
	drops *drop.Counters
}

func openConfigured(tb testing.TB, driver Driver) testDevice {
	tb.Helper()
	d := open(tb, driver)
	fam, err := Configure(Network{Link: testName, V4: gatewayV4, V6: gatewayV6})
	if err != nil || fam.Tolerated != nil || !fam.V4 || !fam.V6 {
		tb.Fatalf("Configure = %+v, %v", fam, err)
	}
	waitForLocal(tb, gatewayV6)
	return d
}

// waitForLocal waits until addr is delivered locally, which for IPv6 the kernel
// arranges some time after it accepted the address.
func waitForLocal(tb testing.TB, addr netip.Addr) {
	tb.Helper()
	waitFor(tb, addr.String()+" to become local", func() bool {
		routes, err := netlink.RouteGet(addr.AsSlice())
		return err == nil && len(routes) == 1 && routes[0].Type == unix.RTN_LOCAL
	})
}

func open(tb testing.TB, driver Driver) testDevice {
	tb.Helper()
	requireOwnNamespace(tb)
	drops := new(drop.Counters)
	d, err := Open(Config{Name: testName, Driver: driver, Drops: drops})
	if err != nil {
		tb.Fatal(err)
	}
	if d.Driver() != driver {
		tb.Fatalf("driver %v in use, want %v", d.Driver(), driver)
	}
	tb.Cleanup(func() { d.Close() })
	return testDevice{d, drops}
}

// eachDriver runs a test per driver, in a namespace of its own. The test must
// not start subtests: they run on goroutines outside of the namespace.
func eachDriver(t *testing.T, test func(t *testing.T, driver Driver)) {
	for _, driver := range []Driver{Auto, Water} {
		t.Run(driver.String(), func(t *testing.T) {
			enterNamespace(t)
			test(t, driver)
		})
	}
}

// batchBuffer is what the engine hands to Read.
type batchBuffer struct {
	slab    []byte
	packets []wgtun.ReadPacket
}

func newBatchBuffer() batchBuffer {
	return batchBuffer{make([]byte, slabBytes), make([]wgtun.ReadPacket, batchSize)}
}

// checkLayout fails on packets that overlap, are out of order, or lack spacing.
func checkLayout(tb testing.TB, slab []byte, packets []wgtun.ReadPacket) {
	tb.Helper()
	end := 0
	for i, p := range packets {
		if p.Offset < end+spacing || p.Size < 1 {
			tb.Fatalf("packet %d is at %d+%d, the one before ends at %d", i, p.Offset, p.Size, end)
		}
		end = p.Offset + p.Size
	}
	if end+spacing > len(slab) {
		tb.Fatalf("last packet ends at %d of %d", end, len(slab))
	}
}

// checkPacket reports what is wrong with an IP packet: lengths and checksums of
// IPv4, IPv6, TCP, UDP and ICMP, computed the slow way.
func checkPacket(p []byte) string {
	if len(p) < 20 {
		return "shorter than an IP header"
	}
	var proto byte
	var pseudo, transport []byte
	switch p[0] >> 4 {
	case 4:
		hdr := int(p[0]&0xf) * 4
		if int(binary.BigEndian.Uint16(p[2:])) != len(p) || hdr < 20 || hdr > len(p) {
			return "IPv4 length"
		}
		if onesSum(p[:hdr]) != 0xffff {
			return "IPv4 header checksum"
		}
		proto, transport = p[9], p[hdr:]
		pseudo = append(pseudo, p[12:20]...)
	case 6:
		if len(p) < 40 || int(binary.BigEndian.Uint16(p[4:])) != len(p)-40 {
			return "IPv6 length"
		}
		proto, transport = p[6], p[40:]
		pseudo = append(pseudo, p[8:40]...)
	default:
		return "IP version"
	}
	pseudo = append(pseudo, 0, proto)
	pseudo = binary.BigEndian.AppendUint16(pseudo, uint16(len(transport)))
	switch proto {
	case unix.IPPROTO_TCP:
		if len(transport) < 20 {
			return "TCP length"
		}
	case unix.IPPROTO_UDP:
		if len(transport) < 8 || int(binary.BigEndian.Uint16(transport[4:])) != len(transport) {
			return "UDP length"
		}
		if binary.BigEndian.Uint16(transport[6:]) == 0 {
			return "UDP without checksum"
		}
	case unix.IPPROTO_ICMPV6:
	default:
		return ""
	}
	if onesSum(append(pseudo, transport...)) != 0xffff {
		return "transport checksum"
	}
	return ""
}

func onesSum(b []byte) uint16 {
	var sum uint32
	for i := 0; i+1 < len(b); i += 2 {
		sum += uint32(b[i])<<8 | uint32(b[i+1])
		sum = sum&0xffff + sum>>16
	}
	if len(b)%2 == 1 {
		sum += uint32(b[len(b)-1]) << 8
		sum = sum&0xffff + sum>>16
	}
	return uint16(sum)
}

// udpPacket builds a UDP packet in a buffer with headroom bytes before it.
func udpPacket(src, dst netip.AddrPort, payload []byte, headroom int) []byte {
	hdr := 20
	if src.Addr().Is6() {
		hdr = 40
	}
	buf := make([]byte, headroom+hdr+8+len(payload))
	p := buf[headroom:]
	pseudo := append(src.Addr().AsSlice(), dst.Addr().AsSlice()...)
	if src.Addr().Is4() {
		p[0], p[8], p[9] = 0x45, 64, unix.IPPROTO_UDP
		binary.BigEndian.PutUint16(p[2:], uint16(len(p)))
		copy(p[12:], pseudo)
		binary.BigEndian.PutUint16(p[10:], ^onesSum(p[:20]))
	} else {
		p[0], p[6], p[7] = 0x60, unix.IPPROTO_UDP, 64
		binary.BigEndian.PutUint16(p[4:], uint16(len(p)-40))
		copy(p[8:], pseudo)
	}
	udp := p[hdr:]
	binary.BigEndian.PutUint16(udp, src.Port())
	binary.BigEndian.PutUint16(udp[2:], dst.Port())
	binary.BigEndian.PutUint16(udp[4:], uint16(len(udp)))
	copy(udp[8:], payload)
	pseudo = append(pseudo, 0, unix.IPPROTO_UDP)
	pseudo = binary.BigEndian.AppendUint16(pseudo, uint16(len(udp)))
	sum := ^onesSum(append(pseudo, udp...))
	if sum == 0 {
		sum = 0xffff
	}
	binary.BigEndian.PutUint16(udp[6:], sum)
	return buf
}

// waitFor polls a condition that another goroutine or the kernel makes true.
func waitFor(tb testing.TB, what string, ok func() bool) {
	tb.Helper()
	for end := time.Now().Add(deadline); !ok(); {
		if time.Now().After(end) {
			tb.Fatalf("timed out waiting for %s", what)
		}
		runtime.Gosched()
		time.Sleep(time.Millisecond)
	}
}

func dialUDP(tb testing.TB, to netip.AddrPort) *net.UDPConn {
	tb.Helper()
	c, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(to))
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { c.Close() })
	return c
}

// progress lets a sender keep no more in flight than the device queues.
type progress struct{ received atomic.Int64 }
