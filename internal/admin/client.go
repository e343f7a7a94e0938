package admin

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"syscall"

	"golang.org/x/sys/unix"
)

var (
	// ErrNoGateway says that nothing listens on the control socket.
	ErrNoGateway = errors.New("no gateway answers")
	// ErrForbidden says that the control socket belongs to another user.
	ErrForbidden = errors.New("not permitted to use it")
	// ErrOtherVersion says that the gateway does not know the request.
	ErrOtherVersion = errors.New("the gateway does not know this request")
)

// Control is the control socket of a gateway on this host.
type Control struct {
	Path string
}

// Reset asks the gateway for a new key pair and waits until it is in use. When
// ctx ends first, it may still happen.
func (c Control) Reset(ctx context.Context) error {
	return c.do(ctx, http.MethodPost, "/reset", nil, func(io.Reader) error { return nil })
}

// Status asks the gateway how it is.
func (c Control) Status(ctx context.Context) (s Status, err error) {
	err = c.do(ctx, http.MethodGet, "/status", nil, decode(&s, maxAnswer))
	return s, err
}

// Explain asks the gateway what it would do with a packet.
func (c Control) Explain(ctx context.Context, q Question) (e Explanation, err error) {
	err = c.do(ctx, http.MethodGet, "/explain?"+q.query(), nil, decode(&e, maxAnswer))
	return e, err
}

// maxAnswer is more than the status of a gateway that is full of clients.
const maxAnswer = 64 << 20

// decode returns a reader of one JSON value of at most limit bytes.
func decode(v any, limit int64) func(io.Reader) error {
	return func(r io.Reader) error {
		limited := &io.LimitedReader{R: r, N: limit}
		err := json.NewDecoder(limited).Decode(v)
		if err != nil && limited.N <= 0 {
			return fmt.Errorf("answer of more than %d bytes", limit)
		}
		if err != nil {
			return fmt.Errorf("answer: %w", err)
		}
		return nil
	}
}

// do sends a request with a body, which may be nil, and has the body of a good
// answer read.
func (c Control) do(ctx context.Context, method, request string, body []byte, read func(io.Reader) error) error {
	if err := CheckControlPath(c.Path); err != nil {
		return fmt.Errorf("control socket: %w", err)
	}
	r, err := http.NewRequestWithContext(ctx, method, "http://gateway"+request, bytes.NewReader(body))
	if err != nil {
		return err
	}
	transport := &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "unix", c.Path)
		},
		DisableKeepAlives: true,
	}
	resp, err := transport.RoundTrip(r)
	if err != nil {
		return fmt.Errorf("control socket %s: %w", c.Path, unreachable(err))
	}
	defer resp.Body.Close()
	if err := verdict(resp); err != nil {
		return err
	}
	return read(resp.Body)
}

// unreachable names the causes that an operator can do something about.
func unreachable(err error) error {
	errno, _ := errors.AsType[syscall.Errno](err)
	switch errno {
	case unix.ENOENT, unix.ENOTDIR, unix.ECONNREFUSED:
		return fmt.Errorf("%w: %w", ErrNoGateway, errno)
	case unix.EACCES, unix.EPERM:
		return fmt.Errorf("%w: %w", ErrForbidden, errno)
	}
	return err
}

// verdict reads an answer.
func verdict(resp *http.Response) error {
	if resp.StatusCode == http.StatusOK {
		return nil
	}
	var why failure
	err := json.NewDecoder(io.LimitReader(resp.Body, maxBody)).Decode(&why)
	switch {
	case err == nil && why.Error != "":
		return errors.New(why.Error)
	case resp.StatusCode == http.StatusNotFound, resp.StatusCode == http.StatusMethodNotAllowed:
		return ErrOtherVersion
	}
	return fmt.Errorf("the gateway answers %s", resp.Status)
}
