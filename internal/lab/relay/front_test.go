package relay_test

import (
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

	"github.com/pion/stun/v3"

	labnet "firezone-gateway/internal/lab/net"
	"firezone-gateway/internal/lab/relay"
)

var (
	requestUDP     = stun.RawAttribute{Type: stun.AttrRequestedTransport, Value: []byte{17, 0, 0, 0}}
	requestIPv4    = stun.RawAttribute{Type: stun.AttrRequestedAddressFamily, Value: []byte{1, 0, 0, 0}}
	requestIPv6    = stun.RawAttribute{Type: stun.AttrRequestedAddressFamily, Value: []byte{2, 0, 0, 0}}
	additionalIPv6 = stun.RawAttribute{Type: 0x8000, Value: []byte{2, 0, 0, 0}}
	additionalIPv4 = stun.RawAttribute{Type: 0x8000, Value: []byte{1, 0, 0, 0}}
	channel4000    = channelNumber(0x4000)
)

func channelNumber(n uint16) stun.RawAttribute {
	return stun.RawAttribute{Type: stun.AttrChannelNumber, Value: []byte{byte(n >> 8), byte(n), 0, 0}}
}

// channelData returns a frame of ChannelData.
func channelData(number uint16, payload string) []byte {
	return append([]byte{byte(number >> 8), byte(number), byte(len(payload) >> 8), byte(len(payload))}, payload...)
}

// A client of the original sends its credentials in the very first request,
// and believes only answers that are signed with its password.
func TestCredentialsWithoutNonceAreAnsweredBySigned401(t *testing.T) {
	c := newClient(t, start(t, relay.Options{IPv4: loopback}))
	response := c.ask(stun.MethodAllocate, requestUDP)
	if code(response) != stun.CodeUnauthorized {
		t.Fatalf("answer %v with code %d, want 401", response, code(response))
	}
	var realm stun.Realm
	var nonce stun.Nonce
	if realm.GetFrom(response) != nil || nonce.GetFrom(response) != nil || realm.String() != relay.Realm || len(nonce) == 0 {
		t.Errorf("realm %q, nonce %q", realm, nonce)
	}
	if err := c.integrity.Check(response); err != nil {
		t.Errorf("answer is not signed: %v", err)
	}
}

func TestStaleNonceIsAnsweredBySigned438(t *testing.T) {
	c := newClient(t, start(t, relay.Options{IPv4: loopback}))
	c.nonce = stun.NewNonce("of another relay")
	response := c.ask(stun.MethodAllocate, requestUDP)
	if code(response) != stun.CodeStaleNonce || c.integrity.Check(response) != nil || !response.Contains(stun.AttrNonce) {
		t.Errorf("answer %v with code %d, want a signed 438", response, code(response))
	}
}

func TestRequestsWithoutAllocationAreAnsweredBySigned437(t *testing.T) {
	server := start(t, relay.Options{IPv4: loopback})
	c := newClient(t, server)
	c.learnNonce()
	for _, method := range []stun.Method{stun.MethodRefresh, stun.MethodChannelBind, stun.MethodCreatePermission} {
		response := c.ask(method, channel4000)
		if code(response) != stun.CodeAllocMismatch || c.integrity.Check(response) != nil {
			t.Errorf("%v: answer %v with code %d, want a signed 437", method, response, code(response))
		}
	}

	c.allocate()
	if response := c.ask(stun.MethodAllocate, requestUDP); code(response) != stun.CodeAllocMismatch {
		t.Errorf("second allocation: code %d, want 437", code(response))
	}
	gone := stun.RawAttribute{Type: stun.AttrLifetime, Value: make([]byte, 4)}
	if response := c.ask(stun.MethodRefresh, gone); response.Type.Class != stun.ClassSuccessResponse {
		t.Errorf("refresh with lifetime 0: %v", response)
	}
	if response := c.ask(stun.MethodRefresh); code(response) != stun.CodeAllocMismatch {
		t.Errorf("refresh of what is gone: code %d, want 437", code(response))
	}
	c.allocate()
	if n := server.Stats().Allocated; n != 2 {
		t.Errorf("%d allocations ever, want 2", n)
	}
}

func TestChannelDataCrossesTheRelayUnpadded(t *testing.T) {
	c := newClient(t, start(t, relay.Options{IPv4: loopback}))
	c.learnNonce()
	relayed := c.allocate()[0]
	peer := listenUDP(t)
	if response := c.ask(stun.MethodChannelBind, channel4000, peerAddress(peer.LocalAddr())); response.Type.Class != stun.ClassSuccessResponse {
		t.Fatalf("bind: %v", response)
	}
	if _, err := c.conn.Write([]byte{0x40, 0, 0, 3, 'a', 'b', 'c'}); err != nil {
		t.Fatal(err)
	}
	buffer := make([]byte, 64)
	n, from, err := peer.ReadFromUDPAddrPort(buffer)
	if err != nil || string(buffer[:n]) != "abc" || from != relayed {
		t.Fatalf("peer gets %q from %v, error %v", buffer[:n], from, err)
	}
	if _, err := peer.WriteToUDPAddrPort([]byte("defgh"), relayed); err != nil {
		t.Fatal(err)
	}
	if frame := c.read(); string(frame) != "\x40\x00\x00\x05defgh" {
		t.Errorf("client gets %q", frame)
	}
	peer6 := &net.UDPAddr{IP: net.IPv6loopback, Port: 1000}
	if response := c.ask(stun.MethodChannelBind, channel4000, peerAddress(peer6)); code(response) != stun.CodePeerAddrFamilyMismatch {
		t.Errorf("IPv6 peer of an IPv4 allocation: code %d, want 443", code(response))
	}
}

func TestAddressFamiliesOfAnIPv4Relay(t *testing.T) {
	server := start(t, relay.Options{IPv4: loopback})
	for _, test := range []struct {
		name  string
		attrs []stun.Setter
		want  stun.ErrorCode
	}{
		{"none asked for", nil, 0},
		{"IPv4 asked for", []stun.Setter{requestIPv4}, 0},
		{"IPv6 asked for", []stun.Setter{requestIPv6}, stun.CodeAddrFamilyNotSupported},
		{"IPv6 in addition", []stun.Setter{additionalIPv6}, 0},
		{"IPv4 in addition", []stun.Setter{additionalIPv4}, stun.CodeBadRequest},
		{"both attributes", []stun.Setter{requestIPv6, additionalIPv6}, stun.CodeBadRequest},
	} {
		t.Run(test.name, func(t *testing.T) {
			c := newClient(t, server)
			c.learnNonce()
			response := c.ask(stun.MethodAllocate, append([]stun.Setter{requestUDP}, test.attrs...)...)
			if code(response) != test.want || c.integrity.Check(response) != nil {
				t.Fatalf("code %d, want %d", code(response), test.want)
			}
			if relayed := relayedAddresses(t, response); test.want == 0 && (len(relayed) != 1 || relayed[0].Addr() != loopback) {
				t.Errorf("relayed addresses %v", relayed)
			}
		})
	}
}

func TestMalformedDatagramsAreCountedAndSurvived(t *testing.T) {
	server := start(t, relay.Options{IPv4: loopback})
	c := newClient(t, server)
	short := stun.MustBuild(stun.TransactionID, stun.NewType(stun.MethodSend, stun.ClassIndication),
		stun.RawAttribute{Type: stun.AttrData, Value: []byte("data")}, stun.RawAttribute{Type: stun.AttrXORPeerAddress})
	mixed := stun.MustBuild(stun.TransactionID, stun.NewType(stun.MethodChannelBind, stun.ClassRequest),
		stun.RawAttribute{Type: stun.AttrXORPeerAddress, Value: []byte{0, 2, 0, 0, 0, 0, 0, 0}})
	trailing := stun.MustBuild(stun.TransactionID, stun.BindingRequest)
	datagrams := [][]byte{{0}, {0xff, 1, 2, 3}, make([]byte, 20), short.Raw, mixed.Raw, append(trailing.Raw, 0, 0, 0, 0)}
	for _, datagram := range datagrams {
		if _, err := c.conn.Write(datagram); err != nil {
			t.Fatal(err)
		}
	}
	c.learnNonce()
	c.allocate()
	if n := server.Stats().Malformed; n != uint64(len(datagrams)) {
		t.Errorf("%d malformed datagrams counted, want %d", n, len(datagrams))
	}
}

func TestRelayWithBothFamiliesInANamespace(t *testing.T) {
	d := needDeployment(t)
	host := d.Relays[0]
	server := start(t, relay.Options{IPv4: host.IPv4, IPv6: host.IPv6, Port: relay.Port, ListenPacket: host.ListenPacket})
	for i, at := range []netip.Addr{host.IPv4, host.IPv6} {
		address := netip.AddrPortFrom(at, relay.Port)
		if server.Addrs()[i] != address {
			t.Fatalf("relay listens at %v, want %v", server.Addrs()[i], address)
		}
		conn, err := d.Clients[0].Host.DialContext(t.Context(), "udp", address.String())
		if err != nil {
			t.Fatal(err)
		}
		c := newClientOn(t, conn)
		c.learnNonce()
		relayed := c.allocate(additionalIPv6)
		if len(relayed) != 2 || relayed[0].Addr() != host.IPv4 || relayed[1].Addr() != host.IPv6 || relayed[0].Port() != relayed[1].Port() {
			t.Fatalf("through %v: relayed addresses %v", at, relayed)
		}
		// One peer of each family, through the one allocation.
		for j, peerAt := range []netip.Addr{d.Portal.IPv4, d.Portal.IPv6} {
			peer, err := d.Portal.ListenUDP(netip.AddrPortFrom(peerAt, 0))
			if err != nil {
				t.Fatal(err)
			}
			defer peer.Close()
			_ = peer.SetReadDeadline(time.Now().Add(arrival))
			number := stun.RawAttribute{Type: stun.AttrChannelNumber, Value: []byte{0x40, byte(j), 0, 0}}
			if response := c.ask(stun.MethodChannelBind, number, peerAddress(peer.LocalAddr())); response.Type.Class != stun.ClassSuccessResponse {
				t.Fatalf("bind %v: %v", peerAt, response)
			}
			c.exchange(0x4000+uint16(j), peer, relayed[j])
		}
	}
}

func TestRelayWithIPv6OnlyInANamespace(t *testing.T) {
	d := needDeployment(t)
	host := d.Relays[0]
	server := start(t, relay.Options{IPv6: host.IPv6, Port: relay.Port, ListenPacket: host.ListenPacket})
	if addrs := server.Addrs(); len(addrs) != 1 || addrs[0] != netip.AddrPortFrom(host.IPv6, relay.Port) {
		t.Fatalf("relay listens at %v", addrs)
	}
	conn, err := d.Clients[0].Host.DialContext(t.Context(), "udp", server.Addrs()[0].String())
	if err != nil {
		t.Fatal(err)
	}
	c := newClientOn(t, conn)
	c.learnNonce()
	if response := c.ask(stun.MethodAllocate, requestUDP); code(response) != stun.CodeAddrFamilyNotSupported {
		t.Errorf("allocation of IPv4: code %d, want 440", code(response))
	}
	relayed := c.allocate(additionalIPv6)
	if len(relayed) != 1 || relayed[0].Addr() != host.IPv6 {
		t.Fatalf("relayed addresses %v", relayed)
	}
	peer, err := d.Portal.ListenUDP(netip.AddrPortFrom(d.Portal.IPv6, 0))
	if err != nil {
		t.Fatal(err)
	}
	defer peer.Close()
	c.bound(0x4000, peer.LocalAddr())
	c.exchange(0x4000, peer, relayed[0])
	if response := c.bind(0x4001, &net.UDPAddr{IP: d.Portal.IPv4.AsSlice(), Port: 1000}); code(response) != stun.CodePeerAddrFamilyMismatch {
		t.Errorf("IPv4 peer of an IPv6 allocation: code %d, want 443", code(response))
	}
}

// needDeployment returns a network of namespaces with a relay's host in it.
func needDeployment(t *testing.T) *labnet.Deployment {
	t.Helper()
	d, err := labnet.NewDeployment(labnet.Options{ClientNAT: labnet.PortRestricted})
	if err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal(err)
		}
		t.Skip(err)
	}
	t.Cleanup(func() { d.Close() })
	return d
}

// client speaks STUN by hand.
type client struct {
	t         testing.TB
	conn      net.Conn
	username  string
	integrity stun.MessageIntegrity
	nonce     stun.Nonce
}

func newClient(t *testing.T, server *relay.Server) *client {
	t.Helper()
	conn, err := net.Dial("udp", server.Addrs()[0].String())
	if err != nil {
		t.Fatal(err)
	}
	return newClientOn(t, conn)
}

func newClientOn(t testing.TB, conn net.Conn) *client {
	t.Cleanup(func() { conn.Close() })
	username, password := relay.Credentials(secret, "key", startTime.Add(time.Hour))
	return &client{t: t, conn: conn, username: username, integrity: stun.NewLongTermIntegrity(username, relay.Realm, password)}
}

// request returns a request with credentials.
func (c *client) request(method stun.Method, attributes ...stun.Setter) *stun.Message {
	c.t.Helper()
	setters := append([]stun.Setter{stun.TransactionID, stun.NewType(method, stun.ClassRequest)}, attributes...)
	setters = append(setters, stun.NewUsername(c.username), stun.NewRealm(relay.Realm))
	if c.nonce != nil {
		setters = append(setters, c.nonce)
	}
	request, err := stun.Build(append(setters, c.integrity)...)
	if err != nil {
		c.t.Fatal(err)
	}
	return request
}

// ask sends a request with credentials and returns the answer to it.
func (c *client) ask(method stun.Method, attributes ...stun.Setter) *stun.Message {
	c.t.Helper()
	request := c.request(method, attributes...)
	c.write(request.Raw)
	response := &stun.Message{Raw: c.read()}
	if err := response.Decode(); err != nil {
		c.t.Fatal(err)
	}
	if response.TransactionID != request.TransactionID || response.Type.Method != method {
		c.t.Fatalf("answer %v to %v", response, request)
	}
	return response
}

func (c *client) learnNonce() {
	c.t.Helper()
	c.nonce = nil
	if err := c.nonce.GetFrom(c.ask(stun.MethodAllocate, requestUDP)); err != nil {
		c.t.Fatal(err)
	}
}

func (c *client) allocate(attributes ...stun.Setter) []netip.AddrPort {
	c.t.Helper()
	response := c.ask(stun.MethodAllocate, append([]stun.Setter{requestUDP}, attributes...)...)
	if response.Type.Class != stun.ClassSuccessResponse {
		c.t.Fatalf("allocate: %v, code %d", response, code(response))
	}
	if err := c.integrity.Check(response); err != nil {
		c.t.Fatal(err)
	}
	return relayedAddresses(c.t, response)
}

// bind binds a channel.
func (c *client) bind(number uint16, peer net.Addr) *stun.Message {
	c.t.Helper()
	return c.ask(stun.MethodChannelBind, channelNumber(number), peerAddress(peer))
}

// bound binds a channel and fails the test if the relay does not.
func (c *client) bound(number uint16, peer net.Addr) {
	c.t.Helper()
	if response := c.bind(number, peer); response.Type.Class != stun.ClassSuccessResponse {
		c.t.Fatalf("bind %x to %v: %v, code %d", number, peer, response, code(response))
	}
}

// exchange sends a datagram each way on a channel that is bound to the peer.
func (c *client) exchange(number uint16, peer *net.UDPConn, relayed netip.AddrPort) {
	c.t.Helper()
	c.write(channelData(number, "hi"))
	buffer := make([]byte, 64)
	_ = peer.SetReadDeadline(time.Now().Add(arrival))
	n, from, err := peer.ReadFromUDPAddrPort(buffer)
	if err != nil || string(buffer[:n]) != "hi" || from != relayed {
		c.t.Fatalf("peer gets %q from %v, error %v, want it from %v", buffer[:n], from, err, relayed)
	}
	if _, err := peer.WriteToUDPAddrPort([]byte("ho"), from); err != nil {
		c.t.Fatal(err)
	}
	if frame := c.read(); string(frame) != string(channelData(number, "ho")) {
		c.t.Fatalf("client gets %q", frame)
	}
}

// write sends a datagram to the relay.
func (c *client) write(b []byte) {
	c.t.Helper()
	if _, err := c.conn.Write(b); err != nil {
		c.t.Fatal(err)
	}
}

// echo holds that the relay handles the client's datagrams to this point: it
// answers in order.
func (c *client) echo() {
	c.t.Helper()
	c.write(stun.MustBuild(stun.TransactionID, stun.BindingRequest).Raw)
	response := &stun.Message{Raw: c.read()}
	if err := response.Decode(); err != nil || response.Type != stun.BindingSuccess {
		c.t.Fatalf("answer to Binding: %v, error %v", response, err)
	}
}

func (c *client) read() []byte {
	c.t.Helper()
	buffer := make([]byte, 1500)
	_ = c.conn.SetReadDeadline(time.Now().Add(arrival))
	n, err := c.conn.Read(buffer)
	if err != nil {
		c.t.Fatalf("no answer: %v", err)
	}
	return buffer[:n]
}

func relayedAddresses(t testing.TB, m *stun.Message) []netip.AddrPort {
	t.Helper()
	var addresses []netip.AddrPort
	for _, attribute := range m.Attributes {
		if attribute.Type != stun.AttrXORRelayedAddress {
			continue
		}
		single := &stun.Message{TransactionID: m.TransactionID, Attributes: stun.Attributes{attribute}}
		var address stun.XORMappedAddress
		if err := address.GetFromAs(single, stun.AttrXORRelayedAddress); err != nil {
			t.Fatal(err)
		}
		ip, _ := netip.AddrFromSlice(address.IP)
		addresses = append(addresses, netip.AddrPortFrom(ip, uint16(address.Port)))
	}
	return addresses
}

type peerAttribute stun.XORMappedAddress

func peerAddress(a net.Addr) peerAttribute {
	udp := a.(*net.UDPAddr)
	return peerAttribute{IP: udp.IP, Port: udp.Port}
}

// AddTo adds XOR-PEER-ADDRESS.
func (p peerAttribute) AddTo(m *stun.Message) error {
	return stun.XORMappedAddress(p).AddToAs(m, stun.AttrXORPeerAddress)
}

// code returns the error code of a response, 0 for a success.
func code(m *stun.Message) stun.ErrorCode {
	var attribute stun.ErrorCodeAttribute
	if attribute.GetFrom(m) != nil {
		return 0
	}
	return attribute.Code
}
