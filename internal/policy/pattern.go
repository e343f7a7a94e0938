package policy

import "strings"

// MatchDomain reports whether the address of a DNS resource covers a domain
// (dataplane §3.2): "?" stands for one character of a label, "*" for any number
// of them, "**" for any number across labels. A leading "*." covers the parent
// domain as well. Case and trailing dots do not matter. An empty pattern, and one
// with an empty label, covers nothing.
//
// It takes time in proportion to the product of both lengths at most.
func MatchDomain(pattern, domain string) bool {
	pattern, domain = normaliseDomain(pattern), normaliseDomain(domain)
	if domain == "" || !validPattern(pattern) {
		return false
	}
	if parent, ok := strings.CutPrefix(pattern, "*."); ok && glob(parent, domain) {
		return true
	}
	return glob(pattern, domain)
}

func normaliseDomain(s string) string { return strings.ToLower(strings.TrimSuffix(s, ".")) }

func validPattern(p string) bool {
	for label := range strings.SplitSeq(p, ".") {
		if label == "" || strings.Contains(label, "***") {
			return false
		}
	}
	return true
}

// glob matches by keeping the set of positions in the domain that the pattern so
// far can end at.
func glob(pattern, domain string) bool {
	ends := make([]bool, len(domain)+1)
	ends[0] = true
	for i := 0; i < len(pattern); i++ {
		switch {
		case strings.HasPrefix(pattern[i:], "**"):
			i++
			spread(ends, domain, true)
		case pattern[i] == '*':
			spread(ends, domain, false)
		default:
			step(ends, domain, pattern[i])
		}
	}
	return ends[len(domain)]
}

// spread adds every position that any number of characters leads to.
func spread(ends []bool, domain string, dots bool) {
	for at := range len(domain) {
		if ends[at] && (dots || domain[at] != '.') {
			ends[at+1] = true
		}
	}
}

// step moves every position over one character, c or, for "?", any of a label.
func step(ends []bool, domain string, c byte) {
	for at := len(domain); at > 0; at-- {
		is := domain[at-1]
		ends[at] = ends[at-1] && (is == c || c == '?' && is != '.')
	}
	ends[0] = false
}
