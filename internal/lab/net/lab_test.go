package labnet_test

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	labnet "firezone-gateway/internal/lab/net"
)

func TestCloseRemovesNamespacesAndDescriptors(t *testing.T) {
	requireNamespaces(t)
	outside := namespace(t)
	before := descriptors(t)

	lab := labnet.New()
	inside, err := lab.AddNamespace("inside")
	if err != nil {
		t.Fatal(err)
	}
	err = lab.Connect(labnet.End{Namespace: outside, Device: "probe"}, labnet.End{Namespace: inside, Device: "probe"})
	if err != nil {
		t.Fatal(err)
	}
	if names := devicesOf(t, outside); !strings.Contains(names, "probe") {
		t.Fatalf("devices %q lack the link", names)
	}
	for range 2 {
		if err := lab.Close(); err != nil {
			t.Fatal(err)
		}
	}
	// The kernel removes a namespace in the background, and with it both ends
	// of the link.
	eventually(t, "the link outlives its namespace", func() bool {
		return !strings.Contains(devicesOf(t, outside), "probe")
	})
	eventually(t, "descriptors stay open", func() bool { return descriptors(t) <= before })

	if err := inside.Do(func() error { return nil }); err == nil {
		t.Error("closed namespace can be entered")
	}
	if _, err := lab.AddNamespace("late"); err == nil {
		t.Error("closed lab takes a namespace")
	}
}

func TestFailedDeploymentLeavesNothing(t *testing.T) {
	requireNamespaces(t)
	before := descriptors(t)
	if _, err := labnet.NewDeployment(labnet.Options{GatewayNAT: 200}); err == nil {
		t.Fatal("unknown NAT kind is accepted")
	}
	if _, err := labnet.NewDeployment(labnet.Options{Clients: 1000}); err == nil {
		t.Fatal("a thousand clients are accepted")
	}
	eventually(t, "descriptors stay open", func() bool { return descriptors(t) <= before })
}

func TestDoLeavesOtherGoroutinesWhereTheyAre(t *testing.T) {
	ns := namespace(t)
	home := netnsOf(t)
	var away string
	if err := ns.Do(func() (err error) { away, err = os.Readlink("/proc/thread-self/ns/net"); return err }); err != nil {
		t.Fatal(err)
	}
	if away == home {
		t.Error("Do ran in the process's own namespace")
	}
	results := make(chan string)
	for range 64 {
		go func() {
			_ = ns.Do(func() error { runtime.Gosched(); return nil })
			results <- netnsOf(t)
		}()
	}
	for range 64 {
		if got := <-results; got != home {
			t.Errorf("goroutine ended up in %s, want %s", got, home)
		}
	}
	main, err := os.Readlink("/proc/self/ns/net")
	if err != nil || main != home {
		t.Errorf("main thread is in %s, want %s, error %v", main, home, err)
	}
}

func TestDoReturnsWhenTheFunctionEndsItsGoroutine(t *testing.T) {
	ns := namespace(t)
	if err := ns.Do(func() error { runtime.Goexit(); return nil }); err == nil {
		t.Error("no error")
	}
	want := errors.New("own")
	if err := ns.Do(func() error { return want }); !errors.Is(err, want) {
		t.Errorf("error %v", err)
	}
}

func TestSocketsRefuseNamesAndStayInTheirNamespace(t *testing.T) {
	ns := namespace(t)
	for _, address := range []string{"localhost:80", "127.0.0.1:http", "127.0.0.1", "example.com:443"} {
		if _, err := ns.Listen("tcp", address); err == nil {
			t.Errorf("Listen takes %q", address)
		}
		if _, err := ns.ListenPacket("udp", address); err == nil {
			t.Errorf("ListenPacket takes %q", address)
		}
		if _, err := ns.DialContext(t.Context(), "tcp", address); err == nil {
			t.Errorf("DialContext takes %q", address)
		}
	}
	for _, address := range []string{"127.0.0.1:0", "[::1]:0"} {
		listener, err := ns.Listen("tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		defer listener.Close()
		target := listener.Addr().String()
		if conn, err := net.DialTimeout("tcp", target, arrival); err == nil {
			conn.Close()
			t.Errorf("listener at %s is reachable from outside", target)
		}
		conn, err := ns.DialContext(t.Context(), "tcp", target)
		if err != nil {
			t.Fatal(err)
		}
		conn.Close()
	}
}

func TestLoopbackIsUpOutsideTheLabToo(t *testing.T) {
	requireNamespaces(t)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	conn, err := net.DialTimeout("tcp", listener.Addr().String(), arrival)
	if err != nil {
		t.Fatal(err)
	}
	conn.Close()
}

func TestEnterCommandEntersTheNamespace(t *testing.T) {
	ns := namespace(t)
	fields := strings.Fields(ns.EnterCommand())
	if os.Getenv("FIREZONE_LAB_ISOLATED") != "" {
		// This process is inside the user namespace already, where the
		// operator's shell is not.
		fields = slices.DeleteFunc(fields, func(field string) bool {
			return strings.HasPrefix(field, "--target") || field == "--user"
		})
	}
	if _, err := exec.LookPath(fields[0]); err != nil {
		t.Skipf("the operator's tool is not installed: %v", err)
	}
	output, err := exec.Command(fields[0], append(fields[1:], "readlink", "/proc/self/ns/net")...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v\n%s", ns.EnterCommand(), err, output)
	}
	var want string
	_ = ns.Do(func() (err error) { want, err = os.Readlink("/proc/thread-self/ns/net"); return err })
	if got := strings.TrimSpace(string(output)); got != want {
		t.Errorf("command leads to %s, want %s", got, want)
	}
}

func TestTUNDevicesCanBeMade(t *testing.T) {
	requireNamespaces(t)
	if err := labnet.CheckTUN(); err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal(err)
		}
		t.Skip(err)
	}
}

func TestRouteToTheLinkItself(t *testing.T) {
	requireNamespaces(t)
	lab := labnet.New()
	defer lab.Close()
	ns, err := lab.AddNamespace("alone")
	if err != nil {
		t.Fatal(err)
	}
	for _, prefix := range []string{"192.0.2.0/24", "2001:db8:1::/64"} {
		if err := ns.AddRoute(netip.MustParsePrefix(prefix), netip.Addr{}, "lo"); err != nil {
			t.Error(err)
		}
		if err := ns.AddRoute(netip.MustParsePrefix(prefix), netip.Addr{}, "missing"); err == nil {
			t.Error("route over a device that does not exist")
		}
	}
}

func TestNATKindsAreReadByName(t *testing.T) {
	for _, kind := range labnet.NATKinds() {
		var read labnet.NATKind
		if err := read.UnmarshalText([]byte(kind.String())); err != nil || read != kind {
			t.Errorf("%v is read as %v, error %v", kind, read, err)
		}
	}
	var kind labnet.NATKind
	if err := kind.UnmarshalText([]byte("magic")); err == nil {
		t.Error("an unknown kind is accepted")
	}
	if got := labnet.NATKind(77).String(); got != "NATKind(77)" {
		t.Errorf("unknown kind prints as %q", got)
	}
}

func eventually(t *testing.T, complaint string, holds func() bool) {
	t.Helper()
	for deadline := time.Now().Add(5 * time.Second); !holds(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal(complaint)
		}
	}
}

func devicesOf(t *testing.T, ns *labnet.Namespace) string {
	t.Helper()
	var names []string
	err := ns.Do(func() error {
		devices, err := net.Interfaces()
		for _, device := range devices {
			names = append(names, device.Name)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return strings.Join(names, " ")
}

func netnsOf(t *testing.T) string {
	t.Helper()
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	link, err := os.Readlink("/proc/thread-self/ns/net")
	if err != nil {
		t.Error(err)
	}
	return link
}

func descriptors(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}
