package dns

import "strings"

// Bounds of names in text form (RFC 1035 §2.3.4).
const (
	maxName  = 253 // bytes without trailing dot
	maxLabel = 63
)

// canonicalName returns name in lower case, with its trailing dot if it has
// one. Labels are of letters, digits, hyphens and underscores: what text forms
// of DNS names escape, such as a dot inside a label, would make a name mean
// something else to the policy's pattern than to a name server.
func canonicalName(name string) (string, bool) {
	bare := strings.TrimSuffix(name, ".")
	if len(bare) > maxName {
		return "", false
	}
	for label := range strings.SplitSeq(bare, ".") {
		if label == "" || len(label) > maxLabel || strings.ContainsFunc(label, notInLabel) {
			return "", false
		}
	}
	return strings.ToLower(name), true
}

// candidates returns the absolute names, without trailing dot, to ask for
// a canonical name, in order: with the search domains of the host if the name
// is relative, as resolv.conf(5) says.
func (c resolvConf) candidates(name string) []string {
	bare, absolute := strings.CutSuffix(name, ".")
	if absolute {
		return []string{bare}
	}
	names := make([]string, 0, len(c.search)+1)
	asIsFirst := strings.Count(bare, ".") >= c.ndots
	if asIsFirst {
		names = append(names, bare)
	}
	for _, domain := range c.search {
		if longer := bare + "." + domain; len(longer) <= maxName {
			names = append(names, longer)
		}
	}
	if !asIsFirst {
		names = append(names, bare)
	}
	return names
}

func notInLabel(r rune) bool {
	switch {
	case 'a' <= r && r <= 'z', 'A' <= r && r <= 'Z', '0' <= r && r <= '9', r == '-', r == '_':
		return false
	}
	return true
}
