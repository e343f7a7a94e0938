package host

import (
	"context"
	"net/netip"
	"os"
	"sync/atomic"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	labnet "firezone-gateway/internal/lab/net"
)

// patience is how long a test waits for what must come.
const patience = 60 * time.Second

// errIsolation is why namespaces are impossible here, nil where they work.
var errIsolation error

func TestMain(m *testing.M) {
	errIsolation = labnet.EnsureIsolated()
	goleak.VerifyTestMain(m)
}

func TestWatchFollowsTheKernel(t *testing.T) {
	const (
		wired4Route    = "192.0.2.1 wired"
		wired4Other    = "192.0.2.254 wired"
		wired6Route    = "2001:db8::1 wired"
		wireless4Route = "198.51.100.1 wireless"
		wireless6Route = "fe80::1 wireless"
	)
	for _, tc := range []struct {
		name  string
		begin []string // default routes at the start
		// quiet steps are no change, one after the other; then change is one.
		quiet  []func(*hostNetwork)
		change func(*hostNetwork)
	}{
		{
			name:   "an IPv4 route is added",
			begin:  []string{wired6Route},
			change: func(n *hostNetwork) { n.add(wired4Route) },
		},
		{
			name:   "an IPv6 route is added",
			begin:  []string{wired4Route},
			change: func(n *hostNetwork) { n.add(wired6Route) },
		},
		{
			name:   "an IPv4 route is replaced",
			begin:  []string{wired4Route},
			change: func(n *hostNetwork) { n.replace(wired4Other) },
		},
		{
			name:   "an IPv6 route is replaced",
			begin:  []string{wired6Route},
			change: func(n *hostNetwork) { n.remove(wired6Route); n.add(wireless6Route) },
		},
		{
			name:   "an IPv4 route is removed",
			begin:  []string{wired4Route, wired6Route},
			change: func(n *hostNetwork) { n.remove(wired4Route) },
		},
		{
			name:   "an IPv6 route is removed",
			begin:  []string{wired4Route, wired6Route},
			change: func(n *hostNetwork) { n.remove(wired6Route) },
		},
		{
			name:   "the first route of all",
			change: func(n *hostNetwork) { n.add(wired4Route) },
		},
		{
			name:  "the only IPv4 route is lost and comes back, then another comes",
			begin: []string{wired4Route},
			quiet: []func(*hostNetwork){
				func(n *hostNetwork) { n.remove(wired4Route) },
				func(n *hostNetwork) { n.add(wired4Route) },
				func(n *hostNetwork) { n.remove(wired4Route) },
			},
			change: func(n *hostNetwork) { n.add(wireless4Route) },
		},
		{
			name:  "the only IPv6 route is lost and comes back, then another comes",
			begin: []string{wired6Route},
			quiet: []func(*hostNetwork){
				func(n *hostNetwork) { n.remove(wired6Route) },
				func(n *hostNetwork) { n.add(wired6Route) },
				func(n *hostNetwork) { n.remove(wired6Route) },
			},
			change: func(n *hostNetwork) { n.add(wireless6Route) },
		},
		{
			name:  "routes differ in what does not count, then one is replaced",
			begin: []string{wired4Route, wired6Route},
			quiet: []func(*hostNetwork){
				func(n *hostNetwork) { n.addWith(wired4Route, func(r *netlink.Route) { r.Priority = 600 }) },
				func(n *hostNetwork) {
					n.addWith(wired6Route, func(r *netlink.Route) { r.Priority, r.Protocol = 600, unix.RTPROT_RA })
				},
				func(n *hostNetwork) { n.remove(wired4Route) },
			},
			change: func(n *hostNetwork) { n.addWith(wireless4Route, func(r *netlink.Route) { r.Priority = 700 }) },
		},
		{
			name:  "routes that lead elsewhere come, then a default route",
			begin: []string{wired4Route},
			quiet: []func(*hostNetwork){
				func(n *hostNetwork) {
					for _, table := range []int{100, 0x2021fd00, unix.RT_TABLE_LOCAL} {
						n.addWith(wireless4Route, func(r *netlink.Route) { r.Table = table })
						n.addWith(wireless6Route, func(r *netlink.Route) { r.Table = table })
					}
				},
				func(n *hostNetwork) {
					n.addWith(wireless4Route, func(r *netlink.Route) { r.Dst = cidr("0.0.0.0/1") })
					n.addWith(wireless6Route, func(r *netlink.Route) { r.Dst = cidr("2000::/3") })
				},
				func(n *hostNetwork) {
					n.must(netlink.RouteAdd(&netlink.Route{Dst: cidr("0.0.0.0/0"), Type: unix.RTN_UNREACHABLE, Priority: 9999}))
					n.must(netlink.RouteAdd(&netlink.Route{Dst: cidr("::/0"), Type: unix.RTN_UNREACHABLE, Priority: 9999}))
				},
			},
			change: func(n *hostNetwork) { n.add(wireless6Route) },
		},
		{
			name: "a path of a route of several is lost",
			quiet: []func(*hostNetwork){
				func(n *hostNetwork) { n.ignoreOneChange(); n.replaceMultipath(1, wired4Route, wireless4Route) },
				func(n *hostNetwork) { n.replaceMultipath(1, wireless4Route, wired4Route) },
				func(n *hostNetwork) { n.replaceMultipath(7, wired4Route, wireless4Route) },
			},
			change: func(n *hostNetwork) { n.replaceMultipath(1, wired4Route) },
		},
		{
			name:   "the link of a path of several goes down",
			begin:  []string{wired6Route},
			quiet:  []func(*hostNetwork){func(n *hostNetwork) { n.ignoreOneChange(); n.replaceMultipath(1, wired4Route, wireless4Route) }},
			change: func(n *hostNetwork) { n.must(netlink.LinkSetDown(n.link("wireless"))) },
		},
		{
			name:   "an IPv6 route of several paths",
			begin:  []string{wired4Route, wired6Route},
			change: func(n *hostNetwork) { n.replaceMultipath(1, wired6Route, wireless6Route) },
		},
		{
			name:   "an IPv4 route goes with its link without a message",
			begin:  []string{wired4Route, wireless6Route},
			change: func(n *hostNetwork) { n.must(netlink.LinkSetDown(n.link("wired"))) },
		},
		{
			name:   "an IPv4 route goes with its address without a message",
			begin:  []string{wired4Route, wired6Route},
			change: func(n *hostNetwork) { n.removeAddress("wired", "192.0.2.2/24") },
		},
		{
			name:  "an IPv4 route goes with its nexthop object without a message",
			begin: []string{wired6Route},
			quiet: []func(*hostNetwork){func(n *hostNetwork) {
				n.ignoreOneChange()
				n.addNexthop(7, "192.0.2.1", "wired")
				n.addByNexthop(7)
			}},
			change: func(n *hostNetwork) { n.removeNexthop(7) },
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			n := newHostNetwork(t)
			n.do(func() { n.add(tc.begin...) })
			n.watch()
			if got := n.reported(); len(got) != 0 {
				t.Fatalf("reported %q at the start", got)
			}
			for i, step := range tc.quiet {
				n.do(func() { step(n) })
				if got := n.reported(); len(got) != n.ignored {
					t.Fatalf("step %d: reported %q", i, got)
				}
				n.ignored = 0
			}
			n.do(func() { tc.change(n) })
			select {
			case cause := <-n.causes:
				if cause != CauseDefaultRoute {
					t.Errorf("reported %q", cause)
				}
			case <-time.After(patience):
				t.Fatal("change was not reported")
			}
			if got := n.reported(); len(got) != 0 {
				t.Errorf("one change was reported again: %q", got)
			}
		})
	}
}

func TestWatchSubscribesAgainToTheKernel(t *testing.T) {
	n := newHostNetwork(t)
	n.do(func() { n.add("192.0.2.1 wired") })
	n.watch()
	for _, hop := range []string{"192.0.2.254 wired", "192.0.2.1 wired"} {
		before := n.subscriptions.Load()
		(*n.subscription.Load()).Close()
		n.waitFor("a new subscription", func() bool { return n.subscriptions.Load() > before })
		n.do(func() { n.replace(hop) })
		select {
		case <-n.causes:
		case <-time.After(patience):
			t.Fatal("change was not reported")
		}
	}
	if got := n.reported(); len(got) != 0 {
		t.Errorf("also reported %q", got)
	}
}

func TestWatchUsesTheKernelByDefault(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	Watch(ctx, Config{OnChange: func(c Cause) { t.Errorf("reported %q", c) }})
}

// hostNetwork is a namespace with two links, wired and wireless, and a watch of
// its default routes.
type hostNetwork struct {
	t             *testing.T
	ns            *labnet.Namespace
	causes        chan Cause
	looks         atomic.Int64 // begun
	subscriptions atomic.Int64
	subscription  atomic.Pointer[subscription]
	ignored       int // reports that a step announced
}

func newHostNetwork(t *testing.T) *hostNetwork {
	t.Helper()
	if errIsolation != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal(errIsolation)
		}
		t.Skip(errIsolation)
	}
	lab := labnet.New()
	t.Cleanup(func() {
		if err := lab.Close(); err != nil {
			t.Error(err)
		}
	})
	n := &hostNetwork{t: t, causes: make(chan Cause, 100)}
	var err error
	n.ns, err = lab.AddNamespace("host")
	n.must(err)
	for device, addresses := range map[string][]netip.Prefix{
		"wired":    {netip.MustParsePrefix("192.0.2.2/24"), netip.MustParsePrefix("2001:db8::2/64")},
		"wireless": {netip.MustParsePrefix("198.51.100.2/24")},
	} {
		n.must(lab.Connect(
			labnet.End{Namespace: n.ns, Device: device, Addresses: addresses},
			labnet.End{Namespace: n.ns, Device: device + "-peer"},
		))
	}
	return n
}

// watch starts Watch in the namespace and returns after it looked at the routes.
func (n *hostNetwork) watch() {
	n.t.Helper()
	ctx, cancel := context.WithCancel(n.t.Context())
	ended := make(chan struct{})
	n.t.Cleanup(func() { cancel(); <-ended })
	listed := make(chan struct{}, 1)
	go func() {
		defer close(ended)
		Watch(ctx, Config{
			OnChange: func(c Cause) { n.causes <- c },
			pace:     pace{clocks: time.Second, quiet: 50 * time.Millisecond, patience: 10 * time.Second, retry: 10 * time.Millisecond},
			system: &system{
				readClocks: readClocks,
				subscribe: func() (s subscription, err error) {
					err = n.ns.Do(func() error {
						s, err = subscribe()
						return err
					})
					if err == nil {
						n.subscription.Store(&s)
						n.subscriptions.Add(1)
					}
					return s, err
				},
				listDefaults: func() (set routeSet, err error) {
					n.looks.Add(1)
					err = n.ns.Do(func() error {
						set, err = listDefaults()
						return err
					})
					if err == nil {
						select {
						case listed <- struct{}{}:
						default:
						}
					}
					return set, err
				},
			},
		})
	}()
	select {
	case <-listed:
	case <-time.After(patience):
		n.t.Fatal("routes were not listed")
	}
	n.waitFor("the subscription", func() bool { return n.subscriptions.Load() > 0 })
}

// reported returns what was reported of everything that was done before. A look
// that begins after it was done sees it; another begins after its report.
func (n *hostNetwork) reported() []Cause {
	n.t.Helper()
	for i := range 2 {
		before := n.looks.Load()
		// Any message about a link makes the watch look. This link is always up.
		n.do(func() { n.must(netlink.LinkSetAlias(n.link("lo"), string(rune('a'+i)))) })
		n.waitFor("a look at the routes", func() bool { return n.looks.Load() > before })
	}
	var causes []Cause
	for {
		select {
		case c := <-n.causes:
			causes = append(causes, c)
		default:
			return causes
		}
	}
}

// ignoreOneChange announces that a step prepares the test by a change.
func (n *hostNetwork) ignoreOneChange() { n.ignored = 1 }

// do runs f in the namespace.
func (n *hostNetwork) do(f func()) {
	n.t.Helper()
	n.must(n.ns.Do(func() error { f(); return nil }))
}

// must is called on goroutines of the namespace as well, which FailNow does not
// end the test from, but do does.
func (n *hostNetwork) must(err error) {
	n.t.Helper()
	if err != nil {
		n.t.Fatal(err)
	}
}

func (n *hostNetwork) waitFor(what string, ok func() bool) {
	n.t.Helper()
	for end := time.Now().Add(patience); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			n.t.Fatalf("timed out waiting for %s", what)
		}
	}
}

func (n *hostNetwork) link(name string) netlink.Link {
	n.t.Helper()
	link, err := netlink.LinkByName(name)
	n.must(err)
	return link
}
