package tour

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"firezone-gateway/internal/lab/client"
	"firezone-gateway/internal/lab/portal"
	"firezone-gateway/internal/lab/resource"
)

// company is a site with two clients, of which the main one is hostile. The
// other one's resource is granted to it alone.
type company struct {
	*site
	mine, theirs portal.Resource
	proxies      []netip.Addr // of the hostile client's own domain
	honest       []netip.Addr // of the other's
	raw          *client.Raw
	me, other    client.Interface
}

func newCompany(t *testing.T) *company {
	t.Helper()
	o := alone()
	o.Clients = 2
	c := &company{site: newSite(t, o)}
	c.serve(t, house1, house2, house16)
	c.resolves(t, "mine.site.example", house1, house16)
	c.resolves(t, "theirs.site.example", house2)
	c.mine = c.add(t, "*.site.example")
	var err error
	c.theirs, err = c.portal.AddResource(portal.Resource{Type: portal.DNS, Name: "theirs", Address: "theirs.site.example"})
	if err != nil {
		t.Fatal(err)
	}
	if err := c.portal.Grant(clientID(1), c.theirs.ID, longAccess); err != nil {
		t.Fatal(err)
	}
	c.proxies = c.enter(t, c.mine, "mine.site.example")
	honest, active, err := c.clients[1].AccessDomain(within(t, stepLimit), c.theirs.ID, "theirs.site.example")
	if err != nil || !active {
		t.Fatalf("the other client: active %v, error %v", active, err)
	}
	c.honest, c.me, c.other = honest, c.clients[0].Interface(), c.clients[1].Interface()
	if c.raw, err = c.client().OpenRaw(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.raw.Close() })
	return c
}

func (c *company) send(t *testing.T, packets ...[]byte) {
	t.Helper()
	for _, p := range packets {
		if err := c.raw.Send(p); err != nil {
			t.Error(err)
		}
	}
}

// harmless wants both clients served as before.
func (c *company) harmless(t *testing.T) {
	t.Helper()
	if !c.gateway.Running() {
		t.Fatal("the gateway ended")
	}
	for i, proxy := range []netip.Addr{c.proxies[0], c.honest[0]} {
		if _, err := c.reaches(t.Context(), i, proxy); err != nil {
			t.Errorf("client %d: %v", i, err)
		}
	}
	before := c.at[house2].Stats().Connections
	conn, err := c.host(1).DialContext(within(t, pingPatience), "tcp4", netip.AddrPortFrom(c.honest[0], resource.DefaultPorts.TCPEcho).String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	alive(t, conn)
	if got := c.at[house2].Stats().Connections - before; got != 1 {
		t.Errorf("the other client's domain leads elsewhere")
	}
}

// TestDNSHostileClient promises that a client reaches what it was granted, as
// itself, and nothing else, whatever it says.
func TestDNSHostileClient(t *testing.T) {
	t.Parallel()
	c := newCompany(t)
	t.Run("a foreign source", func(t *testing.T) {
		receiver, err := c.net.Resource.ListenUDP(netip.AddrPortFrom(house1, probePort))
		if err != nil {
			t.Fatal(err)
		}
		defer receiver.Close()
		to := netip.AddrPortFrom(c.proxies[0], probePort)
		gateway, _ := c.client().GatewayInterface()
		for _, from := range []netip.Addr{
			netip.MustParseAddr("100.64.0.77"), c.other.IPv4, gateway.IPv4, c.proxies[0], c.honest[0], house2, netip.MustParseAddr("127.0.0.1"),
		} {
			for range 10 {
				c.send(t, datagram4(netip.AddrPortFrom(from, 5000), to, "foreign"))
			}
		}
		for range 10 {
			c.send(t, datagram4(netip.AddrPortFrom(c.me.IPv4, 5000), to, "own")) // one tunnel keeps the order
		}
		if err := receiver.SetReadDeadline(time.Now().Add(pingPatience)); err != nil {
			t.Fatal(err)
		}
		buffer := make([]byte, 64)
		n, _, err := receiver.ReadFromUDP(buffer)
		if err != nil || string(buffer[:n]) != "own" {
			t.Errorf("%q came, error %v", buffer[:n], err)
		}
	})
	t.Run("the proxy addresses of another client", func(t *testing.T) {
		// Clients number alike: the same addresses lead each to its own.
		if c.proxies[0] != c.honest[0] {
			t.Fatalf("%v and %v", c.proxies[0], c.honest[0])
		}
		if err := c.clients[1].Route(client.ProxyRanges...); err != nil {
			t.Fatal(err)
		}
		c.enter(t, c.mine, "mine.site.example")
		c.resolves(t, "second.site.example", house1)
		second := c.enter(t, c.mine, "second.site.example")[0]
		c.answers(t, second)
		c.unreachable(t, 1, second) // which only the hostile one has set up
		c.harmless(t)
	})
	t.Run("the resource of another client", func(t *testing.T) {
		active, err := c.client().SetUp(within(t, stepLimit), c.theirs.ID, "theirs.site.example")
		if err != nil || active {
			t.Errorf("active %v, error %v", active, err)
		}
		active, err = c.client().SetUp(within(t, stepLimit), c.resources[files4].ID, "mine.site.example")
		if err != nil || active {
			t.Errorf("a resource that has no names: active %v, error %v", active, err)
		}
		c.harmless(t)
	})
	t.Run("addresses that are none for domains", func(t *testing.T) {
		gateway, _ := c.client().GatewayInterface()
		fresh := c.client().Proxies("fresh.site.example")
		c.resolves(t, "fresh.site.example", house1)
		for _, foreign := range []netip.Addr{
			places[secret4].address, places[secret6].address, c.other.IPv4, c.other.IPv6, gateway.IPv4, gateway.IPv6,
			netip.MustParseAddr("8.8.8.8"), netip.MustParseAddr("::"), netip.MustParseAddr("::ffff:100.96.0.9"),
		} {
			active, err := c.client().SetUpWith(within(t, stepLimit), c.mine.ID, "fresh.site.example", []netip.Addr{fresh[0], foreign})
			if err != nil || active {
				t.Errorf("%v: active %v, error %v", foreign, active, err)
			}
		}
		if reply, err := c.ping(t.Context(), 0, fresh[0]); err != nil || reply.Error == nil {
			t.Errorf("set up in part: %+v, error %v", reply, err)
		}
		c.prohibits(t, 0, places[secret4].address)
		c.prohibits(t, 0, places[secret6].address)
		c.harmless(t)
	})
	t.Run("spoofed control packets", func(t *testing.T) {
		body := func(v any) []byte {
			b, err := json.Marshal(v)
			if err != nil {
				t.Fatal(err)
			}
			return b
		}
		good := body(map[string]any{"resource": c.mine.ID, "domain": "stolen.site.example", "proxy_ips": c.honest[:1]})
		c.resolves(t, "stolen.site.example", house1)
		// In the form of one, but with addresses: neither obeyed nor forwarded.
		gateway, _ := c.client().GatewayInterface()
		for _, from := range []netip.Addr{c.me.IPv6, c.other.IPv6, netip.IPv6Unspecified()} {
			for _, to := range []netip.Addr{gateway.IPv6, c.proxies[4], c.other.IPv6} {
				for kind := range byte(3) {
					c.send(t, packet6(255, from, to, append([]byte{kind, 0, 0, 0, 0, 0, 0, 0}, good...)))
				}
			}
		}
		// Right, but nothing that a client says.
		for kind := 3; kind < 256; kind++ {
			c.send(t, client.ControlPacket(uint8(kind), good))
		}
		c.send(t, client.ControlPacket(1, body(map[string]string{"resource": c.mine.ID, "domain": "mine.site.example", "status": "Inactive"})))
		// Bodies that make no sense.
		for _, b := range []string{
			"", "{", "null", "[]", "0", `"text"`, string(good[:len(good)/2]), strings.Repeat("[", 1000), `{"resource":5}`,
			`{"resource":"` + c.mine.ID + `","domain":"` + strings.Repeat("a", 1000) + `","proxy_ips":[]}`,
			`{"resource":"` + c.mine.ID + `","domain":"mine.site.example","proxy_ips":["secret","100.96.0.1%eth0"]}`,
			`{"resource":"` + c.mine.ID + `","domain":"..","proxy_ips":["100.96.0.1"]}`,
			`{"resource":"internet","domain":"mine.site.example","proxy_ips":["100.96.0.1"]}`,
		} {
			c.send(t, client.ControlPacket(0, []byte(b)))
		}
		// Packets that are shorter than they say, or too short.
		whole := client.ControlPacket(0, good)
		for n := range whole {
			c.send(t, pad(whole[:n]))
		}
		c.harmless(t)
	})
	t.Run("ICMP errors of its own", func(t *testing.T) {
		heard, err := c.net.Resource.ListenPacket("ip4:icmp", "0.0.0.0")
		if err != nil {
			t.Fatal(err)
		}
		defer heard.Close()
		flow := c.flowTo(t, c.proxies[0], resource.DefaultPorts.TCPEcho)
		alive(t, flow)
		for _, to := range []netip.Addr{c.proxies[0], places[files4].address} {
			quoted := datagram4(netip.AddrPortFrom(to, 7), netip.AddrPortFrom(c.me.IPv4, 5000), "quoted")
			for code := range byte(16) {
				c.send(t, icmp4(icmpUnreachable, code, 576, c.me.IPv4, to, quoted))
			}
			c.send(t, icmp4(icmpExceeded, 0, 0, c.me.IPv4, to, quoted))
		}
		for _, kind := range []byte{4, 5, 9, 10, 12, 13, 17} { // without a way back through the translation
			c.send(t, icmp4(kind, 0, 0, c.me.IPv4, c.proxies[0], datagram4(netip.AddrPortFrom(c.proxies[0], 7), netip.AddrPortFrom(c.me.IPv4, 5000), "quoted")))
		}
		c.send(t, icmp4(icmpEchoRequest, 0, 0x12340001, c.me.IPv4, c.proxies[0], []byte("echo")))
		if err := heard.SetReadDeadline(time.Now().Add(pingPatience)); err != nil {
			t.Fatal(err)
		}
		buffer := make([]byte, 1500)
		n, from, err := heard.ReadFrom(buffer)
		if err != nil || n == 0 || buffer[0] != icmpEchoRequest {
			t.Errorf("the resource got ICMP type %d of %v, error %v", buffer[0], from, err)
		}
		alive(t, flow)
		c.harmless(t)
	})
	t.Run("other software goes on", func(t *testing.T) { require(t, c.World, filtersHold, noGrantRefused, pingAnswered, gatewayLeaves) })
}

// pad makes a packet of what is left of one, for the kernel to take it: shorter
// than an IPv6 header it sends none.
func pad(p []byte) []byte {
	return slices.Concat(p, make([]byte, max(0, 40-len(p))))
}

const (
	floodTime = 2 * time.Second
	floodRoom = 150 << 20 // bytes that the daemon may grow by in a flood
)

// TestDNSFloods promises that a client that sends as fast as it can, what it may
// and what it may not, takes nothing away from another client that lasts longer
// than the flood, and no memory without bound.
func TestDNSFloods(t *testing.T) {
	c := newCompany(t)
	before, err := c.gateway.Usage()
	if err != nil {
		t.Fatal(err)
	}
	id := uint32(0)
	names := 0
	for _, flood := range []struct {
		name string
		make func() []byte
	}{
		{"echo requests of one session each", func() []byte {
			id++
			return icmp4(icmpEchoRequest, 0, id<<16|1, c.me.IPv4, c.proxies[id>>16&3], []byte("flood"))
		}},
		{"datagrams of one session each", func() []byte {
			id++
			return datagram4(netip.AddrPortFrom(c.me.IPv4, uint16(id)), netip.AddrPortFrom(c.proxies[id>>16&3], 9), "flood")
		}},
		{"what is prohibited", func() []byte {
			id++
			return icmp4(icmpEchoRequest, 0, id, c.me.IPv4, places[secret4].address, []byte("flood"))
		}},
		{"ICMP errors", func() []byte {
			return icmp4(icmpUnreachable, 1, 0, c.me.IPv4, c.proxies[0], datagram4(netip.AddrPortFrom(c.proxies[0], 7), netip.AddrPortFrom(c.me.IPv4, 5000), "q"))
		}},
		{"set-ups of one name each", func() []byte {
			names++
			body := fmt.Sprintf(`{"resource":%q,"domain":"n%d.site.example","proxy_ips":["100.97.%d.%d"]}`, c.mine.ID, names, names>>8&255, names&255)
			return client.ControlPacket(0, []byte(body))
		}},
	} {
		t.Run(flood.name, func(t *testing.T) {
			stop := make(chan struct{})
			var flooding sync.WaitGroup
			sent := 0
			flooding.Go(func() {
				for {
					select {
					case <-stop:
						return
					default:
					}
					if err := c.raw.Send(flood.make()); err != nil {
						t.Error(err)
						return
					}
					sent++
				}
			})
			load := resource.EchoLoad{BitsPerSecond: 1e6, Duration: floodTime, Size: 500}
			r, err := resource.UDPEcho(t.Context(), c.host(1), netip.AddrPortFrom(c.honest[0], resource.DefaultPorts.UDPEcho), load)
			active, setUp := false, time.Now()
			if err == nil {
				active, err = c.clients[1].SetUp(within(t, stepLimit), c.theirs.ID, "theirs.site.example")
			}
			took := time.Since(setUp)
			close(stop)
			flooding.Wait()
			if err != nil {
				t.Fatal(err)
			}
			after, err := c.gateway.Usage()
			if err != nil {
				t.Fatal(err)
			}
			t.Logf("%d packets; the other client lost %d of %d, median %s, p99 %s, set-up in %s; the daemon had %.0f MB at most, %.0f before",
				sent, r.Lost, r.Sent, milliseconds(r.Median), milliseconds(r.P99), milliseconds(took), mb(after.PeakRSS), mb(before.PeakRSS))
			if sent == 0 || !active {
				t.Errorf("%d packets, active %v", sent, active)
			}
			if r.Lost > r.Sent/2 {
				t.Errorf("the other client lost %d of %d", r.Lost, r.Sent)
			}
			if !raceDetector && after.PeakRSS > before.PeakRSS+floodRoom {
				t.Errorf("the daemon grew by %.0f MB", mb(after.PeakRSS-before.PeakRSS))
			}
			// What is under way has to pass first.
			err = await(within(t, stepLimit), "no traffic after the flood", func() bool {
				_, err := c.reaches(t.Context(), 1, c.honest[0])
				return err == nil
			})
			if err != nil {
				t.Fatal(err)
			}
		})
	}
	// The hostile client itself is served again as far as its own doing allows: it
	// has as many sessions as a client may have, for a minute, but no less access.
	if active, err := c.client().SetUp(within(t, stepLimit), c.mine.ID, "mine.site.example"); err != nil || !active {
		t.Errorf("active %v, error %v", active, err)
	}
	conn, err := c.host(0).DialContext(within(t, pingPatience), "tcp4", files4.at(resource.DefaultPorts.TCPEcho).String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	alive(t, conn)
	require(t, c.World, pingAnswered, gatewayLeaves)
}

func mb(bytes uint64) float64 { return float64(bytes) / (1 << 20) }
