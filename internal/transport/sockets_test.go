package transport

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"strings"
	"testing"

	"firezone-gateway/internal/drop"

	"golang.org/x/sys/unix"
)

// lacking is a machine without one family, or one that refuses the mark.
func lacking(f Family, refusal error) environment {
	return environment{listen: func(g Family, port uint16, set func(int) error) (*net.UDPConn, error) {
		if g == f {
			return nil, refusal
		}
		return listen(g, port, set)
	}}
}

func TestTakenPortLeadsToAnEphemeralOneInThatFamilyOnly(t *testing.T) {
	for _, taken := range [][]Family{{}, {IPv4}, {IPv6}, {IPv4, IPv6}} {
		t.Run(fmt.Sprintf("taken %v", taken), func(t *testing.T) {
			// The namespace has no other program that could take a port meanwhile.
			newHost(t)
			for _, f := range taken {
				c, err := listen(f, PreferredPort, func(int) error { return nil })
				if err != nil {
					t.Fatal(err)
				}
				defer c.Close()
			}
			s := openSockets(t, Config{Port: PreferredPort})
			e := startEngine(t, s, 128)
			for f := range Family(families) {
				port := s.LocalPort(f)
				if (port == PreferredPort) == slices.Contains(taken, f) || port == 0 {
					t.Errorf("%v port is %d", f, port)
				}
				bufs, want := batch(96)
				send(t, s, pathTo(s, s, f), bufs)
				e.expect(t, want)
			}
		})
	}
}

func TestOneFamilyIsEnough(t *testing.T) {
	for missing, present := range map[Family]Family{IPv4: IPv6, IPv6: IPv4} {
		t.Run(missing.String()+" missing", func(t *testing.T) {
			drops := new(drop.Counters)
			s, err := open(Config{Logger: silent, Drops: drops}, lacking(missing, unix.EAFNOSUPPORT))
			if err != nil {
				t.Fatal(err)
			}
			defer s.Close()
			needFamily(t, s, present)
			if s.HasV4() != (present == IPv4) || s.HasV6() != (present == IPv6) || s.LocalPort(missing) != 0 {
				t.Errorf("v4 %v, v6 %v, port %d", s.HasV4(), s.HasV6(), s.LocalPort(missing))
			}
			e := startEngine(t, s, 128)
			bufs, want := batch(96, 96)
			send(t, s, pathTo(s, s, present), bufs)
			e.expect(t, want)
			send(t, s, pathTo(s, s, missing), bufs)
			if got := drops.Load(drop.SendFailed); got != 2 {
				t.Errorf("SendFailed = %d, want 2", got)
			}
			if err := s.SendTo(bindingRequest(), pathTo(s, s, missing)); !errors.Is(err, unix.EAFNOSUPPORT) {
				t.Errorf("SendTo = %v", err)
			}
		})
	}
}

func TestOpenFails(t *testing.T) {
	both := environment{listen: func(Family, uint16, func(int) error) (*net.UDPConn, error) { return nil, unix.EACCES }}
	if _, err := open(Config{Logger: silent, Port: 1}, both); !errors.Is(err, unix.EACCES) {
		t.Errorf("without any family: %v", err)
	}
	if _, err := open(Config{Logger: silent, Port: 1}, lacking(IPv6, errMark)); !errors.Is(err, errMark) {
		t.Errorf("with a refused mark: %v", err)
	}
}

func TestMarkIsSet(t *testing.T) {
	s, err := Open(Config{Mark: RoutingMark, Logger: silent})
	if errors.Is(err, errMark) {
		skipOrFail(t, "no right to set a mark: "+err.Error())
	}
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	option := func(f Family, level, name int) (v int) {
		t.Helper()
		var err error
		if cerr := s.sockets[f].raw.Control(func(fd uintptr) { v, err = unix.GetsockoptInt(int(fd), level, name) }); cerr != nil || err != nil {
			t.Fatal(cerr, err)
		}
		return v
	}
	if got := uint32(option(IPv4, unix.SOL_SOCKET, unix.SO_MARK)); got != RoutingMark {
		t.Errorf("mark is %#x", got)
	}
	if err := NewBind(s, new(recorder)).SetMark(7); err != nil {
		t.Fatal(err)
	}
	if got := option(IPv4, unix.SOL_SOCKET, unix.SO_MARK); got != 7 {
		t.Errorf("mark is %d after SetMark", got)
	}
	if s.HasV6() && option(IPv6, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY) != 1 {
		t.Error("the IPv6 socket takes IPv4")
	}
}

func TestBuffersAreRaisedAndNeverLowered(t *testing.T) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	before := bufferSize(fd, unix.SO_RCVBUF)
	if got := raiseBuffer(fd, unix.SO_RCVBUF, unix.SO_RCVBUFFORCE, before/2); got != before {
		t.Errorf("lowered from %d to %d", before, got)
	}
	// Whether this may go beyond the system's limit depends on privileges.
	if got := raiseBuffer(fd, unix.SO_RCVBUF, unix.SO_RCVBUFFORCE, before+4096); got < before {
		t.Errorf("lowered from %d to %d", before, got)
	}
	// An option that the kernel refuses stands in for a missing privilege.
	if got := raiseBuffer(fd, unix.SO_RCVBUF, -1, 1<<30); got < before {
		t.Errorf("lowered from %d to %d", before, got)
	}
}

func TestKernelsThatMangleSegments(t *testing.T) {
	for release, want := range map[string]bool{
		"6.18.44": false, "7": true, "7.0": true, "7.0.0-rc3": true, "7.0.12-generic": true, "7.1": true, "7.1-rc2": true,
		"7.1.4": true, "7.1.4-1-amd64": true, "7.1.5": false, "7.1.15+deb": false, "7.2.0": false, "17.0.1": false, "": false, "x": false,
	} {
		if got := gsoMangled(release); got != want {
			t.Errorf("gsoMangled(%q) = %v", release, got)
		}
	}
	var log bytes.Buffer
	s, err := open(Config{Logger: slog.New(slog.NewTextHandler(&log, nil))}, environment{kernel: "7.1.4", listen: listen})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if s.Stats()[IPv4].GSO || !strings.Contains(log.String(), "7.1.4") {
		t.Errorf("GSO is in use; log: %s", log.String())
	}
}
