package tun

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// Kernel limits for socket buffers that the gateway asks for (dataplane §8.6).
const (
	DefaultRmemMax = 16777216
	DefaultWmemMax = 2097152
)

// Change is what happened to one sysctl.
type Change struct {
	Key      string // dotted name
	Old, New int    // equal if the value was already high enough
	Err      error  // the value could not be read or written
}

// String returns the change as it belongs into a log line.
func (c Change) String() string {
	switch {
	case c.Err != nil:
		return fmt.Sprintf("%s: %v", c.Key, c.Err)
	case c.Old == c.New:
		return fmt.Sprintf("%s stays %d", c.Key, c.Old)
	default:
		return fmt.Sprintf("%s raised from %d to %d", c.Key, c.Old, c.New)
	}
}

// EnableForwarding switches on IPv4 and IPv6 forwarding and makes source
// validation respect firewall marks (dataplane §7.4). Values that are higher
// stay. The error joins those of the changes; a kernel without IPv6 yields
// fs.ErrNotExist there. IPv6 forwarding makes the kernel ignore router
// advertisements on interfaces whose accept_ra is 1.
func EnableForwarding() ([]Change, error) {
	return procSysctls.raise(forwarding...)
}

var forwarding = []setting{
	{"net.ipv4.ip_forward", 1},
	{"net.ipv4.conf.all.src_valid_mark", 1},
	{"net.ipv6.conf.all.forwarding", 1},
	{"net.ipv6.conf.default.forwarding", 1},
}

// RaiseSocketBuffers raises the largest socket buffers, in bytes, that programs
// may ask for. It never lowers them.
func RaiseSocketBuffers(rmem, wmem int) ([]Change, error) {
	return procSysctls.raise(
		setting{"net.core.rmem_max", rmem},
		setting{"net.core.wmem_max", wmem},
	)
}

type setting struct {
	key  string
	want int
}

// sysctls is the directory that holds the sysctls.
type sysctls string

const procSysctls sysctls = "/proc/sys"

func (s sysctls) raise(settings ...setting) ([]Change, error) {
	changes := make([]Change, 0, len(settings))
	var errs []error
	for _, wanted := range settings {
		c := s.raiseOne(wanted)
		if c.Err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", c.Key, c.Err))
		}
		changes = append(changes, c)
	}
	return changes, errors.Join(errs...)
}

func (s sysctls) raiseOne(wanted setting) Change {
	c := Change{Key: wanted.key}
	if c.Old, c.Err = s.read(wanted.key); c.Err != nil {
		return c
	}
	c.New = max(c.Old, wanted.want)
	if c.New != c.Old {
		c.Err = os.WriteFile(s.path(wanted.key), strconv.AppendInt(nil, int64(c.New), 10), 0)
	}
	return c
}

func (s sysctls) read(key string) (int, error) {
	text, err := os.ReadFile(s.path(key))
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(strings.TrimSpace(string(text)))
}

func (s sysctls) path(key string) string {
	return filepath.Join(string(s), strings.ReplaceAll(key, ".", "/"))
}
