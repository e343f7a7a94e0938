package tour

import (
	"bufio"
	"bytes"
	"context"
	"crypto/md5"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/pion/stun/v3"
	"github.com/vishvananda/netlink"

	"firezone-gateway/internal/lab/labtest"
	labnet "firezone-gateway/internal/lab/net"
	"firezone-gateway/internal/lab/portal"
	"firezone-gateway/internal/lab/relay"
)

// Times of coturn. Its nonces and allocations live shortly, so that a download
// that outlives an allocation needs more than one of each.
const (
	coturnNonce      = 3 * time.Second
	coturnAllocation = 16 * time.Second // the gateway refreshes at half of it
	coturnStart      = 30 * time.Second
)

// TestTourThroughCoturn promises that a relay which is none of ours does: coturn,
// a server of RFC 8656 that has never heard of Firezone. Neither NAT lets the two
// sides meet, so that everything takes channels of the gateway's allocation there.
func TestTourThroughCoturn(t *testing.T) {
	t.Parallel()
	labtest.NeedNamespaces(t)
	program := needCoturn(t)
	for _, six := range []bool{false, true} {
		t.Run(map[bool]string{false: "IPv4", true: "IPv6"}[six], func(t *testing.T) {
			t.Parallel()
			o := original()
			o.IPv4Only = !six
			var server *coturn
			o.scene.prepare = func(w *World) (err error) {
				server, err = replaceByCoturn(t, w, program, six)
				return err
			}
			w := newWorld(t, o)
			t.Cleanup(func() {
				if t.Failed() {
					t.Log(server.said(60))
				}
			})
			w.awaitEvent(t, "gateway did not join", 0, stepLimit, joined)
			w.block(t, true)
			require(t, w, clientsAuthorized)
			w.awaitRelayed(t)
			require(t, w, pingAnswered)

			before := server.traffic(t)
			require(t, w, download)
			after := server.traffic(t)
			in, out := after.RxBytes-before.RxBytes, after.TxBytes-before.TxBytes
			t.Logf("coturn received %.1f MB and sent %.1f MB", float64(in)/1e6, float64(out)/1e6)
			if size := uint64(o.Transfer); in < size || out < size {
				t.Error("what arrived did not go through coturn")
			}

			w.outliveAllocation(t, server)
			w.returnToCoturn(t, server)
			require(t, w, pingAnswered, gatewayLeaves)
		})
	}
}

// outliveAllocation promises that the allocation is refreshed in time, although the
// nonce at hand has expired by then, and that its channels stay.
func (w *World) outliveAllocation(t *testing.T, server *coturn) {
	t.Helper()
	feed := startFeed(t, w)
	feed.awaitBytes(t, int64(1.5*coturnAllocation.Seconds()*feedRate))
	w.awaitRelayed(t)
	feed.unharmed(t, stallLimit)
	refreshes, challenges := server.counts("REFRESH processed, success"), server.counts("error 438")
	t.Logf("%d refreshes, %d stale nonces", refreshes, challenges)
	if refreshes == 0 || challenges == 0 {
		t.Error("the allocation was not refreshed with a stale nonce")
	}
}

// returnToCoturn promises that a gateway which is told to forget the relay, and
// then to use it again, gets an allocation where coturn still has one of the same
// socket, which it refuses to replace.
func (w *World) returnToCoturn(t *testing.T, server *coturn) {
	t.Helper()
	const mismatch = "error 437"
	mismatches := server.counts(mismatch)
	w.setRelays(t)
	w.portal.PushRelaysPresence()
	begin := time.Now()
	w.setRelays(t, w.entries[0])
	w.portal.PushRelaysPresence()
	if err := await(within(t, stepLimit), "no second allocation", func() bool { return server.counts(mismatch) > mismatches }); err != nil {
		t.Fatal(err)
	}
	w.awaitTraffic(t, files4)
	w.awaitRelayed(t)
	t.Logf("traffic %s after the relay was there again", milliseconds(time.Since(begin)))
}

// needCoturn returns the path of coturn's server. A test is skipped where it is
// not installed, except in CI, where that is a failure.
func needCoturn(t *testing.T) string {
	t.Helper()
	program, err := exec.LookPath("turnserver")
	switch {
	case err == nil:
	case os.Getenv("CI") == "true":
		t.Fatal("coturn is not installed:", err)
	default:
		t.Skip("coturn is not installed:", err)
	}
	return program
}

// coturn is a running turnserver.
type coturn struct {
	host    labnet.Host
	at      netip.AddrPort
	process *labnet.Process
	log     string // path
}

// replaceByCoturn ends the first relay and puts coturn in its place: in its
// namespace, on its address of one family, with its stamp secret.
func replaceByCoturn(t *testing.T, w *World, program string, six bool) (*coturn, error) {
	if err := w.relays[0].Suspend(); err != nil {
		return nil, err
	}
	entry, host := &w.entries[0], w.net.Relays[0]
	at := entry.V4
	if six {
		at, entry.V4 = entry.V6, netip.AddrPort{}
	} else {
		entry.V6 = netip.AddrPort{}
	}
	users, err := serveStamps(t, host, entry.StampSecret)
	if err != nil {
		return nil, err
	}
	dir := t.TempDir()
	log, err := os.Create(filepath.Join(dir, "log"))
	if err != nil {
		return nil, err
	}
	defer log.Close()
	cmd := exec.Command(program,
		"-n", "--verbose", "--log-file=stdout", "--pidfile="+filepath.Join(dir, "pid"), "--no-cli", "--no-tcp", "--no-tls", "--no-dtls",
		"--listening-ip="+at.Addr().String(), "--relay-ip="+at.Addr().String(), fmt.Sprintf("--listening-port=%d", at.Port()),
		// Release 4.6 knows ADDITIONAL-ADDRESS-FAMILY by the number of a draft
		// only, and would give IPv4 to whoever asks for nothing that it knows.
		"--allocation-default-address-family=keep",
		"--lt-cred-mech", "--fingerprint", "--realm="+relay.Realm, "--redis-userdb="+users,
		fmt.Sprintf("--stale-nonce=%.0f", coturnNonce.Seconds()), fmt.Sprintf("--max-allocate-lifetime=%.0f", coturnAllocation.Seconds()))
	cmd.Dir, cmd.Stdout, cmd.Stderr = dir, log, log
	process, err := host.StartProcess(cmd)
	if err != nil {
		return nil, err
	}
	c := &coturn{host, at, process, log.Name()}
	if err := c.awaitAnswers(within(t, coturnStart)); err != nil {
		return nil, fmt.Errorf("coturn: %w\n%s", err, c.said(60))
	}
	return c, w.portal.SetRelays([]portal.Relay{*entry})
}

// awaitAnswers waits until BINDING requests are answered.
func (c *coturn) awaitAnswers(ctx context.Context) error {
	ended := false
	err := await(ctx, "no answer", func() bool {
		select {
		case <-c.process.Done():
			ended = true
		default:
		}
		return ended || c.answers(ctx)
	})
	if ended {
		err = fmt.Errorf("ended: %w", c.process.Wait())
	}
	return err
}

func (c *coturn) answers(ctx context.Context) bool {
	conn, err := c.host.DialContext(ctx, "udp", c.at.String())
	if err != nil {
		return false
	}
	defer conn.Close()
	request := stun.MustBuild(stun.TransactionID, stun.BindingRequest)
	if _, err := conn.Write(request.Raw); err != nil {
		return false
	}
	conn.SetDeadline(time.Now().Add(100 * time.Millisecond))
	b := make([]byte, 1500)
	n, err := conn.Read(b)
	answer := stun.Message{Raw: b[:n]}
	return err == nil && answer.Decode() == nil && answer.TransactionID == request.TransactionID
}

// counts returns how many lines of the server's log contain something.
func (c *coturn) counts(what string) int {
	b, err := os.ReadFile(c.log)
	if err != nil {
		return 0
	}
	return bytes.Count(b, []byte(what))
}

// said returns the last n lines of the server's log.
func (c *coturn) said(n int) string {
	b, err := os.ReadFile(c.log)
	if err != nil {
		return err.Error()
	}
	lines := strings.SplitAfter(string(b), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "")
}

// traffic counts what has crossed the server's only device, both ways.
func (c *coturn) traffic(t *testing.T) (s netlink.LinkStatistics) {
	t.Helper()
	err := c.host.Do(func() error {
		link, err := netlink.LinkByName("eth0")
		if err == nil {
			s = *link.Attrs().Statistics
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// serveStamps is a database of users in which everybody is who has the
// credentials of a relay with that secret (portal-protocol §6.4), and returns how
// coturn finds it. It speaks as much of Redis as coturn asks for. A list on the
// command line would not do: coturn ends a name at the first colon.
func serveStamps(t *testing.T, host labnet.Host, secret string) (string, error) {
	listener, err := host.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	var wait sync.WaitGroup
	ctx, cancel := context.WithCancel(context.Background())
	wait.Go(func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			wait.Go(func() {
				defer conn.Close()
				defer context.AfterFunc(ctx, func() { conn.Close() })()
				for r := bufio.NewReader(conn); ; {
					command, err := readCommand(r)
					if err == nil {
						_, err = io.WriteString(conn, answerCommand(command, secret))
					}
					if err != nil {
						return
					}
				}
			})
		}
	})
	t.Cleanup(func() {
		cancel()
		listener.Close()
		wait.Wait()
	})
	return fmt.Sprintf("ip=127.0.0.1 port=%d", listener.Addr().(*net.TCPAddr).Port), nil
}

// readCommand reads an array of strings.
func readCommand(r *bufio.Reader) ([]string, error) {
	n, err := readNumber(r, "*")
	words := make([]string, n)
	for i := 0; err == nil && i < n; i++ {
		var size int
		if size, err = readNumber(r, "$"); err == nil {
			word := make([]byte, size+len("\r\n"))
			_, err = io.ReadFull(r, word)
			words[i] = string(word[:size])
		}
	}
	return words, err
}

func readNumber(r *bufio.Reader, kind string) (int, error) {
	line, err := r.ReadString('\n')
	if err != nil {
		return 0, err
	}
	digits, ok := strings.CutPrefix(strings.TrimSpace(line), kind)
	n, err := strconv.Atoi(digits)
	if err != nil || !ok || n < 0 || n > 1<<10 {
		return 0, fmt.Errorf("%q is no number after %q", line, kind)
	}
	return n, nil
}

// answerCommand knows the keys of users (RFC 8489 §9.2.2) and nothing else.
func answerCommand(command []string, secret string) string {
	if len(command) == 0 {
		return "-ERR\r\n"
	}
	switch strings.ToLower(command[0]) {
	case "get":
		name, ours := strings.CutPrefix(command[len(command)-1], "turn/realm/"+relay.Realm+"/user/")
		name, isKey := strings.CutSuffix(name, "/key")
		expiry, salt, stamped := strings.Cut(name, ":")
		if !ours || !isKey || !stamped {
			return "$-1\r\n"
		}
		sum := sha256.Sum256([]byte(expiry + ":" + secret + ":" + salt))
		key := md5.Sum([]byte(name + ":" + relay.Realm + ":" + base64.RawStdEncoding.EncodeToString(sum[:])))
		return fmt.Sprintf("$%d\r\n%x\r\n", hex.EncodedLen(len(key)), key)
	case "keys", "smembers":
		return "*0\r\n"
	}
	return "+OK\r\n"
}
