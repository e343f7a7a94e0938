package client

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"time"

	"github.com/pion/stun/v3"
)

// reflexive asks a relay as which address it sees us. It repeats the request
// because datagrams get lost.
func reflexive(ctx context.Context, leg *stunConn, server netip.AddrPort) (netip.AddrPort, error) {
	req, err := stun.Build(stun.TransactionID, stun.BindingRequest)
	if err != nil {
		return netip.AddrPort{}, err
	}
	repeat := time.NewTicker(250 * time.Millisecond)
	defer repeat.Stop()
	for {
		if _, err := leg.WriteTo(req.Raw, net.UDPAddrFromAddrPort(server)); err != nil {
			return netip.AddrPort{}, fmt.Errorf("binding request: %w", err)
		}
	wait:
		for {
			select {
			case d := <-leg.in:
				resp := &stun.Message{Raw: d.data}
				var mapped stun.XORMappedAddress
				if resp.Decode() != nil || resp.TransactionID != req.TransactionID || mapped.GetFrom(resp) != nil {
					continue
				}
				ip, _ := netip.AddrFromSlice(mapped.IP)
				return netip.AddrPortFrom(ip.Unmap(), uint16(mapped.Port)), nil
			case <-repeat.C:
				break wait
			case <-ctx.Done():
				return netip.AddrPort{}, fmt.Errorf("no answer from relay: %w", ctx.Err())
			}
		}
	}
}
