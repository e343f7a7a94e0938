package resource

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"hash"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"time"
)

// Transfer is what a Download or an Upload moved.
type Transfer struct {
	Bytes   int64
	Elapsed time.Duration
	// Sent and Received are the hexadecimal SHA-256 of the body as the sender
	// made it and as the receiver got it.
	Sent, Received string
}

// Intact reports whether what was received is what was sent.
func (t Transfer) Intact() bool { return t.Sent != "" && t.Sent == t.Received }

// BitsPerSecond returns the rate of the transfer.
func (t Transfer) BitsPerSecond() float64 { return float64(t.Bytes) * 8 / t.Elapsed.Seconds() }

// Download fetches Content(size, seed) from the HTTP service at server and
// asks it for the checksum. Elapsed is from the connection's first packet to
// the last byte of the body.
func Download(ctx context.Context, n Network, server netip.AddrPort, size int64, seed uint64) (Transfer, error) {
	client, done := httpClient(n)
	defer done()
	query := fmt.Sprintf("?size=%d&seed=%d", size, seed)

	begin := time.Now()
	response, err := request(ctx, client, http.MethodGet, server, "/file"+query, nil, 0)
	if err != nil {
		return Transfer{}, fmt.Errorf("download: %w", err)
	}
	defer response.Body.Close()
	sum := sha256.New()
	received, err := io.CopyBuffer(sum, response.Body, make([]byte, chunk))
	t := Transfer{Bytes: received, Elapsed: time.Since(begin), Received: hexOf(sum)}
	if err != nil {
		return t, fmt.Errorf("download: after %d bytes: %w", received, err)
	}

	checksum, err := request(ctx, client, http.MethodGet, server, "/file/sha256"+query, nil, 0)
	if err != nil {
		return t, fmt.Errorf("checksum: %w", err)
	}
	digest, err := readDigest(checksum)
	t.Sent = digest.SHA256
	return t, err
}

// Upload sends Content(size, seed) to the HTTP service at server, which
// answers with the checksum of what it got.
func Upload(ctx context.Context, n Network, server netip.AddrPort, size int64, seed uint64) (Transfer, error) {
	client, done := httpClient(n)
	defer done()
	sum := sha256.New()
	body := io.TeeReader(Content(size, seed), sum)

	begin := time.Now()
	response, err := request(ctx, client, http.MethodPut, server, "/upload", body, size)
	if err != nil {
		return Transfer{}, fmt.Errorf("upload: %w", err)
	}
	digest, err := readDigest(response)
	return Transfer{Bytes: digest.Bytes, Elapsed: time.Since(begin), Sent: hexOf(sum), Received: digest.SHA256}, err
}

// Direction is which way a throughput measurement's bytes go.
type Direction uint8

const (
	// ToResource sends to the sink at the resource.
	ToResource Direction = iota
	// FromResource reads from the source at the resource.
	FromResource
)

// String returns the direction in words.
func (d Direction) String() string {
	if d == ToResource {
		return "to the resource"
	}
	return "from the resource"
}

// Throughput is what a TCPThroughput measured.
type Throughput struct {
	Bytes   int64         // that arrived
	Elapsed time.Duration // from the connection on
}

// BitsPerSecond returns the rate of the stream.
func (t Throughput) BitsPerSecond() float64 { return float64(t.Bytes) * 8 / t.Elapsed.Seconds() }

// TCPThroughput measures one TCP stream for about the given duration: what
// arrived of it, at the sink for ToResource and here for FromResource, and how
// long that took, without the time to connect. The server is the port of the
// sink or the source.
func TCPThroughput(ctx context.Context, n Network, server netip.AddrPort, d Direction, duration time.Duration) (Throughput, error) {
	conn, err := n.DialContext(ctx, "tcp", server.String())
	if err != nil {
		return Throughput{}, fmt.Errorf("throughput %v: %w", d, err)
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()

	begin := time.Now()
	var bytes int64
	if d == ToResource {
		bytes, err = fill(conn, begin.Add(duration))
	} else {
		bytes, err = swallow(conn, begin.Add(duration))
	}
	if err != nil {
		if ctx.Err() != nil {
			err = ctx.Err()
		}
		return Throughput{}, fmt.Errorf("throughput %v: %w", d, err)
	}
	return Throughput{Bytes: bytes, Elapsed: time.Since(begin)}, nil
}

// fill writes until the deadline, then asks the sink how much arrived.
func fill(conn net.Conn, until time.Time) (int64, error) {
	zeroes := make([]byte, chunk)
	for time.Now().Before(until) {
		if _, err := conn.Write(zeroes); err != nil {
			return 0, err
		}
	}
	stream, ok := conn.(interface{ CloseWrite() error })
	if !ok {
		return 0, fmt.Errorf("stream is a %T", conn)
	}
	if err := stream.CloseWrite(); err != nil {
		return 0, err
	}
	var count [8]byte
	_, err := io.ReadFull(conn, count[:])
	return int64(binary.BigEndian.Uint64(count[:])), err
}

// swallow reads until the deadline and returns how much it read.
func swallow(conn net.Conn, until time.Time) (int64, error) {
	if err := conn.SetReadDeadline(until); err != nil {
		return 0, err
	}
	n, err := io.CopyBuffer(struct{ io.Writer }{io.Discard}, struct{ io.Reader }{conn}, make([]byte, chunk))
	switch {
	case err == nil:
		return 0, io.ErrUnexpectedEOF
	case os.IsTimeout(err):
		return n, nil
	}
	return 0, err
}

// httpClient returns a client on the network, without compression or
// keep-alive limits, and the function that ends its connections.
func httpClient(n Network) (*http.Client, func()) {
	transport := &http.Transport{
		DialContext:        n.DialContext,
		DisableCompression: true,
		ReadBufferSize:     chunk,
		WriteBufferSize:    chunk,
	}
	return &http.Client{Transport: transport}, transport.CloseIdleConnections
}

// request returns a response with status 200, whose body the caller closes.
func request(ctx context.Context, c *http.Client, method string, server netip.AddrPort, path string, body io.Reader, size int64) (*http.Response, error) {
	r, err := http.NewRequestWithContext(ctx, method, "http://"+server.String()+path, body)
	if err != nil {
		return nil, err
	}
	r.ContentLength = size
	response, err := c.Do(r)
	if err != nil {
		return nil, err
	}
	if response.StatusCode != http.StatusOK {
		response.Body.Close()
		return nil, fmt.Errorf("server answers %s", response.Status)
	}
	return response, nil
}

func readDigest(r *http.Response) (Digest, error) {
	defer r.Body.Close()
	var d Digest
	if err := json.NewDecoder(io.LimitReader(r.Body, 1<<10)).Decode(&d); err != nil {
		return d, fmt.Errorf("digest: %w", err)
	}
	return d, nil
}

func hexOf(h hash.Hash) string { return hex.EncodeToString(h.Sum(nil)) }
