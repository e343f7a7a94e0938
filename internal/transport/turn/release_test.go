package turn

import (
	"net/netip"
	"testing"

	pion "github.com/pion/stun/v3"
)

func TestReleaseEndsTheAllocation(t *testing.T) {
	r, _ := bound(t)
	out, ok := r.c.Release(r.now)
	if !ok || out.To != relay4 {
		t.Fatalf("released to %v, %v", out.To, ok)
	}
	m := &pion.Message{Raw: out.Data}
	if err := m.Decode(); err != nil || m.Type != pion.NewType(pion.MethodRefresh, pion.ClassRequest) {
		t.Fatalf("%v, %v", m.Type, err)
	}
	if life, err := m.Get(pion.AttrLifetime); err != nil || string(life) != "\x00\x00\x00\x00" {
		t.Errorf("lifetime %x, %v", life, err)
	}
	if err := pion.NewLongTermIntegrity(username, Realm, password).Check(m); err != nil {
		t.Error(err)
	}
	if _, more := r.c.PollTransmit(); more {
		t.Error("something else is sent")
	}
}

func TestThereIsNothingToReleaseWithoutAllocation(t *testing.T) {
	r := newRig(t, relay4, netip.AddrPort{})
	if _, ok := r.c.Release(r.now); ok {
		t.Error("released")
	}
}
