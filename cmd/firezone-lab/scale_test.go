package main

import (
	"bytes"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/alecthomas/kong"

	"firezone-gateway/internal/lab/scale"
)

func TestScaleIsShapedByItsFlags(t *testing.T) {
	for _, c := range []struct {
		name string
		args []string
		want scale.Options
	}{
		{
			"by default", nil,
			scale.Options{Clients: 1000, Idle: 30 * time.Second, Targets: scale.Targets{Connect: 20 * time.Second, Heap: 64 << 10, Load: 0.05}},
		},
		{
			"everything, with one dash",
			[]string{"-clients", "5", "-latency=7", "-relayed", "-idle=1s", "-max-connect=0", "-max-heap=1", "-max-cpu=50", "-tun-driver=water", "-log-dir=logs"},
			scale.Options{
				Clients: 5, Latency: 7, Relayed: true, Idle: time.Second, TUNDriver: "water", LogDir: "logs",
				Targets: scale.Targets{Heap: 1 << 10, Load: 0.5},
			},
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			var command cli
			parser, err := kong.New(&command)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := parser.Parse(doubleDashes(append([]string{"scale"}, c.args...))); err != nil {
				t.Fatal(err)
			}
			got := command.Scale.options()
			if got.Progress != nil {
				t.Error("progress belongs to the session")
			}
			if got.Clients != c.want.Clients || got.Latency != c.want.Latency || got.Relayed != c.want.Relayed || got.Idle != c.want.Idle ||
				got.TUNDriver != c.want.TUNDriver || got.LogDir != c.want.LogDir || got.Targets != c.want.Targets {
				t.Errorf("options are %+v, want %+v", got, c.want)
			}
		})
	}
}

func TestOneDashIsForScaleOnly(t *testing.T) {
	for _, c := range []struct{ args, want []string }{
		{nil, nil},
		{[]string{"portal", "-v"}, []string{"portal", "-v"}},
		{[]string{"scale", "-clients", "-1", "--json", "-h", "-"}, []string{"scale", "--clients", "-1", "--json", "-h", "-"}},
	} {
		if got := doubleDashes(c.args); !slices.Equal(got, c.want) {
			t.Errorf("%q became %q, want %q", c.args, got, c.want)
		}
	}
}

func TestScaleTeachesAndRefuses(t *testing.T) {
	for _, c := range []struct {
		name string
		args []string
		code int
		out  string // in either stream
	}{
		{"help teaches", []string{"scale", "--help"}, exitOK, "firezone-lab scale --clients 1000"},
		{"an unknown flag is a usage error", []string{"scale", "-foo"}, exitUsage, "unknown flag --foo"},
		{"an absent gateway is a failure", []string{"scale", "-gateway-bin=/nonexistent"}, exitFailed, "--gateway-bin"},
	} {
		t.Run(c.name, func(t *testing.T) {
			var out, err bytes.Buffer
			if code := run(c.args, strings.NewReader(""), &out, &err); code != c.code {
				t.Errorf("exit code %d, want %d", code, c.code)
			}
			if !strings.Contains(out.String()+err.String(), c.out) {
				t.Errorf("%q is missing in\n%s%s", c.out, out.String(), err.String())
			}
		})
	}
}
