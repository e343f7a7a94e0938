package tunnel

import (
	"errors"
	"os"
	"testing"

	enginetun "github.com/tailscale/wireguard-go/tun"

	"firezone-gateway/internal/drop"
)

func TestWriteToCountsWhatItCannotPassOn(t *testing.T) {
	packets := func() [][]byte {
		return decrypted(udp(address4(1), server4, 1, 1000, 0), udp(address4(1), other4, 1, 1000, 0), udp(address4(1), server4, 2, 1000, 0))
	}
	closed := newGatewayTUN()
	closed.close()
	for _, c := range []struct {
		name    string
		device  enginetun.Device
		removed bool
		want    map[drop.Reason]uint64
	}{
		{name: "no device", want: map[drop.Reason]uint64{drop.TUNWrite: 2}},
		{name: "closed device", device: closed, want: map[drop.Reason]uint64{drop.TUNWrite: 2}},
		{name: "working device", device: newGatewayTUN()},
		{name: "no client with that flow", device: newGatewayTUN(), removed: true, want: map[drop.Reason]uint64{drop.NoPeerState: 3}},
	} {
		t.Run(c.name, func(t *testing.T) {
			tun := plainTunnel()
			tun.AttachTUN(c.device)
			client := connect(t, tun, configOf(1, newHeardBy(), usualGrants()...))
			if c.removed {
				tun.byFlow.delete(client.flow)
			}
			if _, err := tun.dev.WriteTo(int(client.flow), packets(), engineOffset); err != nil {
				t.Error(err)
			}
			wantDrops(t, "tunnel", tun.Drops(), c.want)
			if !c.removed {
				wantDrops(t, "client", client.Drops(), map[drop.Reason]uint64{drop.NoResource: 1})
			}
		})
	}
}

// oversized is a device whose first read ends with too many segments.
type oversized struct {
	gatewayTUN
	reads int
}

func (o *oversized) Read(slab []byte, packets []enginetun.ReadPacket) (int, error) {
	if o.reads++; o.reads > 1 {
		return 0, os.ErrClosed
	}
	pkt := udp(server4, address4(1), 1000, 1, 0)
	packets[0] = enginetun.ReadPacket{Offset: enginetun.ReadPacketSpacing, Size: copy(slab[enginetun.ReadPacketSpacing:], pkt)}
	return 1, enginetun.ErrTooManySegments
}

func TestReadKeepsWhatCameBeforeTooManySegments(t *testing.T) {
	tun := plainTunnel()
	connect(t, tun, configOf(1, newHeardBy(), usualGrants()...))
	tun.AttachTUN(&oversized{gatewayTUN: newGatewayTUN()})
	n, err := tun.dev.Read(make([]byte, slabSize), make([]enginetun.ReadPacket, batchSize))
	if n != 1 || err != nil {
		t.Errorf("read: %d, %v", n, err)
	}
	wantDrops(t, "tunnel", tun.Drops(), map[drop.Reason]uint64{drop.Oversize: 1})
	for range 2 {
		if err := tun.dev.Close(); err != nil {
			t.Error(err)
		}
	}
	if _, err := tun.dev.Read(make([]byte, slabSize), make([]enginetun.ReadPacket, batchSize)); !errors.Is(err, os.ErrClosed) {
		t.Errorf("read after close: %v", err)
	}
	if tun.AttachTUN(newGatewayTUN()) != nil {
		t.Error("the closed device is attached")
	}
}
