package main

import (
	"context"
	"os"
	"sync"

	"firezone-gateway/actors"
	"firezone-gateway/internal/admin"
	"firezone-gateway/internal/host"
	"firezone-gateway/internal/telemetry"
)

// resetFunc gives the gateway a new key. It returns when that is in use, or an
// error when ctx ends first. It logs the cause.
type resetFunc func(ctx context.Context, cause string) error

// allowControl serves the operator, and resets the gateway at their word and when
// the host has changed, until ctx ends or the function returned is called. That
// waits for what is under way. What hangups ask for goes through reloading.
func (d *daemon) allowControl(ctx context.Context, tree *actors.Tree, hangups <-chan os.Signal, reloading func(resetFunc) resetFunc) (stop func()) {
	reset := tree.Reset
	ops := d.looks(ctx, tree)
	ops.Reset = func(ctx context.Context) error { return reset(ctx, "command") }
	d.allowFaults(&ops, tree)
	ctx, cancel := context.WithCancel(ctx)
	var running sync.WaitGroup
	running.Go(func() { d.onHangup(ctx, reloading(reset), hangups) })
	if !d.flags.NoHostWatch {
		running.Go(func() {
			host.Watch(ctx, host.Config{
				Logger:   telemetry.For(d.log, "host"),
				OnChange: func(c host.Cause) { d.resetNow(ctx, reset, string(c)) },
			})
		})
	}
	closeControl := d.openControl(ops)
	return func() {
		cancel()
		closeControl()
		running.Wait()
	}
}

// onHangup resets for each of hangups. How many of them wait for the end of
// a reset is bounded by the channel's room.
func (d *daemon) onHangup(ctx context.Context, reset resetFunc, hangups <-chan os.Signal) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-hangups:
			d.resetNow(ctx, reset, "SIGHUP")
		}
	}
}

// resetNow resets where nobody waits for the result.
func (d *daemon) resetNow(ctx context.Context, reset resetFunc, cause string) {
	if err := reset(ctx, cause); err != nil && ctx.Err() == nil {
		d.log.Warn("no new key", "cause", cause, "error", err)
	}
}

// openControl opens the control socket. The gateway works without as well.
func (d *daemon) openControl(ops admin.Operations) (closeIt func()) {
	if d.flags.ControlSocket == noControlSocket {
		return func() {}
	}
	control, err := admin.ServeControl(d.flags.ControlSocket, ops)
	if err != nil {
		d.log.Warn("going on without control socket", "error", advise(err))
		return func() {}
	}
	return func() { d.end("control socket", control.Close) }
}
