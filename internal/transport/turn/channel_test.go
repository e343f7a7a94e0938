package turn

import (
	"net/netip"
	"testing"
	"time"

	pion "github.com/pion/stun/v3"
)

func TestT39ChannelsAreTheOnlyWay(t *testing.T) {
	r := allocated(t)
	r.c.BindChannel(peer6, r.now)
	q := r.request(pion.MethodChannelBind)
	if !has(q, pion.AttrXORPeerAddress, string(xorAddress(peer6, q.TransactionID))) || !has(q, pion.AttrChannelNumber, "\x40\x00\x00\x00") {
		t.Fatalf("CHANNEL-BIND has the wrong attributes: %v", q.Attributes)
	}
	r.silent()
	r.succeed(q)
	r.events(ChannelBound{0x4000, peer6, relayed6})
	if got := r.c.State().Channels; got != 1 {
		t.Fatalf("%d channels", got)
	}
}

func TestBindChannelIsIdempotent(t *testing.T) {
	r := allocated(t)
	for range 3 {
		if !r.c.BindChannel(peer4, r.now) {
			t.Fatal("refused")
		}
	}
	q := r.request(pion.MethodChannelBind)
	r.silent()
	r.succeed(q)
	r.c.BindChannel(netip.AddrPortFrom(netip.AddrFrom16(peer4.Addr().As16()), peer4.Port()), r.now) // mapped form
	r.silent()
}

func TestPeersAreQueuedUntilAllocated(t *testing.T) {
	r := newRig(t, relay4, none)
	for i := range MaxQueued {
		if !r.c.BindChannel(peer(i), r.now) || !r.c.BindChannel(peer(0), r.now) {
			t.Fatalf("peer %d was refused", i)
		}
	}
	if r.c.BindChannel(peer(MaxQueued), r.now) {
		t.Fatal("the queue has no bound")
	}
	r.answerBinding(r.request(pion.MethodBinding), mapped4)
	r.grant(r.request(pion.MethodAllocate), 600, relayed4)
	r.drainEvents()
	for range MaxQueued {
		r.succeed(r.request(pion.MethodChannelBind))
	}
	r.silent()
	if n := len(r.drainEvents()); n != MaxQueued || r.c.State().Channels != MaxQueued {
		t.Fatalf("%d channels reported, %+v", n, r.c.State())
	}
}

func TestBindsGoOutInPortions(t *testing.T) {
	r := allocated(t)
	const peers = 3 * maxBinds
	for i := range 2 * peers {
		if !r.c.BindChannel(peer(i%peers), r.now) {
			t.Fatalf("peer %d was refused", i%peers)
		}
	}
	out := r.drainTransmits()
	if s := r.c.State(); len(out) != maxBinds || s.Pending != maxBinds || s.Queued != peers-maxBinds {
		t.Fatalf("%d requests, %+v", len(out), s)
	}
	bound := make(map[netip.AddrPort]uint16)
	for i := 0; len(out) > 0; i++ {
		q := out[0]
		out = out[1:]
		// Refusals make room as well as successes, and so do challenges.
		switch i {
		case 5:
			r.fail(q, 400, "")
		case 9:
			r.fail(q, 438, "n2")
		default:
			r.succeed(q)
		}
		out = append(out, r.drainTransmits()...)
		if n := r.c.State().Pending; n > maxBinds {
			t.Fatalf("%d requests at a time", n)
		}
	}
	for _, e := range r.drainEvents() {
		e := e.(ChannelBound)
		bound[e.Peer] = e.Number
	}
	if len(bound) != peers-1 {
		t.Fatalf("%d of %d peers bound", len(bound), peers)
	}
}

func TestPeersWhoseTurnHasNotComeAreBoundAfterAMismatch(t *testing.T) {
	r := allocated(t)
	const peers = maxBinds + 10
	for i := range peers {
		r.c.BindChannel(peer(i), r.now)
	}
	out := r.drainTransmits()
	r.fail(out[0], 437, "")
	r.grant(r.request(pion.MethodAllocate), 600, relayed4)
	for range peers {
		r.succeed(r.request(pion.MethodChannelBind))
	}
	r.silent()
	if n := r.c.State().Channels; n != peers {
		t.Fatalf("%d channels", n)
	}
}

func TestPeerOfAMissingFamilyIsRefused(t *testing.T) {
	r := newRig(t, relay4, none)
	r.c.BindChannel(peer6, r.now)
	r.answerBinding(r.request(pion.MethodBinding), mapped4)
	r.grant(r.request(pion.MethodAllocate), 600, relayed4)
	if r.c.BindChannel(peer6, r.now) || r.c.BindChannel(netip.AddrPort{}, r.now) {
		t.Fatal("accepted")
	}
	r.silent()
}

func TestUnsendablePeersAreRefused(t *testing.T) {
	for _, r := range []*rig{newRig(t, relay4, none), allocated(t)} {
		for _, bad := range []netip.AddrPort{{}, netip.MustParseAddrPort("[::]:9"), netip.MustParseAddrPort("0.0.0.0:9"),
			netip.MustParseAddrPort("10.0.0.1:0"), netip.MustParseAddrPort("[fe80::1%x]:9"), netip.MustParseAddrPort("224.0.0.1:9")} {
			if r.c.BindChannel(bad, r.now) {
				t.Errorf("%s was accepted in state %s", bad, r.c.State().State)
			}
		}
	}
}

func TestT43ActiveChannelsAreRenewed(t *testing.T) {
	t.Run("at five minutes when data was received", func(t *testing.T) {
		r, number := bound(t)
		r.refreshing(time.Minute)
		r.c.MarkReceived(number, r.now)
		q := r.bindAfter(4 * time.Minute)
		if !has(q, pion.AttrChannelNumber, "\x40\x00\x00\x00") {
			t.Fatal("another number")
		}
		r.succeed(q)
		r.events()
		r.refreshing(9*time.Minute + 59*time.Second)
		r.events() // alive, ten minutes from the renewal
		r.refreshing(time.Second)
		r.events(ChannelLost{number, peer4})
	})
	t.Run("with the first data after five minutes", func(t *testing.T) {
		r, number := bound(t)
		r.refreshing(7 * time.Minute)
		r.silent()
		r.c.MarkReceived(number, r.now)
		r.succeed(r.request(pion.MethodChannelBind))
		r.c.MarkReceived(number, r.now)
		r.silent()
	})
	t.Run("not without data", func(t *testing.T) {
		r, number := bound(t)
		r.refreshing(10*time.Minute - time.Second)
		r.events()
		r.refreshing(time.Second)
		r.events(ChannelLost{number, peer4})
		r.c.MarkReceived(number, r.now) // late data of a lost channel
		r.silent()
	})
}

func TestT42PairingsAreKeptFor15Minutes(t *testing.T) {
	t.Run("a peer comes back with its number", func(t *testing.T) {
		r, number := bound(t)
		r.refreshing(10 * time.Minute)
		r.events(ChannelLost{number, peer4})
		r.c.BindChannel(peer4, r.now)
		r.succeed(r.request(pion.MethodChannelBind))
		r.events(ChannelBound{number, peer4, relayed4})
	})
	t.Run("a number goes to another peer after 15 minutes", func(t *testing.T) {
		r, number := bound(t)
		r.refreshing(15*time.Minute - time.Second)
		r.c.channels.next = 0 // as after a round through all numbers
		r.drainEvents()
		r.c.BindChannel(peer6, r.now)
		r.succeed(r.request(pion.MethodChannelBind))
		r.events(ChannelBound{number + 1, peer6, relayed6})
		r.refreshing(time.Second)
		r.c.channels.next = 0
		other := peer(7)
		r.c.BindChannel(other, r.now)
		r.succeed(r.request(pion.MethodChannelBind))
		r.events(ChannelBound{number, other, relayed4})
		r.c.BindChannel(peer4, r.now)
		r.succeed(r.request(pion.MethodChannelBind))
		r.events(ChannelBound{number + 2, peer4, relayed4})
	})
}

func TestT41NumbersRiseWrapAndEnd(t *testing.T) {
	var table channelTable
	now := time.Unix(0, 0)
	for i := range MaxChannel - MinChannel + 1 {
		ch := table.assign(peer(i), now)
		if ch == nil || int(ch.number) != MinChannel+i {
			t.Fatalf("assignment %d is %+v", i, ch)
		}
		ch.lastBind = now
	}
	if ch := table.assign(peer6, now); ch != nil {
		t.Fatalf("a number too many: %#x", ch.number)
	}
	if ch := table.assign(peer6, now.Add(quarantine)); ch == nil || ch.number != MinChannel {
		t.Fatalf("no wrap: %+v", ch)
	}
	if table.byPeer[peer(0)] != nil {
		t.Fatal("the number's old peer still has it")
	}
}

// A channel is bound by its number and its peer alike: neither may have two.
func TestARefusedPeerDoesNotRunThroughTheNumbers(t *testing.T) {
	r := allocated(t)
	for range 1000 {
		r.c.BindChannel(peer4, r.now)
		for _, q := range r.drainTransmits() {
			r.fail(q, 400, "")
		}
		r.now = r.now.Add(10 * time.Millisecond)
	}
	if next := r.c.channels.next; next > 3 {
		t.Fatalf("%d numbers in ten seconds", next)
	}
}

func TestRefusedBindTriesTheNextNumberLater(t *testing.T) {
	r := allocated(t)
	r.c.BindChannel(peer4, r.now)
	r.fail(r.request(pion.MethodChannelBind), 400, "")
	r.events()
	if r.c.BindChannel(peer4, r.now) {
		t.Fatal("no pause after an error")
	}
	r.silent()
	r.advance(refusedBackoff)
	r.c.BindChannel(peer4, r.now)
	q := r.request(pion.MethodChannelBind)
	if !has(q, pion.AttrChannelNumber, "\x40\x01\x00\x00") {
		t.Fatal("not the next number")
	}
}

func TestRefusedRenewalLosesTheChannelButKeepsThePairing(t *testing.T) {
	r, number := bound(t)
	r.c.MarkReceived(number, r.now)
	r.fail(r.bindAfter(5*time.Minute), 400, "")
	r.events(ChannelLost{number, peer4})
	r.refreshing(refusedBackoff)
	r.c.BindChannel(peer4, r.now)
	r.succeed(r.request(pion.MethodChannelBind))
	r.events(ChannelBound{number, peer4, relayed4})
}

func TestSilentBindGivesTheRelayUp(t *testing.T) {
	r := allocated(t)
	r.c.BindChannel(peer4, r.now)
	r.advance(8125 * time.Millisecond)
	for range 4 {
		r.request(pion.MethodChannelBind)
	}
	r.silent()
	r.events(AllocationLost{LossFailed, relayed4, relayed6}, Failed{Unreachable})
}

func TestMarkReceivedOfUnknownNumbersDoesNothing(t *testing.T) {
	r := allocated(t)
	for _, n := range []uint16{0, 0x3fff, 0x4000, 0x5000, 0xffff} {
		r.c.MarkReceived(n, r.now)
	}
	r.silent()
}

// refreshing advances the clock while a friendly relay answers keepalives and
// refreshes; CHANNEL-BIND must not occur.
func (r *rig) refreshing(d time.Duration) {
	r.Helper()
	for end := r.now.Add(d); r.now.Before(end); {
		r.advance(min(time.Second, end.Sub(r.now)))
		for _, q := range r.drainTransmits() {
			if r.friendly(q) {
				r.Fatal("unexpected CHANNEL-BIND")
			}
		}
	}
}

// bindAfter advances the clock like refreshing and returns the CHANNEL-BIND
// that becomes due exactly after d.
func (r *rig) bindAfter(d time.Duration) (bind request) {
	r.Helper()
	r.refreshing(d - time.Millisecond)
	r.advance(time.Millisecond)
	for _, q := range r.drainTransmits() {
		if r.friendly(q) {
			bind = q
		}
	}
	if bind.Message == nil {
		r.Fatal("no CHANNEL-BIND")
	}
	return bind
}

func (r *rig) friendly(q request) (isBind bool) {
	r.Helper()
	switch q.Type.Method {
	case pion.MethodBinding:
		r.answerBinding(q, mapped4)
	case pion.MethodRefresh:
		r.grant(q, 600)
	default:
		return true
	}
	return false
}

func peer(i int) netip.AddrPort {
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 9, byte(i >> 8), byte(i)}), 1024)
}
