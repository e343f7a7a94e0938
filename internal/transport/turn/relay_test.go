package turn

import (
	"crypto/md5"
	"crypto/rand"
	"encoding/binary"
	"io"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/pion/logging"
	pion "github.com/pion/stun/v3"
	pionturn "github.com/pion/turn/v2"
	"go.uber.org/goleak"
)

// TestAgainstARealServer runs the client over loopback sockets against a TURN
// server: allocation, two channels, data both ways.
func TestAgainstARealServer(t *testing.T) {
	t.Cleanup(func() { goleak.VerifyNone(t) })
	relay := serve(t)
	d := &driver{T: t, conn: listen(t), relay: relay}
	defer d.conn.Close()
	d.c = New(Config{ID: "r", V4: relay, Username: username, Password: password, Software: "test",
		Random: func(b []byte) { _, _ = rand.Read(b) }}, time.Now())

	remote := listen(t)
	defer remote.Close()
	d.c.BindChannel(addressOf(remote), time.Now()) // queued until allocated
	bound := drive[ChannelBound](d)

	if _, err := remote.WriteTo([]byte("to the gateway"), net.UDPAddrFromAddrPort(bound.Relayed)); err != nil {
		t.Fatal(err)
	}
	drive[channelData](d)
	if got := d.data; got.number != bound.Number || got.payload != "to the gateway" {
		t.Fatalf("received %+v", got)
	}

	frame := binary.BigEndian.AppendUint16(nil, bound.Number)
	frame = append(binary.BigEndian.AppendUint16(frame, 5), "hello"...) // not padded
	if _, err := d.conn.WriteTo(frame, net.UDPAddrFromAddrPort(relay)); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 100)
	_ = remote.SetReadDeadline(time.Now().Add(5 * time.Second))
	n, from, err := remote.ReadFrom(buf)
	if err != nil || string(buf[:n]) != "hello" || from.String() != bound.Relayed.String() {
		t.Fatalf("peer got %q from %v, %v", buf[:n], from, err)
	}

	other := listen(t)
	defer other.Close()
	d.c.BindChannel(addressOf(other), time.Now())
	if second := drive[ChannelBound](d); second.Number != bound.Number+1 {
		t.Fatalf("second channel %+v", second)
	}
}

func TestAWrongPasswordAgainstARealServer(t *testing.T) {
	t.Cleanup(func() { goleak.VerifyNone(t) })
	d := &driver{T: t, conn: listen(t), relay: serve(t)}
	defer d.conn.Close()
	d.c = New(Config{ID: "r", V4: d.relay, Username: username, Password: "another", Software: "test",
		Random: func(b []byte) { _, _ = rand.Read(b) }}, time.Now())
	if f := drive[Failed](d); f.Reason != Rejected {
		t.Fatalf("given up because it is %s", f.Reason)
	}
}

// serve runs a TURN server until the end of the test and returns its address.
func serve(t *testing.T) netip.AddrPort {
	t.Helper()
	server := listen(t)
	key := md5.Sum([]byte(username + ":" + Realm + ":" + password))
	s, err := pionturn.NewServer(pionturn.ServerConfig{
		Realm: Realm,
		AuthHandler: func(u, realm string, _ net.Addr) ([]byte, bool) {
			return key[:], u == username && realm == Realm
		},
		PacketConnConfigs: []pionturn.PacketConnConfig{{
			PacketConn: signing{server, key[:]},
			RelayAddressGenerator: &pionturn.RelayAddressGeneratorStatic{
				RelayAddress: net.IPv4(127, 0, 0, 1), Address: "127.0.0.1",
			},
		}},
		LoggerFactory: &logging.DefaultLoggerFactory{Writer: io.Discard},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return addressOf(server)
}

// driver moves datagrams between a Client and its socket.
type driver struct {
	*testing.T
	c     *Client
	conn  net.PacketConn
	relay netip.AddrPort
	data  channelData
}

type channelData struct {
	number  uint16
	payload string
}

func (channelData) event() {}

// drive runs the client until an event of type E occurs.
func drive[E Event](d *driver) E {
	d.Helper()
	local := addressOf(d.conn)
	buf := make([]byte, 1500)
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); {
		for tr, ok := d.c.PollTransmit(); ok; tr, ok = d.c.PollTransmit() {
			if _, err := d.conn.WriteTo(tr.Data, net.UDPAddrFromAddrPort(tr.To)); err != nil {
				d.Fatal(err)
			}
		}
		for ev, ok := d.c.PollEvent(); ok; ev, ok = d.c.PollEvent() {
			if e, is := ev.(E); is {
				return e
			}
			if f, is := ev.(Failed); is {
				d.Fatalf("the relay was given up: %s", f.Reason)
			}
		}
		_ = d.conn.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
		n, _, err := d.conn.ReadFrom(buf)
		if err != nil {
			d.c.HandleTimeout(time.Now())
			continue
		}
		if n >= 4 && buf[0]>>4 == 4 {
			size := int(binary.BigEndian.Uint16(buf[2:]))
			d.data = channelData{binary.BigEndian.Uint16(buf), string(buf[4 : 4+size])}
			if e, is := Event(d.data).(E); is {
				return e
			}
			continue
		}
		d.c.HandleDatagram(d.relay, local.Addr(), local.Port(), buf[:n], time.Now())
	}
	d.Fatalf("no %T", *new(E))
	panic("unreachable")
}

// signing gives a stock server the two habits of a Firezone relay that it
// lacks: a request with integrity but without nonce is challenged instead of
// refused, and error responses are signed (transport §4.4).
type signing struct {
	net.PacketConn
	key []byte
}

func (s signing) ReadFrom(b []byte) (int, net.Addr, error) {
	n, from, err := s.PacketConn.ReadFrom(b)
	m := &pion.Message{Raw: append([]byte(nil), b[:max(n, 0)]...)}
	if err != nil || !pion.IsMessage(m.Raw) || m.Decode() != nil || !m.Contains(pion.AttrMessageIntegrity) || m.Contains(pion.AttrNonce) {
		return n, from, err
	}
	plain := &pion.Message{Type: m.Type, TransactionID: m.TransactionID}
	plain.WriteHeader()
	return copy(b, plain.Raw), from, nil
}

func (s signing) WriteTo(b []byte, to net.Addr) (int, error) {
	m := &pion.Message{Raw: append([]byte(nil), b...)}
	if pion.IsMessage(b) && m.Decode() == nil && m.Type.Class == pion.ClassErrorResponse && !m.Contains(pion.AttrMessageIntegrity) {
		if err := pion.MessageIntegrity(s.key).AddTo(m); err != nil {
			return 0, err
		}
		if _, err := s.PacketConn.WriteTo(m.Raw, to); err != nil {
			return 0, err
		}
		return len(b), nil
	}
	return s.PacketConn.WriteTo(b, to)
}

func listen(t *testing.T) net.PacketConn {
	t.Helper()
	conn, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return conn
}

func addressOf(c net.PacketConn) netip.AddrPort {
	return unmap(c.LocalAddr().(*net.UDPAddr).AddrPort())
}
