package actors

import (
	"cmp"
	"encoding/base64"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"firezone-gateway/internal/admin"
	"firezone-gateway/internal/drop"
	"firezone-gateway/internal/policy"
	"firezone-gateway/internal/portal"
	"firezone-gateway/internal/tunnel"
)

// maxCovering bounds the resources that an explanation lists.
const maxCovering = 100

// RouteLookup says what the kernel does with a packet from src to dst that comes
// out of the TUN device of that name. The text is for people.
type RouteLookup func(device string, src, dst netip.Addr) (text string, err error)

// Explain answers a valid question. It sends nothing and asks no actor; it may be
// called at any time from any goroutine.
func (t *Tree) Explain(q admin.Question, route RouteLookup, now time.Time) admin.Explanation {
	e := &explaining{plane: t.plane, to: q.To, now: now, dst: q.To.Addr}
	e.out = admin.Explanation{To: q.To.String(), Passes: true}
	if e.findClient(q.Client) {
		e.findName()
		e.session()
		e.source()
		e.policy()
		e.translation()
		e.route(route)
	}
	return e.out
}

// explaining is one explanation in the making.
type explaining struct {
	plane *Plane
	to    admin.Destination
	now   time.Time
	out   admin.Explanation

	id     string
	state  clientState
	client *tunnel.Client // nil without a connection
	src    netip.Addr     // of the packet, in the end that which the kernel sees; invalid if the client has none of that family
	dst    netip.Addr     // that the client sends to
	real   netip.Addr     // that the packet leaves to; invalid if it does not
}

func (e *explaining) pass(stage admin.StageName, format string, args ...any) {
	e.out.Stages = append(e.out.Stages, admin.Stage{Stage: stage, Verdict: admin.Pass, Detail: fmt.Sprintf(format, args...)})
}

func (e *explaining) stop(stage admin.StageName, reason, format string, args ...any) {
	e.out.Passes = false
	e.out.Stages = append(e.out.Stages, admin.Stage{Stage: stage, Verdict: admin.Stop, Reason: reason, Detail: fmt.Sprintf(format, args...)})
}

func (e *explaining) skip(stage admin.StageName, why string) {
	e.out.Passes = false
	e.out.Stages = append(e.out.Stages, admin.Stage{Stage: stage, Verdict: admin.Skipped, Detail: why})
}

// findClient reports whether text names exactly one client.
func (e *explaining) findClient(text string) bool {
	ids := e.plane.store.ids()
	found := slices.DeleteFunc(slices.Clone(ids), func(id string) bool { return id != text })
	if len(found) == 0 {
		found = e.plane.clientsBy(text, ids)
	}
	switch {
	case len(found) == 0:
		e.stop(admin.StageClient, "client_unknown",
			"none of the %d clients has this ID, tunnel address or public key: it has not been granted anything here, or its grants have ended", len(ids))
		return false
	case len(found) > 1:
		e.stop(admin.StageClient, "client_ambiguous", "%d clients have a public key that begins so: %s",
			len(found), strings.Join(found[:min(len(found), 5)], ", "))
		return false
	}
	e.id, e.state = found[0], e.plane.store.get(found[0])
	if client, ok := e.plane.client(e.state); ok {
		e.client = client
	}
	e.out.Client = e.id
	e.pass(admin.StageClient, "%s with %d granted resources", e.id, e.state.Grants.Len())
	return true
}

// findName takes the address that the client has for the name, if it has set it up:
// the first in numeric order, IPv4 before IPv6, of those with an address behind.
func (e *explaining) findName() {
	if e.to.Name == "" || e.state.NAT == nil {
		return
	}
	better := func(a, b netip.Addr) bool { return !b.IsValid() || a.Less(b) }
	for m := range e.state.NAT.Table().Mappings() {
		if m.Real.IsValid() && strings.EqualFold(m.Domain, e.to.Name) && better(m.Proxy, e.dst) {
			e.dst = m.Proxy
		}
	}
}

// clientsBy returns the clients with this tunnel address or beginning of a public
// key.
func (p *Plane) clientsBy(text string, ids []string) (found []string) {
	addr, err := netip.ParseAddr(text)
	for _, id := range ids {
		c := p.store.get(id).Client
		if err == nil && (c.IPv4 == addr || c.IPv6 == addr) ||
			err != nil && c.PublicKey != (portal.PublicKey{}) && strings.HasPrefix(c.PublicKey.String(), text) {
			found = append(found, id)
		}
	}
	return found
}

// session tells about the WireGuard session and the path that carry packets.
func (e *explaining) session() {
	if e.client == nil {
		e.stop(admin.StageSession, "no_connection", "there is no connection: the client has to ask the portal for one, which it does with its next packet to a resource")
		e.skip(admin.StagePath, "there is no connection")
		return
	}
	switch s := e.client.Session(); s {
	case tunnel.SessionEstablished:
		e.pass(admin.StageSession, "established, last handshake %s", e.handshakeAge())
	case tunnel.SessionExpired:
		e.pass(admin.StageSession, "idle since its keys got old, last handshake %s; the next packet begins a new one, from whichever side it comes", e.handshakeAge())
	default:
		e.stop(admin.StageSession, "no_session", "WireGuard session: %s; packets pass once the client has completed a handshake", s)
	}
	path := describePath(e.client.Path(), e.plane.offers.load())
	switch {
	case path == nil:
		e.stop(admin.StagePath, "no_path", "nothing authenticated has come from the client yet, so no path to it is known")
	case path.Kind == admin.Relayed:
		e.pass(admin.StagePath, "relayed by %s: %s to %s", cmp.Or(path.Relay, "a relay that is gone"), path.Local, path.Remote)
	default:
		e.pass(admin.StagePath, "direct: %s to %s", path.Local, path.Remote)
	}
}

func (e *explaining) handshakeAge() string {
	at := e.client.Counters().LastHandshake.Load()
	if at == 0 {
		return "unknown"
	}
	return max(0, e.now.Sub(time.Unix(0, at))).Round(time.Second).String() + " ago"
}

// source picks the address that the client sends from.
func (e *explaining) source() {
	if !e.dst.IsValid() {
		e.skip(admin.StageSource, "it depends on the address that the client sends to")
		return
	}
	e.src = e.sender(e.dst)
	if !e.src.IsValid() {
		e.stop(admin.StageSource, drop.ForeignSource.String(), "the client has no tunnel address of the family of %s", e.dst)
		return
	}
	e.pass(admin.StageSource, "%s; any other source is refused", e.src)
}

// sender returns the client's address of the family of to.
func (e *explaining) sender(to netip.Addr) netip.Addr {
	if to.Is6() {
		return e.state.Client.IPv6
	}
	return e.state.Client.IPv4
}

// translation tells what stands behind a proxy address.
func (e *explaining) translation() {
	switch {
	case !e.dst.IsValid():
		e.skip(admin.StageNAT, "it depends on the address that the client sends to")
		return
	case !policy.IsProxy(e.dst):
		e.real = e.dst
		e.pass(admin.StageNAT, "not translated: only addresses that stand for domains are")
		return
	case e.state.NAT == nil:
		e.stop(admin.StageNAT, drop.Unresolved.String(), "the client has not set up any domain")
		return
	}
	m := e.state.NAT.Table().Lookup(e.dst)
	switch {
	case m == nil:
		e.stop(admin.StageNAT, drop.Unresolved.String(), "no domain has been set up at %s", e.dst)
	case !m.Real.IsValid():
		e.stop(admin.StageNAT, drop.Unresolved.String(), "%s stands for %s, which has no address of this family", e.dst, m.Domain)
	case m.Real.Is4() != e.dst.Is4() && !e.sender(m.Real).IsValid():
		e.stop(admin.StageNAT, drop.Unresolved.String(), "%s stands for %s at %s, and the client has no tunnel address of that family", e.dst, m.Domain, m.Real)
	case m.Real.Is4() != e.dst.Is4():
		e.real, e.src = m.Real, e.sender(m.Real)
		e.pass(admin.StageNAT, "%s stands for %s; a new flow goes to %s, translated to the other IP version (--nat64)", e.dst, m.Domain, m.Real)
	default:
		e.real = m.Real
		e.pass(admin.StageNAT, "%s stands for %s; a new flow goes to %s, one that exists stays where it is", e.dst, m.Domain, m.Real)
	}
}

// route asks the kernel where it would send the packet.
func (e *explaining) route(lookup RouteLookup) {
	if !e.real.IsValid() || !e.src.IsValid() {
		e.skip(admin.StageRoute, "there is no packet to route")
		return
	}
	text, err := lookup(e.plane.TUN.Name, e.src, e.real)
	if err != nil {
		e.stop(admin.StageRoute, "no_route", "the kernel forwards nothing from %s to %s: %v; is there a route, and is forwarding on (--masquerade)?", e.src, e.real, err)
		return
	}
	e.pass(admin.StageRoute, "%s", text)
}

// KernelRoute is the RouteLookup of this host. The firewall is not asked: nothing
// tells what it would do without sending.
func KernelRoute(device string, src, dst netip.Addr) (string, error) {
	routes, err := netlink.RouteGetWithOptions(dst.AsSlice(), &netlink.RouteGetOptions{Iif: device, SrcAddr: src.AsSlice()})
	if err != nil {
		return "", err
	}
	if len(routes) == 0 {
		return "", unix.ENETUNREACH
	}
	r := routes[0]
	switch r.Type {
	case unix.RTN_LOCAL:
		return "to this host itself", nil
	case unix.RTN_UNICAST:
	default:
		return "", fmt.Errorf("a route of type %d refuses it", r.Type)
	}
	out := fmt.Sprintf("interface %d", r.LinkIndex)
	if link, err := net.InterfaceByIndex(r.LinkIndex); err == nil {
		out = "interface " + link.Name
	}
	if r.Gw != nil {
		return out + ", next hop " + r.Gw.String(), nil
	}
	return out + ", directly connected", nil
}

func publicKeyText(key [32]byte) string { return base64.StdEncoding.EncodeToString(key[:]) }
