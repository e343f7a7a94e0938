package turn

import (
	"fmt"
	"strings"
	"testing"
	"time"

	pion "github.com/pion/stun/v3"
)

func TestT45NonceIsAdoptedForEveryMethod(t *testing.T) {
	for _, code := range []int{401, 438} {
		t.Run(fmt.Sprint("ALLOCATE ", code), func(t *testing.T) {
			r := newRig(t, relay4, none)
			r.answerBinding(r.request(pion.MethodBinding), mapped4)
			r.fail(r.request(pion.MethodAllocate), code, "fresh")
			if q := r.request(pion.MethodAllocate); !has(q, pion.AttrNonce, "fresh") {
				t.Fatal("the nonce was not adopted")
			}
		})
	}
	t.Run("REFRESH", func(t *testing.T) {
		r := allocated(t)
		r.c.Probe(r.now)
		r.fail(r.request(pion.MethodRefresh), 438, "fresh")
		if q := r.request(pion.MethodRefresh); !has(q, pion.AttrNonce, "fresh") {
			t.Fatal("the nonce was not adopted")
		}
	})
	t.Run("REFRESH 0", func(t *testing.T) {
		r := newRig(t, relay4, none)
		r.answerBinding(r.request(pion.MethodBinding), mapped4)
		r.fail(r.request(pion.MethodAllocate), 437, "")
		r.fail(r.request(pion.MethodRefresh), 438, "fresh")
		if q := r.request(pion.MethodRefresh); !has(q, pion.AttrNonce, "fresh") || !has(q, pion.AttrLifetime, "\x00\x00\x00\x00") {
			t.Fatal("the nonce was not adopted")
		}
	})
	t.Run("CHANNEL-BIND", func(t *testing.T) {
		r := allocated(t)
		r.c.BindChannel(peer4, r.now)
		r.fail(r.request(pion.MethodChannelBind), 438, "fresh")
		q := r.request(pion.MethodChannelBind)
		if !has(q, pion.AttrNonce, "fresh") {
			t.Fatal("the nonce was not adopted")
		}
		r.succeed(q)
		r.events(ChannelBound{0x4000, peer4, relayed4})
	})
}

func TestStaleNonceOfManyRequestsIsTriedByOneFirst(t *testing.T) {
	r := allocated(t)
	r.c.BindChannel(peer4, r.now)
	r.c.BindChannel(peer6, r.now)
	a, b := r.request(pion.MethodChannelBind), r.request(pion.MethodChannelBind)
	r.fail(a, 438, "a")
	r.fail(b, 438, "b")
	r.succeed(r.request(pion.MethodChannelBind))
	r.silent()
	r.advance(time.Second)
	q := r.request(pion.MethodChannelBind)
	if !has(q, pion.AttrNonce, "b") {
		t.Fatal("the second request does not use the latest nonce")
	}
	r.succeed(q)
	r.events(ChannelBound{0x4000, peer4, relayed4}, ChannelBound{0x4001, peer6, relayed6})
}

func TestNonceChallengesDoNotGoOnForEver(t *testing.T) {
	r := newRig(t, relay4, none)
	r.answerBinding(r.request(pion.MethodBinding), mapped4)
	r.drainEvents()
	for i := range maxChallenges + 1 {
		r.fail(r.request(pion.MethodAllocate), 438, fmt.Sprint("n", i))
	}
	r.silent()
	r.events(Suspended{438})
}

func TestErrorsOnTheAllocation(t *testing.T) {
	t.Run("401 to a request with nonce rejects the credentials", func(t *testing.T) {
		r := allocated(t)
		r.c.Probe(r.now)
		r.fail(r.request(pion.MethodRefresh), 401, "n2")
		r.events(AllocationLost{LossFailed, relayed4, relayed6}, Failed{Rejected})
	})
	t.Run("and that does not depend on its realm", func(t *testing.T) {
		r := allocated(t)
		r.c.BindChannel(peer4, r.now)
		r.fail(r.request(pion.MethodChannelBind), 401, "")
		r.events(AllocationLost{LossFailed, relayed4, relayed6}, Failed{Rejected})
	})
	t.Run("a foreign realm is not answered", func(t *testing.T) {
		r := newRig(t, relay4, none)
		r.answerBinding(r.request(pion.MethodBinding), mapped4)
		q := r.request(pion.MethodAllocate)
		m := answer(q, pion.ClassErrorResponse)
		m.Add(pion.AttrErrorCode, []byte{0, 0, 4, 1})
		m.Add(pion.AttrRealm, []byte("elsewhere"))
		m.Add(pion.AttrNonce, []byte("n"))
		if r.offer(q, sign(m)) {
			t.Fatal("a foreign realm was adopted")
		}
		r.silent()
	})
	t.Run("420 gives the relay up", func(t *testing.T) {
		r := newRig(t, relay4, none)
		r.answerBinding(r.request(pion.MethodBinding), mapped4)
		r.drainEvents()
		r.fail(r.request(pion.MethodAllocate), 420, "")
		r.events(Failed{Unsupported})
		if r.c.BindChannel(peer4, r.now) {
			t.Fatal("a failed client queues channels")
		}
	})
	t.Run("420 to any request gives the relay up", func(t *testing.T) {
		r := allocated(t)
		r.c.BindChannel(peer4, r.now)
		r.fail(r.request(pion.MethodChannelBind), 420, "")
		r.events(AllocationLost{LossFailed, relayed4, relayed6}, Failed{Unsupported})
	})
	t.Run("any other error suspends until Probe", func(t *testing.T) {
		r := newRig(t, relay4, none)
		r.c.BindChannel(peer4, r.now)
		r.answerBinding(r.request(pion.MethodBinding), mapped4)
		r.drainEvents()
		r.fail(r.request(pion.MethodAllocate), 508, "")
		r.events(Suspended{508})
		r.advance(time.Hour)
		r.silent()
		r.c.Probe(r.now)
		r.answerBinding(r.request(pion.MethodBinding), mapped4)
		r.events(ServerSelected{relay4})
		r.grant(r.request(pion.MethodAllocate), 600, relayed4)
		r.silent() // the queued peer was dropped
	})
	t.Run("a success without a relayed address suspends", func(t *testing.T) {
		r := newRig(t, relay4, none)
		r.answerBinding(r.request(pion.MethodBinding), mapped4)
		r.drainEvents()
		r.grant(r.request(pion.MethodAllocate), 600)
		r.events(Suspended{0})
	})
	t.Run("so does one without a lifetime, and leaves nothing behind", func(t *testing.T) {
		r := newRig(t, relay4, none)
		r.answerBinding(r.request(pion.MethodBinding), mapped4)
		r.drainEvents()
		r.grant(r.request(pion.MethodAllocate), 0, relayed4)
		r.events(Suspended{0})
		r.c.Probe(r.now)
		r.answerBinding(r.request(pion.MethodBinding), mapped4)
		r.drainEvents()
		r.grant(r.request(pion.MethodAllocate), 600, relayed6)
		r.events(Allocated{none, relayed6, 10 * time.Minute})
	})
	t.Run("a refresh error keeps the allocation and asks again", func(t *testing.T) {
		r := allocated(t)
		r.c.Probe(r.now)
		r.fail(r.request(pion.MethodRefresh), 500, "")
		r.advance(24 * time.Second)
		r.silent()
		r.events()
	})
}

// TestErrorsWithoutARowOfTheirOwn goes through what relays answer (transport
// §4.4) and what they do not: all are treated alike (§4.5, last rows).
func TestErrorsWithoutARowOfTheirOwn(t *testing.T) {
	for _, code := range []int{300, 400, 403, 440, 441, 442, 443, 486, 487, 500, 508, 699} {
		t.Run(fmt.Sprint(code, " to ALLOCATE suspends"), func(t *testing.T) {
			r := newRig(t, relay4, none)
			r.c.BindChannel(peer4, r.now)
			r.answerBinding(r.request(pion.MethodBinding), mapped4)
			r.drainEvents()
			r.fail(r.request(pion.MethodAllocate), code, "")
			r.events(Suspended{code})
			if s := r.c.State(); s.State != StateSuspended || s.Queued != 0 {
				t.Fatal(s)
			}
		})
		t.Run(fmt.Sprint(code, " to REFRESH 0 suspends"), func(t *testing.T) {
			r := newRig(t, relay4, none)
			r.answerBinding(r.request(pion.MethodBinding), mapped4)
			r.drainEvents()
			r.fail(r.request(pion.MethodAllocate), 437, "")
			r.fail(r.request(pion.MethodRefresh), code, "")
			r.silent()
			r.events(Suspended{code})
		})
		t.Run(fmt.Sprint(code, " to CHANNEL-BIND forgets that channel only"), func(t *testing.T) {
			r, _ := bound(t)
			r.c.BindChannel(peer6, r.now)
			r.fail(r.request(pion.MethodChannelBind), code, "")
			r.silent()
			r.events()
			if s := r.c.State(); s.State != StateAllocated || s.Channels != 1 {
				t.Fatal(s)
			}
		})
		t.Run(fmt.Sprint(code, " to REFRESH keeps the allocation"), func(t *testing.T) {
			r, _ := bound(t)
			r.c.Probe(r.now)
			r.fail(r.request(pion.MethodRefresh), code, "")
			r.silent()
			r.events()
			if s := r.c.State(); s.State != StateAllocated || s.Channels != 1 {
				t.Fatal(s)
			}
		})
	}
}

func TestT46MismatchIsRepaired(t *testing.T) {
	t.Run("on ALLOCATE by REFRESH 0 and ALLOCATE", func(t *testing.T) {
		r := newRig(t, relay4, none)
		r.answerBinding(r.request(pion.MethodBinding), mapped4)
		r.drainEvents()
		r.fail(r.request(pion.MethodAllocate), 437, "")
		q := r.request(pion.MethodRefresh)
		if !has(q, pion.AttrLifetime, "\x00\x00\x00\x00") {
			t.Fatal("the REFRESH does not end the allocation")
		}
		r.grant(q, 0)
		r.grant(r.request(pion.MethodAllocate), 600, relayed4)
		r.events(Allocated{relayed4, none, 10 * time.Minute})
	})
	t.Run("on REFRESH by ALLOCATE", func(t *testing.T) {
		r := allocated(t)
		r.c.Probe(r.now)
		r.fail(r.request(pion.MethodRefresh), 437, "")
		r.events(AllocationLost{LossMismatch, relayed4, relayed6})
		r.grant(r.request(pion.MethodAllocate), 600, relayed6)
		r.events(Allocated{none, relayed6, 10 * time.Minute})
	})
	t.Run("on CHANNEL-BIND by ALLOCATE, with every waiting peer bound again", func(t *testing.T) {
		r := allocated(t)
		r.c.BindChannel(peer4, r.now)
		r.c.BindChannel(peer6, r.now)
		r.fail(r.request(pion.MethodChannelBind), 437, "")
		r.request(pion.MethodChannelBind)
		r.events(AllocationLost{LossMismatch, relayed4, relayed6})
		r.grant(r.request(pion.MethodAllocate), 600, relayed4, relayed6)
		r.drainEvents()
		r.succeed(r.request(pion.MethodChannelBind))
		r.succeed(r.request(pion.MethodChannelBind))
		r.events(ChannelBound{0x4002, peer6, relayed6}, ChannelBound{0x4003, peer4, relayed4})
	})
	t.Run("on REFRESH 0 by ALLOCATE, because there is nothing to end", func(t *testing.T) {
		r := newRig(t, relay4, none)
		r.answerBinding(r.request(pion.MethodBinding), mapped4)
		r.drainEvents()
		r.fail(r.request(pion.MethodAllocate), 437, "")
		r.fail(r.request(pion.MethodRefresh), 437, "")
		r.grant(r.request(pion.MethodAllocate), 600, relayed4)
		r.events(Allocated{relayed4, none, 10 * time.Minute})
	})
	t.Run("and so is a REFRESH that is granted no time", func(t *testing.T) {
		r := allocated(t)
		r.c.Probe(r.now)
		r.grant(r.request(pion.MethodRefresh), 0)
		r.events(AllocationLost{LossMismatch, relayed4, relayed6})
		r.grant(r.request(pion.MethodAllocate), 600, relayed4)
		r.events(Allocated{relayed4, none, 10 * time.Minute})
	})
	t.Run("but not for ever", func(t *testing.T) {
		r := newRig(t, relay4, none)
		r.answerBinding(r.request(pion.MethodBinding), mapped4)
		r.drainEvents()
		for range maxRecoveries {
			r.fail(r.request(pion.MethodAllocate), 437, "")
			r.grant(r.request(pion.MethodRefresh), 0)
		}
		r.fail(r.request(pion.MethodAllocate), 437, "")
		r.silent()
		r.events(Suspended{437})
	})
}

func TestT47UnauthenticatedResponsesAreIgnored(t *testing.T) {
	r := newRig(t, relay4, none)
	r.answerBinding(r.request(pion.MethodBinding), mapped4)
	r.drainEvents()
	q := r.request(pion.MethodAllocate)

	unsigned := answer(q, pion.ClassErrorResponse)
	unsigned.Add(pion.AttrErrorCode, []byte{0, 0, 4, 1})
	unsigned.Add(pion.AttrRealm, []byte("firezone"))
	unsigned.Add(pion.AttrNonce, []byte("n"))
	forged := answer(q, pion.ClassSuccessResponse)
	forged.Add(pion.AttrXORRelayedAddress, xorAddress(relayed4, forged.TransactionID))
	_ = pion.NewLongTermIntegrity(username, "firezone", "guess").AddTo(forged)
	appended := answer(q, pion.ClassSuccessResponse)
	sign(appended)
	appended.Add(pion.AttrXORRelayedAddress, xorAddress(relayed4, appended.TransactionID))
	strange := answer(q, pion.ClassSuccessResponse)
	strange.TransactionID = pion.NewTransactionID()
	strange.WriteHeader()

	for name, b := range map[string][]byte{
		"unsigned 401": unsigned.Raw, "wrong key": forged.Raw, "unknown transaction": sign(strange),
		"request": q.Raw, "nothing": nil, "no STUN": []byte(strings.Repeat("x", 32)),
	} {
		if r.offer(q, b) {
			t.Errorf("%s was accepted", name)
		}
	}
	elsewhere := q
	elsewhere.to = peer4
	if r.offer(elsewhere, failure(q, 401, "n")) {
		t.Error("an answer from a stranger was accepted")
	}
	r.silent()
	r.events()

	r.deliver(q, appended.Raw) // authentic, but the address is not covered
	r.events(Suspended{0})
}

// doubtful is the refusal of a relay that expects another password.
func doubtful(q request, code int) []byte {
	m := answer(q, pion.ClassErrorResponse)
	m.Add(pion.AttrErrorCode, []byte{0, 0, byte(code / 100), byte(code % 100)})
	m.Add(pion.AttrRealm, []byte("firezone"))
	m.Add(pion.AttrNonce, []byte("n"))
	_ = pion.NewLongTermIntegrity(username, "firezone", "another").AddTo(m)
	return m.Raw
}

func TestAWrongPasswordIsNoticedInTwoSeconds(t *testing.T) {
	for _, c := range []struct {
		name   string
		refuse func(request) []byte
	}{
		{"refusals signed with the right password", func(q request) []byte { return doubtful(q, 401) }},
		{"refusals for a stale nonce, signed with the right password", func(q request) []byte { return doubtful(q, 438) }},
		{"refusals without integrity", func(q request) []byte {
			m := answer(q, pion.ClassErrorResponse)
			m.Add(pion.AttrErrorCode, []byte{0, 0, 4, 1})
			return m.Raw
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := newRig(t, relay4, none)
			r.answerBinding(r.request(pion.MethodBinding), mapped4)
			r.drainEvents()
			for range sendGaps {
				q := r.request(pion.MethodAllocate)
				if q.Contains(pion.AttrNonce) {
					t.Fatal("a nonce of nobody was adopted")
				}
				r.advance(60 * time.Millisecond)
				for range 2 { // each answer may come twice
					if r.offer(q, c.refuse(q)) {
						t.Fatal("accepted")
					}
				}
				r.advance(439 * time.Millisecond)
				r.silent() // no sooner than half a second after the one before
				r.events()
				r.advance(time.Millisecond)
			}
			r.silent()
			r.events(Failed{Rejected})
		})
	}
	t.Run("and a new one of the relay's by the probe", func(t *testing.T) {
		r := allocated(t)
		r.c.Probe(r.now)
		q := r.request(pion.MethodRefresh)
		r.offer(q, doubtful(q, 438))
		r.advance(doubtGap)
		r.events(AllocationLost{LossFailed, relayed4, relayed6}, Failed{Rejected})
	})
	t.Run("after a late refusal the rest of the wait is over", func(t *testing.T) {
		r := newRig(t, relay4, none)
		r.answerBinding(r.request(pion.MethodBinding), mapped4)
		q := r.request(pion.MethodAllocate)
		r.advance(900 * time.Millisecond)
		r.offer(q, doubtful(q, 401))
		r.advance(0)
		r.request(pion.MethodAllocate)
		r.silent()
	})
}

// Whoever sees the requests can make refusals up, but not keep a true answer
// from being taken.
func TestForgedRefusalsDoNotHideATrueAnswer(t *testing.T) {
	r := newRig(t, relay4, none)
	r.answerBinding(r.request(pion.MethodBinding), mapped4)
	r.drainEvents()
	first := r.request(pion.MethodAllocate)
	for q := first; ; q = r.request(pion.MethodAllocate) {
		r.offer(q, doubtful(q, 401))
		if r.now.Sub(time.Unix(1_800_000_000, 0)) == 3*doubtGap {
			break
		}
		r.advance(doubtGap)
	}
	r.advance(doubtGap - time.Millisecond)
	r.grant(first, 600, relayed4)
	r.events(Allocated{relayed4, none, 10 * time.Minute})
	r.advance(24 * time.Second)
	if r.c.State().State != StateAllocated {
		t.Fatal(r.c.State())
	}
}

func TestOtherErrorsThatNobodySignedChangeNothing(t *testing.T) {
	r := newRig(t, relay4, none)
	r.answerBinding(r.request(pion.MethodBinding), mapped4)
	r.drainEvents()
	q := r.request(pion.MethodAllocate)
	before, _ := r.c.NextTimeout()
	for _, code := range []int{400, 420, 437, 508} {
		if r.offer(q, doubtful(q, code)) {
			t.Fatalf("%d was accepted", code)
		}
	}
	if after, _ := r.c.NextTimeout(); !after.Equal(before) {
		t.Fatalf("the wait changed from %s to %s", before, after)
	}
	r.advance(time.Minute)
	if n := len(r.drainTransmits()); n != 3 {
		t.Fatalf("%d further transmissions", n)
	}
	r.events(Failed{Unreachable})
}
