package scale

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"
)

// candidate is one of the gateway's.
type candidate struct {
	addr     netip.AddrPort
	priority uint32
	relayed  bool
}

// parseCandidate reads a candidate string (transport §2.4).
func parseCandidate(line string) (c candidate, ok bool) {
	f := strings.Fields(line)
	if len(f) < 8 || !strings.HasPrefix(f[0], "candidate:") || f[1] != "1" || f[2] != "udp" || f[6] != "typ" {
		return c, false
	}
	priority, err1 := strconv.ParseUint(f[3], 10, 32)
	addr, err2 := netip.ParseAddr(f[4])
	port, err3 := strconv.ParseUint(f[5], 10, 16)
	if err1 != nil || err2 != nil || err3 != nil || addr.Zone() != "" {
		return c, false
	}
	return candidate{netip.AddrPortFrom(addr.Unmap(), uint16(port)), uint32(priority), f[7] == "relay"}, true
}

// hostPriority is the priority of a host candidate (transport §2.4).
func hostPriority(a netip.Addr) uint32 {
	if a.Is6() {
		return 2130706431
	}
	return 2130706175
}

// ownCandidates are the strings that announce an address of ours. Relays admit
// traffic from reflexive candidates only, so it is announced as one, too.
func ownCandidates(a netip.AddrPort) []string {
	srflx, base := 1686109951, "0.0.0.0"
	if a.Addr().Is6() {
		srflx, base = 1686110207, "::"
	}
	return []string{
		fmt.Sprintf("candidate:1 1 udp %d %v %d typ host", hostPriority(a.Addr()), a.Addr(), a.Port()),
		fmt.Sprintf("candidate:2 1 udp %d %v %d typ srflx raddr %s rport 0", srflx, a.Addr(), a.Port(), base),
	}
}
