// Package hammer runs fuzz targets in process, without guidance by coverage and
// therefore many times as fast as native fuzzing: hundreds of thousands of
// executions per second where a target is quick. What native fuzzing has found
// and committed is the corpus that it mutates.
//
// A target is written once, against F, for both:
//
//	func FuzzParse(f *testing.F)       { parseTarget(f) }
//	func TestHammerParse(t *testing.T) { hammer.Test(t, "FuzzParse", parseTarget) }
//
// As a normal test a target is executed for a moment. With -hammer it runs as
// often as that says, with another -hammer.seed on other inputs.
package hammer

import (
	"flag"
	"fmt"
	"reflect"
	"runtime/debug"
	"sync/atomic"
	"testing"
	"time"
)

var (
	executions = flag.Uint64("hammer", 0, "executions of each hammered target (0: 20,000, fewer where that takes more than a second)")
	seed       = flag.Uint64("hammer.seed", 1, "chooses the inputs of hammered targets")
)

// What a target gets in a normal test.
const (
	usual     = 20_000
	usualTime = time.Second
)

// patience is how long one execution may take. It is long because the machine
// may be busy with something else.
const patience = time.Minute

// F is what a target sees of *testing.F, which implements it.
type F interface {
	testing.TB
	Add(args ...any)
	Fuzz(ff any)
}

// Mend makes a mutated input more like what the target expects, for instance by
// right checksums, so that more than a few get past its first checks. It may
// change the elements of args, but not their types, and what they refer to. Half
// of the inputs are mended. It is called once at a time.
type Mend func(args []any)

// Test runs target, whose corpus is in testdata/fuzz/name. On failure it tells
// the input, as a file for that folder. A target that keeps state between its
// executions may need those before as well.
func Test(t *testing.T, name string, target func(F), mends ...Mend) {
	f := &collector{TB: t}
	target(f)
	if f.body == nil {
		t.Fatal("the target has no body")
	}
	corpus := append(f.corpus, readCorpus(t, name, f.types())...)
	if len(corpus) == 0 {
		t.Fatal("the corpus is empty")
	}
	r := run{t: t, call: callOf(f.body), inputs: inputs{seed: *seed, corpus: corpus, mends: mends}}
	r.hammer(name)
}

// collector is the F that notes what a target asks for.
type collector struct {
	testing.TB
	corpus [][]any
	body   any
}

func (c *collector) Add(args ...any) { c.corpus = append(c.corpus, args) }
func (c *collector) Fuzz(ff any)     { c.body = ff }

// types returns the types of the body's arguments after *testing.T.
func (c *collector) types() []reflect.Type {
	body := reflect.TypeOf(c.body)
	var out []reflect.Type
	for i := range body.NumIn() - 1 {
		out = append(out, body.In(i+1))
	}
	return out
}

// callOf returns body in a form that can be called without knowing its type.
// The commonest do without reflection.
func callOf(body any) func(*testing.T, []any) {
	switch body := body.(type) {
	case func(*testing.T, []byte):
		return func(t *testing.T, args []any) { body(t, args[0].([]byte)) }
	case func(*testing.T, string):
		return func(t *testing.T, args []any) { body(t, args[0].(string)) }
	}
	f := reflect.ValueOf(body)
	return func(t *testing.T, args []any) {
		in := make([]reflect.Value, 1, 1+len(args))
		in[0] = reflect.ValueOf(t)
		for _, a := range args {
			in = append(in, reflect.ValueOf(a))
		}
		f.Call(in)
	}
}

type run struct {
	t      *testing.T
	call   func(*testing.T, []any)
	inputs inputs
	done   atomic.Uint64 // executions
}

// hammer executes the body until it fails, has run often enough or, in a normal
// test, for long enough.
func (r *run) hammer(name string) {
	limit, begin := *executions, time.Now()
	if limit == 0 {
		limit = usual
	}
	defer r.watch()()
	passed := false
	defer func() { // also when the body gives up its goroutine
		what := recover()
		if passed {
			return
		}
		if what != nil {
			r.t.Errorf("panic: %v\n%s", what, debug.Stack())
		}
		r.t.Errorf("execution %d with -hammer.seed=%d failed on this input of %s:\n%s",
			r.done.Load(), r.inputs.seed, name, encode(r.inputs.at(r.done.Load())))
	}()
	for i := uint64(0); i < limit; i = r.done.Add(1) {
		if *executions == 0 && i%256 == 0 && time.Since(begin) > usualTime {
			break
		}
		r.call(r.t, r.inputs.at(i))
		if r.t.Failed() {
			return
		}
	}
	passed = true
	took := time.Since(begin)
	r.t.Logf("%s: %d executions in %v, %.0f/s", name, r.done.Load(), took.Round(time.Millisecond), float64(r.done.Load())/took.Seconds())
}

// watch ends the program when an execution hangs. The result ends the watch.
func (r *run) watch() (stop func()) {
	quit, gone := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(gone)
		tick := time.NewTicker(patience)
		defer tick.Stop()
		for before := uint64(1<<64 - 1); ; {
			select {
			case <-quit:
				return
			case <-tick.C:
			}
			at := r.done.Load()
			if at == before {
				panic(fmt.Sprintf("execution %d hangs on\n%s", at, encode(r.inputs.at(at))))
			}
			before = at
		}
	}()
	return func() { close(quit); <-gone }
}
