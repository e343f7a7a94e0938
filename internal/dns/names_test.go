package dns

import (
	"slices"
	"strings"
	"testing"
)

func TestCanonicalName(t *testing.T) {
	label63 := strings.Repeat("a", maxLabel)
	long := strings.Repeat(label63+".", 3) + strings.Repeat("b", 61) // 253 bytes
	for _, tc := range []struct {
		name, in, want string
		ok             bool
	}{
		{"lower case", "example.com", "example.com", true},
		{"mixed case", "eXample.COM", "example.com", true},
		{"absolute", "Example.com.", "example.com.", true},
		{"one label", "intranet", "intranet", true},
		{"service labels", "_sip._tcp.example.com", "_sip._tcp.example.com", true},
		{"digits and hyphens", "1-2.3", "1-2.3", true},
		{"punycode", "xn--bcher-kva.example", "xn--bcher-kva.example", true},
		{"a label of 63 bytes", label63, label63, true},
		{"a label of 64 bytes", label63 + "a", "", false},
		{"253 bytes", long, long, true},
		{"253 bytes and the dot", long + ".", long + ".", true},
		{"254 bytes", long + "b", "", false},
		{"empty", "", "", false},
		{"the root", ".", "", false},
		{"two dots at the end", "a..", "", false},
		{"an empty label", "a..b", "", false},
		{"a dot in front", ".a", "", false},
		{"an escaped dot", `a\.b`, "", false},
		{"an escaped byte", `a\046b`, "", false},
		{"a space", "a b", "", false},
		{"a wildcard", "*.example", "", false},
		{"a byte of zero", "a\x00b", "", false},
		{"a letter that becomes ASCII in lower case", "\u212aelvin", "", false},
		{"bytes that are not UTF-8", "a\xff", "", false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if got, ok := canonicalName(tc.in); got != tc.want || ok != tc.ok {
				t.Errorf("canonicalName(%q) = %q, %v", tc.in, got, ok)
			}
		})
	}
}

func TestCandidatesFollowTheHost(t *testing.T) {
	for _, tc := range []struct {
		name, conf, domain string
		want               []string
	}{
		{"no search domain", "", "a.example", []string{"a.example"}},
		{"enough dots are asked as they are first", "search s.example", "a.example", []string{"a.example", "a.example.s.example"}},
		{"too few dots are completed first", "search s.example t.example", "a", []string{"a.s.example", "a.t.example", "a"}},
		{"more dots wanted", "search s.example\noptions ndots:2", "a.example", []string{"a.example.s.example", "a.example"}},
		{"no dots wanted", "search s.example\noptions ndots:0", "a", []string{"a", "a.s.example"}},
		{"absolute names are not completed", "search s.example", "a.", []string{"a"}},
		{"names that would become too long", "search " + strings.Repeat("s.", 100) + "s", strings.Repeat("a.", 30) + "a", []string{strings.Repeat("a.", 30) + "a"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if got := parseResolvConf([]byte(tc.conf)).candidates(tc.domain); !slices.Equal(got, tc.want) {
				t.Errorf("got %q, want %q", got, tc.want)
			}
		})
	}
}
