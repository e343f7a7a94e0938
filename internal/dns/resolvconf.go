package dns

import (
	"bytes"
	"iter"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"firezone-gateway/internal/policy"
)

// Bounds of what is taken from resolv.conf. The C library takes 3 name servers.
const (
	maxNameservers = 16
	maxSearch      = 16
	maxNdots       = 15
)

// resolvConf is what the gateway uses of resolv.conf(5).
type resolvConf struct {
	nameservers []netip.Addr // in file order, without duplicates; IPv6 ones may have a zone
	search      []string     // lower case, without trailing dot
	ndots       int
}

// parseResolvConf takes what it understands of a resolv.conf and ignores the
// rest, as C libraries do. Name servers inside the tunnel ranges are left out,
// asking them would lead back to the gateway or to a client. The default of the
// C library, a name server on this host if none is named, is not applied:
// dataplane §6.2 knows the state of having none.
func parseResolvConf(text []byte) resolvConf {
	conf := resolvConf{ndots: 1}
	for fields := range configLines(text, ";#") {
		switch fields[0] {
		case "nameserver":
			if len(fields) > 1 {
				conf.addNameserver(fields[1])
			}
		case "domain", "search":
			conf.setSearch(fields[1:]) // the last line wins
		case "options":
			conf.setOptions(fields[1:])
		}
	}
	return conf
}

func (c *resolvConf) addNameserver(text string) {
	addr, err := netip.ParseAddr(text)
	if err != nil {
		return
	}
	addr = addr.Unmap()
	unusable := addr.IsMulticast() || policy.IsTunnel(addr.WithZone(""))
	if unusable || len(c.nameservers) == maxNameservers || slices.Contains(c.nameservers, addr) {
		return
	}
	c.nameservers = append(c.nameservers, addr)
}

func (c *resolvConf) setSearch(domains []string) {
	c.search = nil
	for _, d := range domains {
		if d, ok := canonicalName(d); ok && len(c.search) < maxSearch {
			c.search = append(c.search, strings.TrimSuffix(d, "."))
		}
	}
}

func (c *resolvConf) setOptions(options []string) {
	for _, o := range options {
		text, isNdots := strings.CutPrefix(o, "ndots:")
		if n, err := strconv.Atoi(text); isNdots && err == nil && n >= 0 {
			c.ndots = min(n, maxNdots)
		}
	}
}

// configLines yields the fields of each line of text that has any, up to a byte
// of comment.
func configLines(text []byte, comment string) iter.Seq[[]string] {
	return func(yield func([]string) bool) {
		for line := range bytes.Lines(text) {
			if i := bytes.IndexAny(line, comment); i >= 0 {
				line = line[:i]
			}
			if fields := strings.Fields(string(line)); len(fields) > 0 && !yield(fields) {
				return
			}
		}
	}
}
