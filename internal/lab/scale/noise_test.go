package scale

import (
	"bytes"
	"crypto/ecdh"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"net"
	"net/netip"
	"testing"
	"time"

	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/device"
	"golang.zx2c4.com/wireguard/tun/tuntest"
)

var (
	innerOfClient = netip.MustParseAddr("100.64.0.1")
	innerOfTarget = netip.MustParseAddr("10.20.0.10")
)

func newKey(t testing.TB) *ecdh.PrivateKey {
	t.Helper()
	key, err := ecdh.X25519().GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// newIdentity returns a client's identity for the gateway with a key.
func newIdentity(t testing.TB, gateway *ecdh.PrivateKey) *identity {
	t.Helper()
	private := newKey(t)
	id := &identity{
		private: private, public: [32]byte(private.PublicKey().Bytes()), gateway: [32]byte(gateway.PublicKey().Bytes()),
	}
	if _, err := rand.Read(id.psk[:]); err != nil {
		t.Fatal(err)
	}
	return id
}

// engine is golang.zx2c4.com/wireguard as the other side, on loopback.
type engine struct {
	tun  *tuntest.ChannelTUN
	addr netip.AddrPort
}

func newEngine(t *testing.T, key *ecdh.PrivateKey, client *identity) *engine {
	t.Helper()
	e := &engine{tun: tuntest.NewChannelTUN()}
	dev := device.NewDevice(e.tun.TUN(), conn.NewDefaultBind(), &device.Logger{Verbosef: device.DiscardLogf, Errorf: t.Logf})
	t.Cleanup(dev.Close)
	config := fmt.Sprintf("private_key=%x\nlisten_port=0\npublic_key=%x\npreshared_key=%x\nallowed_ip=%s/32\n",
		key.Bytes(), client.public, client.psk, innerOfClient)
	if err := dev.IpcSet(config); err != nil {
		t.Fatal(err)
	}
	if err := dev.Up(); err != nil {
		t.Fatal(err)
	}
	state, err := dev.IpcGet()
	if err != nil {
		t.Fatal(err)
	}
	var port uint16
	for _, line := range bytes.Split([]byte(state), []byte("\n")) {
		_, _ = fmt.Sscanf(string(line), "listen_port=%d", &port)
	}
	e.addr = netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), port)
	return e
}

// exchange sends b and returns the answer.
func exchangeWith(t *testing.T, c *net.UDPConn, to netip.AddrPort, b []byte) []byte {
	t.Helper()
	if _, err := c.WriteToUDPAddrPort(b, to); err != nil {
		t.Fatal(err)
	}
	return receiveFrom(t, c)
}

func receiveFrom(t *testing.T, c *net.UDPConn) []byte {
	t.Helper()
	if err := c.SetReadDeadline(time.Now().Add(30 * time.Second)); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 2048)
	n, err := c.Read(b)
	if err != nil {
		t.Fatal(err)
	}
	return b[:n]
}

func TestHandshakeWithAnotherImplementation(t *testing.T) {
	gateway := newKey(t)
	id := newIdentity(t, gateway)
	e := newEngine(t, gateway, id)
	c, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()

	h, initiation, err := initiate(id, 7<<8|1, time.Now(), nil)
	if err != nil {
		t.Fatal(err)
	}
	response := exchangeWith(t, c, e.addr, initiation)
	forged := bytes.Clone(response)
	forged[50] ^= 1
	if _, err := h.finish(forged, time.Now()); err != errForged {
		t.Errorf("forged response: %v", err)
	}
	s, err := h.finish(response, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	echo := appendEcho(nil, innerOfClient, innerOfTarget, 1, 2)
	if _, err := c.WriteToUDPAddrPort(s.seal(echo), e.addr); err != nil {
		t.Fatal(err)
	}
	select {
	case got := <-e.tun.Inbound:
		if !bytes.Equal(got, echo) {
			t.Errorf("the other side got %x, want %x", got, echo)
		}
	case <-time.After(30 * time.Second):
		t.Fatal("the other side got nothing")
	}
	reply := asReply(echo)
	e.tun.Outbound <- reply
	for {
		inner, err := s.open(receiveFrom(t, c))
		if err != nil {
			t.Fatal(err)
		}
		if len(inner) == 0 {
			continue // a keepalive
		}
		if n, sequence, ok := parseEchoReply(inner, innerOfTarget, innerOfClient); !ok || n != 1 || sequence != 2 {
			t.Errorf("inner packet is %x", inner)
		}
		return
	}
}

// asReply turns an echo request into the reply.
func asReply(echo []byte) []byte {
	b := bytes.Clone(echo)
	copy(b[12:16], echo[16:20])
	copy(b[16:20], echo[12:16])
	b[ipv4Header], b[ipv4Header+2], b[ipv4Header+3] = echoReply, 0, 0
	sum := checksum(b[ipv4Header:])
	b[ipv4Header+2], b[ipv4Header+3] = byte(sum>>8), byte(sum)
	return b
}

func TestCookieOfAnotherImplementation(t *testing.T) {
	gateway := newKey(t)
	id := newIdentity(t, gateway)
	var checker device.CookieChecker
	checker.Init(device.NoisePublicKey(id.gateway))
	h, initiation, err := initiate(id, 1<<8|1, time.Now(), nil)
	if err != nil {
		t.Fatal(err)
	}
	source := []byte("an address and a port")
	if !checker.CheckMAC1(initiation) {
		t.Fatal("mac1 is wrong")
	}
	if checker.CheckMAC2(initiation, source) {
		t.Fatal("mac2 is right without a cookie")
	}
	reply, err := checker.CreateReply(initiation, h.index, source)
	if err != nil {
		t.Fatal(err)
	}
	b := make([]byte, cookieSize)
	b[0] = typeCookie
	b[4], b[5] = byte(reply.Receiver), byte(reply.Receiver>>8)
	copy(b[8:], reply.Nonce[:])
	copy(b[32:], reply.Cookie[:])
	cookie, err := h.cookie(b)
	if err != nil {
		t.Fatal(err)
	}
	_, initiation, err = initiate(id, 1<<8|2, time.Now(), cookie)
	if err != nil {
		t.Fatal(err)
	}
	if !checker.CheckMAC1(initiation) || !checker.CheckMAC2(initiation, source) {
		t.Error("macs are wrong with the cookie " + hex.EncodeToString(cookie))
	}
	b[40] ^= 1
	if _, err := h.cookie(b); err != errForged {
		t.Errorf("forged cookie: %v", err)
	}
}

func TestMessagesOfAnotherHandshakeAreRefused(t *testing.T) {
	id := newIdentity(t, newKey(t))
	h, _, err := initiate(id, 1, time.Now(), nil)
	if err != nil {
		t.Fatal(err)
	}
	response, cookie := make([]byte, responseSize), make([]byte, cookieSize)
	response[0], cookie[0] = typeResponse, typeCookie
	if _, err := h.finish(response, time.Now()); err != errOutdated {
		t.Errorf("response: %v", err)
	}
	if _, err := h.cookie(cookie); err != errOutdated {
		t.Errorf("cookie: %v", err)
	}
	if _, err := h.finish(cookie, time.Now()); err != errMessage {
		t.Errorf("a cookie as a response: %v", err)
	}
	if _, err := h.cookie(response); err != errMessage {
		t.Errorf("a response as a cookie: %v", err)
	}
}
