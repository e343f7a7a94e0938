package tour

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"

	"firezone-gateway/internal/lab/gateway"
	labnet "firezone-gateway/internal/lab/net"
)

// frontPort is where a front listens, next to the portal.
const frontPort = 8082

// front is a TCP port between the gateway and the portal. It passes connections
// on, or does what sick servers and networks do. The clients go past it.
type front struct {
	host    labnet.Host // where the portal is
	address netip.AddrPort
	backend string // the portal

	wait sync.WaitGroup

	mu       sync.Mutex
	listener net.Listener // guarded by mu
	mood     mood         // guarded by mu
	lost     bool         // guarded by mu; what arrives on either side vanishes
	orphans  bool         // guarded by mu; the portal's side outlives the gateway's
	outside  map[net.Conn]struct{}
	inside   map[net.Conn]struct{}
	visits   []visit // guarded by mu, those since the last change of mood
	era      int     // guarded by mu, counts changes of mood
	closed   bool    // guarded by mu
}

// visit is one connection of the gateway that the gateway or the mood has ended.
type visit struct {
	begin, end time.Time
}

// mood serves one connection of the gateway until it ends.
type mood func(f *front, gateway net.Conn)

// behindFront builds a World whose gateway reaches the portal through a front
// only, by the given scheme. The portal's port for the front is backendPort.
func behindFront(t *testing.T, o Options, scheme string, backendPort uint16) (*World, *front) {
	t.Helper()
	f := &front{mood: pass, outside: make(map[net.Conn]struct{}), inside: make(map[net.Conn]struct{})}
	before, arrange := o.scene.prepare, o.scene.daemon
	o.scene.prepare = func(w *World) error {
		f.host = w.net.Portal
		f.address = netip.AddrPortFrom(w.net.Portal.IPv4, frontPort)
		f.backend = netip.AddrPortFrom(w.net.Portal.IPv4, backendPort).String()
		if before != nil {
			if err := before(w); err != nil {
				return err
			}
		}
		return f.open()
	}
	o.scene.daemon = func(w *World, g *gateway.Options) {
		if arrange != nil {
			arrange(w, g)
		}
		g.Portal = fmt.Sprintf("%s://%s", scheme, f.address)
	}
	t.Cleanup(f.close) // after the World's end
	return newWorld(t, o), f
}

func (f *front) open() error {
	listener, err := f.host.Listen("tcp", f.address.String())
	if err != nil {
		return fmt.Errorf("front: %w", err)
	}
	f.mu.Lock()
	f.listener = listener
	f.mu.Unlock()
	f.wait.Go(func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			f.wait.Go(func() { f.receive(conn) })
		}
	})
	return nil
}

func (f *front) close() {
	f.mu.Lock()
	f.closed = true
	if f.listener != nil {
		f.listener.Close()
	}
	f.mu.Unlock()
	f.cut()
	f.release()
	f.wait.Wait()
}

func (f *front) receive(conn net.Conn) {
	begin := time.Now()
	f.mu.Lock()
	mood, era := f.mood, f.era
	if f.closed {
		conn.Close()
	}
	f.outside[conn] = struct{}{}
	f.mu.Unlock()
	mood(f, conn)
	conn.Close()
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.outside, conn)
	if era == f.era {
		f.visits = append(f.visits, visit{begin, time.Now()})
	}
}

// become changes what the front does with further connections, cuts those that
// exist, and forgets earlier visits.
func (f *front) become(m mood) {
	f.mu.Lock()
	f.mood, f.lost, f.visits = m, false, nil
	f.era++
	f.mu.Unlock()
	f.cut()
	f.release()
}

// setMood changes what the front does with further connections.
func (f *front) setMood(m mood) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.mood = m
}

// lose makes everything vanish that arrives on connections that exist, which
// stay open: a middlebox that has forgotten them.
func (f *front) lose() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.lost = true
}

// orphan cuts the gateway off and leaves the portal in the belief that it is
// still there.
func (f *front) orphan() {
	f.mu.Lock()
	f.orphans = true
	f.mu.Unlock()
	f.cut()
}

// release ends the connections to the portal whose gateway has gone.
func (f *front) release() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.orphans = false
	for conn := range f.inside {
		conn.Close()
	}
}

// cut ends the gateway's connections.
func (f *front) cut() {
	f.mu.Lock()
	defer f.mu.Unlock()
	for conn := range f.outside {
		conn.Close()
	}
}

// inject writes bytes into the gateway's connections from the portal's side.
func (f *front) inject(b []byte) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for conn := range f.outside {
		_, _ = conn.Write(b)
	}
}

// ended returns the visits that have ended since the last change of mood.
func (f *front) ended() []visit {
	f.mu.Lock()
	defer f.mu.Unlock()
	return append([]visit(nil), f.visits...)
}

// awaitVisits waits until n visits have ended.
func (f *front) awaitVisits(t *testing.T, n int, limit time.Duration) []visit {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	err := await(ctx, fmt.Sprintf("no %d attempts of the gateway within %v", n, limit), func() bool { return len(f.ended()) >= n })
	if err != nil {
		t.Fatal(err)
	}
	return f.ended()
}

// pass hands everything on as it comes.
func pass(f *front, gateway net.Conn) { f.forward(gateway, 32<<10, 0) }

// drip hands what the portal says on in pieces of that many bytes, with a pause
// after each.
func drip(piece int, every time.Duration) mood {
	return func(f *front, gateway net.Conn) { f.forward(gateway, piece, every) }
}

// mute accepts and never says a word.
func mute(_ *front, gateway net.Conn) { _, _ = io.Copy(io.Discard, gateway) }

// babble says the same to everybody and hangs up once the gateway has heard it.
func babble(text string) mood {
	return func(_ *front, gateway net.Conn) {
		if err := gateway.SetDeadline(time.Now().Add(time.Second)); err != nil {
			return
		}
		if _, err := io.WriteString(gateway, text); err == nil {
			_, _ = io.Copy(io.Discard, gateway)
		}
	}
}

// flood says the beginning, and then repeats the rest until it has said so many
// bytes. After that it is mute.
func flood(beginning, rest string, bytes int) mood {
	return func(_ *front, gateway net.Conn) {
		if _, err := io.WriteString(gateway, beginning); err != nil {
			return
		}
		for sent := 0; sent < bytes; sent += len(rest) {
			if _, err := io.WriteString(gateway, rest); err != nil {
				return
			}
		}
		_, _ = io.Copy(io.Discard, gateway)
	}
}

// forward joins a connection of the gateway to one to the portal until either
// ends.
func (f *front) forward(outside net.Conn, piece int, every time.Duration) {
	inside, err := f.host.DialContext(context.Background(), "tcp", f.backend)
	if err != nil {
		return // as a proxy does whose server is gone
	}
	f.mu.Lock()
	if f.closed {
		inside.Close()
	}
	f.inside[inside] = struct{}{}
	f.mu.Unlock()
	f.wait.Go(func() {
		f.copy(outside, inside, piece, every)
		inside.Close()
		f.mu.Lock()
		defer f.mu.Unlock()
		delete(f.inside, inside)
		if !f.lost {
			outside.Close()
		}
	})
	f.copy(inside, outside, 32<<10, 0)
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.orphans {
		inside.Close()
	}
}

// copy moves bytes from one side to the other until one of them ends. To an
// orphan's side that is gone it does so without success.
func (f *front) copy(to, from net.Conn, piece int, every time.Duration) {
	buffer := make([]byte, piece)
	for {
		n, err := from.Read(buffer)
		f.mu.Lock()
		lost, orphans := f.lost, f.orphans
		f.mu.Unlock()
		if n > 0 && !lost {
			if _, err := to.Write(buffer[:n]); err != nil && !(orphans && errors.Is(err, net.ErrClosed)) {
				return
			}
		}
		if err != nil {
			return
		}
		if every > 0 {
			time.Sleep(every)
		}
	}
}
