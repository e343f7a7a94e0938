package main

import (
	"errors"
	"fmt"

	"firezone-gateway/internal/admin"
	"firezone-gateway/internal/portal/ws"
	"firezone-gateway/internal/tun"
)

var errNoNetAdmin = errors.New("CAP_NET_ADMIN is missing")

// advise adds to an error what an operator can do about it.
func advise(err error) error {
	for _, a := range []struct {
		is     error
		advice string
	}{
		{errNoToken, "set FIREZONE_TOKEN to the gateway's token or to the path of a file that holds it, or pass a systemd credential named FIREZONE_TOKEN"},
		{errNoTokenFile, "check that the file exists and that this user may read it"},
		{errNoNetAdmin, "run as root, or grant the capability: AmbientCapabilities=CAP_NET_ADMIN in a systemd unit, --cap-add NET_ADMIN for a container"},
		{tun.ErrNoDevice, "load the module (modprobe tun), or give the container the device: --device /dev/net/tun"},
		{tun.ErrPermission, "the device node must be readable and writable by this user, and CAP_NET_ADMIN is needed"},
		{tun.ErrBusy, "another gateway is running on this host; stop it first"},
		{tun.ErrNameTaken, "another program made it; remove it with: ip link delete " + tun.DefaultName},
		{admin.ErrNoGateway, "is the gateway running? If its socket is elsewhere, name it by --control-socket or FIREZONE_CONTROL_SOCKET"},
		{admin.ErrForbidden, "run this as the gateway's user or as root"},
		{admin.ErrOtherVersion, "gateway and command are of different versions; restart the gateway to run the new one"},
		{admin.ErrTaken, "if that is another gateway, give this one its own by --control-socket or FIREZONE_CONTROL_SOCKET"},
	} {
		if errors.Is(err, a.is) {
			return fmt.Errorf("%w: %s", err, a.advice)
		}
	}
	failure := ws.FailureOf(err)
	if failure.Code == "gateway_already_connected" {
		return fmt.Errorf("%w: another gateway has the same identity, or one that was killed; the portal notices that after up to 37 s, start again then", err)
	}
	if failure.Fatal {
		return fmt.Errorf("%w: the token may be revoked or of another account; deploy a new one from the admin portal", err)
	}
	return err
}
