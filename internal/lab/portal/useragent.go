package portal

import (
	"cmp"
	"strconv"
	"strings"
)

// components are the prefixes by which the portal finds the version in a user
// agent (portal-protocol §1.2).
var components = []string{
	"gateway/", "headless-client/", "gui-client/", "apple-client/", "android-client/", "relay/", "connlib/",
}

// sitesSince holds, per client component, the first version that gets "sites"
// and "site_id" instead of "gateway_groups" and "gateway_group_id"
// (portal-protocol §7.2).
var sitesSince = map[string]semver{
	"headless-client": {1, 5, 6},
	"gui-client":      {1, 5, 10},
	"apple-client":    {1, 5, 11},
	"android-client":  {1, 5, 8},
}

// userAgent is what the portal reads from a User-Agent header. Version is
// empty when no component token was found; Semver is valid only with HasSemver.
type userAgent struct {
	OSName, OSVersion string
	Component         string
	Version           string
	Semver            semver
	HasSemver         bool
}

// semver is the numeric part of a version. Pre-release and build suffixes play
// no role in the compatibility window.
type semver [3]uint64

func (v semver) compare(o semver) int {
	return cmp.Or(cmp.Compare(v[0], o[0]), cmp.Compare(v[1], o[1]), cmp.Compare(v[2], o[2]))
}

func parseUserAgent(s string) userAgent {
	var ua userAgent
	fields := strings.Split(s, " ")
	for i, field := range fields {
		for _, prefix := range components {
			version, ok := strings.CutPrefix(field, prefix)
			if !ok {
				continue
			}
			os := strings.Join(fields[:i], " ")
			ua.OSName = os
			if slash := strings.LastIndexByte(os, '/'); slash >= 0 {
				ua.OSName, ua.OSVersion = os[:slash], os[slash+1:]
			}
			ua.Component = strings.TrimSuffix(prefix, "/")
			ua.Version = version
			ua.Semver, ua.HasSemver = parseSemver(version)
			return ua
		}
	}
	return ua
}

// parseSemver accepts X.Y.Z with optional -pre and +build, nothing shorter.
func parseSemver(s string) (semver, bool) {
	core, _, _ := strings.Cut(s, "+")
	core, _, _ = strings.Cut(core, "-")
	parts := strings.Split(core, ".")
	if len(parts) != 3 {
		return semver{}, false
	}
	var v semver
	for i, part := range parts {
		if len(part) > 1 && part[0] == '0' {
			return semver{}, false
		}
		n, err := strconv.ParseUint(part, 10, 32)
		if err != nil {
			return semver{}, false
		}
		v[i] = n
	}
	return v, true
}

// compatible reports whether a gateway may serve a client: M.(m-1).0 ≤ gateway
// < M.(m+2).0 for a client M.m.p. A client of unknown version gets any gateway,
// a gateway of unknown version only such clients (portal-protocol §5.2).
func compatible(client, gateway userAgent) bool {
	if !client.HasSemver {
		return true
	}
	if !gateway.HasSemver || client.Semver[0] != gateway.Semver[0] {
		return false
	}
	c, g := client.Semver[1], gateway.Semver[1]
	return g+1 >= c && g < c+2
}

// usesSites reports whether the portal renders sites under their recent name
// for this client. The two names are aliases in recent clients, so a payload
// must never carry both.
func (ua userAgent) usesSites(generation int) bool {
	since, known := sitesSince[ua.Component]
	if !known || !ua.HasSemver {
		return generation == 2
	}
	return ua.Semver.compare(since) >= 0
}
