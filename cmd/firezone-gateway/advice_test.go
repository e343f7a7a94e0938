package main

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"firezone-gateway/internal/admin"
	"firezone-gateway/internal/portal"
	"firezone-gateway/internal/portal/ws"
	"firezone-gateway/internal/tun"
)

func TestAdvice(t *testing.T) {
	refused := &ws.HandshakeError{Route: portal.RouteV2, Failure: portal.ClassifyHTTP(401, nil, []byte("Invalid token"), testTime)}
	taken := &ws.HandshakeError{Route: portal.RouteV2, Failure: portal.ClassifyHTTP(409,
		map[string][]string{"Content-Type": {"application/problem+json"}}, []byte(`{"code":"gateway_already_connected"}`), testTime)}
	for _, tc := range []struct {
		err  error
		want string
	}{
		{errNoToken, "systemd credential"},
		{errNoTokenFile, "may read it"},
		{errNoNetAdmin, "AmbientCapabilities"},
		{tun.ErrNoDevice, "modprobe tun"},
		{tun.ErrPermission, "CAP_NET_ADMIN"},
		{tun.ErrBusy, "another gateway"},
		{tun.ErrNameTaken, "ip link delete tun-firezone"},
		{refused, "deploy a new one"},
		{taken, "up to 37 s"},
		{admin.ErrNoGateway, "is the gateway running?"},
		{admin.ErrForbidden, "or as root"},
		{admin.ErrOtherVersion, "different versions"},
		{admin.ErrTaken, "--control-socket"},
	} {
		wrapped := fmt.Errorf("context: %w", tc.err)
		got := advise(wrapped)
		if !errors.Is(got, tc.err) || !strings.HasPrefix(got.Error(), wrapped.Error()+": ") || !strings.Contains(got.Error(), tc.want) {
			t.Errorf("advise(%v) = %v, want it to say %q", wrapped, got, tc.want)
		}
	}
	other := errors.New("other")
	if got := advise(other); got != other {
		t.Errorf("advise(%v) = %v", other, got)
	}
}
