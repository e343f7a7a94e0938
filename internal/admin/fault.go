package admin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"time"
)

// FaultFlag is the flag without which a gateway refuses to fail on purpose.
const FaultFlag = "--enable-fault-injection"

// Bounds of a Fault. A fault is to be survived, so it need not last.
const (
	maxPattern    = 1024 // bytes
	maxFaultTime  = time.Hour
	maxFaultCount = 1000
)

var errNoFaults = errors.New("fault injection is off: start the gateway with " + FaultFlag)

// Fault is something that shall go wrong in actors of the gateway.
type Fault struct {
	// Actor is a pattern over paths of actors, with * and ? and [a-z] within one
	// element, and ** as the last element for everything below.
	Actor string
	// Fault is crash, hang, delay or drop.
	Fault string
	// For is how long a hang or a delay lasts; zero is a hang until the actor is
	// replaced.
	For time.Duration
	// Messages is how many messages a delay or drop concerns, and how often in
	// a row an actor crashes or hangs; zero is one.
	Messages int
}

// Validate reports what makes no sense whatever actors there are. Patterns are
// looked at by the gateway.
func (f Fault) Validate() error {
	switch {
	case f.Actor == "":
		return errors.New("actor: no pattern")
	case len(f.Actor) > maxPattern:
		return fmt.Errorf("actor: pattern of more than %d bytes", maxPattern)
	case f.For < 0 || f.For > maxFaultTime:
		return fmt.Errorf("for: %v is not between 0 and %v", f.For, maxFaultTime)
	case f.Messages < 0 || f.Messages > maxFaultCount:
		return fmt.Errorf("messages: %d is not between 1 and %d", f.Messages, maxFaultCount)
	}
	switch f.Fault {
	case "crash", "hang", "drop":
	case "delay":
		if f.For == 0 {
			return errors.New("for: a delay needs a time")
		}
	default:
		return fmt.Errorf("fault: %.20q is none of crash, hang, delay and drop", f.Fault)
	}
	return nil
}

// faultRequest is the body of POST /fault.
type faultRequest struct {
	Actor    string   `json:"actor"`
	Fault    string   `json:"fault"`
	For      interval `json:"for,omitzero"`
	Messages int      `json:"messages,omitzero"`
}

// interval is a duration in Go's notation, such as "1.5s".
type interval time.Duration

// MarshalText implements encoding.TextMarshaler.
func (i interval) MarshalText() ([]byte, error) { return []byte(time.Duration(i).String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (i *interval) UnmarshalText(text []byte) error {
	d, err := time.ParseDuration(string(text))
	if err != nil {
		return fmt.Errorf("for: %.20q is no time such as 500ms or 2s", text)
	}
	*i = interval(d)
	return nil
}

func (r faultRequest) fault() (Fault, error) {
	f := Fault{Actor: r.Actor, Fault: r.Fault, For: time.Duration(r.For), Messages: r.Messages}
	return f, f.Validate()
}

func (f Fault) encode() ([]byte, error) {
	return json.Marshal(faultRequest{f.Actor, f.Fault, interval(f.For), f.Messages})
}

// faultAnswer is the body of the answer.
type faultAnswer struct {
	Actors []string `json:"actors"`
}

// Inject has something go wrong in the gateway behind the control socket path,
// and returns the paths of the actors that it happens to, which may be none.
func Inject(ctx context.Context, path string, f Fault) ([]string, error) {
	if err := f.Validate(); err != nil {
		return nil, err
	}
	body, err := f.encode()
	if err != nil {
		return nil, err
	}
	var a faultAnswer
	err = Control{Path: path}.do(ctx, http.MethodPost, "/fault", body, decode(&a, maxAnswer))
	return a.Actors, err
}

func (o Operations) fault(w http.ResponseWriter, r *http.Request) {
	var request faultRequest
	if !read(w, r, &request) {
		return
	}
	f, err := request.fault()
	var actors []string
	if err == nil {
		actors, err = o.Inject(f)
	}
	if err != nil {
		refuse(w, http.StatusBadRequest, err)
		return
	}
	answer(w, http.StatusOK, faultAnswer{append([]string{}, actors...)})
}

// noFaults answers in the place of fault.
func noFaults(w http.ResponseWriter, _ *http.Request) {
	refuse(w, http.StatusNotFound, errNoFaults)
}
