package policy

import (
	"path"
	"strings"
	"testing"

	"firezone-gateway/internal/hammer"
)

func TestMatchDomain(t *testing.T) {
	for _, tt := range []struct {
		pattern string
		yes, no []string
	}{
		{"example.com", []string{"example.com", "EXAMPLE.com", "example.com."}, []string{"www.example.com", "example.co", "xexample.com", "com", ""}},
		{"Example.COM.", []string{"example.com"}, []string{"example.com.au"}},
		{"*.example.com", []string{"www.example.com", "example.com", "x.example.com"}, []string{"a.b.example.com", "wwwexample.com", "example.org"}},
		{"**.example.com", []string{"www.example.com", "a.b.example.com"}, []string{"example.com", "xexample.com"}},
		{"*", []string{"host", "h"}, []string{"a.b"}},
		{"**", []string{"host", "a.b.c"}, []string{""}},
		{"web-?.example.com", []string{"web-1.example.com", "web-x.example.com"}, []string{"web-.example.com", "web-10.example.com", "web-..example.com"}},
		{"?", []string{"a"}, []string{"ab", "."}},
		{"a*c.example.com", []string{"ac.example.com", "abbc.example.com"}, []string{"ab.example.com", "a.c.example.com"}},
		{"*.*.example.com", []string{"a.b.example.com", "b.example.com"}, []string{"example.com", "a.b.c.example.com"}},
		{"app.*.example.com", []string{"app.eu.example.com"}, []string{"app.example.com", "app.a.b.example.com"}},
		{"app.**.example.com", []string{"app.eu.example.com", "app.a.b.example.com"}, []string{"app.example.com"}},
		{"**corp**", []string{"corp", "my.corp.example"}, []string{"cor.p"}},
		{"", nil, []string{"", "a"}},
		{"a..b", nil, []string{"a..b", "a.b"}},
		{"***.example.com", nil, []string{"a.example.com"}},
		{"[a]", []string{"[a]"}, []string{"a"}},
	} {
		for _, domain := range tt.yes {
			if !MatchDomain(tt.pattern, domain) {
				t.Errorf("%q does not cover %q", tt.pattern, domain)
			}
		}
		for _, domain := range tt.no {
			if MatchDomain(tt.pattern, domain) {
				t.Errorf("%q covers %q", tt.pattern, domain)
			}
		}
	}
}

// FuzzMatchDomain compares patterns without "**" with the matcher of file names,
// to which a label is what lies between slashes.
func FuzzMatchDomain(f *testing.F) { fuzzMatchDomain(f) }

func TestHammerMatchDomain(t *testing.T) { hammer.Test(t, "FuzzMatchDomain", fuzzMatchDomain) }

func fuzzMatchDomain(f hammer.F) {
	f.Add("*.example.com", "www.example.com")
	f.Add("a?c*", "abcd")
	f.Add("**.example.com", "a.b.example.com")
	f.Add(strings.Repeat("*a", 40), strings.Repeat("a", 200))
	f.Fuzz(func(t *testing.T, pattern, domain string) {
		if len(pattern) > 300 || len(domain) > 300 {
			return
		}
		got := MatchDomain(pattern, domain)
		p, d := normaliseDomain(pattern), normaliseDomain(domain)
		for i := range len(p) + len(d) {
			c := (p + d)[i]
			if c >= 0x80 || c == '/' || c == '\\' || c == '[' {
				return // these mean something else to the other matcher
			}
		}
		if strings.Contains(p, "**") || d == "" || !validPattern(p) {
			return
		}
		names := func(pattern string) bool {
			ok, err := path.Match(strings.ReplaceAll(pattern, ".", "/"), strings.ReplaceAll(d, ".", "/"))
			return err == nil && ok
		}
		want := names(p)
		if parent, ok := strings.CutPrefix(p, "*."); ok && names(parent) {
			want = true
		}
		if got != want {
			t.Errorf("MatchDomain(%q, %q) = %v", pattern, domain, got)
		}
	})
}
