package tour

import (
	"net/http"
	"net/netip"
	"slices"
	"testing"
	"time"

	"firezone-gateway/internal/lab/portal"
	"firezone-gateway/internal/lab/relay"
)

// relayStall is how long a download may stand still when its relay dies. A
// second of it is the portal's, which waits that long before it speaks of relays
// (Config.RelayDebounce), and as much may be the sender's, which tries again at
// growing distances.
const relayStall = 3 * time.Second

// relayed are the options of a World whose client looks for paths as the
// original does, with two relays.
func relayed() Options {
	o := alone()
	o.scene.original, o.scene.persistent, o.scene.relays = true, true, 2
	o.Transfer = 10e6 // many of these run at the same time
	return o
}

// settleRelayed brings gateway and clients to work with no way but a relay.
func settleRelayed(t *testing.T, w *World) {
	t.Helper()
	require(t, w, gatewayJoins)
	w.block(t, true)
	require(t, w, clientsAuthorized)
	w.awaitRelayed(t)
}

func (w *World) block(t *testing.T, on bool) {
	t.Helper()
	if err := w.net.BlockDirect(on); err != nil {
		t.Fatal(err)
	}
}

// awaitRelayed waits until the client's traffic goes to a relay, and returns
// which.
func (w *World) awaitRelayed(t *testing.T) int {
	t.Helper()
	serving := -1
	err := await(within(t, stepLimit), "path is not relayed", func() bool {
		serving = w.serving()
		return serving >= 0
	})
	if err != nil {
		t.Fatal(err)
	}
	return serving
}

// awaitDirect waits until the client's traffic goes to the gateway itself.
func (w *World) awaitDirect(t *testing.T, limit time.Duration) {
	t.Helper()
	err := await(within(t, limit), "path is not direct", func() bool {
		to, relayed, ok := w.clients[0].Path()
		return ok && !relayed && w.relayAt(to.Addr()) < 0
	})
	if err != nil {
		t.Fatal(err)
	}
}

// serving returns the relay that the client's traffic goes to, -1 for none.
func (w *World) serving() int {
	to, _, _ := w.clients[0].Path()
	return w.relayAt(to.Addr())
}

func (w *World) relayAt(a netip.Addr) int {
	return slices.IndexFunc(w.relays, func(r *relay.Server) bool {
		return slices.ContainsFunc(r.Addrs(), func(at netip.AddrPort) bool { return at.Addr() == a })
	})
}

// awaitBytes waits until the download has got on by n bytes.
func (f *feed) awaitBytes(t *testing.T, n int64) {
	t.Helper()
	until := f.received() + n
	if err := await(within(t, stepLimit), "the download stands still", func() bool { return f.received() >= until }); err != nil {
		t.Fatal(err)
	}
}

func (w *World) setRelays(t *testing.T, entries ...portal.Relay) {
	t.Helper()
	if err := w.portal.SetRelays(entries); err != nil {
		t.Fatal(err)
	}
}

// kill ends relays as the end of their processes does.
func (w *World) kill(t *testing.T, indices ...int) {
	t.Helper()
	for _, i := range indices {
		if err := w.relays[i].Suspend(); err != nil {
			t.Fatal(err)
		}
	}
}

// reboot starts killed relays again, with another secret each. They have the same
// addresses, and know nothing.
func (w *World) reboot(t *testing.T, indices ...int) {
	t.Helper()
	for _, i := range indices {
		secret := relay.NewSecret()
		if err := w.relays[i].Resume(secret); err != nil {
			t.Fatal(err)
		}
		w.entries[i] = relayEntry(w.relays[i], secret)
	}
}

// ages of a connection. The original's client shakes hands when it nominates a
// path, but not within 20 s of the last time (transport §5.2): in a young
// connection nothing but its checks tells that it has moved.
var ages = []struct {
	name string
	fed  int64 // bytes of the download before, at feedRate
}{
	{"young connection", 1e6},
	{"connection of 22 s", 22e6},
}

// TestTourMovesToTheOtherRelay promises that the death of a relay in the middle
// of a download is a pause, not an end: gateway and client go on by the other one.
func TestTourMovesToTheOtherRelay(t *testing.T) {
	t.Parallel()
	for _, age := range ages {
		t.Run(age.name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, relayed())
			settleRelayed(t, w)
			feed := startFeed(t, w)
			feed.awaitBytes(t, age.fed)
			dies := w.awaitRelayed(t)
			spare := 1 - dies

			carried, begin := w.relays[spare].Stats(), time.Now()
			w.kill(t, dies)
			w.setRelays(t, w.entries[spare])
			if err := await(within(t, stepLimit), "client does not move", func() bool { return w.serving() == spare }); err != nil {
				t.Fatal(err)
			}
			moved := time.Since(begin)
			feed.awaitBytes(t, 1e6)
			t.Logf("client moved to the other relay %s after the death of the first, 1 MB more %s after it", milliseconds(moved), milliseconds(time.Since(begin)))
			feed.unharmed(t, relayStall)
			now := w.relays[spare].Stats()
			if now.ToPeers.Bytes-carried.ToPeers.Bytes+now.FromPeers.Bytes-carried.FromPeers.Bytes < 1e6 {
				t.Error("the other relay carried less than what arrived")
			}
			require(t, w, pingAnswered, gatewayLeaves)
		})
	}
}

// TestTourOutlivesTheReplacementOfBothRelays promises the same when no relay is
// left of those that were known, be it that others take their place or that they
// come back as others.
func TestTourOutlivesTheReplacementOfBothRelays(t *testing.T) {
	t.Parallel()
	for _, age := range ages {
		for name, others := range map[string]bool{"by two others": true, "by themselves with other credentials": false} {
			t.Run(age.name+", "+name, func(t *testing.T) {
				t.Parallel()
				o := relayed()
				if others {
					o.scene.spares = 2
				}
				w := newWorld(t, o)
				settleRelayed(t, w)
				feed := startFeed(t, w)
				feed.awaitBytes(t, age.fed)

				begin := time.Now()
				w.kill(t, 0, 1)
				fresh := []int{2, 3}
				if !others {
					fresh = []int{0, 1}
					w.reboot(t, fresh...)
				}
				w.setRelays(t, w.entries[fresh[0]], w.entries[fresh[1]])
				feed.awaitBytes(t, 1e6)
				t.Logf("1 MB more %s after the replacement, by relay %d", milliseconds(time.Since(begin)), w.serving())
				feed.unharmed(t, relayStall)
				if !slices.Contains(fresh, w.serving()) {
					t.Errorf("the path is by relay %d", w.serving())
				}
				require(t, w, pingAnswered, gatewayLeaves)
			})
		}
	}
}

// TestTourOutlivesRebootedRelaysWhileThePortalIsAway promises that relays which
// have forgotten everything at a time when nobody can say so are used again as
// soon as somebody can.
func TestTourOutlivesRebootedRelaysWhileThePortalIsAway(t *testing.T) {
	t.Parallel()
	w := newWorld(t, relayed())
	settleRelayed(t, w)
	feed := startFeed(t, w)
	feed.awaitBytes(t, 1e6)

	after := w.lastEvent()
	w.setFaults(t, portal.Faults{Roles: []portal.Role{portal.Gateway}, Refuse: &portal.Refusal{Status: http.StatusServiceUnavailable}})
	w.sendAway(t)
	w.awaitEvent(t, "the portal is not away", after, returnLimit, refusedConnect)
	w.kill(t, 0, 1)
	w.reboot(t, 0, 1)
	w.setRelays(t, w.entries[:2]...)
	standing := feed.received()
	if err := pause(t.Context(), 5*time.Second); err != nil {
		t.Fatal(err)
	}
	if feed.received()-standing > 4*feedWindow {
		t.Error("the download went on, so nothing was forgotten")
	}
	w.setFaults(t, portal.Faults{})
	back := w.awaitReturn(t, after, returnLimit)
	w.awaitTraffic(t, files4)
	t.Logf("traffic %s after the gateway's init", milliseconds(time.Since(back.At)))
	feed.awaitBytes(t, 1e6)
	feed.unharmed(t, returnLimit)
	require(t, w, pingAnswered, gatewayLeaves)
}

// TestTourUsesRelaysOfOneFamily promises that of two relays which have one family
// of addresses each, either will do.
func TestTourUsesRelaysOfOneFamily(t *testing.T) {
	t.Parallel()
	for first, name := range []string{"IPv4 only", "IPv6 only"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			o := relayed()
			o.IPv4Only, o.scene.oneFamily = false, true
			w := newWorld(t, o)
			w.relay = w.relays[first]
			w.setRelays(t, w.entries[first])
			w.portal.PushRelaysPresence()
			settleRelayed(t, w)
			if got := w.awaitRelayed(t); got != first {
				t.Errorf("path is by relay %d", got)
			}
			require(t, w, pingAnswered, download, gatewayLeaves)
		})
	}
}
