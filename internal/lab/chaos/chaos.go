// Package chaos breaks parts of a gateway that is at work, and holds that nobody
// notices: actors crash, hang, wait and lose messages at the daemon's own fault
// injection, once a second, while files and datagrams pass and access is granted
// and revoked. It breaks what the supervision gives up on as well, kills the whole
// process, and lets all of it last.
//
// The daemon is the real one, a process in namespaces of its own; clients,
// portal, relays and resources are those of the lab.
package chaos

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
)

// Kinds are the actors that are made to fail, by the names in the daemon's
// status. The gateway actor is left out: its failure ends the process, see GiveUp.
var Kinds = []string{"portal", "tun", "transport", "relay", "peers", "peer", "nat", "dns", "dns_server", "resolver"}

const (
	// Random stands for an actor of any kind, another one each time.
	Random = "random"
	// Each stands for all kinds, one after the other.
	Each = "each"
)

// Options shape a run.
type Options struct {
	Gateway   string // path of the daemon's executable
	TUNDriver string // of the daemon; "" is its default
	LogDir    string // a directory of logs for each part; "" keeps none
	LogLevel  string // of the daemon; "" is info
	Traces    bool   // have the daemon export its spans, and look for the restarts
	Relayed   bool   // clients reach the gateway through a relay only

	Kinds    []string      // what fails: of Kinds, or Random, or Each; each entry in a deployment of its own
	Fault    string        // how
	Duration time.Duration // of each kind
	Interval time.Duration // between two faults; 0 means every second, or what the fault needs
	Seed     uint64        // of everything that is left to chance
	Echoes   int           // datagrams per second; 0 means 1,000

	// Progress is told what happens, in words; nil for nobody.
	Progress func(format string, args ...any)

	// Tolerance is the share of datagrams that may be lost; 0 means 0.1 %.
	Tolerance float64
}

// Result is what came of one part of a run.
type Result struct {
	Name string `json:"name"`
	OK   bool   `json:"ok"`
	// Broken lists the promises that did not hold, in words.
	Broken   []string `json:"broken,omitempty"`
	Measured string   `json:"measured"` // the figures in one line
	Seconds  float64  `json:"seconds"`
	Figures  any      `json:"figures,omitempty"`
	Log      []string `json:"log,omitempty"` // the daemon's last lines, of a part that failed
}

// breaks notes a promise that did not hold.
func (r *Result) breaks(format string, args ...any) {
	r.Broken = append(r.Broken, fmt.Sprintf(format, args...))
}

// check notes a promise that holds only if ok.
func (r *Result) check(ok bool, format string, args ...any) {
	if !ok {
		r.breaks(format, args...)
	}
}

// Line returns the result as a line of progress.
func (r Result) Line() string {
	mark := "✓"
	if !r.OK {
		mark = "✗"
	}
	line := fmt.Sprintf("%s %s: %s (%.1f s)", mark, r.Name, r.Measured, r.Seconds)
	for _, b := range r.Broken {
		line += "\n    ✗ " + strings.ReplaceAll(b, "\n", "\n      ")
	}
	return line
}

// Held reports whether there are results and every promise was kept.
func Held(results []Result) bool {
	return len(results) > 0 && !slices.ContainsFunc(results, func(r Result) bool { return !r.OK })
}

const (
	defaultEchoes    = 1000
	defaultTolerance = 0.001
	logLines         = 30
)

// withDefaults fills in what is left open and refuses what makes no sense.
func (o Options) withDefaults() (Options, error) {
	if o.Fault == "" {
		o.Fault = Crash
	}
	if !slices.Contains([]string{Crash, Hang, Delay, Drop}, o.Fault) {
		return o, fmt.Errorf("fault %q is not one of crash, hang, delay, drop", o.Fault)
	}
	for _, k := range o.Kinds {
		if k != Random && k != Each && !slices.Contains(Kinds, k) {
			return o, fmt.Errorf("kind %q is not one of %s, %s, %s", k, strings.Join(Kinds, ", "), Random, Each)
		}
	}
	if o.Duration < time.Second {
		return o, errors.New("a run needs a second at least")
	}
	if o.Interval == 0 {
		o.Interval = time.Second
		if o.Fault == Hang {
			o.Interval = hangInterval
		}
	}
	if o.Echoes == 0 {
		o.Echoes = defaultEchoes
	}
	if o.Tolerance == 0 {
		o.Tolerance = defaultTolerance
	}
	if o.Progress == nil {
		o.Progress = func(string, ...any) {}
	}
	return o, nil
}

// hangInterval lets the heartbeat notice an actor that hangs before the next one
// does.
const hangInterval = 10 * time.Second

// part builds a world, lets run judge it, and removes it again.
func part(ctx context.Context, name string, s shape, o Options, run func(context.Context, *world, *Result) error) Result {
	begin := time.Now()
	r := Result{Name: name}
	o.Progress("… %s", name)
	w, err := newWorld(strings.ReplaceAll(name, " ", "-"), s, o)
	if err == nil {
		err = w.begin(ctx)
	}
	if err == nil {
		err = run(ctx, w, &r)
	}
	if err != nil {
		r.breaks("%v", err)
	}
	r.OK = len(r.Broken) == 0
	if g := w.daemon(); !r.OK && g != nil {
		r.Log = g.Tail(logLines)
	}
	if err := w.close(); err != nil {
		r.breaks("removing the deployment: %v", err)
		r.OK = false
	}
	r.Seconds = time.Since(begin).Seconds()
	return r
}
