package client

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"net/netip"
	"strings"
	"sync"
	"time"
)

// ProxyRanges hold the addresses that clients make up for the domains of DNS
// resources (dataplane §0.3). A client routes them into its tunnel.
var ProxyRanges = []netip.Prefix{netip.MustParsePrefix("100.96.0.0/11"), netip.MustParsePrefix("fd00:2021:1111:8000::/107")}

// sentinels are parts of the ranges that are never assigned to a domain: the
// client's own name servers.
var sentinels = []netip.Prefix{netip.MustParsePrefix("100.100.111.0/24"), netip.MustParsePrefix("fd00:2021:1111:8000:100:100:111:0/120")}

const (
	proxiesPerFamily = 4
	// setUpInterval is how often an unanswered set-up is repeated.
	setUpInterval = 2 * time.Second
)

// Types of control packets (dataplane §3.1).
const (
	controlAssignedIPs  = 0
	controlDomainStatus = 1
	controlGoodbye      = 2
)

// domains is what a client knows about the domains of DNS resources. A domain
// keeps its addresses for the life of the client, whatever resource it is used
// with.
type domains struct {
	mu      sync.Mutex
	used    uint32                      // addresses taken from each range
	proxies map[string][]netip.Addr     // by domain
	waiting map[setUp]chan domainStatus // of SetUp
}

type setUp struct{ resource, domain string }

type assignedIPs struct {
	Resource string       `json:"resource"`
	Domain   string       `json:"domain"`
	ProxyIPs []netip.Addr `json:"proxy_ips"`
}

type domainStatus struct {
	Resource string `json:"resource"`
	Domain   string `json:"domain"`
	Status   string `json:"status"`
}

// Proxies returns the proxy addresses of a domain, four of IPv4 and then four of
// IPv6. They are made up when they are asked for the first time.
func (c *Client) Proxies(domain string) []netip.Addr {
	d := &c.domains
	domain = canonicalDomain(domain)
	d.mu.Lock()
	defer d.mu.Unlock()
	if list, ok := d.proxies[domain]; ok {
		return list
	}
	var v4, v6 []netip.Addr
	for len(v4) < proxiesPerFamily {
		d.used++
		a, b := numbered(ProxyRanges[0].Addr(), d.used), numbered(ProxyRanges[1].Addr(), d.used)
		if !sentinels[0].Contains(a) && !sentinels[1].Contains(b) {
			v4, v6 = append(v4, a), append(v6, b)
		}
	}
	if d.proxies == nil {
		d.proxies = make(map[string][]netip.Addr)
	}
	d.proxies[domain] = append(v4, v6...)
	return d.proxies[domain]
}

// AccessDomain asks for a DNS resource and has the gateway set a domain of it
// up. It returns the domain's proxy addresses, which are routed into the tunnel,
// and whether the gateway serves them.
func (c *Client) AccessDomain(ctx context.Context, resourceID, domain string) (proxies []netip.Addr, active bool, err error) {
	if err := c.Access(ctx, resourceID, ProxyRanges...); err != nil {
		return nil, false, err
	}
	active, err = c.SetUp(ctx, resourceID, domain)
	return c.Proxies(domain), active, err
}

// SetUp tells the gateway the proxy addresses of a domain, again and again until
// it answers, and returns whether it serves them. Without an answer it fails when
// ctx ends.
func (c *Client) SetUp(ctx context.Context, resourceID, domain string) (active bool, err error) {
	return c.SetUpWith(ctx, resourceID, domain, c.Proxies(domain))
}

// SetUpWith is SetUp with addresses that are not the client's choice, or not of
// the proxy ranges at all.
func (c *Client) SetUpWith(ctx context.Context, resourceID, domain string, proxies []netip.Addr) (active bool, err error) {
	domain = canonicalDomain(domain)
	body, err := json.Marshal(assignedIPs{Resource: resourceID, Domain: domain, ProxyIPs: proxies})
	if err != nil {
		return false, fmt.Errorf("set-up of %s: %w", domain, err)
	}
	raw, err := c.OpenRaw()
	if err != nil {
		return false, err
	}
	defer raw.Close()
	answer, forget := c.domains.await(setUp{resourceID, domain})
	defer forget()
	again := time.NewTicker(setUpInterval)
	defer again.Stop()
	for {
		if err := raw.Send(ControlPacket(controlAssignedIPs, body)); err != nil {
			return false, fmt.Errorf("set-up of %s: %w", domain, err)
		}
		select {
		case status := <-answer:
			return status.Status == "Active", nil
		case <-again.C:
		case <-ctx.Done():
			return false, fmt.Errorf("no answer to the set-up of %s: %w", domain, ctx.Err())
		}
	}
}

// ControlPacket returns an in-tunnel control packet (dataplane §3.1).
func ControlPacket(kind uint8, body []byte) []byte {
	p := make([]byte, 48, 48+len(body))
	p[0], p[6], p[40] = 0x60, 255, kind
	binary.BigEndian.PutUint16(p[4:], uint16(8+len(body)))
	return append(p, body...)
}

// await returns where the next answer to a set-up goes, and the function that
// ends that.
func (d *domains) await(s setUp) (<-chan domainStatus, func()) {
	answer := make(chan domainStatus, 1)
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.waiting == nil {
		d.waiting = make(map[setUp]chan domainStatus)
	}
	d.waiting[s] = answer
	return answer, func() {
		d.mu.Lock()
		defer d.mu.Unlock()
		if d.waiting[s] == answer {
			delete(d.waiting, s)
		}
	}
}

// answered hands the body of a domain status on. It is called on the engine's
// receiving goroutine and does not block.
func (d *domains) answered(body []byte) {
	var status domainStatus
	if json.Unmarshal(body, &status) != nil {
		return
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if answer := d.waiting[setUp{status.Resource, status.Domain}]; answer != nil {
		select {
		case answer <- status:
		default: // the first one counts
		}
	}
}

func canonicalDomain(domain string) string { return strings.ToLower(strings.TrimSuffix(domain, ".")) }

// numbered returns base plus n.
func numbered(base netip.Addr, n uint32) netip.Addr {
	b := base.AsSlice()
	last := b[len(b)-4:]
	binary.BigEndian.PutUint32(last, binary.BigEndian.Uint32(last)+n)
	a, _ := netip.AddrFromSlice(b)
	return a
}
