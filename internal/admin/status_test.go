package admin

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"
)

// serveAll serves ops until the end of the test.
func serveAll(t *testing.T, ops Operations) Control {
	t.Helper()
	path := socketPath(t)
	s, err := ServeControl(path, ops)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return Control{Path: path}
}

// crowd is the status of a gateway with n clients.
func crowd(n int) Status {
	age := 1.5
	at := time.Date(2026, 11, 21, 9, 38, 48, 0, time.UTC)
	s := Status{
		Time: at, Version: "1.2.3", Phase: PhaseRunning, Ready: true, Missing: []string{},
		Tunnel: []netip.Addr{netip.MustParseAddr("100.64.0.1")}, Relays: []Relay{}, Drops: Drops{"no_path": 2},
		DNS: DNS{Nameservers: []netip.Addr{}, Serving: []netip.AddrPort{}}, Actors: []Actor{},
	}
	for i := range n {
		s.Peers = append(s.Peers, Peer{
			ClientID: fmt.Sprintf("client-%04d", i), Addresses: []netip.Addr{netip.AddrFrom4([4]byte{100, 64, byte(i >> 8), byte(i)})},
			Session: "established", HandshakeAge: &age, LastHandshake: at,
			Path:  &Path{Kind: Direct, Local: netip.MustParseAddrPort("10.0.0.1:1"), Remote: netip.MustParseAddrPort("10.0.0.2:2")},
			Drops: Drops{}, Grants: []Grant{{ResourceID: "r", Name: "name", Kind: "cidr", Address: "10.0.0.0/8"}},
		})
	}
	return s
}

func TestTheStatusOfAThousandClientsComesAsItWas(t *testing.T) {
	want := crowd(1000)
	control := serveAll(t, Operations{Status: func(context.Context) (Status, error) { return want, nil }})
	got, err := control.Status(within(t))
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v", got)
	}
}

func TestLooksThatFail(t *testing.T) {
	fails := errors.New("out of order")
	control := serveAll(t, Operations{
		Status:  func(context.Context) (Status, error) { return Status{}, fails },
		Explain: func(context.Context, Question) (Explanation, error) { return Explanation{}, fails },
	})
	if _, err := control.Status(within(t)); err == nil || err.Error() != fails.Error() {
		t.Errorf("Status = %v, want %v", err, fails)
	}
	if _, err := control.Explain(within(t), question("10.0.0.5:443/tcp")); err == nil || err.Error() != fails.Error() {
		t.Errorf("Explain = %v, want %v", err, fails)
	}
}

// TestAGatewayWithoutAnOperation stands for one of an older version as well.
func TestAGatewayWithoutAnOperation(t *testing.T) {
	control := serveAll(t, Operations{})
	if _, err := control.Status(within(t)); !errors.Is(err, ErrOtherVersion) {
		t.Errorf("Status = %v, want %v", err, ErrOtherVersion)
	}
	if _, err := control.Explain(within(t), question("10.0.0.5:443/tcp")); !errors.Is(err, ErrOtherVersion) {
		t.Errorf("Explain = %v, want %v", err, ErrOtherVersion)
	}
	if err := control.Reset(within(t)); !errors.Is(err, ErrOtherVersion) {
		t.Errorf("Reset = %v, want %v", err, ErrOtherVersion)
	}
}

func TestALookEndsWithTheServer(t *testing.T) {
	entered := make(chan struct{})
	path := socketPath(t)
	s, err := ServeControl(path, Operations{Status: func(ctx context.Context) (Status, error) {
		close(entered)
		<-ctx.Done()
		return Status{}, ctx.Err()
	}})
	if err != nil {
		t.Fatal(err)
	}
	result := make(chan error, 1)
	go func() {
		_, err := Control{Path: path}.Status(within(t))
		result <- err
	}()
	receive(t, entered, "the request")
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	if err := receive(t, result, "the answer"); err == nil || err.Error() != errEnding.Error() {
		t.Errorf("Status = %v, want %v", err, errEnding)
	}
}

func TestManyLooksAtOnceAreRefused(t *testing.T) {
	entered, proceed := make(chan struct{}, maxLooks), make(chan struct{})
	control := serveAll(t, Operations{Status: func(context.Context) (Status, error) {
		entered <- struct{}{}
		<-proceed
		return crowd(1), nil
	}})
	results := make(chan error, maxLooks)
	for range maxLooks {
		go func() {
			_, err := control.Status(within(t))
			results <- err
		}()
	}
	for range maxLooks {
		receive(t, entered, "a request")
	}
	if _, err := control.Status(within(t)); err == nil || err.Error() != errBusy.Error() {
		t.Errorf("Status = %v, want %v", err, errBusy)
	}
	close(proceed)
	for range maxLooks {
		if err := receive(t, results, "an answer"); err != nil {
			t.Error(err)
		}
	}
}

func TestAnswersThatAreNoStatus(t *testing.T) {
	for _, tc := range []struct{ name, body, want string }{
		{"no JSON", "ready", "answer: "},
		{"nothing", "", "answer: "},
		{"a status that breaks off", `{"ready":true,`, "answer: "},
	} {
		t.Run(tc.name, func(t *testing.T) {
			path := filepath.Join(filepath.Dir(filepath.Dir(socketPath(t))), "s")
			l, err := net.Listen("unix", path)
			if err != nil {
				t.Fatal(err)
			}
			server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				_, _ = io.WriteString(w, tc.body)
			})}
			done := make(chan struct{})
			go func() { defer close(done); _ = server.Serve(l) }()
			_, err = Control{Path: path}.Status(within(t))
			server.Close()
			<-done
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("Status = %v, want %s", err, tc.want)
			}
		})
	}
}

func TestALargeAnswerIsNotReadToItsEnd(t *testing.T) {
	const answer = `{"version":"0123456789"}`
	var s Status
	if err := decode(&s, int64(len(answer)))(strings.NewReader(answer)); err != nil || s.Version != "0123456789" {
		t.Errorf("decode = %v", err)
	}
	endless := io.MultiReader(strings.NewReader(`{"version":"`), endlessly('x'))
	if err := decode(&s, 1<<16)(endless); err == nil || err.Error() != "answer of more than 65536 bytes" {
		t.Errorf("decode = %v", err)
	}
}

// endlessly is a reader of one byte again and again.
type endlessly byte

func (e endlessly) Read(b []byte) (int, error) {
	for i := range b {
		b[i] = byte(e)
	}
	return len(b), nil
}
