package main

import (
	"bytes"
	"encoding/json"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/alecthomas/kong"

	"firezone-gateway/internal/lab/chaos"
)

func TestChaosCommandLine(t *testing.T) {
	for _, tc := range []struct {
		name string
		args []string
		code int
		out  string // in either stream
	}{
		{"help teaches", []string{"chaos", "--help"}, exitOK, "firezone-lab chaos --kind tun"},
		{"help says what is held", []string{"chaos", "--help"}, exitOK, "0.1 %"},
		{"an unknown kind is a usage error", []string{"chaos", "--kind=gateway"}, exitUsage, `kind "gateway"`},
		{"an unknown fault is a usage error", []string{"chaos", "--fault=burn"}, exitUsage, `fault "burn"`},
		{"an unknown part is a usage error", []string{"chaos", "--parts=all"}, exitUsage, `part "all"`},
		{"no time is a usage error", []string{"chaos", "--seconds=0"}, exitUsage, "a second"},
		{"an absent gateway is a failure", []string{"chaos", "--gateway-bin=/nonexistent"}, exitFailed, "--gateway-bin"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var out, err bytes.Buffer
			if code := run(tc.args, strings.NewReader(""), &out, &err); code != tc.code {
				t.Errorf("exit code %d, want %d", code, tc.code)
			}
			if !strings.Contains(out.String()+err.String(), tc.out) {
				t.Errorf("%q is missing in\n%s%s", tc.out, out.String(), err.String())
			}
		})
	}
}

func TestChaosFlagsBecomeOptions(t *testing.T) {
	for _, tc := range []struct {
		args     []string
		parts    []string
		kinds    []string
		fault    string
		duration time.Duration
	}{
		{nil, chaos.Parts, nil, "", time.Minute},
		{[]string{"--kind=tun,random", "--seconds=2.5"}, []string{"faults"}, []string{"tun", chaos.Random}, "", 2500 * time.Millisecond},
		{[]string{"--fault=drop"}, []string{"faults"}, nil, chaos.Drop, time.Minute},
		{[]string{"--kind=nat", "--parts=hang,faults"}, []string{"hang", "faults"}, []string{"nat"}, "", time.Minute},
		{[]string{"--soak=30m"}, chaos.Parts, nil, "", 30 * time.Minute},
	} {
		t.Run(strings.Join(tc.args, " "), func(t *testing.T) {
			var c cli
			parser, err := kong.New(&c)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := parser.Parse(append([]string{"chaos"}, tc.args...)); err != nil {
				t.Fatal(err)
			}
			o := c.Chaos.options()
			if !slices.Equal(o.Kinds, tc.kinds) || o.Fault != tc.fault || o.Duration != tc.duration || o.Seed != 1 {
				t.Errorf("options are %+v", o)
			}
			if parts := c.Chaos.parts(); !slices.Equal(parts, tc.parts) {
				t.Errorf("parts are %v", parts)
			}
		})
	}
}

func TestChaosReports(t *testing.T) {
	r := chaosReport{Results: []chaos.Result{{Name: "crash peer", OK: true}, {Name: "crash tun", Broken: []string{"lost"}}}}
	var text bytes.Buffer
	if err := r.write(&text); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(text.String(), "1 of 2 parts held") {
		t.Errorf("text is %q", text.String())
	}
	raw, err := json.Marshal(r)
	if err != nil {
		t.Fatal(err)
	}
	for _, key := range []string{`"ok":false`, `"seed":`, `"results":[`, `"broken":["lost"]`} {
		if !bytes.Contains(raw, []byte(key)) {
			t.Errorf("%s is missing in %s", key, raw)
		}
	}
}
