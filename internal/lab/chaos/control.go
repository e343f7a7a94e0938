package chaos

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"slices"
	"time"
)

// status is what the lab reads of the daemon's answer to GET /status.
type status struct {
	Phase   string   `json:"phase"`
	Ready   bool     `json:"ready"`
	Missing []string `json:"missing"`
	Actors  []actor  `json:"actors"`
	Drops   drops    `json:"drops"`
	Peers   []struct {
		Drops drops `json:"drops"`
	} `json:"peers"`
}

// drops counts what the daemon has discarded, by reason.
type drops map[string]uint64

// dropped sums up what the daemon has discarded since before.
func (s status) dropped(before drops) drops {
	sum := drops{}
	for reason, n := range s.Drops {
		sum[reason] += n
	}
	for _, p := range s.Peers {
		for reason, n := range p.Drops {
			sum[reason] += n
		}
	}
	for reason, n := range before {
		sum[reason] -= min(n, sum[reason]) // a client that was dropped takes its counts along
	}
	maps.DeleteFunc(sum, func(_ string, n uint64) bool { return n == 0 })
	return sum
}

type actor struct {
	Path     string `json:"path"`
	Kind     string `json:"kind"`
	State    string `json:"state"`
	Restarts uint64 `json:"restarts"`
	Failures uint64 `json:"failures"`
}

const running = "running"

// unwell lists the paths of the actors that do not run.
func (s status) unwell() []string {
	var paths []string
	for _, a := range s.Actors {
		if a.State != running {
			paths = append(paths, a.Path+" "+a.State)
		}
	}
	return paths
}

// of lists the paths of the actors of a kind, all for Random.
func (s status) of(kind string) []string {
	var paths []string
	for _, a := range s.Actors {
		if a.Kind == kind || (kind == Random && slices.Contains(Kinds, a.Kind)) {
			paths = append(paths, a.Path)
		}
	}
	return paths
}

func (s status) find(path string) (actor, bool) {
	i := slices.IndexFunc(s.Actors, func(a actor) bool { return a.Path == path })
	if i < 0 {
		return actor{}, false
	}
	return s.Actors[i], true
}

// Faults that the daemon can be told to have.
const (
	Crash = "crash" // the actor panics with the next message
	Hang  = "hang"  // the actor's turn does not end
	Delay = "delay" // its next messages wait
	Drop  = "drop"  // its next messages are lost
)

// Fault is the body of POST /fault.
type fault struct {
	Actor    string `json:"actor"`
	Fault    string `json:"fault"`
	For      string `json:"for,omitempty"`
	Messages int    `json:"messages,omitempty"`
}

// controlLimit bounds one request to the daemon.
const controlLimit = 5 * time.Second

// ErrNoFaults says that the daemon has no fault injection.
var ErrNoFaults = errors.New("this gateway cannot be told to fail (it does not know --enable-fault-injection)")

func (w *world) status(ctx context.Context) (s status, err error) {
	err = w.control(ctx, http.MethodGet, "/status", nil, &s)
	return s, err
}

// inject has an actor fail and returns the paths of those that it reached.
func (w *world) inject(ctx context.Context, f fault) ([]string, error) {
	var answer struct {
		Actors []string `json:"actors"`
	}
	err := w.control(ctx, http.MethodPost, "/fault", f, &answer)
	return answer.Actors, err
}

// control makes one request on the daemon's control socket.
func (w *world) control(ctx context.Context, method, path string, body, answer any) error {
	ctx, cancel := context.WithTimeout(ctx, controlLimit)
	defer cancel()
	var content io.Reader
	if body != nil {
		text, err := json.Marshal(body)
		if err != nil {
			return err
		}
		content = bytes.NewReader(text)
	}
	request, err := http.NewRequestWithContext(ctx, method, "http://gateway"+path, content)
	if err != nil {
		return err
	}
	socket := w.daemon().ControlSocket()
	transport := &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", socket)
		},
		DisableKeepAlives: true,
	}
	response, err := transport.RoundTrip(request)
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	defer response.Body.Close()
	text, err := io.ReadAll(io.LimitReader(response.Body, maxAnswer))
	switch {
	case err != nil:
		return fmt.Errorf("%s: %w", path, err)
	case response.StatusCode == http.StatusNotFound && method == http.MethodPost:
		return ErrNoFaults
	case response.StatusCode != http.StatusOK:
		return fmt.Errorf("%s: %s: %s", path, response.Status, bytes.TrimSpace(text))
	}
	return json.Unmarshal(text, answer)
}

const maxAnswer = 16 << 20
