package labnet_test

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"syscall"
	"testing"
	"time"

	labnet "firezone-gateway/internal/lab/net"
)

func TestFurtherAddressesOfAHostAndOfNobody(t *testing.T) {
	d := deploy(t, labnet.Options{})
	for _, c := range []struct{ second, nobody string }{
		{"203.0.113.3", "203.0.113.4"},
		{"2001:db8::3", "2001:db8::4"},
	} {
		second, nobody := netip.MustParseAddr(c.second), netip.MustParseAddr(c.nobody)
		if err := errors.Join(d.AddAddress(d.Portal, second), d.Swallow(nobody)); err != nil {
			t.Fatal(err)
		}
		listener, err := d.Portal.Listen("tcp", netip.AddrPortFrom(second, 8081).String())
		if err != nil {
			t.Fatal(err)
		}
		defer listener.Close()
		dial := func(address string, port uint16, patience time.Duration) error {
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			defer cancel()
			to := netip.AddrPortFrom(netip.MustParseAddr(address), port)
			conn, err := d.Gateway.Host.DialContext(ctx, "tcp", to.String())
			if err == nil {
				conn.Close()
			}
			return err
		}
		if err := dial(c.second, 8081, arrival); err != nil {
			t.Errorf("further address: %v", err)
		}
		if err := dial(c.second, 8082, arrival); !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("further address without listener: %v", err)
		}
		if err, ok := errors.AsType[net.Error](dial(c.nobody, 8081, 4*silence)); !ok || !err.Timeout() {
			t.Errorf("address that swallows: %v", err)
		}
	}
}
