package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"firezone-gateway/internal/lab/portal"
)

func TestResetGivesTheGatewayAnotherKey(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name, cause string
		times       int
		ask         func(t *testing.T, s *site, r *running)
	}{
		{"by a signal", "SIGHUP", 2, func(t *testing.T, _ *site, r *running) {
			if err := r.Signal(syscall.SIGHUP); err != nil {
				t.Fatal(err)
			}
		}},
		{"by the command", "command", 2, func(t *testing.T, s *site, r *running) {
			reset := launch{args: []string{"reset", "--json"}, control: r.control}.start(t, s.Namespace)
			reset.exits(t, exitOK)
			if result := resetResult(t, reset.stdout.String()); !result.Reset {
				t.Errorf("%+v", result)
			}
		}},
		{"by a new default route", "default route changed", 1, func(t *testing.T, s *site, _ *running) { s.addDefaultRoute(t) }},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			s := newSite(t)
			r := s.startJoined(t, launch{env: variablesOf{"FIREZONE_LOG_FORMAT": "json"}})
			r.awaitControl(t)
			for round := range tc.times {
				tc.ask(t, s, r)
				r.await(t, "another login", func() bool { return len(s.logins()) > round+1 })

				old, now := s.logins()[round], s.logins()[round+1]
				if now.PublicKey == old.PublicKey || now.PublicKey == "" || now.GatewayID != old.GatewayID {
					t.Errorf("logged in as %s with key %q, before as %s with %q", now.GatewayID, now.PublicKey, old.GatewayID, old.PublicKey)
				}
				if e := s.leaving(t, r, old.PublicKey); e.Status != 1000 {
					t.Errorf("the portal saw close code %d, want 1000", e.Status)
				}
			}
			if !r.stdout.has(`"cause":"` + tc.cause + `"`) {
				t.Error("the log does not name the cause")
			}
			if status, _ := health(t, s.Namespace, "/healthz"); status != 200 {
				t.Errorf("/healthz is %d", status)
			}
			r.terminates(t, syscall.SIGTERM)
			if _, err := os.Stat(r.control); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("the control socket after the end: %v", err)
			}
		})
	}
}

// awaitControl waits for the control socket. It is not there from the beginning.
func (r *running) awaitControl(t *testing.T) {
	t.Helper()
	r.await(t, "the control socket", func() bool { _, err := os.Stat(r.control); return err == nil })
}

// logins returns the joins of the gateway.
func (s *site) logins() []portal.Event {
	var joins []portal.Event
	for _, e := range s.portal.Events(0) {
		if e.Kind == portal.PeerJoined {
			joins = append(joins, e)
		}
	}
	return joins
}

// leaving waits for the end of the connection that logged in with key.
func (s *site) leaving(t *testing.T, r *running, key string) (left portal.Event) {
	t.Helper()
	r.await(t, "the end of the connection", func() bool {
		for _, e := range s.portal.Events(0) {
			if e.Kind == portal.PeerLeft && e.PublicKey == key {
				left = e
				return true
			}
		}
		return false
	})
	return left
}

// addDefaultRoute gives the namespace a way out that leads nowhere.
func (s *site) addDefaultRoute(t *testing.T) {
	t.Helper()
	err := s.Do(func() error {
		link := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "uplink"}, PeerName: "router"}
		if err := netlink.LinkAdd(link); err != nil {
			return fmt.Errorf("add link: %w", err)
		}
		router, err := netlink.LinkByName(link.PeerName)
		if err != nil {
			return err
		}
		if err := errors.Join(netlink.LinkSetUp(link), netlink.LinkSetUp(router)); err != nil {
			return fmt.Errorf("set links up: %w", err)
		}
		address, err := netlink.ParseAddr("192.0.2.2/24")
		if err != nil {
			return err
		}
		if err := netlink.AddrAdd(link, address); err != nil {
			return fmt.Errorf("add address: %w", err)
		}
		return netlink.RouteAdd(&netlink.Route{LinkIndex: link.Index, Gw: net.IPv4(192, 0, 2, 1)})
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestTheHostIsNotWatchedWhenUnwanted(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	r := s.startJoined(t, launch{env: variablesOf{"FIREZONE_NO_HOST_WATCH": "true"}})
	s.addDefaultRoute(t)
	// Three times as long as routes have to be settled.
	select {
	case <-r.Done():
		t.Fatal("the process ended")
	case <-time.After(3 * time.Second):
	}
	if n := len(s.logins()); n != 1 {
		t.Errorf("%d logins, want 1", n)
	}
	r.terminates(t, syscall.SIGTERM)
}

func TestHangupWhileConnectingDoesNotEndTheGateway(t *testing.T) {
	t.Parallel()
	requireTUN(t)
	ns := namespace(t)
	accepted := silent(t, ns, portalAddr)
	r := launch{}.start(t, ns)
	select {
	case <-accepted:
	case <-time.After(patience):
		t.Fatal("no connection to the portal")
	}
	if err := r.Signal(syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	select {
	case <-accepted: // with the new key
	case <-time.After(patience):
		t.Fatal("no other connection to the portal")
	}
	r.terminates(t, syscall.SIGTERM)
}

func TestManyHangupsAtOnce(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	r := s.startJoined(t, launch{})
	for range 100 {
		if err := r.Signal(syscall.SIGHUP); err != nil {
			t.Fatal(err)
		}
	}
	r.await(t, "another login", func() bool { return len(s.logins()) > 1 })
	r.terminates(t, syscall.SIGTERM)
}

func TestHangupsDoNotQueueUp(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	entered, proceed := make(chan string), make(chan struct{})
	hangups := make(chan os.Signal, 1)
	d := &daemon{log: slog.New(slog.DiscardHandler)}
	var running sync.WaitGroup
	running.Go(func() {
		d.onHangup(ctx, func(_ context.Context, cause string) error {
			entered <- cause
			<-proceed
			return errors.New("fails")
		}, hangups)
	})
	hangups <- syscall.SIGHUP
	if cause := <-entered; cause != "SIGHUP" {
		t.Errorf("cause %q", cause)
	}
	for range 100 { // as os/signal delivers them
		select {
		case hangups <- syscall.SIGHUP:
		default:
		}
	}
	proceed <- struct{}{}
	<-entered
	proceed <- struct{}{}
	// Nothing is left: the next one is the one sent here.
	hangups <- syscall.SIGHUP
	<-entered
	if len(hangups) != 0 {
		t.Error("a signal is waiting")
	}
	proceed <- struct{}{}
	cancel()
	running.Wait()
}

func TestControlSocketIsTheOwnersAndOutlivesACrash(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	r := s.startJoined(t, launch{})
	r.awaitControl(t)
	if info, err := os.Stat(r.control); err != nil || info.Mode() != fs.ModeSocket|0o600 {
		t.Errorf("socket: %v, %v", info.Mode(), err)
	}
	if info, err := os.Stat(filepath.Dir(r.control)); err != nil || info.Mode()&0o027 != 0 {
		t.Errorf("directory: %v, %v", info.Mode(), err)
	}

	if err := r.Signal(syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	<-r.Done()
	again := launch{control: r.control}.start(t, s.Namespace)
	again.await(t, "an answer on the socket", func() bool {
		conn, err := net.Dial("unix", r.control)
		if err == nil {
			conn.Close()
		}
		return err == nil
	})
	again.await(t, "another login", func() bool { return len(s.logins()) > 1 })
	reset := launch{args: []string{"reset"}, control: r.control}.start(t, s.Namespace)
	reset.exits(t, exitOK)
	if text := reset.stdout.String(); !strings.HasPrefix(text, "The gateway uses a new key") || strings.Count(text, "\n") != 1 {
		t.Errorf("stdout %q", text)
	}
	again.terminates(t, syscall.SIGTERM)
}

func TestRunsWithoutControlSocket(t *testing.T) {
	t.Parallel()
	t.Run("which another process has", func(t *testing.T) {
		t.Parallel()
		s := newSite(t)
		first := s.startJoined(t, launch{})
		first.awaitControl(t)
		other := newSite(t)
		second := other.startJoined(t, launch{control: first.control})
		second.await(t, "a warning", func() bool { return second.stdout.has("going on without control socket") })
		if !second.stdout.has("another process answers there") {
			t.Error("the warning does not say why")
		}
		second.terminates(t, syscall.SIGTERM)
		if _, err := os.Stat(first.control); err != nil {
			t.Errorf("the first one's socket: %v", err)
		}
		first.terminates(t, syscall.SIGTERM)
	})
	t.Run("which is not wanted", func(t *testing.T) {
		t.Parallel()
		s := newSite(t)
		r := s.startJoined(t, launch{control: noControlSocket})
		if err := r.Signal(syscall.SIGHUP); err != nil {
			t.Fatal(err)
		}
		r.await(t, "another login", func() bool { return len(s.logins()) > 1 })
		r.terminates(t, syscall.SIGTERM)
		if r.stdout.has("control socket") {
			t.Error("the log mentions it")
		}
	})
	t.Run("where none can be made", func(t *testing.T) {
		t.Parallel()
		s := newSite(t)
		r := s.startJoined(t, launch{control: "/proc/firezone/gateway.sock"})
		r.await(t, "a warning", func() bool { return r.stdout.has("going on without control socket") })
		r.terminates(t, syscall.SIGTERM)
	})
}
