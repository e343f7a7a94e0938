package admin

import (
	"errors"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// leaveBehind makes the socket of a process that was killed.
func leaveBehind(t *testing.T, path string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	l.Close()
}

func TestCheckControlPath(t *testing.T) {
	for _, tc := range []struct {
		name, path, want string
	}{
		{"the longest", "/" + strings.Repeat("x", 106), ""},
		{"one byte more", "/" + strings.Repeat("x", 107), "has 108 bytes, a Unix socket's path can have 107"},
		{"relative", "gateway.sock", "does not start with a slash"},
		{"an abstract one, which all users could connect to", "@gateway", "does not start with a slash"},
		{"none", "", "does not start with a slash"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			err := CheckControlPath(tc.path)
			if tc.want == "" && err != nil || tc.want != "" && (err == nil || !strings.Contains(err.Error(), tc.want)) {
				t.Errorf("CheckControlPath = %v, want %q", err, tc.want)
			}
			if tc.want == "" {
				return
			}
			if s, err := ServeControl(tc.path, Operations{}); err == nil {
				s.Close()
				t.Error("the server takes it")
			}
			if err := (Control{Path: tc.path}).Reset(t.Context()); err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("the client says %v", err)
			}
		})
	}
}

func TestTheLongestPathWorks(t *testing.T) {
	path := socketPath(t)
	path += strings.Repeat("x", maxSocketPath-len(path))
	serve(t, path, succeed)
	if err := (Control{Path: path}).Reset(within(t)); err != nil {
		t.Errorf("Reset = %v", err)
	}
}

func TestOnlyTheOwnerMayConnect(t *testing.T) {
	// Whatever the process is told to leave out of modes: nothing.
	defer syscall.Umask(syscall.Umask(0))
	path := socketPath(t)
	serve(t, path, succeed)
	for name, want := range map[string]fs.FileMode{path: fs.ModeSocket | 0o600, filepath.Dir(path): fs.ModeDir | 0o750} {
		info, err := os.Lstat(name)
		if err != nil {
			t.Fatal(err)
		}
		if info.Mode() != want {
			t.Errorf("%s has mode %v, want %v", name, info.Mode(), want)
		}
	}
}

func TestADirectoryThatExistsStaysAsItIs(t *testing.T) {
	path := socketPath(t)
	dir := filepath.Dir(path)
	if err := os.MkdirAll(dir, 0o711); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(dir, 0o711); err != nil {
		t.Fatal(err)
	}
	serve(t, path, succeed)
	if info, err := os.Stat(dir); err != nil || info.Mode().Perm() != 0o711 {
		t.Errorf("%v, %v", info.Mode(), err)
	}
}

func TestASocketLeftBehindIsReplaced(t *testing.T) {
	path := socketPath(t)
	leaveBehind(t, path)
	serve(t, path, succeed)
	if err := (Control{Path: path}).Reset(within(t)); err != nil {
		t.Errorf("Reset = %v", err)
	}
}

func TestASocketInUseIsLeftAlone(t *testing.T) {
	path := socketPath(t)
	first := serve(t, path, succeed)
	if _, err := ServeControl(path, Operations{}); !errors.Is(err, ErrTaken) {
		t.Errorf("ServeControl = %v, want %v", err, ErrTaken)
	}
	if err := (Control{Path: path}).Reset(within(t)); err != nil {
		t.Errorf("Reset of the first = %v", err)
	}
	if info, err := os.Lstat(path); err != nil || !os.SameFile(info, first.socket.file) {
		t.Errorf("the first one's file: %v", err)
	}
}

func TestWhatIsNoSocketIsLeftAlone(t *testing.T) {
	path := socketPath(t)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	leaveBehind(t, path+".target")
	for name, put := range map[string]func() error{
		"a file":      func() error { return os.WriteFile(path, []byte("x"), 0o600) },
		"a directory": func() error { return os.Mkdir(path, 0o700) },
		"a link":      func() error { return os.Symlink(path+".target", path) },
	} {
		t.Run(name, func(t *testing.T) {
			if err := put(); err != nil {
				t.Fatal(err)
			}
			defer os.Remove(path)
			if _, err := ServeControl(path, Operations{}); err == nil || !strings.Contains(err.Error(), "is not a socket") {
				t.Errorf("ServeControl = %v", err)
			}
			if _, err := os.Lstat(path); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestASocketOfAnotherKindIsLeftAlone(t *testing.T) {
	path := socketPath(t)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	other, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	if _, err := ServeControl(path, Operations{}); !errors.Is(err, unix.EPROTOTYPE) {
		t.Errorf("ServeControl = %v, want %v", err, unix.EPROTOTYPE)
	}
	if _, err := os.Lstat(path); err != nil {
		t.Error(err)
	}
}

func TestADirectoryThatCannotBeMadeIsAnError(t *testing.T) {
	path := socketPath(t)
	if err := os.MkdirAll(filepath.Dir(filepath.Dir(path)), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Dir(path), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := ServeControl(path, Operations{}); !errors.Is(err, unix.ENOTDIR) {
		t.Errorf("ServeControl = %v, want %v", err, unix.ENOTDIR)
	}
	if err := (Control{Path: path}).Reset(within(t)); !errors.Is(err, ErrNoGateway) {
		t.Errorf("Reset = %v, want %v", err, ErrNoGateway)
	}
}

func TestCloseLeavesTheFileOfAnother(t *testing.T) {
	path := socketPath(t)
	s, err := ServeControl(path, Operations{Reset: succeed})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	serve(t, path, succeed)
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	if err := (Control{Path: path}).Reset(within(t)); err != nil {
		t.Errorf("Reset of the other = %v", err)
	}
}

func TestCloseWithoutFile(t *testing.T) {
	path := socketPath(t)
	s, err := ServeControl(path, Operations{})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(filepath.Dir(path)); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
}
