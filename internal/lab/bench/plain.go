package bench

import (
	"context"
	"fmt"
	"io"
	"net/netip"

	"golang.zx2c4.com/wireguard/conn"
)

// Plain is the process that stands in the gateway's place for the comparison:
// golang.zx2c4.com/wireguard and nothing else.
type Plain struct {
	Name      string         // of the TUN device
	Addresses []netip.Prefix // of the TUN device
	Routes    []netip.Prefix // into the TUN device
}

// ready is what the process prints when it forwards packets.
const ready = "ready"

// Run reads the engine's configuration from in up to its end, says "ready" on
// out, and forwards packets until ctx is done.
func (p Plain) Run(ctx context.Context, in io.Reader, out io.Writer) error {
	const maxConfig = 64 << 10
	config, err := io.ReadAll(io.LimitReader(in, maxConfig))
	if err != nil {
		return fmt.Errorf("configuration: %w", err)
	}
	engine, err := newEngine(p.Name, conn.NewStdNetBind(), p.Addresses, p.Routes, string(config))
	if err != nil {
		return err
	}
	defer engine.Close()
	if _, err := fmt.Fprintln(out, ready); err != nil {
		return err
	}
	select {
	case <-ctx.Done():
	case <-engine.dev.Wait():
	}
	return nil
}
