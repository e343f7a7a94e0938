package portal

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"strconv"
	"time"
)

const (
	controlBody = 1 << 20          // bytes in a request
	maxWait     = 30 * time.Second // for /lab/events
)

// ControlHandler returns the HTTP control interface that the package
// documentation describes.
func (s *Server) ControlHandler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /lab/state", func(w http.ResponseWriter, _ *http.Request) { answer(w, s.State(), nil) })
	mux.HandleFunc("GET /lab/events", s.controlEvents)
	mux.HandleFunc("POST /lab/sites", with(func(site Site) (any, error) {
		stored, err := s.AddSite(site)
		stored.GatewayToken = ""
		return stored, err
	}))
	mux.HandleFunc("POST /lab/resources", with(func(r Resource) (any, error) {
		if s.knowsResource(r.ID) {
			return s.UpdateResource(r)
		}
		return s.AddResource(r)
	}))
	mux.HandleFunc("DELETE /lab/resources/{id}", func(w http.ResponseWriter, r *http.Request) {
		answer(w, nil, s.RemoveResource(r.PathValue("id")))
	})
	mux.HandleFunc("POST /lab/grants", with(func(g grantRequest) (any, error) {
		ttl, err := time.ParseDuration(g.TTL)
		if err != nil {
			return nil, errors.New("ttl is no duration")
		}
		return nil, s.Grant(g.Client, g.ResourceID, ttl)
	}))
	mux.HandleFunc("DELETE /lab/grants", func(w http.ResponseWriter, r *http.Request) {
		query := r.URL.Query()
		answer(w, nil, s.Revoke(query.Get("client"), query.Get("resource_id")))
	})
	mux.HandleFunc("PUT /lab/relays", with(func(relays []Relay) (any, error) { return nil, s.SetRelays(relays) }))
	mux.HandleFunc("POST /lab/relays/presence", func(w http.ResponseWriter, _ *http.Request) {
		s.PushRelaysPresence()
		answer(w, nil, nil)
	})
	mux.HandleFunc("POST /lab/gateways/{id}/disconnect", func(w http.ResponseWriter, r *http.Request) {
		with(func(d disconnectRequest) (any, error) {
			return nil, s.DisconnectGateway(r.PathValue("id"), d.Reason, d.Code)
		})(w, r)
	})
	mux.HandleFunc("POST /lab/gateways/{id}/init", func(w http.ResponseWriter, r *http.Request) {
		answer(w, nil, s.PushInit(r.PathValue("id")))
	})
	mux.HandleFunc("POST /lab/drop", func(w http.ResponseWriter, _ *http.Request) {
		s.DropConnections()
		answer(w, nil, nil)
	})
	mux.HandleFunc("PUT /lab/faults", with(func(f Faults) (any, error) { return nil, s.SetFaults(f) }))
	guarded := http.NewCrossOriginProtection().Handler(mux)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if err := s.enter(); err != nil {
			answer(w, nil, err)
			return
		}
		defer s.wg.Done()
		guarded.ServeHTTP(w, r)
	})
}

type grantRequest struct {
	Client     string `json:"client"`
	ResourceID string `json:"resource_id"`
	TTL        string `json:"ttl"` // as in time.ParseDuration
}

type disconnectRequest struct {
	Reason string `json:"reason"`
	Code   int    `json:"code"`
}

// controlEvents lists events, and waits for the next one when there is none.
func (s *Server) controlEvents(w http.ResponseWriter, r *http.Request) {
	var after uint64
	var wait time.Duration
	var err error
	if raw := r.URL.Query().Get("after"); raw != "" {
		if after, err = strconv.ParseUint(raw, 10, 64); err != nil {
			answer(w, nil, errors.New("after is no number"))
			return
		}
	}
	if raw := r.URL.Query().Get("wait"); raw != "" {
		if wait, err = time.ParseDuration(raw); err != nil {
			answer(w, nil, errors.New("wait is no duration"))
			return
		}
	}
	ctx, cancel := context.WithTimeout(r.Context(), min(max(wait, 0), maxWait))
	defer cancel()
	// Running out of time is an empty list, not an error.
	_, _ = s.WaitEvent(ctx, after, func(Event) bool { return true })
	events := s.Events(after)
	if events == nil {
		events = []Event{}
	}
	answer(w, events, nil)
}

// with decodes the JSON body for do and answers with its result. Unknown keys
// are errors: in a control request they are typing mistakes.
func with[T any](do func(T) (any, error)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		var body T
		dec := json.NewDecoder(http.MaxBytesReader(w, r.Body, controlBody))
		dec.DisallowUnknownFields()
		if err := dec.Decode(&body); err != nil {
			answer(w, nil, errors.New("body does not fit"))
			return
		}
		result, err := do(body)
		answer(w, result, err)
	}
}

func answer(w http.ResponseWriter, result any, err error) {
	status := http.StatusOK
	switch {
	case errors.Is(err, errNotFound):
		status = http.StatusNotFound
	case errors.Is(err, errNotConnected):
		status = http.StatusConflict
	case err != nil:
		status = http.StatusBadRequest
	}
	if err != nil {
		result = map[string]string{"error": err.Error()}
	}
	if result == nil {
		result = struct{}{}
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(result) // a caller that went away needs no answer
}
