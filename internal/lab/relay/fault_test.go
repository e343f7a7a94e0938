package relay_test

import (
	"errors"
	"net"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/pion/stun/v3"

	"firezone-gateway/internal/lab/relay"
)

func setFaults(t *testing.T, server *relay.Server, f relay.Faults) {
	t.Helper()
	if err := server.SetFaults(f); err != nil {
		t.Fatal(err)
	}
}

func TestErrorsOnDemand(t *testing.T) {
	for _, want := range []stun.ErrorCode{
		stun.CodeBadRequest, stun.CodeUnauthorized, stun.CodeForbidden, stun.CodeUnknownAttribute, stun.CodeAllocMismatch,
		stun.CodeStaleNonce, stun.CodeAllocQuotaReached, stun.CodeInsufficientCapacity, 599,
	} {
		server := start(t, relay.Options{IPv4: loopback})
		c := newClient(t, server)
		setFaults(t, server, relay.Faults{Answers: []relay.Answer{{Method: stun.MethodAllocate, Code: want, Times: 2}}})
		c.learnNonce() // is not what the fault is about
		for range 2 {
			response := c.ask(stun.MethodAllocate, requestUDP)
			if code(response) != want || c.integrity.Check(response) != nil {
				t.Fatalf("code %d, want a signed %d", code(response), want)
			}
			if c.nonce.GetFrom(response) == nil != (want == stun.CodeUnauthorized || want == stun.CodeStaleNonce) {
				t.Errorf("%d: nonce %q", want, c.nonce)
			}
		}
		c.allocate()
		if s := server.Stats(); s.Faults != 2 || s.Allocated != 1 || s.Unauthorized != 0 {
			t.Errorf("%d: %+v", want, s)
		}
	}
}

func TestErrorsConcernTheChosenMethod(t *testing.T) {
	server := start(t, relay.Options{IPv4: loopback})
	setFaults(t, server, relay.Faults{Answers: []relay.Answer{
		{Method: stun.MethodChannelBind, Code: stun.CodeForbidden, Times: 1},
		{Method: stun.MethodChannelBind, Code: stun.CodeInsufficientCapacity},
		{Method: stun.MethodBinding, Code: stun.CodeBadRequest, Times: 1},
	}})
	c, _ := ready(t, server)
	peer := listenUDP(t)
	for _, want := range []stun.ErrorCode{stun.CodeForbidden, stun.CodeInsufficientCapacity, stun.CodeInsufficientCapacity} {
		if response := c.bind(0x4000, peer.LocalAddr()); code(response) != want {
			t.Errorf("code %d, want %d", code(response), want)
		}
	}
	c.write(stun.MustBuild(stun.TransactionID, stun.BindingRequest).Raw)
	response := &stun.Message{Raw: c.read()}
	if err := response.Decode(); err != nil || code(response) != stun.CodeBadRequest || response.Contains(stun.AttrMessageIntegrity) {
		t.Errorf("Binding: %v with code %d, error %v", response, code(response), err)
	}
	c.echo()
	setFaults(t, server, relay.Faults{Answers: []relay.Answer{{Code: stun.CodeServerError}}})
	for _, method := range []stun.Method{stun.MethodAllocate, stun.MethodRefresh, stun.MethodChannelBind, stun.MethodCreatePermission} {
		if response := c.ask(method, requestUDP); code(response) != stun.CodeServerError {
			t.Errorf("%v: code %d, want 500", method, code(response))
		}
	}
	c.echo()
	setFaults(t, server, relay.Faults{})
	c.bound(0x4000, peer.LocalAddr())
}

func TestRequestsLeftUnanswered(t *testing.T) {
	server := start(t, relay.Options{IPv4: loopback})
	c, _ := ready(t, server)
	setFaults(t, server, relay.Faults{Answers: []relay.Answer{{Method: stun.MethodRefresh, Times: 3}}})
	stale := *c
	stale.nonce = stun.NewNonce("stale")
	anonymous := *c
	anonymous.nonce = nil
	for _, c := range []*client{c, &stale, &anonymous} {
		c.write(c.request(stun.MethodRefresh).Raw)
	}
	c.echo() // nothing was answered before
	if response := c.ask(stun.MethodRefresh); response.Type.Class != stun.ClassSuccessResponse {
		t.Errorf("fourth refresh: %v", response)
	}
	if n := server.Stats().Faults; n != 3 {
		t.Errorf("%d faults counted", n)
	}
}

func TestSilentRelayHearsNothing(t *testing.T) {
	server := start(t, relay.Options{IPv4: loopback})
	c, relayed := ready(t, server)
	peer := listenUDP(t)
	c.bound(0x4000, peer.LocalAddr())
	setFaults(t, server, relay.Faults{Silent: true})
	c.write(c.request(stun.MethodRefresh).Raw)
	c.write(channelData(0x4000, "lost"))
	c.write(stun.MustBuild(stun.TransactionID, stun.BindingRequest).Raw)
	if _, err := peer.WriteTo([]byte("lost"), relayed); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the datagrams are not swallowed", func() bool { return server.Stats().Silenced == 4 })
	setFaults(t, server, relay.Faults{})
	c.write(channelData(0x4000, "heard"))
	buffer := make([]byte, 64)
	if n, _, err := peer.ReadFrom(buffer); err != nil || string(buffer[:n]) != "heard" {
		t.Errorf("peer gets %q first, error %v", buffer[:n], err)
	}
	if response := c.ask(stun.MethodRefresh); response.Type.Class != stun.ClassSuccessResponse {
		t.Errorf("refresh afterwards: %v", response)
	}
}

func TestNoncesExpireOnDemand(t *testing.T) {
	server := start(t, relay.Options{IPv4: loopback})
	c, _ := ready(t, server)
	server.ExpireNonces()
	for _, method := range []stun.Method{stun.MethodRefresh, stun.MethodChannelBind} {
		old := c.nonce.String()
		response := c.ask(method)
		if code(response) != stun.CodeStaleNonce || c.integrity.Check(response) != nil {
			t.Fatalf("%v: %v with code %d, want a signed 438", method, response, code(response))
		}
		if method == stun.MethodRefresh {
			continue // and does not take the new one
		}
		if err := c.nonce.GetFrom(response); err != nil || c.nonce.String() == old {
			t.Fatalf("nonce %q, error %v", c.nonce, err)
		}
	}
	if response := c.ask(stun.MethodRefresh); response.Type.Class != stun.ClassSuccessResponse {
		t.Errorf("with the new nonce: %v", response)
	}
}

func TestFaultsThatCannotBe(t *testing.T) {
	server := start(t, relay.Options{IPv4: loopback})
	for name, a := range map[string]relay.Answer{
		"a success":      {Code: 200},
		"no STUN code":   {Code: 700},
		"negative times": {Code: 400, Times: -1},
	} {
		if server.SetFaults(relay.Faults{Answers: []relay.Answer{a}}) == nil {
			t.Errorf("%s is accepted", name)
		}
	}
}

func TestRestartedRelayKnowsNothing(t *testing.T) {
	server := start(t, relay.Options{IPv4: loopback})
	c, _ := ready(t, server)
	address, id := server.Addrs()[0], server.ID()
	for range 2 {
		if err := server.Suspend(); err != nil {
			t.Fatal(err)
		}
	}
	if n := server.Stats().Allocations; n != 0 {
		t.Errorf("%d allocations survive", n)
	}
	eventually(t, "the host accepts datagrams for a relay that is gone", func() bool {
		_ = c.conn.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
		_, writeErr := c.conn.Write([]byte{0})
		_, readErr := c.conn.Read(make([]byte, 1))
		return errors.Is(writeErr, syscall.ECONNREFUSED) || errors.Is(readErr, syscall.ECONNREFUSED)
	})

	if err := server.Resume(""); err != nil {
		t.Fatal(err)
	}
	if server.Addrs()[0] != address || server.ID() != id {
		t.Errorf("relay %v is now %v at %v", id, server.ID(), server.Addrs())
	}
	if response := c.ask(stun.MethodRefresh); code(response) != stun.CodeStaleNonce {
		t.Errorf("refresh with the old nonce: code %d, want 438", code(response))
	}
	c.learnNonce()
	if response := c.ask(stun.MethodRefresh); code(response) != stun.CodeAllocMismatch {
		t.Errorf("refresh of what is gone: code %d, want 437", code(response))
	}
	c.allocate()
	if s := server.Stats(); s.Allocated != 2 || s.Allocations != 1 {
		t.Errorf("%+v", s)
	}
}

func TestRestartWithAnotherSecretEndsCredentials(t *testing.T) {
	server := start(t, relay.Options{IPv4: loopback})
	c, _ := ready(t, server)
	if server.Resume("") == nil {
		t.Error("a running relay is resumed")
	}
	if err := server.Suspend(); err != nil {
		t.Fatal(err)
	}
	another := strings.Repeat("fedcba9876543210", 4)
	if err := server.Resume(another); err != nil {
		t.Fatal(err)
	}
	if server.ID() != relay.ID(another) {
		t.Error("the id is the old one")
	}
	for range 2 { // with a new nonce they are no better
		response := c.ask(stun.MethodAllocate, requestUDP)
		if code(response) != stun.CodeUnauthorized {
			t.Errorf("old credentials: code %d, want 401", code(response))
		}
		if err := c.nonce.GetFrom(response); err != nil {
			t.Fatal(err)
		}
	}
	username, password := relay.Credentials(another, "key", startTime.Add(time.Hour))
	c.username, c.integrity = username, stun.NewLongTermIntegrity(username, relay.Realm, password)
	c.learnNonce()
	c.allocate()
	if err := server.Close(); err != nil {
		t.Fatal(err)
	}
	if err := server.Resume(""); !errors.Is(err, relay.ErrClosed) {
		t.Errorf("a closed relay is resumed: %v", err)
	}
}

func TestResumeThatFailsLeavesTheRelaySuspended(t *testing.T) {
	server := start(t, relay.Options{IPv4: loopback})
	if err := server.Suspend(); err != nil {
		t.Fatal(err)
	}
	taken, err := net.ListenUDP("udp4", net.UDPAddrFromAddrPort(server.Addrs()[0]))
	if err != nil {
		t.Fatal(err)
	}
	if err := server.Resume(""); !errors.Is(err, syscall.EADDRINUSE) {
		t.Errorf("resumed on a taken port: %v", err)
	}
	if err := taken.Close(); err != nil {
		t.Fatal(err)
	}
	if err := server.Resume(""); err != nil {
		t.Fatal(err)
	}
	ready(t, server)
}
