package chaos

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"
)

// Parts are what a run may consist of, in this order.
var Parts = []string{"faults", "hang", "loop", "give-up", "kill"}

const (
	// Neighbours is how many clients work beside one whose actor crashes in a loop.
	Neighbours   = 50
	loopDuration = 30 * time.Second
)

// Check reports what the options, or the names of parts, ask for in vain.
func Check(o Options, parts []string) error {
	for _, p := range parts {
		if !slices.Contains(Parts, p) {
			return fmt.Errorf("part %q is not one of %s", p, strings.Join(Parts, ", "))
		}
	}
	_, err := o.withDefaults()
	return err
}

// Run runs the parts and calls ended as each result is there. Without Kinds the
// faults go through all of them and Random. A canceled ctx leaves out the rest.
func Run(ctx context.Context, o Options, parts []string, ended func(Result)) ([]Result, error) {
	if err := Check(o, parts); err != nil {
		return nil, err
	}
	if len(o.Kinds) == 0 {
		o.Kinds = append(slices.Clone(Kinds), Random)
	}
	var results []Result
	for _, part := range Parts {
		if !slices.Contains(parts, part) {
			continue
		}
		for _, run := range steps(part, o) {
			if ctx.Err() == nil {
				r := run(ctx)
				results = append(results, r)
				ended(r)
			}
		}
	}
	return results, nil
}

// steps returns what a part consists of.
func steps(part string, o Options) (list []func(context.Context) Result) {
	switch part {
	case "faults":
		for _, kind := range o.Kinds {
			list = append(list, func(ctx context.Context) Result { return Suffer(ctx, kind, o) })
		}
	case "hang":
		hang := o
		hang.Fault, hang.Interval, hang.Duration = Hang, 0, time.Duration(len(Kinds))*hangInterval
		list = append(list, func(ctx context.Context) Result { return Suffer(ctx, Each, hang) })
	case "loop":
		loop := o
		loop.Fault, loop.Duration = Crash, loopDuration
		list = append(list, func(ctx context.Context) Result { return Loop(ctx, Neighbours, loop) })
	case "give-up":
		crash := o
		crash.Fault = Crash
		for _, kind := range append([]string{"gateway"}, Kinds...) {
			list = append(list, func(ctx context.Context) Result { return GiveUp(ctx, kind, crash) })
		}
	case "kill":
		list = append(list, func(ctx context.Context) Result { return Kill(ctx, o) })
	}
	return list
}
