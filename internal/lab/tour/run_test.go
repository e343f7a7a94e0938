package tour

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"firezone-gateway/internal/lab/gateway"
	"firezone-gateway/internal/lab/labtest"
	labnet "firezone-gateway/internal/lab/net"
)

// idleWorld is a World whose daemon is a process that does nothing.
func idleWorld(t *testing.T) *World {
	t.Helper()
	labtest.NeedNamespaces(t)
	lab := labnet.New()
	ns, err := lab.AddNamespace("gateway")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := lab.Close(); err != nil {
			t.Error(err)
		}
	})
	t.Setenv(childVariable, "idle")
	executable, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	g, err := gateway.Start(ns, gateway.Options{Binary: executable})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), stepLimit)
	defer cancel()
	if err := await(ctx, "child is not ready", func() bool { return len(g.Tail(1)) == 1 }); err != nil {
		t.Fatal(err)
	}
	return &World{gateway: g}
}

func holds(context.Context, *World) (Measurement, error) {
	return Measurement{Text: "fine", Values: map[string]float64{"x_ms": 1}}, nil
}

func breaks(context.Context, *World) (Measurement, error) {
	return Measurement{Text: "half"}, errors.New("broken\nsecond line")
}

func TestRunTakesWhatDoesNotDependOnAFailure(t *testing.T) {
	w := idleWorld(t)
	var out bytes.Buffer
	results := Run(t.Context(), w, []Step{
		{Name: "a", Promise: "A", Run: holds},
		{Name: "b", Promise: "B", Run: breaks},
		{Name: "c", Promise: "C", Needs: []string{"a", "b"}, Run: holds},
		{Name: "d", Promise: "D", Needs: []string{"c"}, Run: holds},
		{Name: "e", Promise: "E", Needs: []string{"a"}, Run: holds},
	}, NewProgress(&out))
	var verdicts []string
	for _, r := range results {
		verdicts = append(verdicts, r.Name+" "+verdict(r))
	}
	if got, want := strings.Join(verdicts, ", "), "a ok, b FAILED, c skipped, d skipped, e ok"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	if Held(results) {
		t.Error("held although a step failed")
	}
	for _, want := range []string{"✓ A: fine", "✗ B: half", "    broken\n    second line", "last lines of the gateway's log:\n      idle", "- C", "needs b", "✓ E"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("%q is missing in\n%s", want, out.String())
		}
	}

	var table bytes.Buffer
	if err := WriteTable(&table, results); err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSpace(table.String()), "\n")
	if len(lines) != 6 || !strings.HasSuffix(lines[2], "FAILED") || !strings.Contains(lines[2], "half: broken ") || strings.Contains(table.String(), "second line") {
		t.Errorf("table is\n%s", table.String())
	}

	encoded, err := json.Marshal(results[0])
	if err != nil {
		t.Fatal(err)
	}
	if want := `"name":"a","promise":"A","measured":"fine","values":{"x_ms":1},"ok":true`; !strings.Contains(string(encoded), want) {
		t.Errorf("JSON %s lacks %s", encoded, want)
	}
}

func TestRunEndsAStepWhenTheGatewayEnds(t *testing.T) {
	w := idleWorld(t)
	waits := func(ctx context.Context, w *World) (Measurement, error) {
		// A program built with the race detector sleeps one second at its end.
		if _, err := w.gateway.Stop(10 * time.Second); err != nil {
			return Measurement{}, err
		}
		return Measurement{}, pause(ctx, stepLimit)
	}
	results := Run(t.Context(), w, []Step{{Name: "a", Run: waits}}, silent{})
	if r := results[0]; r.OK || !strings.HasPrefix(r.Error, errGatewayEnded.Error()) || r.Seconds > stepLimit.Seconds()/2 {
		t.Errorf("result is %+v", r)
	}
	results = Run(t.Context(), w, []Step{{Name: "b", Run: holds, EndsGateway: true}}, silent{})
	if !Held(results) {
		t.Errorf("a step that ends the gateway was ended: %+v", results[0])
	}
}

func TestRunSkipsTheRestWhenInterrupted(t *testing.T) {
	w := idleWorld(t)
	ctx, cancel := context.WithCancel(t.Context())
	interrupts := func(context.Context, *World) (Measurement, error) {
		cancel()
		return holds(ctx, w)
	}
	results := Run(ctx, w, []Step{{Name: "a", Run: interrupts}, {Name: "b", Run: holds}}, silent{})
	if !results[0].OK || !results[1].Skipped || Held(results) {
		t.Errorf("results are %+v", results)
	}
}

func TestHeldNeedsResults(t *testing.T) {
	if Held(nil) {
		t.Error("nothing holds nothing")
	}
}

func TestStepsNeedStepsBeforeThem(t *testing.T) {
	before := make(map[string]bool)
	for _, step := range Steps(Full("")) {
		for _, need := range step.Needs {
			if !before[need] {
				t.Errorf("%s needs %s, which does not come before it", step.Name, need)
			}
		}
		if before[step.Name] || step.Promise == "" || step.Run == nil {
			t.Errorf("step %q is not whole or not unique", step.Name)
		}
		before[step.Name] = true
	}
}

func TestProgressOnATerminalCleansUpAfterItself(t *testing.T) {
	var out bytes.Buffer
	p := NewProgress(&out)
	if p.terminal {
		t.Fatal("a buffer is no terminal")
	}
	p.terminal = true
	p.Started(Step{Promise: "something"})
	p.Ended(Result{Promise: "something", OK: true}, nil)
	if got := out.String(); !strings.HasSuffix(got, clearLine+"✓ something (0.0 s)\n") {
		t.Errorf("output is %q", got)
	}
}

// icmpError is an ICMP error of type 3 about a TCP segment to 10.20.0.12:80.
func icmpError(code byte) []byte {
	b := make([]byte, 8+20+8)
	b[0], b[1] = 3, code
	ip := b[8:]
	ip[0], ip[9] = 0x45, 6
	copy(ip[16:20], []byte{10, 20, 0, 12})
	ip[22], ip[23] = 0, 80
	return b
}

func TestAboutTCP(t *testing.T) {
	target := netip.MustParseAddrPort("10.20.0.12:80")
	if e, ok := aboutTCP(icmpError(13), target); !ok || !e.Prohibited() {
		t.Errorf("got %v, %v", e, ok)
	}
	if e, ok := aboutTCP(icmpError(1), target); !ok || e.Prohibited() {
		t.Errorf("host unreachable: got %v, %v", e, ok)
	}
	if _, ok := aboutTCP(icmpError(13), netip.MustParseAddrPort("10.20.0.12:81")); ok {
		t.Error("took the refusal of another port")
	}
	udp := icmpError(13)
	udp[8+9] = 17
	if _, ok := aboutTCP(udp, target); ok {
		t.Error("took the refusal of a datagram")
	}
}

func FuzzAboutTCP(f *testing.F) {
	f.Add(icmpError(13))
	f.Add(icmpError(13)[:30])
	f.Add([]byte{})
	target := netip.MustParseAddrPort("10.20.0.12:80")
	f.Fuzz(func(t *testing.T, b []byte) {
		if e, ok := aboutTCP(b, target); ok && (e.IPv6 || e.Type != 3) {
			t.Errorf("%x gave %+v", b, e)
		}
	})
}
