package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"firezone-gateway/internal/lab/tour"
)

type tourCommand struct {
	daemonFlags
	V1   bool `name:"v1" help:"Let portal and clients speak the older generation of the protocol (1.4)."`
	Keep bool `name:"keep" help:"Leave everything up when the tour is over, say how to enter each namespace, and wait for Ctrl-C."`
}

// Help implements kong.HelpProvider.
func (tourCommand) Help() string {
	return `Each line of the table is one promise, made on real traffic: the daemon is a
process of its own, the websocket, WireGuard, the TUN devices and the NAT are
real. A step that fails shows the end of the gateway's log; those that do not
depend on it are taken nevertheless.

With --keep, look around from another terminal with the commands printed:

  nsenter --net=… ping 10.20.0.10        in the client: through the tunnel
  nsenter --net=… curl 'http://10.20.0.10/file?size=1000000' -o /dev/null
  nsenter --net=… tcpdump -ni eth0 udp   in a router: what others see`
}

// summary is the JSON form of a tour.
type summary struct {
	OK         bool          `json:"ok"`
	Generation string        `json:"generation"` // of the portal
	Seconds    float64       `json:"seconds"`
	Steps      []tour.Result `json:"steps"`
}

// Run implements the command.
func (c *tourCommand) Run(s *session) (err error) {
	binary, cleanup, err := c.prepare(s)
	defer cleanup()
	if err != nil {
		return err
	}
	options := tour.Full(binary)
	options.V1, options.TUNDriver, options.LogDir = c.V1, c.TUNDriver, c.LogDir

	begin := time.Now()
	s.progress.Begin("building the network")
	world, err := tour.New(options)
	if err != nil {
		s.progress.End("✗ building the network")
		return err
	}
	defer func() { err = errors.Join(err, world.Close()) }()
	s.progress.End(fmt.Sprintf("✓ portal, relay, NAT routers, %d clients and resources are up (%.1f s)", options.Clients, time.Since(begin).Seconds()))

	results := tour.Run(s.ctx, world, tour.Steps(options), s.progress)
	result := summary{OK: tour.Held(results), Generation: "V2", Seconds: time.Since(begin).Seconds(), Steps: results}
	if c.V1 {
		result.Generation = "V1"
	}
	if err := s.print(result, result.write); err != nil {
		return err
	}
	if c.Keep && s.ctx.Err() == nil {
		if err := c.stay(s, world); err != nil {
			return err
		}
	}
	if !result.OK {
		return errBroken
	}
	return nil
}

func (r summary) write(w io.Writer) error {
	fmt.Fprintln(w)
	if err := tour.WriteTable(w, r.Steps); err != nil {
		return err
	}
	held := 0
	for _, step := range r.Steps {
		if step.OK {
			held++
		}
	}
	_, err := fmt.Fprintf(w, "\n%d of %d promises held, %.1f s\n", held, len(r.Steps), r.Seconds)
	return err
}

// stay brings back what the tour ended and waits for the end.
func (c *tourCommand) stay(s *session, world *tour.World) error {
	ctx, cancel := context.WithTimeout(s.ctx, 30*time.Second)
	err := world.Revive(ctx)
	cancel()
	if err != nil && s.ctx.Err() == nil {
		s.progress.Note("the gateway is not back: %v", err)
	}
	s.progress.Note("\nStill up: gateway (pid %d), portal %s. Enter a namespace from another terminal:", world.Gateway().PID(), world.PortalURL())
	for _, ns := range world.Network().Lab.Namespaces() {
		s.progress.Note("  %-16s %s", ns.Name(), ns.EnterCommand())
	}
	s.progress.Note("Ctrl-C ends it.")
	<-s.ctx.Done()
	return nil
}
