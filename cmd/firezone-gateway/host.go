package main

import (
	"bufio"
	"bytes"
	"os"
	"runtime"
	"strings"
	"time"

	"github.com/google/uuid"
	"golang.org/x/sys/unix"

	"firezone-gateway/internal/portal"
)

// hostFacts is what the operating system says about itself. What it does not say is
// empty.
type hostFacts struct {
	name, version, kernel string
	uptime                time.Duration
}

func hostOS() hostFacts {
	h := hostFacts{name: "Linux"}
	if raw, err := os.ReadFile("/etc/os-release"); err == nil {
		h.name, h.version = parseRelease(raw, h.name)
	}
	var u unix.Utsname
	if unix.Uname(&u) == nil {
		h.kernel = unix.ByteSliceToString(u.Release[:])
	}
	var info unix.Sysinfo_t
	if unix.Sysinfo(&info) == nil {
		h.uptime = time.Duration(info.Uptime) * time.Second
	}
	return h
}

// parseRelease reads os-release(5). Of the name the first word counts, as in
// "Debian GNU/Linux".
func parseRelease(raw []byte, fallback string) (name, version string) {
	name = fallback
	for sc := bufio.NewScanner(bytes.NewReader(raw)); sc.Scan(); {
		key, value, _ := strings.Cut(sc.Text(), "=")
		value = strings.Trim(value, `"'`)
		switch {
		case key == "NAME" && value != "":
			name, _, _ = strings.Cut(value, " ")
		case key == "VERSION_ID":
			version = value
		}
	}
	return name, version
}

func userAgent(version string) string {
	arch := map[string]string{"amd64": "x86_64", "arm64": "aarch64"}[runtime.GOARCH]
	if arch == "" {
		arch = runtime.GOARCH
	}
	h := hostOS()
	return portal.UserAgent(h.name, h.version, version, arch, h.kernel)
}

// name returns the name to show in the admin portal.
func (f *flags) name() string {
	if f.Name != "" {
		return f.Name
	}
	if host, err := os.Hostname(); err == nil && host != "" {
		return host
	}
	return uuid.NewString()
}
