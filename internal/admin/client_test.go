package admin

import (
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

func TestNoGatewayThere(t *testing.T) {
	path := socketPath(t)
	control := Control{Path: path}
	if err := control.Reset(within(t)); !errors.Is(err, ErrNoGateway) || !strings.Contains(err.Error(), path) {
		t.Errorf("without directory: %v, want %v", err, ErrNoGateway)
	}
	leaveBehind(t, path)
	if err := control.Reset(within(t)); !errors.Is(err, ErrNoGateway) {
		t.Errorf("with a socket left behind: %v, want %v", err, ErrNoGateway)
	}
	if _, err := os.Lstat(path); err != nil {
		t.Errorf("the client removed it: %v", err)
	}
}

func TestAnotherUsersGateway(t *testing.T) {
	path := socketPath(t)
	serve(t, path, succeed)
	dir := filepath.Dir(path)
	if os.Geteuid() != 0 {
		// One user alone: what is out of reach is as good as another's.
		chmod(t, dir, 0)
		defer chmod(t, dir, 0o750)
	} else {
		chmod(t, dir, 0o755)
		chmod(t, filepath.Dir(dir), 0o755)
		becomeNobody(t)
	}
	if err := (Control{Path: path}).Reset(within(t)); !errors.Is(err, ErrForbidden) {
		t.Errorf("Reset = %v, want %v", err, ErrForbidden)
	}
}

func chmod(t *testing.T, name string, mode os.FileMode) {
	t.Helper()
	if err := os.Chmod(name, mode); err != nil {
		t.Fatal(err)
	}
}

// becomeNobody takes root's rights away from all threads until the end of the
// test.
func becomeNobody(t *testing.T) {
	t.Helper()
	const nobody = 65534
	if err := syscall.Setresuid(-1, nobody, -1); err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal(err)
		}
		t.Skipf("no other user than root, as in a user namespace: %v", err)
	}
	t.Cleanup(func() {
		if err := syscall.Setresuid(-1, 0, -1); err != nil {
			t.Error(err)
		}
	})
}

// TestOtherAnswers is about listeners that are not this version of the gateway.
func TestOtherAnswers(t *testing.T) {
	for _, tc := range []struct {
		name, answer, want string
		is                 error
	}{
		{name: "an older gateway", answer: "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n", is: ErrOtherVersion},
		{name: "a request with another method", answer: "HTTP/1.1 405 Method Not Allowed\r\nContent-Length: 0\r\n\r\n", is: ErrOtherVersion},
		{name: "a reason", answer: "HTTP/1.1 503 x\r\nContent-Length: 15\r\n\r\n{\"error\":\"why\"}", want: "why"},
		{name: "no reason", answer: "HTTP/1.1 500 Oh\r\nContent-Length: 2\r\n\r\n{}", want: "the gateway answers 500 Oh"},
		{name: "an endless reason", answer: "HTTP/1.1 500 Oh\r\n\r\n{\"error\":\"" + strings.Repeat("x", 2*maxBody), want: "the gateway answers 500 Oh"},
		{name: "a redirection", answer: "HTTP/1.1 307 There\r\nLocation: http://192.0.2.1/\r\nContent-Length: 0\r\n\r\n", want: "the gateway answers 307 There"},
		{name: "another protocol", answer: "SSH-2.0-x\r\n", want: "malformed HTTP"},
		{name: "nothing", answer: "", is: io.EOF},
	} {
		t.Run(tc.name, func(t *testing.T) {
			path := filepath.Join(filepath.Dir(filepath.Dir(socketPath(t))), "s")
			l, err := net.Listen("unix", path)
			if err != nil {
				t.Fatal(err)
			}
			done := make(chan struct{})
			go func() {
				defer close(done)
				conn, err := l.Accept()
				if err != nil {
					return
				}
				defer conn.Close()
				buf := make([]byte, http.DefaultMaxHeaderBytes)
				if _, err := conn.Read(buf); err == nil {
					_, _ = io.WriteString(conn, tc.answer)
				}
			}()
			err = Control{Path: path}.Reset(within(t))
			l.Close()
			<-done
			switch {
			case err == nil:
				t.Error("taken for success")
			case tc.is != nil && !errors.Is(err, tc.is), !strings.Contains(err.Error(), tc.want):
				t.Errorf("Reset = %v, want %v%s", err, tc.is, tc.want)
			}
		})
	}
}
