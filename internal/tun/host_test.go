package tun

import (
	"errors"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

func TestMasqueradeInstallsItsOwnTableOnly(t *testing.T) {
	ns := enterNamespace(t)
	c, err := nftables.New()
	ns.must(err)
	c.AddTable(&nftables.Table{Name: "foreign", Family: nftables.TableFamilyINet})
	ns.must(c.Flush())

	both := Masquerade{Link: testName, V4: true, V6: true}
	ns.must(both.Remove()) // nothing there yet
	for _, tc := range []struct {
		m    Masquerade
		want int
	}{{both, 2}, {both, 2}, {Masquerade{Link: testName, V4: true}, 1}, {Masquerade{Link: testName}, 0}} {
		ns.must(tc.m.Install())
		forward, postrouting := readChain(t, c, "forward"), readChain(t, c, "postrouting")
		if len(forward) != 2 || len(postrouting) != tc.want {
			t.Fatalf("%+v: %d forward and %d postrouting rules", tc.m, len(forward), len(postrouting))
		}
	}

	ns.must(both.Install())
	forward, postrouting := readChain(t, c, "forward"), readChain(t, c, "postrouting")
	name := append([]byte(testName), make([]byte, 16-len(testName))...)
	for i, key := range []expr.MetaKey{expr.MetaKeyIIFNAME, expr.MetaKeyOIFNAME} {
		want := []expr.Any{
			&expr.Meta{Key: key, Register: 1},
			&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: name},
			&expr.Verdict{Kind: expr.VerdictAccept},
		}
		if !reflect.DeepEqual(forward[i].Exprs, want) {
			t.Errorf("forward rule %d: %#v", i, forward[i].Exprs)
		}
	}
	for i, tc := range []struct {
		family byte
		mask   net.IPMask
		source net.IP
		offset uint32
	}{
		{unix.NFPROTO_IPV4, net.CIDRMask(11, 32), net.IP{100, 64, 0, 0}, 12},
		{unix.NFPROTO_IPV6, net.CIDRMask(107, 128), net.ParseIP("fd00:2021:1111::"), 8},
	} {
		size := uint32(len(tc.source))
		want := []expr.Any{
			&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: 1},
			&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{tc.family}},
			&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: tc.offset, Len: size},
			&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: size, Mask: tc.mask, Xor: make([]byte, size)},
			&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: tc.source},
			&expr.Meta{Key: expr.MetaKeyOIFNAME, Register: 1},
			&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: name},
			&expr.Masq{},
		}
		if !reflect.DeepEqual(postrouting[i].Exprs, want) {
			t.Errorf("postrouting rule %d: %#v", i, postrouting[i].Exprs)
		}
	}

	for range 2 {
		ns.must(both.Remove())
	}
	tables, err := c.ListTables()
	if err != nil || len(tables) != 1 || tables[0].Name != "foreign" {
		t.Errorf("tables after Remove: %+v, %v", tables, err)
	}
}

// TestTunnelTrafficIsForwardedAndMasqueraded sends a client's datagram through
// the device, a forwarding host and a link to a second host, and its answer
// back.
func TestTunnelTrafficIsForwardedAndMasqueraded(t *testing.T) {
	gateway, resource := newNamespace(t), newNamespace(t)
	gateway.enter()
	veth := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "eth0"}, PeerName: "eth1", PeerNamespace: netlink.NsFd(resource.handle)}
	gateway.must(netlink.LinkAdd(veth))
	for _, side := range []struct {
		ns     *namespace
		link   string
		v4, v6 string
	}{
		{gateway, "eth0", "192.0.2.1/24", "2001:db8::1/64"},
		{resource, "eth1", "192.0.2.2/24", "2001:db8::2/64"},
	} {
		side.ns.enter()
		link := side.ns.link(side.link)
		gateway.must(netlink.LinkSetUp(link))
		for _, a := range []string{side.v4, side.v6} {
			addr := mustAddr(t, a)
			addr.Flags = unix.IFA_F_NODAD
			gateway.must(netlink.AddrAdd(link, addr))
		}
		waitForLocal(t, netip.MustParsePrefix(side.v6).Addr())
	}
	gateway.enter()
	d := openConfigured(t, Auto)
	gateway.must(Masquerade{Link: testName, V4: true, V6: true}.Install())
	changes, err := EnableForwarding()
	if err != nil || len(changes) != 4 {
		t.Fatalf("EnableForwarding = %v, %v", changes, err)
	}
	for _, c := range changes {
		if c.New < 1 {
			t.Errorf("%v", c)
		}
	}

	for _, tc := range []struct{ client, resource, seen string }{
		{clientV4.String(), "192.0.2.2", "192.0.2.1"},
		{clientV6.String(), "2001:db8::2", "2001:db8::1"},
	} {
		resource.enter()
		to := netip.MustParseAddr(tc.resource)
		server, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(addrPort(to, 0)))
		if err != nil {
			t.Fatal(err)
		}
		defer server.Close()
		gateway.enter()

		client := addrPort(netip.MustParseAddr(tc.client), 4000)
		port := uint16(server.LocalAddr().(*net.UDPAddr).Port)
		if n, err := d.Write([][]byte{udpPacket(client, addrPort(to, port), []byte("ping"), 16)}, 16); n != 1 || err != nil {
			t.Fatalf("Write = %d, %v", n, err)
		}
		buf := make([]byte, 100)
		server.SetReadDeadline(time.Now().Add(deadline))
		n, from, err := server.ReadFromUDPAddrPort(buf)
		if err != nil || string(buf[:n]) != "ping" || from.Addr().Unmap().String() != tc.seen {
			t.Fatalf("resource got %q from %v, %v, want it from %s", buf[:n], from, err, tc.seen)
		}
		answer := readOne(t, d.Device, func() {
			if _, err := server.WriteToUDPAddrPort([]byte("pong"), from); err != nil {
				t.Fatal(err)
			}
		})
		if problem := checkPacket(answer); problem != "" || !strings.HasSuffix(string(answer), "pong") {
			t.Errorf("answer % x: %s", answer, problem)
		}
	}
}

func TestRaiseNeverLowers(t *testing.T) {
	root := sysctls(t.TempDir())
	path := filepath.Join(string(root), "net", "core", "rmem_max")
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct{ before, after string }{
		{"212992\n", "16777216"},
		{"16777216\n", "16777216\n"},
		{"134217728\n", "134217728\n"},
		{"nonsense\n", "nonsense\n"},
	} {
		if err := os.WriteFile(path, []byte(tc.before), 0o600); err != nil {
			t.Fatal(err)
		}
		changes, err := root.raise(setting{"net.core.rmem_max", DefaultRmemMax}, setting{"net.core.absent", 1})
		if len(changes) != 2 || !errors.Is(err, fs.ErrNotExist) || !errors.Is(changes[1].Err, fs.ErrNotExist) {
			t.Errorf("raise = %v, %v", changes, err)
		}
		got, _ := os.ReadFile(path)
		if string(got) != tc.after {
			t.Errorf("%q became %q, want %q", tc.before, got, tc.after)
		}
		if (changes[0].Err != nil) != (tc.before == "nonsense\n") {
			t.Errorf("%q: %v", tc.before, changes[0])
		}
	}
	for c, want := range map[Change]string{
		{Key: "a.b", Old: 1, New: 2}:        "a.b raised from 1 to 2",
		{Key: "a.b", Old: 2, New: 2}:        "a.b stays 2",
		{Key: "a.b", Err: fs.ErrPermission}: "a.b: permission denied",
	} {
		if got := c.String(); got != want {
			t.Errorf("String() = %q, want %q", got, want)
		}
	}
}

func TestHasNetAdminFollowsTheEffectiveSet(t *testing.T) {
	if !HasNetAdmin() {
		missing(t, "CAP_NET_ADMIN is needed to give it up")
	}
	// A thread without the capability must not return to the pool.
	got := make(chan bool)
	go func() {
		runtime.LockOSThread()
		hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
		var data [2]unix.CapUserData
		if err := unix.Capget(&hdr, &data[0]); err != nil {
			t.Error(err)
		}
		data[0].Effective &^= 1 << unix.CAP_NET_ADMIN
		if err := unix.Capset(&hdr, &data[0]); err != nil {
			t.Error(err)
		}
		got <- HasNetAdmin()
	}()
	if <-got {
		t.Error("HasNetAdmin is true without the capability")
	}
}

func readChain(t *testing.T, c *nftables.Conn, name string) []*nftables.Rule {
	t.Helper()
	table := &nftables.Table{Name: "firezone_gateway", Family: nftables.TableFamilyINet}
	rules, err := c.GetRules(table, &nftables.Chain{Name: name, Table: table})
	if err != nil {
		t.Fatal(err)
	}
	return rules
}

func writeSysctl(t *testing.T, path, value string) {
	t.Helper()
	requireOwnNamespace(t)
	if err := os.WriteFile(filepath.Join("/proc/sys", path), []byte(value), 0); err != nil {
		t.Fatal(err)
	}
}
