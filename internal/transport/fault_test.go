package transport

import (
	"bytes"
	"errors"
	"log/slog"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"firezone-gateway/internal/drop"

	"golang.org/x/sys/unix"
)

// deafness makes recvmmsg fail as a script says before it receives.
type deafness struct {
	mu     sync.Mutex
	script []unix.Errno
}

func (d *deafness) receive(fd int, msgs []mmsghdr) (int, unix.Errno) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if len(d.script) > 0 {
		errno := d.script[0]
		d.script = d.script[1:]
		return -1, errno
	}
	return recvmmsg(fd, msgs)
}

func (d *deafness) left() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return len(d.script)
}

func TestReceivingSurvivesErrorsOfTheSocket(t *testing.T) {
	for _, tt := range []struct {
		name   string
		script []unix.Errno
		pauses int
	}{
		{"what a peer's router reports", []unix.Errno{unix.ECONNREFUSED}, 0},
		{"a datagram that was too long", []unix.Errno{unix.EMSGSIZE}, 0},
		{"different ones in a row", []unix.Errno{unix.EHOSTUNREACH, unix.ENETDOWN, unix.EPROTO}, 2},
		{"one that lasts", []unix.Errno{unix.ENOMEM, unix.ENOMEM, unix.ENOMEM, unix.ENOMEM}, 3},
	} {
		t.Run(tt.name, func(t *testing.T) {
			log := new(lockedBuffer)
			a, s := openSockets(t, Config{}), openSockets(t, Config{Logger: slog.New(slog.NewTextHandler(log, nil))})
			b := NewBind(s, discard{})
			d := &deafness{script: tt.script}
			b.receivers[IPv4].recvmm = d.receive
			e := &engine{bind: b, sinks: new(recorder), got: make(chan packet, 16)}
			began := time.Now()
			e.open(t, 128)
			t.Cleanup(func() { e.close(t) })
			for range 2 {
				bufs, want := batch(96, 96)
				send(t, a, pathTo(a, s, IPv4), bufs)
				e.expect(t, want)
			}
			if d.left() != 0 {
				t.Errorf("%d errors are left", d.left())
			}
			if waited := time.Since(began); waited < time.Duration(tt.pauses)*faultPause {
				t.Errorf("%d errors in a row were over after %v", len(tt.script), waited)
			}
			if got := strings.Count(log.String(), "receiving"); got != 1 {
				t.Errorf("logged %d times: %s", got, log)
			}
		})
	}
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(b)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func TestWhatClosedSocketsDoNotSendIsCounted(t *testing.T) {
	for _, tt := range []struct {
		name string
		sent int // messages before the socket is closed
		want uint64
	}{{"nothing sent", 0, 150}, {"a part sent", 3, 147}} {
		t.Run(tt.name, func(t *testing.T) {
			drops := new(drop.Counters)
			s := openSockets(t, Config{Drops: drops, DisableGSO: true})
			calls := 0
			var closing sync.WaitGroup
			t.Cleanup(closing.Wait)
			s.sockets[IPv4].sendmm = func(int, []mmsghdr) (int, unix.Errno) {
				if calls++; calls <= tt.sent {
					return 1, 0
				}
				if calls == tt.sent+1 {
					closing.Go(func() { s.Close() }) // it waits until the descriptor is free
				}
				return -1, unix.EAGAIN
			}
			bufs, _ := batch(repeat(150, 96)...)
			if err := s.sendBatch(pathTo(s, s, IPv4), bufs, headroom); !errors.Is(err, net.ErrClosed) {
				t.Errorf("send = %v", err)
			}
			if got := drops.Load(drop.SendFailed); got != tt.want {
				t.Errorf("SendFailed = %d, want %d", got, tt.want)
			}
			b := NewBind(s, discard{})
			if _, _, err := b.Open(0); err != nil {
				t.Fatal(err)
			}
			defer b.Close()
			if err := b.Send(bufs[:2], pathTo(s, s, IPv4), headroom); !errors.Is(err, net.ErrClosed) {
				t.Errorf("Send = %v", err)
			}
			if got := drops.Load(drop.SendFailed); got != tt.want+2 {
				t.Errorf("SendFailed = %d, want %d", got, tt.want+2)
			}
		})
	}
}
