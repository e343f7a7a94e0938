package admin

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// ErrTaken says that another process answers on the control socket.
var ErrTaken = errors.New("another process answers there")

// maxSocketPath is what the kernel's address has room for, in bytes (unix(7)).
const maxSocketPath = len(unix.RawSockaddrUnix{}.Path) - 1

// CheckControlPath says what is wrong with path as that of a control socket: it
// has to be absolute and of at most 107 bytes.
func CheckControlPath(path string) error {
	if !filepath.IsAbs(path) {
		return fmt.Errorf("%q does not start with a slash", path)
	}
	if len(path) > maxSocketPath {
		return fmt.Errorf("%s has %d bytes, a Unix socket's path can have %d", path, len(path), maxSocketPath)
	}
	return nil
}

// socket is a listening Unix socket that knows its file.
type socket struct {
	*net.UnixListener
	path string
	file fs.FileInfo
}

func listenSocket(path string) (*socket, error) {
	if err := CheckControlPath(path); err != nil {
		return nil, err
	}
	if err := makeDir(filepath.Dir(path)); err != nil {
		return nil, err
	}
	if err := clearSocket(path); err != nil {
		return nil, err
	}
	cfg := net.ListenConfig{Control: ownerOnly}
	l, err := cfg.Listen(context.Background(), "unix", path)
	if errors.Is(err, unix.EADDRINUSE) { // somebody was faster
		return nil, fmt.Errorf("%s: %w", path, ErrTaken)
	}
	if err != nil {
		return nil, err
	}
	s := &socket{UnixListener: l.(*net.UnixListener), path: path}
	s.SetUnlinkOnClose(false)
	if s.file, err = os.Lstat(path); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

// remove removes the file if it still is this socket's. It has to come before
// Close, which lets the file system use the inode's number again.
func (s *socket) remove() error {
	file, err := os.Lstat(s.path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil || !os.SameFile(file, s.file) {
		return err
	}
	return os.Remove(s.path)
}

// ownerOnly gives the socket a mode that its file gets when it is bound, so that
// there is no moment in which others can connect.
func ownerOnly(_, _ string, c syscall.RawConn) error {
	var err error
	return errors.Join(c.Control(func(fd uintptr) { err = unix.Fchmod(int(fd), 0o600) }), err)
}

// makeDir makes dir for this user and group. One that exists stays as it is.
func makeDir(dir string) error {
	if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
		return err
	}
	if err := os.Mkdir(dir, 0o750); !errors.Is(err, fs.ErrExist) {
		return err
	}
	return nil
}

// clearSocket removes a socket on which nobody listens. Of two processes that do
// this at the same moment the later one wins.
func clearSocket(path string) error {
	file, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if file.Mode().Type() != fs.ModeSocket {
		return fmt.Errorf("%s exists and is not a socket", path)
	}
	conn, err := net.DialTimeout("unix", path, time.Second)
	switch {
	case err == nil:
		conn.Close()
		return fmt.Errorf("%s: %w", path, ErrTaken)
	case errors.Is(err, unix.ECONNREFUSED):
		err = os.Remove(path)
	}
	if errors.Is(err, fs.ErrNotExist) { // its owner has just ended
		return nil
	}
	return err
}
