package turn

import (
	"bytes"
	"fmt"
	"log/slog"
	"net/netip"
	"strings"
	"testing"
	"time"

	pion "github.com/pion/stun/v3"
)

var none netip.AddrPort

func TestT49FirstBindingAnswerSelectsTheFamily(t *testing.T) {
	r := newRig(t, relay4, relay6)
	q4, q6 := r.request(pion.MethodBinding), r.request(pion.MethodBinding)
	if q4.to != relay4 || q6.to != relay6 {
		t.Fatalf("BINDING to %s and %s", q4.to, q6.to)
	}
	r.answerBinding(q6, peer6)
	r.events(HostCandidate{local6}, ServerReflexive{peer6, local6}, ServerSelected{relay6})
	if q := r.request(pion.MethodAllocate); q.to != relay6 {
		t.Fatalf("ALLOCATE to %s", q.to)
	}
	r.answerBinding(q4, mapped4)
	r.events(HostCandidate{local4}, ServerReflexive{mapped4, local4})
	r.silent()
}

func TestT49SilenceOfOneFamilyDoesNotHurt(t *testing.T) {
	r := newRig(t, relay4, relay6)
	q4 := r.request(pion.MethodBinding)
	r.answerBinding(q4, mapped4)
	r.request(pion.MethodBinding)
	r.fail(r.request(pion.MethodAllocate), 401, "n1")
	r.grant(r.request(pion.MethodAllocate), 600, relayed4)
	r.drainEvents()
	r.advance(9 * time.Second)
	if r.c.State().State != StateAllocated {
		t.Fatal(r.c.State())
	}
	r.events()
}

func TestRetransmissionFollowsTheSchedule(t *testing.T) {
	r := newRig(t, relay4, none)
	start := r.now
	first := r.request(pion.MethodBinding)
	for _, at := range []time.Duration{time.Second, 2500 * time.Millisecond, 4750 * time.Millisecond} {
		r.advance(start.Add(at - time.Millisecond).Sub(r.now))
		r.silent()
		r.advance(time.Millisecond)
		if q := r.request(pion.MethodBinding); q.TransactionID != first.TransactionID {
			t.Fatal("BINDING does not repeat its bytes")
		}
	}
	r.advance(start.Add(8124 * time.Millisecond).Sub(r.now))
	r.events()
	r.advance(time.Millisecond)
	r.silent()
	r.events(Failed{Unreachable})
	if _, ok := r.c.NextTimeout(); ok {
		t.Fatal("a failed client has a timeout")
	}
}

func TestT48AllocateAsksForBothFamiliesAndAcceptsEither(t *testing.T) {
	for _, c := range []struct {
		name   string
		given  []netip.AddrPort
		v4, v6 netip.AddrPort
	}{
		{"both", []netip.AddrPort{relayed4, relayed6}, relayed4, relayed6},
		{"IPv4 only", []netip.AddrPort{relayed4}, relayed4, none},
		{"IPv6 only", []netip.AddrPort{relayed6}, none, relayed6},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := newRig(t, relay4, none)
			r.answerBinding(r.request(pion.MethodBinding), mapped4)
			q := r.request(pion.MethodAllocate)
			if !has(q, pion.AttrRequestedTransport, "\x11\x00\x00\x00") || !has(q, attrAdditionalFamily, "\x02\x00\x00\x00") {
				t.Fatal("REQUESTED-TRANSPORT or ADDITIONAL-ADDRESS-FAMILY is missing")
			}
			for _, a := range []pion.AttrType{pion.AttrLifetime, pion.AttrRequestedAddressFamily, pion.AttrNonce} {
				if q.Contains(a) {
					t.Fatalf("the first ALLOCATE contains %s", a)
				}
			}
			r.drainEvents()
			r.grant(q, 600, c.given...)
			r.events(Allocated{c.v4, c.v6, 10 * time.Minute})
		})
	}
}

func TestT44RefreshAtHalfTheLifetime(t *testing.T) {
	r := allocated(t)
	r.keepalivesUntil(300*time.Second - time.Millisecond)
	r.silent()
	r.advance(time.Millisecond)
	q := r.request(pion.MethodRefresh)
	if q.Contains(pion.AttrLifetime) || !q.Contains(attrAdditionalFamily) || !has(q, pion.AttrNonce, "n1") {
		t.Fatalf("REFRESH has the wrong attributes: %v", q.Attributes)
	}
	r.drainTransmits()
	r.grant(q, 100)
	if got := r.c.State().Expires.Sub(r.now); got != 100*time.Second {
		t.Fatalf("expires in %s", got)
	}
	r.events()
}

func TestSilentRefreshGivesTheRelayUp(t *testing.T) {
	r := allocated(t)
	r.keepalivesUntil(300 * time.Second)
	r.drainTransmits()
	r.advance(8125 * time.Millisecond)
	r.events(AllocationLost{LossFailed, relayed4, relayed6}, Failed{Unreachable})
}

func TestProbeHasOneSecond(t *testing.T) {
	r := allocated(t)
	r.c.Probe(r.now)
	r.c.Probe(r.now)
	r.request(pion.MethodRefresh)
	r.silent()
	r.advance(999 * time.Millisecond)
	r.events()
	r.advance(time.Millisecond)
	r.silent()
	r.events(AllocationLost{LossFailed, relayed4, relayed6}, Failed{Unreachable})
}

// A probe that has to wait for its turn with a new nonce has not been sent.
func TestAProbeThatIsDelayedByAStaleNonceIsSent(t *testing.T) {
	r := allocated(t)
	r.c.BindChannel(peer4, r.now)
	r.c.Probe(r.now)
	bind, probe := r.request(pion.MethodChannelBind), r.request(pion.MethodRefresh)
	r.fail(bind, 438, "a")
	r.fail(probe, 438, "b")
	r.succeed(r.request(pion.MethodChannelBind))
	r.drainEvents()
	r.advance(time.Second)
	r.grant(r.request(pion.MethodRefresh), 600)
	r.events()
	if s := r.c.State(); s.State != StateAllocated || s.Pending != 0 {
		t.Fatal(s)
	}
}

func TestExpiryStartsOver(t *testing.T) {
	r := allocated(t)
	r.now = r.now.Add(time.Hour) // the machine slept
	r.c.HandleTimeout(r.now)
	r.events(AllocationLost{LossExpired, relayed4, relayed6})
	r.answerBinding(r.request(pion.MethodBinding), mapped4)
	r.events(ServerSelected{relay4})
	r.grant(r.request(pion.MethodAllocate), 600, relayed4)
	r.events(Allocated{relayed4, none, 10 * time.Minute})
}

func TestT50KeepaliveEvery25Seconds(t *testing.T) {
	r := allocated(t)
	for range 3 {
		r.advance(25*time.Second - time.Millisecond)
		r.silent()
		r.advance(time.Millisecond)
		r.answerBinding(r.request(pion.MethodBinding), mapped4)
		r.events()
	}
}

func TestANewMappingIsFollowedByARefreshAtOnce(t *testing.T) {
	r := allocated(t)
	moved := netip.MustParseAddrPort("203.0.113.7:41111")
	r.advance(25 * time.Second)
	r.answerBinding(r.request(pion.MethodBinding), moved)
	r.events(ServerReflexive{moved, local4})
	// The relay knows nobody at the new address.
	r.fail(r.request(pion.MethodRefresh), 437, "")
	r.events(AllocationLost{LossMismatch, relayed4, relayed6})
	r.grant(r.request(pion.MethodAllocate), 600, relayed4)
	r.silent()
	r.advance(25 * time.Second)
	r.answerBinding(r.request(pion.MethodBinding), moved)
	r.silent()
}

func TestOnlyASharedAddressIsReported(t *testing.T) {
	for _, bad := range []string{"169.254.1.1:52625", "255.255.255.255:52625"} {
		r := newRig(t, relay4, none)
		q := r.request(pion.MethodBinding)
		m := answer(q, pion.ClassSuccessResponse)
		a := netip.MustParseAddrPort(bad)
		m.Add(pion.AttrXORMappedAddress, xorAddress(a, m.TransactionID))
		if !r.c.HandleDatagram(q.to, a.Addr(), a.Port(), m.Raw, r.now) {
			t.Fatal("the answer was ignored")
		}
		r.events(ServerSelected{relay4})
		r.drainEvents()
		r.grant(r.request(pion.MethodAllocate), 600, a)
		r.events(Suspended{0})
	}
}

func TestOfSeveralRelayedAddressesTheFirstOfEachFamilyCounts(t *testing.T) {
	r := newRig(t, relay4, none)
	r.answerBinding(r.request(pion.MethodBinding), mapped4)
	r.drainEvents()
	r.grant(r.request(pion.MethodAllocate), 600, relayed6, relayed4, peer4, peer6)
	r.events(Allocated{relayed4, relayed6, 10 * time.Minute})
}

func TestLateAnswerToAnEarlierTransmissionCounts(t *testing.T) {
	r := newRig(t, relay4, none)
	r.answerBinding(r.request(pion.MethodBinding), mapped4)
	first := r.request(pion.MethodAllocate)
	r.advance(time.Second)
	r.request(pion.MethodAllocate)
	r.drainEvents()
	r.grant(first, 600, relayed4)
	r.events(Allocated{relayed4, none, 10 * time.Minute})
}

func TestARelayWithoutAddressFailsAtOnce(t *testing.T) {
	r := newRig(t, none, none)
	r.silent()
	r.events(Failed{Unreachable})
}

func TestNothingShowsTheCredentials(t *testing.T) {
	r := allocated(t)
	var logged bytes.Buffer
	slog.New(slog.NewJSONHandler(&logged, nil)).Info("", "config", r.c.cfg)
	if !strings.Contains(logged.String(), "relay-1") {
		t.Fatal("the configuration is not logged: " + logged.String())
	}
	for _, s := range []string{
		logged.String(),
		fmt.Sprint(r.c), fmt.Sprintf("%+v", r.c), fmt.Sprintf("%+v", r.c.State()),
		fmt.Sprint(r.c.cfg), fmt.Sprintf("%+v", r.c.cfg),
	} {
		if strings.Contains(s, password) || strings.Contains(s, username) {
			t.Errorf("credentials in %q", s)
		}
	}
}

// keepalivesUntil advances the clock and answers the keepalives on the way.
func (r *rig) keepalivesUntil(d time.Duration) {
	r.Helper()
	for end := r.now.Add(d); r.now.Before(end); {
		r.advance(min(25*time.Second, end.Sub(r.now)))
		for _, q := range r.drainTransmits() {
			if q.Type.Method == pion.MethodBinding {
				r.answerBinding(q, mapped4)
			} else {
				r.c.transmits = append(r.c.transmits, Transmit{To: q.to, Data: q.Raw})
			}
		}
		if len(r.c.transmits) > 0 {
			return
		}
	}
}

func (r *rig) drainTransmits() (all []request) {
	for {
		tr, ok := r.c.PollTransmit()
		if !ok {
			return all
		}
		m := &pion.Message{Raw: tr.Data}
		if err := m.Decode(); err != nil {
			r.Fatal(err)
		}
		all = append(all, request{m, tr.To})
	}
}
