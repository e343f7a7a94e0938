package scale

import (
	"bytes"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestObserverReadsWhatTheRuntimePrints(t *testing.T) {
	var log bytes.Buffer
	o := newObserver(&log)
	text := "2026 INFO gateway: starting\n" +
		"gc 7 @1.2s 3%: 0.1+2.3+0.0 ms clock, 0.2+0.4/1.3/2.1+0.0 ms cpu, 285->287->151 MB, 313 MB goal, 6 MB stacks, 0 MB globals, 2 P\n" +
		"goroutine 1 [select]: is no goroutine of a dump\n" +
		"SIGQUIT: quit\nPC=0x1\n\n" +
		"goroutine 1 gp=0x1 m=nil [select, 2 minutes]:\nmain.main()\n\t/x/main.go:1\n\n" +
		"goroutine 5 [chan receive]:\npkg.f()\ncreated by pkg.(*T).Start in goroutine 1\n\t/x.go:2\n\n" +
		"goroutine 6 [select]:\npkg.f()\ncreated by pkg.(*T).Start in goroutine 5\n"
	for chunk := range slices.Chunk([]byte(text), 7) { // as a pipe may deliver it
		if n, err := o.Write(chunk); n != len(chunk) || err != nil {
			t.Fatal(n, err)
		}
	}
	if n, m := o.collections(); n != 1 || m != (memory{Heap: 151 << 20, Stacks: 6 << 20}) {
		t.Errorf("%d collections, %+v", n, m)
	}
	if o.goroutines != 3 || o.created["pkg.(*T).Start"] != 2 {
		t.Errorf("%d goroutines, by %v", o.goroutines, o.created)
	}
	if log.String() != text {
		t.Error("the log is not passed on")
	}
}

func TestObserverBoundsALineWithoutEnd(t *testing.T) {
	o := newObserver(&bytes.Buffer{})
	if _, err := o.Write(bytes.Repeat([]byte("x"), maxLine+1)); err != nil || len(o.partial) != 0 {
		t.Errorf("keeps %d bytes, %v", len(o.partial), err)
	}
}

func TestSitesAreThoseOfMostClients(t *testing.T) {
	sites := perClient(map[string]int{"a": 40, "b": 5, "c": 4, "d": 10}, 10)
	want := []Site{{"a", 4}, {"d", 1}, {"b", 0.5}}
	if !slices.Equal(sites, want) {
		t.Errorf("sites %v, want %v", sites, want)
	}
}

func TestFiguresOfTheKernel(t *testing.T) {
	if n, err := residentOf([]byte("Name:\tx\nVmRSS:\t  2048 kB\nVmData:\t1 kB\n")); n != 2<<20 || err != nil {
		t.Errorf("resident %d, %v", n, err)
	}
	if _, err := residentOf([]byte("Name:\tx\n")); err == nil {
		t.Error("a process without memory has some")
	}
	if d, err := busy([]byte("cpu  100 50 25 9999 9999 5 10 10 0 0\ncpu0 1\n")); d != 2*time.Second || err != nil {
		t.Errorf("busy %v, %v", d, err)
	}
	for _, bad := range []string{"", "cpu0 1 2 3 4 5 6 7 8", "cpu 1 2", "cpu x 2 3 4 5 6 7 8"} {
		if _, err := busy([]byte(bad)); err == nil {
			t.Errorf("%q has processor times", bad)
		}
	}
}

func TestBurstIsReadToItsEnd(t *testing.T) {
	ours, theirs := net.Pipe()
	defer ours.Close()
	go func() {
		defer theirs.Close()
		b := make([]byte, requestsAtOnce*len(checkRequest))
		for read := 0; read < len(b); {
			n, err := theirs.Read(b[read:])
			if err != nil {
				return
			}
			read += n
		}
		answers := strings.Repeat(checkAnswer+" OK\r\nContent-Length: 0\r\n\r\n", requestsAtOnce)
		for chunk := range slices.Chunk([]byte(answers), 11) {
			if _, err := theirs.Write(chunk); err != nil {
				return
			}
		}
	}()
	if err := exchange(ours, []byte(strings.Repeat(checkRequest, requestsAtOnce)), make([]byte, 100)); err != nil {
		t.Error(err)
	}
}

func TestAddressesTellTheClient(t *testing.T) {
	for _, n := range []uint32{1, 255, 256, MaxClients} {
		for _, a := range addressesOf(n) {
			if got := numberOf(a.Addr()); got != n {
				t.Errorf("%v is of client %d, want %d", a, got, n)
			}
		}
	}
	if n := numberOf(netip.MustParseAddr("192.0.2.1")); n != 0 {
		t.Errorf("a foreign address is of client %d", n)
	}
}

func TestDestinationOfADatagram(t *testing.T) {
	four := unix.PktInfo4(&unix.Inet4Pktinfo{Addr: [4]byte{198, 18, 0, 1}})
	if a, ok := destination(four); !ok || a != netip.MustParseAddr("198.18.0.1") {
		t.Errorf("destination %v", a)
	}
	six := unix.PktInfo6(&unix.Inet6Pktinfo{Addr: addressesOf(3)[1].Addr().As16()})
	if a, ok := destination(six); !ok || numberOf(a) != 3 {
		t.Errorf("destination %v", a)
	}
	for _, bad := range [][]byte{nil, {1, 2, 3}, bytes.Repeat([]byte{0xff}, 32)} {
		if _, ok := destination(bad); ok {
			t.Errorf("%x has a destination", bad)
		}
	}
}
