package admin

import (
	"context"
	"io"
	"net/http"
	"net/url"
	"reflect"
	"strings"
	"testing"

	"firezone-gateway/internal/hammer"
)

func question(to string) Question {
	d, err := ParseDestination(to)
	if err != nil {
		panic(err)
	}
	return Question{Client: "client-1", To: d}
}

func TestParseDestination(t *testing.T) {
	for _, tc := range []struct{ name, text, want string }{
		{"IPv4 and TCP", "10.0.0.5:443/tcp", "10.0.0.5:443/tcp"},
		{"IPv4 and UDP", "10.0.0.5:53/udp", "10.0.0.5:53/udp"},
		{"without protocol it is TCP", "10.0.0.5:22", "10.0.0.5:22/tcp"},
		{"large letters", "DB.Example.COM.:5432/TCP", "db.example.com:5432/tcp"},
		{"ICMP has no port", "10.0.0.5/icmp", "10.0.0.5/icmp"},
		{"IPv6 in brackets", "[2001:db8::5]:53/udp", "[2001:db8::5]:53/udp"},
		{"IPv6 and ICMP, with brackets", "[2001:db8::5]/icmp", "[2001:db8::5]/icmp"},
		{"IPv6 and ICMP, without", "2001:db8::5/icmp", "[2001:db8::5]/icmp"},
		{"an IPv4-mapped address is IPv4", "[::ffff:10.0.0.5]:1/tcp", "10.0.0.5:1/tcp"},
		{"a name with one label", "db:1/tcp", "db:1/tcp"},
		{"a name and ICMP", "db.example.com/icmp", "db.example.com/icmp"},
		{"the last port", "a:65535", "a:65535/tcp"},
		{"nothing", "", ""},
		{"no port", "10.0.0.5", ""},
		{"port 0", "10.0.0.5:0/tcp", ""},
		{"a port too large", "10.0.0.5:65536/tcp", ""},
		{"no host", ":443/tcp", ""},
		{"another protocol", "10.0.0.5:1/sctp", ""},
		{"an empty protocol", "10.0.0.5:1/", ""},
		{"ICMP with a port", "10.0.0.5:1/icmp", ""},
		{"IPv6 without brackets", "2001:db8::5:53/udp", ""},
		{"IPv4 in brackets", "[10.0.0.5]:53/udp", ""},
		{"half a bracket", "[2001:db8::5:53/udp", ""},
		{"a zone", "[fe80::1%eth0]:53/udp", ""},
		{"what only looks like an address", "10.0.0.555:53/udp", ""},
		{"an escape sequence", "\x1b[2J:53/udp", ""},
		{"an empty label", "a..b:53", ""},
		{"a long label", strings.Repeat("a", 64) + ":53", ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			d, err := ParseDestination(tc.text)
			if (err == nil) != (tc.want != "") {
				t.Fatalf("ParseDestination = %v, %v", d, err)
			}
			if err == nil && d.String() != tc.want {
				t.Errorf("ParseDestination = %v, want %s", d, tc.want)
			}
		})
	}
}

func FuzzParseDestination(f *testing.F) { fuzzParseDestination(f) }

func TestHammerParseDestination(t *testing.T) {
	hammer.Test(t, "FuzzParseDestination", fuzzParseDestination)
}

func fuzzParseDestination(f hammer.F) {
	for _, seed := range []string{"10.0.0.5:443/tcp", "[2001:db8::5]:53/udp", "a.b/icmp", "::1/icmp", "[::ffff:1.2.3.4]:1", "", ":/", "[]:1"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		d, err := ParseDestination(text)
		if err != nil {
			return
		}
		again, err := ParseDestination(d.String())
		if err != nil || again != d {
			t.Errorf("%q is %+v, and its text %+v, %v", text, d, again, err)
		}
		if d.Addr.IsValid() == (d.Name != "") || (d.Port == 0) != (d.Protocol == "icmp") {
			t.Errorf("%q is %+v", text, d)
		}
	})
}

func TestExplain(t *testing.T) {
	want := Explanation{Client: "client-1", To: "[2001:db8::5]:53/udp", Stages: []Stage{
		{Stage: StageClient, Verdict: Pass, Detail: "found"},
		{Stage: StagePolicy, Verdict: Stop, Reason: "filtered", Detail: "no", Resources: []Judged{{ResourceID: "r", Reason: "filtered", Filters: []string{"tcp/443"}}}},
	}}
	asked := make(chan Question, 1)
	control := serveAll(t, Operations{Explain: func(_ context.Context, q Question) (Explanation, error) {
		asked <- q
		return want, nil
	}})
	q := question(want.To)
	q.Client = "xT+I/BA5rb=&to=x" // to be escaped
	got, err := control.Explain(within(t), q)
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("Explain = %+v, %v", got, err)
	}
	if got := <-asked; got != q {
		t.Errorf("asked for %+v, want %+v", got, q)
	}
}

// TestQuestionsOfOthers is about callers that are not our client.
func TestQuestionsOfOthers(t *testing.T) {
	control := serveAll(t, Operations{
		Status:  func(context.Context) (Status, error) { return crowd(1), nil },
		Explain: func(context.Context, Question) (Explanation, error) { return Explanation{}, nil },
	})
	client := dialing(control.Path)
	to := url.QueryEscape("10.0.0.5:443/tcp")
	for _, tc := range []struct {
		name, method, path string
		want               int
	}{
		{"a status", "GET", "/status", 200},
		{"a status by POST", "POST", "/status", 405},
		{"a question", "GET", "/explain?client=a&to=" + to, 200},
		{"a question by POST", "POST", "/explain?client=a&to=" + to, 405},
		{"without a client", "GET", "/explain?to=" + to, 400},
		{"a long client", "GET", "/explain?client=" + strings.Repeat("a", 65) + "&to=" + to, 400},
		{"without a destination", "GET", "/explain?client=a", 400},
		{"two clients", "GET", "/explain?client=a&client=b&to=" + to, 400},
		{"an unknown setting", "GET", "/explain?client=a&send=yes&to=" + to, 400},
		{"a bad escape", "GET", "/explain?client=%zz&to=" + to, 400},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r, err := http.NewRequestWithContext(t.Context(), tc.method, "http://x"+tc.path, nil)
			if err != nil {
				t.Fatal(err)
			}
			resp, err := client.Do(r)
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			text, err := io.ReadAll(resp.Body)
			if err != nil {
				t.Fatal(err)
			}
			if resp.StatusCode != tc.want {
				t.Errorf("%d %s, want %d", resp.StatusCode, text, tc.want)
			}
			if tc.want == 400 && !strings.HasPrefix(string(text), `{"error":"`) {
				t.Errorf("answer %s", text)
			}
		})
	}
}
