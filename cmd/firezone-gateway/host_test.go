package main

import (
	"regexp"
	"testing"
	"time"

	"firezone-gateway/internal/portal"
)

var testTime = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

func TestParseRelease(t *testing.T) {
	for _, tc := range []struct{ name, text, wantName, wantVersion string }{
		{"Debian", "PRETTY_NAME=\"Debian GNU/Linux 12\"\nNAME=\"Debian GNU/Linux\"\nVERSION_ID=\"12\"\n", "Debian", "12"},
		{"Alpine, without quotes", "NAME=Alpine\nVERSION_ID=3.22.1\n", "Alpine", "3.22.1"},
		{"single quotes", "NAME='Arch Linux'\n", "Arch", ""},
		{"an empty name", "NAME=\"\"\nVERSION_ID=1\n", "fallback", "1"},
		{"nothing", "", "fallback", ""},
		{"no assignments", "NAME\n\n# x\n", "fallback", ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			name, version := parseRelease([]byte(tc.text), "fallback")
			if name != tc.wantName || version != tc.wantVersion {
				t.Errorf("got %q %q, want %q %q", name, version, tc.wantName, tc.wantVersion)
			}
		})
	}
}

func TestUserAgentHasTheFormOfThePortal(t *testing.T) {
	form := regexp.MustCompile(`^[^ /]+/[^ ]+ gateway/1\.5\.3 \([^ ;]+; [^ )]+\)$`)
	if ua := userAgent(reportedVersion); !form.MatchString(ua) {
		t.Errorf("user agent %q", ua)
	}
}

func TestNameIsNeverEmpty(t *testing.T) {
	if name := (&flags{}).name(); name == "" || len(name) > maxText {
		t.Errorf("name %q", name)
	}
	if name := (&flags{Name: "mine"}).name(); name != "mine" {
		t.Errorf("name %q", name)
	}
}

func TestReportedVersionIsAcceptedByOurselves(t *testing.T) {
	if !semver.MatchString(reportedVersion) {
		t.Errorf("%q is not a version", reportedVersion)
	}
	if _, err := portal.NewLoginURL(portal.Login{BaseURL: "wss://h", Token: "t", ID: "i", Name: "n", UserAgent: userAgent(reportedVersion)}); err != nil {
		t.Error(err)
	}
}
