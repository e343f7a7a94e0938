package ws

import (
	"bufio"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
)

// maxProxyAnswer bounds the answer to CONNECT, in bytes.
const maxProxyAnswer = 64 << 10

// proxyFor returns the proxy on the way to u, nil if there is none. Its scheme
// is http or socks5, and its host has a port. Errors do not quote the address,
// which may contain a password.
func proxyFor(choose func(*http.Request) (*url.URL, error), u url.URL) (*url.URL, error) {
	if choose == nil {
		choose = http.ProxyFromEnvironment
	}
	switch u.Scheme {
	case "ws":
		u.Scheme = "http"
	case "wss":
		u.Scheme = "https"
	}
	chosen, err := choose(&http.Request{Method: http.MethodGet, URL: &u, Host: u.Host, Header: http.Header{}})
	if err != nil {
		return nil, errors.New("address of the proxy is not usable")
	}
	if chosen == nil {
		return nil, nil
	}
	p := &url.URL{Scheme: chosen.Scheme, User: chosen.User}
	port := "80"
	switch chosen.Scheme {
	case "http":
	case "socks5", "socks5h":
		p.Scheme, port = "socks5", "1080"
	default:
		return nil, errors.New("scheme of the proxy's address is neither http nor socks5")
	}
	if chosen.Hostname() == "" {
		return nil, errors.New("address of the proxy has no host")
	}
	if chosen.Port() != "" {
		port = chosen.Port()
	}
	p.Host = net.JoinHostPort(chosen.Hostname(), port)
	return p, nil
}

// dialThrough returns a connection that leads to address, or to the proxy if
// that speaks SOCKS. proxy is nil or of proxyFor.
func (r racer) dialThrough(ctx context.Context, proxy *url.URL, network, address string) (net.Conn, error) {
	if proxy == nil {
		return r.dial(ctx, network, address)
	}
	c, err := r.dial(ctx, network, proxy.Host)
	if err == nil && proxy.Scheme == "http" {
		defer context.AfterFunc(ctx, func() { c.Close() })()
		if err = tunnel(c, proxy.User, address); err != nil {
			c.Close()
		}
	}
	if err != nil {
		return nil, fmt.Errorf("proxy %s: %w", proxy.Host, err)
	}
	return c, nil
}

// tunnel asks the proxy at the other end of c for a connection to address (RFC
// 9110 §9.3.6). On an error c is not closed. The library's own code for this
// panics on an answer without a reason phrase.
func tunnel(c net.Conn, user *url.Userinfo, address string) error {
	req := &http.Request{Method: http.MethodConnect, URL: &url.URL{Opaque: address}, Host: address, Header: http.Header{}}
	if user != nil {
		password, _ := user.Password()
		req.Header.Set("Proxy-Authorization", "Basic "+base64.StdEncoding.EncodeToString([]byte(user.Username()+":"+password)))
	}
	if err := req.Write(c); err != nil {
		return err
	}
	limited := &io.LimitedReader{R: c, N: maxProxyAnswer}
	r := bufio.NewReader(limited)
	resp, err := http.ReadResponse(r, req)
	var broken net.Error
	switch {
	case errors.As(err, &broken):
		return err
	case errors.Is(err, io.ErrUnexpectedEOF) && limited.N > 0:
		return errors.New("it hung up")
	case err != nil:
		return errors.New("its answer is not HTTP") // err quotes the answer
	}
	defer resp.Body.Close()
	if resp.StatusCode/100 != 2 {
		return refusal(resp.StatusCode)
	}
	if r.Buffered() > 0 {
		return errors.New("it sent more than an answer")
	}
	return nil
}

// refusal names the status in the words of the standard, not in the proxy's.
func refusal(status int) error {
	text := "HTTP status " + strconv.Itoa(status)
	if name := http.StatusText(status); name != "" {
		text += " (" + name + ")"
	}
	return fmt.Errorf("it refused: %s", text)
}
