package tour

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
)

// Step is one promise about a World.
type Step struct {
	Name    string   // short and stable, for scripts
	Promise string   // what is promised, in words
	Needs   []string // names of earlier steps without which this one is pointless
	// Run makes it happen. It returns an error when the promise does not
	// hold, with the measurement nevertheless where there is one.
	Run func(context.Context, *World) (Measurement, error)
	// EndsGateway says that the daemon is meant to end in this step.
	EndsGateway bool
}

// Measurement is what a step found, in words and in numbers. The keys of Values
// end in their unit.
type Measurement struct {
	Text   string
	Values map[string]float64
}

// Result is what came of a step.
type Result struct {
	Name     string             `json:"name"`
	Promise  string             `json:"promise"`
	Measured string             `json:"measured"`
	Values   map[string]float64 `json:"values,omitempty"`
	OK       bool               `json:"ok"`
	Skipped  bool               `json:"skipped,omitempty"`
	Error    string             `json:"error,omitempty"`
	Seconds  float64            `json:"seconds"`
}

// Observer is told what happens while it happens.
type Observer interface {
	Started(Step)
	// Ended gets the last lines of the daemon's log when the step failed.
	Ended(r Result, log []string)
}

const (
	// stepLimit bounds a step. What takes longer has failed.
	stepLimit = 30 * time.Second
	logLines  = 20
)

// Run takes the steps one after the other and returns a result for each. A step
// that needs one that failed is skipped, the others are taken nevertheless. A
// canceled ctx skips the rest.
func Run(ctx context.Context, w *World, steps []Step, o Observer) []Result {
	var results []Result
	failed := make(map[string]bool)
	for _, step := range steps {
		o.Started(step)
		r := Result{Name: step.Name, Promise: step.Promise}
		missing := slices.DeleteFunc(slices.Clone(step.Needs), func(name string) bool { return !failed[name] })
		switch {
		case ctx.Err() != nil:
			r.Skipped, r.Error = true, "interrupted"
		case len(missing) > 0:
			r.Skipped, r.Error = true, "needs "+strings.Join(missing, ", ")
		default:
			r.take(ctx, w, step)
		}
		failed[step.Name] = !r.OK
		var log []string
		if !r.OK && !r.Skipped {
			log = w.gateway.Tail(logLines)
		}
		o.Ended(r, log)
		results = append(results, r)
	}
	return results
}

// Held reports whether there are results and every promise was kept.
func Held(results []Result) bool {
	return len(results) > 0 && !slices.ContainsFunc(results, func(r Result) bool { return !r.OK })
}

// errGatewayEnded is the cause of a step's cancelation when the daemon ends.
var errGatewayEnded = errors.New("the gateway ended")

func (r *Result) take(ctx context.Context, w *World, step Step) {
	ctx, cancel := context.WithTimeout(ctx, stepLimit)
	defer cancel()
	ctx, end := context.WithCancelCause(ctx)
	defer end(nil)
	if !step.EndsGateway {
		done, over := w.gateway.Done(), make(chan struct{})
		defer close(over)
		go func() {
			select {
			case <-done:
				end(errGatewayEnded)
			case <-over:
			}
		}()
	}
	begin := time.Now()
	m, err := step.Run(ctx, w)
	if err != nil && errors.Is(context.Cause(ctx), errGatewayEnded) {
		err = fmt.Errorf("%w: %w", errGatewayEnded, err)
	}
	r.Seconds = time.Since(begin).Seconds()
	r.Measured, r.Values, r.OK = m.Text, m.Values, err == nil
	if err != nil {
		r.Error = err.Error()
	}
}
