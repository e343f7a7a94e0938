package dns

import (
	"net/netip"
	"strings"
)

// maxHosts bounds the names that are taken from a hosts file.
const maxHosts = 1 << 16

// hosts are the addresses of names in a hosts file, by canonical name without
// trailing dot.
type hosts map[string][]netip.Addr

// parseHosts takes what it understands of a hosts(5) file and ignores the rest.
func parseHosts(text []byte) hosts {
	h := make(hosts)
	for fields := range configLines(text, "#") {
		addr, err := netip.ParseAddr(fields[0])
		if err != nil {
			continue
		}
		for _, field := range fields[1:] {
			name, ok := canonicalName(field)
			name = strings.TrimSuffix(name, ".")
			if !ok || (len(h) == maxHosts && h[name] == nil) {
				continue
			}
			h[name] = append(h[name], addr)
		}
	}
	return h
}
