package labnet

import (
	"errors"
	"fmt"

	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// File puts one file in the place of another for the eyes of a process, for
// example a hosts file of its own at /etc/hosts. Both have to exist. What is
// written to Source afterwards the process sees, too, as long as the file is
// not replaced by another.
type File struct {
	Source string // absolute path
	Target string // absolute path
}

// ErrMount says that the kernel does not let this process give a child files of
// its own, be it that it lacks the privilege or that a file is missing.
var ErrMount = errors.New("files cannot be put in place")

// startAmong starts p on a thread of its own, in a mount namespace of its own
// where the files are in place, and reports how that went. The thread stays for
// as long as the process, because its end would be the process's.
//
// The caller holds n.mu, so that the namespace is open.
func (n *Namespace) startAmong(files []File, p *Process, started chan<- error) {
	fd := n.fd
	onOwnThread(func() {
		err := enterAmong(fd, files)
		if err == nil {
			err = p.cmd.Start()
		}
		started <- err
		if err == nil {
			<-p.done
		}
	})
}

// enterAmong moves the calling, locked thread into the network namespace and a
// new mount namespace.
func enterAmong(fd netns.NsHandle, files []File) error {
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("%w: mount namespace: %w", ErrMount, err)
	}
	// Nothing that is mounted here may reach the namespace we come from.
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("%w: mount namespace: %w", ErrMount, err)
	}
	for _, f := range files {
		if err := unix.Mount(f.Source, f.Target, "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("%w: %s at %s: %w", ErrMount, f.Source, f.Target, err)
		}
	}
	return netns.Set(fd)
}
