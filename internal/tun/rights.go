package tun

import "golang.org/x/sys/unix"

// HasNetAdmin reports whether CAP_NET_ADMIN is effective for the calling
// thread. Root without it, as in a container, does not have it.
func HasNetAdmin() bool {
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if unix.Capget(&hdr, &data[0]) != nil {
		return false
	}
	return data[0].Effective&(1<<unix.CAP_NET_ADMIN) != 0
}
