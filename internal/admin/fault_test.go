package admin

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"reflect"
	"strings"
	"testing"
	"time"

	"firezone-gateway/internal/hammer"
)

func TestInject(t *testing.T) {
	path := socketPath(t)
	var asked Fault
	s, err := ServeControl(path, Operations{Inject: func(f Fault) ([]string, error) {
		asked = f
		switch f.Actor {
		case "[":
			return nil, errors.New("syntax error in pattern")
		case "nobody":
			return nil, nil
		}
		return []string{"gateway/peers/a", "gateway/peers/b"}, nil
	}})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	want := Fault{Actor: "gateway/peers/*", Fault: "delay", For: 1500 * time.Millisecond, Messages: 3}
	paths, err := Inject(within(t), path, want)
	if err != nil || !reflect.DeepEqual(paths, []string{"gateway/peers/a", "gateway/peers/b"}) || asked != want {
		t.Errorf("Inject = %q, %v, asked for %+v", paths, err, asked)
	}
	if paths, err := Inject(within(t), path, Fault{Actor: "nobody", Fault: "crash"}); err != nil || paths == nil || len(paths) != 0 {
		t.Errorf("Inject into nobody = %#v, %v", paths, err)
	}
	if _, err := Inject(within(t), path, Fault{Actor: "[", Fault: "crash"}); err == nil || err.Error() != "syntax error in pattern" {
		t.Errorf("Inject with a bad pattern = %v", err)
	}
	if _, err := Inject(within(t), path, Fault{Actor: "a", Fault: "explode"}); err == nil {
		t.Error("nonsense is sent")
	}
}

func TestInjectIntoAGatewayThatDoesNotFail(t *testing.T) {
	path := socketPath(t)
	serve(t, path, succeed)
	_, err := Inject(within(t), path, Fault{Actor: "gateway", Fault: "crash"})
	if err == nil || !strings.Contains(err.Error(), FaultFlag) {
		t.Errorf("Inject = %v, want a word about %s", err, FaultFlag)
	}
	resp, err := dialing(path).Post("http://x/fault", "application/json", strings.NewReader(`{"actor":"gateway","fault":"crash"}`))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusNotFound || !strings.Contains(string(text), FaultFlag) {
		t.Errorf("%s %s, %v", resp.Status, text, err)
	}
}

func TestFaultsThatMakeNoSense(t *testing.T) {
	for _, tc := range []struct{ name, body, want string }{
		{"nothing", ``, "actor"},
		{"no actor", `{"fault":"crash"}`, "actor"},
		{"a long pattern", `{"fault":"crash","actor":"` + strings.Repeat("a", maxPattern+1) + `"}`, "actor"},
		{"no fault", `{"actor":"a"}`, "none of crash"},
		{"another fault", `{"actor":"a","fault":"Crash"}`, "none of crash"},
		{"a long fault", `{"actor":"a","fault":"` + strings.Repeat("x", 1000) + `"}`, "none of crash"},
		{"a delay without time", `{"actor":"a","fault":"delay"}`, "needs a time"},
		{"a number for a time", `{"actor":"a","fault":"delay","for":1}`, "body"},
		{"no unit", `{"actor":"a","fault":"delay","for":"1"}`, "500ms"},
		{"a time below zero", `{"actor":"a","fault":"hang","for":"-1s"}`, "for"},
		{"a long time", `{"actor":"a","fault":"hang","for":"2h"}`, "for"},
		{"fewer than no messages", `{"actor":"a","fault":"drop","messages":-1}`, "messages"},
		{"many messages", `{"actor":"a","fault":"drop","messages":1001}`, "messages"},
		{"half a message", `{"actor":"a","fault":"drop","messages":0.5}`, "body"},
		{"an unknown setting", `{"actor":"a","fault":"drop","path":"x"}`, "body"},
		{"two objects", `{"actor":"a","fault":"drop"}{}`, "body"},
		{"no JSON", `crash`, "body"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			status, text, faults := postFault(t, []byte(tc.body))
			var why failure
			if err := json.Unmarshal(text, &why); err != nil || status != http.StatusBadRequest || !strings.Contains(why.Error, tc.want) {
				t.Errorf("%d %s", status, text)
			}
			if len(faults) != 0 {
				t.Errorf("brought about %+v", faults)
			}
			if len(text) > 300 {
				t.Errorf("%d bytes of answer", len(text))
			}
		})
	}
}

// postFault has a body judged by the handler alone.
func postFault(t testing.TB, body []byte) (status int, text []byte, faults []Fault) {
	t.Helper()
	mux := Operations{Inject: func(f Fault) ([]string, error) {
		faults = append(faults, f)
		return []string{f.Actor}, nil
	}}.mux()
	s := httptest.NewServer(mux)
	defer s.Close()
	resp, err := s.Client().Post(s.URL+"/fault", "application/json", bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if text, err = io.ReadAll(resp.Body); err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, text, faults
}

func FuzzFault(f *testing.F) { fuzzFault(f) }

func TestHammerFault(t *testing.T) { hammer.Test(t, "FuzzFault", fuzzFault) }

// fuzzFault has requests parsed: what is accepted makes sense, and means the same
// after the client has written it again.
func fuzzFault(f hammer.F) {
	for _, seed := range []string{
		"", "{}", "null", `{"actor":"gateway/peers/*","fault":"crash","for":"1s","messages":3}`, `{"actor":"**","fault":"hang"}`,
		`{"actor":"a","fault":"delay","for":"1h0m0s"}`, `{"actor":"\u0000","fault":"drop","messages":1000}`, `{"actor":"a","fault":"delay","for":"9999999h"}`,
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		fault, err := parseFault(body)
		if err != nil {
			return
		}
		if fault.Validate() != nil {
			t.Errorf("%q is accepted as %+v", body, fault)
		}
		text, err := fault.encode()
		if err != nil {
			t.Fatal(err)
		}
		if again, err := parseFault(text); err != nil || again != fault {
			t.Errorf("%+v is written as %s and read as %+v, %v", fault, text, again, err)
		}
	})
}

func parseFault(body []byte) (Fault, error) {
	var r faultRequest
	if err := decodeBody(bytes.NewReader(body), &r); err != nil {
		return Fault{}, err
	}
	return r.fault()
}
