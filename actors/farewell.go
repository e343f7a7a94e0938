package actors

import (
	"context"
	"time"

	"firezone-gateway/internal/actorkit"
	"firezone-gateway/messages"
)

// farewellPatience bounds what clients and portal are still told when supervision
// ends the process.
const farewellPatience = 2 * time.Second

// leave says goodbye to clients and portal when an actor that could not be kept alive
// ends the process. The gateway actor does it as at any other end, if it lives. It may
// lack the one that it needs, so the goodbyes are said without actors, too: nobody
// hears two. The portal actor closes its connection when it is stopped.
func (t *Tree) leave(r actorkit.ExitRequest) {
	ctx, cancel := context.WithTimeout(context.Background(), farewellPatience)
	defer cancel()
	said := make(chan struct{})
	go func() {
		defer close(said)
		_ = t.plane.Tunnel.GoodbyeAll(ctx) // clients find out by themselves
	}()
	if r.Path != actorkit.Path(t.root) {
		t.system.Send(t.root, messages.Shutdown{})
		select {
		case <-t.ended:
		case <-ctx.Done():
		}
	}
	<-said
}

// giveBack has relays free the allocations that are left once the actors have
// stopped: they would keep them for ten more minutes. Whatever was to go through them
// has been sent by then.
func (p *Plane) giveBack(now time.Time) {
	for _, cfg := range p.allocations.left() {
		a := p.allocations.take(cfg)
		if a == nil {
			continue
		}
		if request, ok := a.machine.Release(now); ok {
			_ = a.sockets.SendToServer(request.Data, request.To) // its lifetime ends it, too
		}
		a.release(p)
	}
}
