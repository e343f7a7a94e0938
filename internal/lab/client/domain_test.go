package client

import (
	"encoding/hex"
	"net/netip"
	"slices"
	"testing"
)

func TestProxiesAreMadeUpOncePerDomain(t *testing.T) {
	c := &Client{}
	first := c.Proxies("a.example")
	want := []string{
		"100.96.0.1", "100.96.0.2", "100.96.0.3", "100.96.0.4",
		"fd00:2021:1111:8000::1", "fd00:2021:1111:8000::2", "fd00:2021:1111:8000::3", "fd00:2021:1111:8000::4",
	}
	for i, a := range first {
		if len(first) != len(want) || a != netip.MustParseAddr(want[i]) {
			t.Fatalf("%v, want %v", first, want)
		}
	}
	if again := c.Proxies("A.Example."); !slices.Equal(again, first) {
		t.Errorf("the same domain has %v", again)
	}
	for _, a := range c.Proxies("b.example") {
		if slices.Contains(first, a) {
			t.Errorf("%v belongs to two domains", a)
		}
	}
}

func TestProxiesLieInTheirRangesAndAreNoSentinels(t *testing.T) {
	base, err := netip.MustParseAddr("100.100.111.0").Prev().MarshalBinary()
	if err != nil {
		t.Fatal(err)
	}
	start := uint32(base[1]-96)<<16 | uint32(base[2])<<8 | uint32(base[3])
	for _, used := range []uint32{0, start - 3, start, 1<<21 - 6} {
		c := &Client{}
		c.domains.used = used
		list := c.Proxies("a.example")
		for i, a := range list {
			if !ProxyRanges[i/proxiesPerFamily].Contains(a) || sentinels[0].Contains(a) || sentinels[1].Contains(a) {
				t.Errorf("after %d: %v", used, a)
			}
		}
		if len(list) != 2*proxiesPerFamily || len(slices.Compact(slices.Sorted(slices.Values(names(list))))) != len(list) {
			t.Errorf("after %d: %v", used, list)
		}
	}
}

func names(list []netip.Addr) (out []string) {
	for _, a := range list {
		out = append(out, a.String())
	}
	return out
}

func TestControlPacketOnTheWire(t *testing.T) {
	const want = "60000000" + "000a" + "ff00" + "00000000000000000000000000000000" + "00000000000000000000000000000000" + "0100000000000000" + "7b7d"
	if got := hex.EncodeToString(ControlPacket(controlDomainStatus, []byte("{}"))); got != want {
		t.Errorf("%s, want %s", got, want)
	}
	if !isControl(ControlPacket(controlGoodbye, nil)) {
		t.Error("a goodbye is no control packet")
	}
}

func TestStatusReachesItsSetUpOnly(t *testing.T) {
	var d domains
	one, forgetOne := d.await(setUp{"r", "one.example"})
	two, forgetTwo := d.await(setUp{"r", "two.example"})
	defer forgetTwo()
	for _, body := range []string{
		`{"resource":"r","domain":"one.example","status":"Active"}`,
		`{"resource":"r","domain":"one.example","status":"Inactive"}`, // a repetition: the first one counts
		`{"resource":"s","domain":"two.example","status":"Active"}`, `nonsense`, ``,
	} {
		d.answered([]byte(body))
	}
	if got := <-one; got.Status != "Active" {
		t.Errorf("%+v", got)
	}
	select {
	case got := <-two:
		t.Errorf("%+v", got)
	default:
	}
	forgetOne()
	d.answered([]byte(`{"resource":"r","domain":"one.example","status":"Active"}`))
	if len(one) != 0 || len(d.waiting) != 1 {
		t.Errorf("an answer to nobody is kept, %d wait", len(d.waiting))
	}
}
