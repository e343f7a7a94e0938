package portal

import (
	"bytes"
	"encoding/json"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"
)

// call makes a control request and returns the answer's status and body.
func call(t *testing.T, s *Server, method, path, body string) (int, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, s.ControlURL()+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Close = true
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(bytes.TrimSpace(b))
}

func TestControlInterfaceDrivesALab(t *testing.T) {
	s := start(t, Config{ControlAddr: "127.0.0.1:0", RelayDebounce: time.Millisecond})
	gen := generations[2]
	gateway, _ := join(t, s, gatewayLogin(gen.gateway), "gateway")
	client, _ := join(t, s, clientLogin(gen.client), "client")
	ok := func(method, path, body string) string {
		t.Helper()
		status, answer := call(t, s, method, path, body)
		if status != 200 {
			t.Fatalf("%s %s: %d %s", method, path, status, answer)
		}
		return answer
	}

	var r Resource
	answer := ok("POST", "/lab/resources", `{"type":"cidr","name":"lab","address":"172.20.0.0/16"}`)
	if err := json.Unmarshal([]byte(answer), &r); err != nil || r.ID == "" {
		t.Fatalf("resource %s: %v", answer, err)
	}
	ok("POST", "/lab/grants", `{"client":"client-1","resource_id":"`+r.ID+`","ttl":"1h"}`)
	client.want("resource_created_or_updated")
	authorized(t, gen, gateway, client, r.ID)

	ok("POST", "/lab/resources", `{"id":"`+r.ID+`","type":"cidr","name":"lab","address":"172.20.0.0/16","filters":[{"protocol":"icmp"}]}`)
	gateway.want("resource_updated")
	client.want("resource_created_or_updated")

	ok("PUT", "/lab/relays", `[{"ipv4":"192.0.2.1:3478","stamp_secret":"shh"}]`)
	gateway.want("relays_presence")
	ok("POST", "/lab/relays/presence", "")
	gateway.want("relays_presence")
	ok("POST", "/lab/gateways/gw-1/init", "")
	gateway.want("init")

	var st State
	if err := json.Unmarshal([]byte(ok("GET", "/lab/state", "")), &st); err != nil {
		t.Fatal(err)
	}
	if len(st.Authorizations) != 1 || len(st.Gateways) != 1 || !st.Gateways[0].Sessions[0].Joined ||
		len(st.Relays) != 1 || st.Relays[0].IPv4 != "192.0.2.1:3478" || st.Clients[0].ExternalID != "client-1" {
		t.Errorf("state %+v", st)
	}

	ok("DELETE", "/lab/grants?client=client-1&resource_id="+r.ID, "")
	gateway.want("reject_access")
	ok("DELETE", "/lab/resources/"+r.ID, "")
	ok("PUT", "/lab/faults", `{"roles":["gateway"],"refuse":{"status":503,"header":{"Retry-After":["7"]}}}`)
	ok("POST", "/lab/gateways/gw-1/disconnect", `{"reason":"token_expired"}`)
	gateway.want("disconnect")
	wantStatus(t, s, gatewayLogin(gen.gateway), 503)
	ok("PUT", "/lab/faults", `{}`)
	join(t, s, gatewayLogin(gen.gateway), "gateway")
	ok("POST", "/lab/drop", "")
	wantEvent(t, s, PeerLeft, func(e Event) bool { return e.Role == Client })
	if answer := ok("POST", "/lab/sites", `{"name":"far","gateway_token":"hidden"}`); strings.Contains(answer, "hidden") {
		t.Errorf("site %s", answer)
	}
}

func TestControlEventsCanBeWaitedFor(t *testing.T) {
	s := start(t, Config{ControlAddr: "127.0.0.1:0"})
	if _, answer := call(t, s, "GET", "/lab/events?wait=1ms", ""); answer != "[]" {
		t.Errorf("events %s", answer)
	}
	answers := make(chan string, 1)
	go func() {
		resp, err := http.Get(s.ControlURL() + "/lab/events?after=0&wait=5s")
		if err != nil {
			answers <- err.Error()
			return
		}
		defer resp.Body.Close()
		b, _ := io.ReadAll(resp.Body)
		answers <- string(b)
	}()
	dial(t, s, gatewayLogin(gatewayV2), "gateway")
	select {
	case answer := <-answers:
		if !strings.Contains(answer, string(PeerConnected)) {
			t.Errorf("events %s", answer)
		}
	case <-time.After(patience):
		t.Fatal("no answer")
	}
	http.DefaultClient.CloseIdleConnections()
}

func TestControlErrors(t *testing.T) {
	s := lab(t, Config{ControlAddr: "127.0.0.1:0"})
	for _, c := range []struct {
		name, method, path, body string
		status                   int
	}{
		{"unknown path", "GET", "/lab/nothing", "", 404},
		{"unknown resource", "DELETE", "/lab/resources/x", "", 404},
		{"unknown grant", "DELETE", "/lab/grants?resource_id=x", "", 404},
		{"unknown gateway", "POST", "/lab/gateways/x/init", "", 404},
		{"unknown site", "POST", "/lab/resources", `{"type":"cidr","address":"10.0.0.0/8","site_id":"x"}`, 404},
		{"bad resource", "POST", "/lab/resources", `{"type":"cidr","address":"x"}`, 400},
		{"typing mistake", "POST", "/lab/grants", `{"resource":"` + cidrID + `","ttl":"1h"}`, 400},
		{"bad duration", "POST", "/lab/grants", `{"resource_id":"` + cidrID + `","ttl":"long"}`, 400},
		{"bad relay", "PUT", "/lab/relays", `[{"stamp_secret":"x"}]`, 400},
		{"bad number", "GET", "/lab/events?after=x", "", 400},
		{"bad wait", "GET", "/lab/events?wait=x", "", 400},
		{"no JSON", "PUT", "/lab/faults", `x`, 400},
	} {
		t.Run(c.name, func(t *testing.T) {
			if status, answer := call(t, s, c.method, c.path, c.body); status != c.status {
				t.Errorf("%d %s, want %d", status, answer, c.status)
			}
		})
	}
	req, err := http.NewRequest("POST", s.ControlURL()+"/lab/drop", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Origin", "https://elsewhere.invalid")
	req.Close = true
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusForbidden {
		t.Errorf("a browser's request gets %d", resp.StatusCode)
	}
}

func TestEventLogIsBoundedAndKeepsCounting(t *testing.T) {
	s := new(Server)
	for range eventsKept + 10 {
		s.events.append(Event{Kind: Heartbeat})
	}
	events := s.Events(0)
	if len(events) > eventsKept || events[len(events)-1].Seq != eventsKept+10 {
		t.Fatalf("%d events, last %d", len(events), events[len(events)-1].Seq)
	}
	for i, e := range events[1:] {
		if e.Seq != events[i].Seq+1 {
			t.Fatalf("gap after %d", events[i].Seq)
		}
	}
	if got := s.Events(eventsKept + 8); len(got) != 2 || got[0].Seq != eventsKept+9 {
		t.Errorf("%d events after a late one", len(got))
	}
	if got := s.Events(1 << 40); got != nil {
		t.Errorf("events of the future: %v", got)
	}
}
