package turn

import (
	"net/netip"
	"testing"
	"time"

	pion "github.com/pion/stun/v3"
)

// The calls that an owner makes for each datagram or tick, with the largest
// number of channels that can be.

func BenchmarkHandleTimeoutWithAllChannels(b *testing.B) {
	c, now := full(b)
	b.ReportAllocs()
	for b.Loop() {
		c.HandleTimeout(now)
		if _, ok := c.NextTimeout(); !ok {
			b.Fatal("no timeout")
		}
	}
}

func BenchmarkMarkReceived(b *testing.B) {
	c, now := full(b)
	b.ReportAllocs()
	for b.Loop() {
		c.MarkReceived(MinChannel+100, now)
	}
}

func BenchmarkBindChannelThatExists(b *testing.B) {
	c, now := full(b)
	b.ReportAllocs()
	for b.Loop() {
		c.BindChannel(peer(100), now)
	}
}

// An answer that nobody waits for is what a flood consists of.
func BenchmarkForeignAnswer(b *testing.B) {
	c, now := full(b)
	foreign := &pion.Message{Type: pion.NewType(pion.MethodRefresh, pion.ClassSuccessResponse)}
	foreign.WriteHeader()
	sign(foreign)
	b.ReportAllocs()
	for b.Loop() {
		if c.HandleDatagram(relay4, local4.Addr(), local4.Port(), foreign.Raw, now) {
			b.Fatal("accepted")
		}
	}
}

// full returns a client of a relay that grants everything, with every channel
// bound.
func full(tb testing.TB) (*Client, time.Time) {
	tb.Helper()
	now := time.Unix(1_800_000_000, 0)
	c := New(testConfig(relay4, netip.AddrPort{}), now)
	serve := func() {
		for tr, ok := c.PollTransmit(); ok; tr, ok = c.PollTransmit() {
			m := &pion.Message{Raw: tr.Data}
			if err := m.Decode(); err != nil {
				tb.Fatal(err)
			}
			if !c.HandleDatagram(tr.To, local4.Addr(), local4.Port(), consent(request{m, tr.To}), now) {
				tb.Fatal("an answer was ignored")
			}
		}
		for _, ok := c.PollEvent(); ok; _, ok = c.PollEvent() {
		}
	}
	serve()
	for i := range MaxChannel - MinChannel + 1 {
		c.BindChannel(peer(i), now)
		serve()
	}
	if s := c.State(); s.Channels != MaxChannel-MinChannel+1 {
		tb.Fatal(s)
	}
	return c, now
}
