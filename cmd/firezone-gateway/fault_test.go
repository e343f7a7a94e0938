package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"strings"
	"testing"
	"time"

	"firezone-gateway/actors"
	"firezone-gateway/internal/admin"
)

func TestFaultCommand(t *testing.T) {
	var asked admin.Fault
	working := serveOperations(t, admin.Operations{Inject: func(f admin.Fault) ([]string, error) {
		asked = f
		switch f.Actor {
		case "nobody":
			return nil, nil
		case "[":
			return nil, errors.New("pattern [")
		}
		return []string{"gateway/peers/a", "gateway/peers/b\x1b[2J"}, nil
	}})
	off := serveOperations(t, admin.Operations{})
	for _, tc := range []struct {
		name, socket string
		args         []string
		code         int
		want         []string
		asked        admin.Fault
	}{
		{"a crash", working, []string{"crash", "--actor", "gateway/peers/*"}, 0, []string{"gateway/peers/a\n", "gateway/peers/b?[2J\n"},
			admin.Fault{Actor: "gateway/peers/*", Fault: "crash", Messages: 1}},
		{"a hang with a time", working, []string{"hang", "--actor=gateway", "--for=1s 500ms"}, 0, nil,
			admin.Fault{Actor: "gateway", Fault: "hang", For: 1500 * time.Millisecond, Messages: 1}},
		{"a delay of many", working, []string{"delay", "--for=20ms", "--messages=50", "--actor=gateway/**"}, 0, nil,
			admin.Fault{Actor: "gateway/**", Fault: "delay", For: 20 * time.Millisecond, Messages: 50}},
		{"a drop", working, []string{"--actor", "gateway", "drop"}, 0, nil, admin.Fault{Actor: "gateway", Fault: "drop", Messages: 1}},
		{"no such actor", working, []string{"crash", "--actor=nobody"}, 1, []string{"no actor matches"}, admin.Fault{Actor: "nobody", Fault: "crash", Messages: 1}},
		{"no pattern", working, []string{"crash", "--actor=["}, 1, []string{"pattern ["}, admin.Fault{Actor: "[", Fault: "crash", Messages: 1}},
		{"a gateway that was not started for it", off, []string{"crash", "--actor=gateway"}, 1, []string{admin.FaultFlag}, admin.Fault{}},
		{"no gateway", socketPath(t), []string{"crash", "--actor=gateway"}, 1, []string{"is the gateway running?"}, admin.Fault{}},
		{"no fault", working, []string{"--actor=gateway"}, 2, []string{"fault --help"}, admin.Fault{}},
		{"an unknown fault", working, []string{"explode", "--actor=gateway"}, 2, []string{"crash", "fault --help"}, admin.Fault{}},
		{"no actor", working, []string{"crash"}, 2, []string{"--actor", "fault --help"}, admin.Fault{}},
		{"an empty actor", working, []string{"crash", "--actor="}, 2, []string{"--actor", "fault --help"}, admin.Fault{}},
		{"a delay without time", working, []string{"delay", "--actor=gateway"}, 2, []string{"--for", "fault --help"}, admin.Fault{}},
		{"a time without unit", working, []string{"hang", "--actor=gateway", "--for=5"}, 2, []string{"--for", "no unit"}, admin.Fault{}},
		{"a long time", working, []string{"hang", "--actor=gateway", "--for=2h"}, 2, []string{"--for"}, admin.Fault{}},
		{"no messages", working, []string{"drop", "--actor=gateway", "--messages=0"}, 2, []string{"--messages"}, admin.Fault{}},
		{"many messages", working, []string{"drop", "--actor=gateway", "--messages=5000"}, 2, []string{"--messages"}, admin.Fault{}},
		{"no socket", "none", []string{"crash", "--actor=gateway"}, 2, []string{"--control-socket"}, admin.Fault{}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Setenv("FIREZONE_CONTROL_SOCKET", tc.socket)
			asked = admin.Fault{}
			args := append([]string{"fault"}, tc.args...)
			code, stdout, stderr := command(args...)
			if code != tc.code || asked != tc.asked {
				t.Errorf("exit code %d, want %d; asked for %+v, want %+v", code, tc.code, asked, tc.asked)
			}
			says(t, stdout+stderr, tc.want...)
			code, stdout, _ = command(append(args, "--json")...)
			if code != tc.code {
				t.Errorf("with --json exit code %d, want %d", code, tc.code)
			}
			if tc.code == exitUsage {
				return
			}
			var got struct {
				Actors []string `json:"actors"`
				Error  string   `json:"error"`
			}
			if err := json.Unmarshal([]byte(stdout), &got); err != nil || strings.Count(stdout, "\n") != 1 {
				t.Fatalf("%q is not one line of JSON: %v", stdout, err)
			}
			if (len(got.Actors) > 0) != (code == 0) || got.Actors == nil && got.Error == "" {
				t.Errorf("%+v", got)
			}
		})
	}
}

func TestFaultsAreAllowedByTheFlagAlone(t *testing.T) {
	for _, tc := range []struct {
		name, env string
		args      []string
		want      bool
	}{
		{"by default not", "", nil, false},
		{"by the flag", "", []string{admin.FaultFlag}, true},
		{"by the variable", "true", nil, true},
		{"not by a variable that says no", "false", nil, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Setenv("FIREZONE_ENABLE_FAULT_INJECTION", tc.env)
			f, err := parse(tc.args, io.Discard, io.Discard)
			if err != nil {
				t.Fatal(err)
			}
			var log bytes.Buffer
			var ops admin.Operations
			d := &daemon{flags: f, log: slog.New(slog.NewTextHandler(&log, nil))}
			d.allowFaults(&ops, &actors.Tree{})
			if (ops.Inject != nil) != tc.want || strings.Contains(log.String(), "level=WARN") != tc.want {
				t.Errorf("allowed %v, log %q", ops.Inject != nil, &log)
			}
		})
	}
}
