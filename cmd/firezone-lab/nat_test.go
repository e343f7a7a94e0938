package main

import (
	"bytes"
	"strings"
	"testing"

	"firezone-gateway/internal/lab/natmatrix"
	labnet "firezone-gateway/internal/lab/net"
)

func TestNATCommandLine(t *testing.T) {
	for _, c := range []struct {
		name string
		args []string
		code int
		out  string
	}{
		{"help teaches the kinds", []string{"test", "nat", "--help"}, exitOK, "address-restricted"},
		{"help of the group", []string{"test", "--help"}, exitOK, "nat"},
		{"an unknown cell is a failure", []string{"test", "nat", "--only=magic"}, exitFailed, `pattern "magic" matches no cell`},
		{"nothing cannot be downloaded", []string{"test", "nat", "--size=0"}, exitFailed, "--size"},
		{"an absent gateway is a failure", []string{"test", "nat", "--gateway-bin=/nonexistent"}, exitFailed, "--gateway-bin"},
		{"a test needs a name", []string{"test"}, exitUsage, "nat"},
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

func TestNATReportNamesWhatContradicts(t *testing.T) {
	cell := natmatrix.Cell{Client: labnet.Symmetric, Gateway: labnet.FullCone}
	r := natReport{Seconds: 3, Wanted: 3, Cells: []natmatrix.Result{
		{Cell: cell, Error: "no path\nlast words of the gateway"}, {OK: true},
	}}
	var out bytes.Buffer
	if err := r.write(&out); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"symmetric:full-cone:ipv4: theory says direct\nno path\nlast words of the gateway\n",
		"1 of 3 cells are as theory says, 3.0 s",
	} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("%q is missing in\n%s", want, out.String())
		}
	}
}
