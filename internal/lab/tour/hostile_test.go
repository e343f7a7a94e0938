package tour

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	labnet "firezone-gateway/internal/lab/net"
	"firezone-gateway/internal/lab/portal"
)

// rawFrames are text frames that no portal sends. The last one ends early.
var rawFrames = []string{
	`null`, `[]`, `{}`, `"gateway"`, `0`, `{"topic":1,"event":2,"payload":3,"ref":"x"}`,
	`{"topic":"gateway","event":null,"payload":{},"ref":null}`,
	`{"topic":"elsewhere","event":"init","payload":{},"ref":null}`,
	`{"topic":"gateway","event":"phx_reply","payload":{"status":"maybe"},"ref":99999999}`,
	`{"topic":"gateway","event":"phx_reply","payload":{"status":"error","response":{"reason":[1]}},"ref":1}`,
	`{"topic":"gateway","event":"` + strings.Repeat("e", 1<<16) + `","payload":{},"ref":null}`,
	`{"topic":"gateway","event":"authorize_flow"`,
}

// badPayloads are payloads of known events that do not fit them.
var badPayloads = []any{
	nil, 5, "text", []int{}, map[string]any{},
	map[string]any{"client_id": 5, "resource_id": []string{"a"}, "candidates": "none"},
	map[string]any{"ref": "r", "resource": map[string]any{"type": "cidr", "id": "x", "address": "10.0.0.0/99"}},
	map[string]any{"interface": map[string]any{"ipv4": "no", "ipv6": 6}, "relays": "none", "config": nil},
	map[string]any{"connected": []any{map[string]any{"type": "turn", "id": "x", "addr": "nowhere"}}, "disconnected_ids": 1},
	map[string]any{"client": map[string]any{"public_key": "c2hvcnQ=", "ipv4": "300.1.1.1"}, "expires_at": -1},
}

var knownEvents = []string{
	"init", "authorize_flow", "create_authorization", "ice_candidates", "invalidate_ice_candidates", "reject_access",
	"resource_updated", "access_authorization_expiry_updated", "relays_presence", "disconnect_nothing", "request_connection", "allow_access",
}

// badCandidates are lines that no candidate parser may accept, and some that it
// may accept but must not follow.
var badCandidates = []string{
	"", "candidate:", "candidate:1 1 udp", "candidate:1 1 udp -1 999.1.1.1 70000 typ host",
	"candidate:1 1 tcp 1 10.0.0.1 9 typ host tcptype active", "candidate:1 2 udp 1 10.0.0.1 0 typ host",
	"candidate:1 1 udp 1 example.invalid 1 typ host", "candidate:1 1 udp 1 127.0.0.1 1 typ host",
	"candidate:1 1 udp 1 0.0.0.0 1 typ srflx raddr x rport y", "candidate:1 1 udp 1 224.0.0.1 1 typ host",
	"candidate:1 1 udp 1 ::ffff:10.0.0.1 1 typ relay", "candidate:1 1 udp 99999999999999999999 10.0.0.1 1 typ host",
	strings.Repeat("candidate:", 1<<12),
}

// TestTourSurvivesAMalformedPortal promises that nothing a portal says makes
// the daemon fall over or take access away.
func TestTourSurvivesAMalformedPortal(t *testing.T) {
	o := scaled()
	o.Clients = 1
	w := newWorld(t, o)
	require(t, w, gatewayJoins, clientsAuthorized)
	flow, err := w.openFlow(t.Context(), files4)
	if err != nil {
		t.Fatal(err)
	}
	defer flow.Close()
	alive := func(after string) {
		t.Helper()
		if !w.gateway.Running() {
			t.Fatalf("the gateway ended after %s", after)
		}
		if err := echoOnce(flow, time.Now().Add(pingPatience)); err != nil {
			t.Fatalf("established flow after %s: %v", after, err)
		}
	}
	for _, event := range append(knownEvents, "unknown_event", "phx_error_not", "") {
		for _, payload := range badPayloads {
			if err := w.portal.Push("", event, payload); err != nil {
				t.Fatal(err)
			}
		}
		alive("bad payloads of " + event)
	}
	id := w.clientDeviceID()
	for _, client := range []string{id, "00000000-0000-4000-8000-000000000000", "not a client"} {
		for _, event := range []string{"ice_candidates", "invalidate_ice_candidates"} {
			if err := w.portal.Push("", event, map[string]any{"client_id": client, "candidates": badCandidates}); err != nil {
				t.Fatal(err)
			}
		}
		alive("bad candidates for " + client)
	}
	for _, frame := range rawFrames {
		if err := w.portal.PushRaw("", []byte(frame)); err != nil {
			t.Fatal(err)
		}
		alive("raw frame " + frame[:min(len(frame), 60)])
	}
	require(t, w, filtersHold, noGrantRefused, pingAnswered, gatewayLeaves)
}

// TestTourSurvivesGarbageDatagrams promises that whatever arrives at the UDP
// port, truncated or made up, changes nothing.
func TestTourSurvivesGarbageDatagrams(t *testing.T) {
	o := scaled()
	o.NAT, o.IPv4Only, o.Clients = labnet.NoNAT, false, 1
	w := newWorld(t, o)
	require(t, w, gatewayJoins, clientsAuthorized, pathIsDirect)
	to, _, _ := w.clients[0].Path()
	conn, err := w.host(0).DialContext(t.Context(), "udp", to.String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	for _, packet := range garbage() {
		// An ICMP error about an earlier one is not ours to judge.
		if _, err := conn.Write(packet); err != nil && !strings.Contains(err.Error(), "refused") {
			t.Fatal(err)
		}
	}
	if !w.gateway.Running() {
		t.Fatal("the gateway ended")
	}
	require(t, w, pingAnswered, filtersHold, gatewayLeaves)
}

// garbage returns the beginnings, of every length, of each kind of message on
// the port, with and without a sound header, and noise.
func garbage() [][]byte {
	kinds := [][]byte{
		{0x00, 0x01, 0x00, 0x08, 0x21, 0x12, 0xa4, 0x42},   // STUN request
		{0x01, 0x01, 0xff, 0xfc, 0x21, 0x12, 0xa4, 0x42},   // STUN answer with a wrong length
		{0x00, 0x17, 0x00, 0x04, 0x21, 0x12, 0xa4, 0x42},   // TURN Data indication
		{0x40, 0x00, 0x00, 0x40}, {0x4f, 0xff, 0xff, 0xff}, // ChannelData
		{1, 0, 0, 0}, {2, 0, 0, 0}, {3, 0, 0, 0}, {4, 0, 0, 0}, // WireGuard
		{0xff, 0xff}, {},
	}
	var all [][]byte
	for _, kind := range kinds {
		full := make([]byte, 160)
		rand.Read(full)
		copy(full, kind)
		for length := range len(full) {
			all = append(all, full[:length])
		}
	}
	return append(all, make([]byte, 60000))
}

// TestTourDropsForeignSources promises that a client cannot speak for an
// address that is not its own: what it sends so never reaches the resource,
// what it sends after that in its own name does.
func TestTourDropsForeignSources(t *testing.T) {
	o := scaled()
	o.Clients = 1
	w := newWorld(t, o)
	require(t, w, gatewayJoins, clientsAuthorized)
	foreign := netip.MustParseAddr("100.64.0.77")
	if err := w.host(0).Do(func() error { return addToTunnel(foreign) }); err != nil {
		t.Fatal(err)
	}
	receiver, err := w.net.Resource.ListenUDP(netip.AddrPortFrom(places[files4].address, probePort))
	if err != nil {
		t.Fatal(err)
	}
	defer receiver.Close()
	target := net.UDPAddrFromAddrPort(netip.AddrPortFrom(places[files4].address, probePort))
	for _, send := range []struct {
		from netip.Addr
		text string
	}{{foreign, "foreign"}, {w.clients[0].Interface().IPv4, "own"}} {
		conn, err := w.host(0).ListenUDP(netip.AddrPortFrom(send.from, 0))
		if err != nil {
			t.Fatal(err)
		}
		// One tunnel keeps the order: what comes first was not dropped.
		for range 10 {
			if _, err := conn.WriteTo([]byte(send.text), target); err != nil {
				t.Fatal(err)
			}
		}
		conn.Close()
	}
	if err := receiver.SetReadDeadline(time.Now().Add(pingPatience)); err != nil {
		t.Fatal(err)
	}
	buffer := make([]byte, 64)
	n, _, err := receiver.ReadFromUDP(buffer)
	if err != nil {
		t.Fatal(err)
	}
	if got := string(buffer[:n]); got != "own" {
		t.Errorf("the resource got a packet of a %s source", got)
	}
	require(t, w, pingAnswered, gatewayLeaves)
}

// addToTunnel gives the client's tunnel device one more address.
func addToTunnel(address netip.Addr) error {
	link, err := netlink.LinkByName("tun-client")
	if err != nil {
		return err
	}
	err = netlink.AddrAdd(link, &netlink.Addr{IPNet: &net.IPNet{IP: address.AsSlice(), Mask: net.CIDRMask(32, 32)}})
	if err != nil {
		return fmt.Errorf("address %v: %w", address, err)
	}
	return nil
}

// TestTourSurvivesCutConnections promises that websockets that end without a
// word are made again while traffic goes on.
func TestTourSurvivesCutConnections(t *testing.T) {
	o := scaled()
	o.Clients = 1
	w := newWorld(t, o)
	require(t, w, gatewayJoins, clientsAuthorized)
	after := w.lastEvent()
	w.portal.DropConnections()
	require(t, w, pingAnswered)
	ctx, cancel := context.WithTimeout(t.Context(), stepLimit)
	defer cancel()
	if _, err := w.portal.WaitEvent(ctx, after, joined); err != nil {
		t.Fatalf("gateway did not return: %v", err)
	}
	require(t, w, pingAnswered, gatewayLeaves)
}

// TestTourSurvivesARefusingPortal promises that a portal that turns the gateway
// away for a while, and then cuts everybody off, costs nothing but time.
func TestTourSurvivesARefusingPortal(t *testing.T) {
	o := scaled()
	o.Clients = 1
	w := newWorld(t, o)
	require(t, w, gatewayJoins, clientsAuthorized)
	err := w.portal.SetFaults(portal.Faults{
		Roles: []portal.Role{portal.Gateway}, Refuse: &portal.Refusal{Status: 503, Times: 2},
	})
	if err != nil {
		t.Fatal(err)
	}
	require(t, w, gatewayRejoins)
	refused := 0
	for _, e := range w.portal.Events(0) {
		if e.Kind == portal.ConnectRefused {
			refused++
		}
	}
	if refused < 2 {
		t.Errorf("%d handshakes were refused, not 2", refused)
	}
	require(t, w, pingAnswered)
}

// clientDeviceID returns the id that the portal gave the first client.
func (w *World) clientDeviceID() string {
	for _, c := range w.portal.State().Clients {
		return c.ID
	}
	panic(errors.New("no client has logged in"))
}
