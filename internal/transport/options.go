package transport

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// errMark is wrapped when the routing mark is refused.
var errMark = errors.New("socket mark refused")

// ipv6PreferSrcPublic asks for the stable source address rather than a temporary
// one (RFC 5014 section 3; include/uapi/linux/in6.h).
const ipv6PreferSrcPublic = 2

// offloads is what the kernel offers for a socket and the configuration admits.
type offloads struct{ gso, gro bool }

// configure sets the options of a fresh socket.
func configure(fd int, f Family, cfg Config, log *slog.Logger) (offloads, error) {
	var o offloads
	if cfg.Mark != 0 {
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_MARK, int(cfg.Mark)); err != nil {
			return o, fmt.Errorf("%w: %w", errMark, err)
		}
	}
	if err := requestPacketInfo(fd, f); err != nil {
		return o, fmt.Errorf("packet info: %w", err)
	}
	if err := requestECN(fd, f); err != nil {
		log.Debug("congestion marks do not reach inner packets", "family", f, "error", err)
	}
	if f == IPv6 {
		if err := unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 1); err != nil {
			return o, fmt.Errorf("IPv6 only: %w", err)
		}
		if err := unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_ADDR_PREFERENCES, ipv6PreferSrcPublic); err != nil {
			log.Debug("no preference for stable source addresses", "error", err)
		}
	}
	for _, b := range []struct {
		name          string
		option, force int
		want          int
	}{
		{"send", unix.SO_SNDBUF, unix.SO_SNDBUFFORCE, cfg.SendBuffer},
		{"receive", unix.SO_RCVBUF, unix.SO_RCVBUFFORCE, cfg.RecvBuffer},
	} {
		if have := raiseBuffer(fd, b.option, b.force, b.want); have < b.want {
			log.Warn("socket buffer is smaller than wanted", "family", f, "buffer", b.name, "bytes", have, "wanted", b.want)
		}
	}
	if !cfg.DisableGSO {
		_, err := unix.GetsockoptInt(fd, unix.SOL_UDP, unix.UDP_SEGMENT)
		o.gso = err == nil
	}
	if !cfg.DisableGRO {
		o.gro = unix.SetsockoptInt(fd, unix.SOL_UDP, unix.UDP_GRO, 1) == nil
	}
	return o, nil
}

func requestPacketInfo(fd int, f Family) error {
	if f == IPv4 {
		return unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_PKTINFO, 1)
	}
	return unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_RECVPKTINFO, 1)
}

// raiseBuffer raises a buffer of fd to want bytes, or as far as the system
// admits, and returns what it is. It never lowers it: a system-wide default may
// be above the maximum that a process without CAP_NET_ADMIN may ask for, so what
// the plain option would give is tried on a socket that does not matter.
func raiseBuffer(fd, option, force, want int) int {
	have := bufferSize(fd, option)
	if want <= have {
		return have
	}
	if unix.SetsockoptInt(fd, unix.SOL_SOCKET, force, want) == nil {
		return bufferSize(fd, option)
	}
	probe, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return have
	}
	defer unix.Close(probe)
	if unix.SetsockoptInt(probe, unix.SOL_SOCKET, option, want) == nil && bufferSize(probe, option) > have {
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, option, want) // the caller is told what came of it
	}
	return bufferSize(fd, option)
}

// bufferSize returns the size in the unit of setsockopt: the kernel doubles what
// it is given, for its own overhead, and reports the double (socket(7)).
func bufferSize(fd, option int) int {
	n, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, option)
	if err != nil {
		return 0
	}
	return n / 2
}

// gsoMangled reports whether the kernel of this release corrupts batches whose
// segments are all equal in length: 7.0 up to and including 7.1.4.
func gsoMangled(release string) bool {
	var v [3]int
	for i, part := range strings.SplitN(release, ".", len(v)) {
		digits := part
		if end := strings.IndexFunc(part, func(r rune) bool { return r < '0' || r > '9' }); end >= 0 {
			digits = part[:end]
		}
		n, err := strconv.Atoi(digits)
		if err != nil {
			break
		}
		v[i] = n
		if len(digits) < len(part) {
			break
		}
	}
	return v[0] == 7 && (v[1] == 0 || v[1] == 1 && v[2] <= 4)
}

func kernelRelease() string {
	var u unix.Utsname
	if unix.Uname(&u) != nil {
		return ""
	}
	release, _, _ := bytes.Cut(u.Release[:], []byte{0})
	return string(release)
}
