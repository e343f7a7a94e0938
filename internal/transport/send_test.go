package transport

import (
	"bytes"
	"errors"
	"log/slog"
	"net"
	"strings"
	"testing"
	"time"

	"firezone-gateway/internal/drop"

	"golang.org/x/sys/unix"
)

func TestFill(t *testing.T) {
	s := openSockets(t, Config{})
	for _, tt := range []struct {
		name     string
		family   Family
		sizes    []int
		coalesce bool
		want     []int // datagrams in each message
	}{
		{"equal sizes share a message", IPv4, repeat(3, 100), true, []int{3}},
		{"a shorter one ends its message", IPv4, []int{100, 100, 50, 50, 50}, true, []int{3, 2}},
		{"a longer one begins a message", IPv4, []int{50, 100, 100}, true, []int{1, 2}},
		{"at most 64 share a message", IPv4, repeat(128, 32), true, []int{64, 64}},
		{"IPv4 messages end below 65508 bytes", IPv4, repeat(60, 1312), true, []int{49, 11}},
		{"IPv6 messages end below 65528 bytes", IPv6, repeat(60, 1310), true, []int{50, 10}},
		{"without coalescing each is its own", IPv4, repeat(4, 100), false, []int{1, 1, 1, 1}},
		{"oversize ones are left out", IPv4, []int{1317, 1316, 1317, 1316, 1400}, true, []int{2}},
		{"empty ones are never coalesced", IPv4, []int{0, 0, 100, 0, 0}, true, []int{1, 1, 2, 1}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			bufs := make([][]byte, len(tt.sizes))
			for i, n := range tt.sizes {
				bufs[i] = make([]byte, headroom+n)
			}
			x := newTransmission()
			oversize, end := x.fill(pathTo(s, s, tt.family), bufs, headroom, headroom, tt.coalesce)
			if end != len(bufs) {
				t.Errorf("took %d of %d", end, len(bufs))
			}
			var got []int
			for i := range x.count {
				got = append(got, int(x.segments[i]))
				if int(x.segments[i]) != int(x.msgs[i].hdr.Iovlen) {
					t.Errorf("message %d has %d iovecs", i, x.msgs[i].hdr.Iovlen)
				}
			}
			total := oversize
			for _, n := range got {
				total += n
			}
			if total != len(bufs) || len(got) != len(tt.want) {
				t.Fatalf("messages %v and %d too long, want %v", got, oversize, tt.want)
			}
			for i := range got {
				if got[i] != tt.want[i] {
					t.Fatalf("messages %v, want %v", got, tt.want)
				}
			}
		})
	}
}

// faults makes sendmmsg fail as a script says, and records what gets through.
type faults struct {
	script []unix.Errno // one for each call; 0 sends one message
	calls  int
	sent   []int // datagrams in each message
}

func (f *faults) send(_ int, msgs []mmsghdr) (int, unix.Errno) {
	errno := unix.Errno(0)
	if f.calls < len(f.script) {
		errno = f.script[f.calls]
	}
	f.calls++
	if errno != 0 {
		return -1, errno
	}
	f.sent = append(f.sent, int(msgs[0].hdr.Iovlen))
	return 1, 0
}

func TestRefusedMessages(t *testing.T) {
	sizes := []int{100, 100, 100, 60, 200, 200} // coalesced: 4 and 2
	for _, tt := range []struct {
		name   string
		script []unix.Errno
		sent   []int
		failed uint64
		gso    bool // afterwards
	}{
		{"nothing is refused", nil, []int{4, 2}, 0, true},
		{"EIO switches offload off and sends again singly", []unix.Errno{unix.EIO}, []int{1, 1, 1, 1, 1, 1}, 0, false},
		{"EIO later repeats only what was not sent", []unix.Errno{0, unix.EIO}, []int{4, 1, 1}, 0, false},
		{"EINVAL sends this batch singly", []unix.Errno{0, unix.EINVAL}, []int{4, 1, 1}, 0, true},
		{"EMSGSIZE for a single one drops that one", []unix.Errno{unix.EMSGSIZE, unix.EMSGSIZE}, []int{1, 1, 1, 1, 1}, 1, true},
		{"EPERM drops the rest", []unix.Errno{0, unix.EPERM}, []int{4}, 2, true},
		{"an unreachable network drops all", []unix.Errno{unix.ENETUNREACH}, nil, 6, true},
		{"ENOBUFS is tried again", []unix.Errno{unix.ENOBUFS, unix.ENOBUFS}, []int{4, 2}, 0, true},
		{"lasting ENOBUFS drops a message", []unix.Errno{unix.ENOBUFS, unix.ENOBUFS, unix.ENOBUFS, unix.ENOBUFS}, []int{2}, 4, true},
		{"EAGAIN waits", []unix.Errno{unix.EAGAIN}, []int{4, 2}, 0, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var log bytes.Buffer
			drops := new(drop.Counters)
			s := openSockets(t, Config{Drops: drops, Logger: slog.New(slog.NewTextHandler(&log, nil))})
			log.Reset()
			f := &faults{script: tt.script}
			sock := s.sockets[IPv4]
			sock.sendmm = f.send
			sock.gso.Store(true)
			bufs, _ := batch(sizes...)
			send(t, s, pathTo(s, s, IPv4), bufs)
			if len(f.sent) != len(tt.sent) {
				t.Fatalf("sent %v, want %v", f.sent, tt.sent)
			}
			for i := range f.sent {
				if f.sent[i] != tt.sent[i] {
					t.Fatalf("sent %v, want %v", f.sent, tt.sent)
				}
			}
			if got := drops.Load(drop.SendFailed); got != tt.failed {
				t.Errorf("SendFailed = %d, want %d", got, tt.failed)
			}
			if sock.gso.Load() != tt.gso {
				t.Errorf("GSO is %v", sock.gso.Load())
			}
			if got := strings.Count(log.String(), "\n"); got != map[bool]int{true: 0, false: 1}[tt.gso] {
				t.Errorf("logged %d lines: %s", got, log.String())
			}
		})
	}
}

func TestControlDatagramsDoNotWait(t *testing.T) {
	drops := new(drop.Counters)
	s := openSockets(t, Config{Drops: drops})
	s.sockets[IPv4].sendmm = (&faults{script: []unix.Errno{unix.EAGAIN, unix.EPERM}}).send
	p := pathTo(s, s, IPv4)
	if err := s.SendTo(bindingRequest(), p); !errors.Is(err, unix.EAGAIN) {
		t.Errorf("SendTo = %v", err)
	}
	if err := s.SendToServer(bindingRequest(), address(s, IPv4)); !errors.Is(err, unix.EPERM) {
		t.Errorf("SendToServer = %v", err)
	}
	if got := drops.Load(drop.SendFailed); got != 2 {
		t.Errorf("SendFailed = %d, want 2", got)
	}
	s.Close()
	if err := s.SendTo(bindingRequest(), p); !errors.Is(err, net.ErrClosed) {
		t.Errorf("SendTo after Close = %v", err)
	}
}

func TestCloseEndsAWaitingSend(t *testing.T) {
	s := openSockets(t, Config{})
	waiting := make(chan struct{})
	calls := 0
	s.sockets[IPv4].sendmm = func(int, []mmsghdr) (int, unix.Errno) {
		if calls++; calls == 2 { // the first one that the poller asks for
			close(waiting)
		}
		return -1, unix.EAGAIN
	}
	bufs, _ := batch(96)
	ended := make(chan error, 1)
	go func() { ended <- s.sendBatch(pathTo(s, s, IPv4), bufs, headroom) }()
	select {
	case <-waiting:
	case <-time.After(patience):
		t.Fatal("send does not wait")
	}
	s.Close()
	select {
	case err := <-ended:
		if !errors.Is(err, net.ErrClosed) {
			t.Errorf("send = %v", err)
		}
	case <-time.After(patience):
		t.Fatal("send does not end")
	}
}
