package portal

import (
	"encoding/json"
	"errors"
	"net/http"
	"slices"
	"time"
)

var errNotConnected = errors.New("no such gateway is connected")

// Faults are ways in which the portal misbehaves on purpose. The zero value
// misbehaves in none.
type Faults struct {
	// Roles limits the faults to peers of these roles; empty means all.
	Roles []Role `json:"roles,omitempty"`
	// Refuse answers handshakes with an HTTP error.
	Refuse *Refusal `json:"refuse,omitempty"`
	// JoinDelay holds back the reply to phx_join and the init after it.
	JoinDelay time.Duration `json:"join_delay_ns,omitempty"`
	// JoinError refuses phx_join with this reason.
	JoinError string `json:"join_error,omitempty"`
	// MuteHeartbeats leaves heartbeats unanswered.
	MuteHeartbeats bool `json:"mute_heartbeats,omitempty"`
}

// Refusal is the answer to a refused handshake.
type Refusal struct {
	Status int `json:"status"` // 300 … 599
	// Header is added to the answer, for example Retry-After.
	Header http.Header `json:"header,omitempty"`
	// Code is the "code" of the problem details in the generated body.
	Code string `json:"code,omitempty"`
	// Body replaces the generated body.
	Body *string `json:"body,omitempty"`
	// Times is how many handshakes are refused; 0 means all.
	Times int `json:"times,omitempty"`
}

// SetFaults replaces the faults in force. They concern what happens from here
// on, on connections that exist as well.
func (s *Server) SetFaults(f Faults) error {
	if r := f.Refuse; r != nil && (r.Status < 300 || r.Status > 599 || r.Times < 0) {
		return errors.New("refusal needs a status from 300 to 599")
	}
	if f.JoinDelay < 0 {
		return errors.New("join delay is negative")
	}
	f.Roles = slices.Clone(f.Roles)
	if f.Refuse != nil {
		r := *f.Refuse
		r.Header = r.Header.Clone()
		f.Refuse = &r
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.faults = f
	return nil
}

// PushRaw sends bytes as a text frame to the gateways that name names (device
// id, external id, or "" for all), whatever they are.
func (s *Server) PushRaw(gateway string, text []byte) error {
	return s.withGateways(gateway, func(sess *session) { sess.sock.send(slices.Clone(text)) })
}

// Push sends an event with any payload to the topic of the gateways that name
// names, joined or not.
func (s *Server) Push(gateway, event string, payload any) error {
	if _, err := json.Marshal(payload); err != nil {
		return err
	}
	return s.withGateways(gateway, func(sess *session) { s.push(sess, event, payload) })
}

// PushInit sends init again to the gateways that name names.
func (s *Server) PushInit(gateway string) error {
	return s.withGateways(gateway, s.pushInit)
}

// ForgetJoin makes the portal forget that the gateways have joined, so that
// their next message is answered with "unmatched topic".
func (s *Server) ForgetJoin(gateway string) error {
	return s.withGateways(gateway, func(sess *session) { sess.joined = false })
}

// CloseChannel pushes phx_close to the gateways and leaves their sockets open.
func (s *Server) CloseChannel(gateway string) error {
	return s.withGateways(gateway, s.closeChannel)
}

// DisconnectGateway pushes disconnect with the reason, unless it is empty, then
// phx_close, then closes the websocket with the code; 0 means 1000.
func (s *Server) DisconnectGateway(gateway, why string, code int) error {
	if code == 0 {
		code = 1000
	}
	if code < 1000 || code > 4999 || code == 1005 || code == 1006 || code == 1015 {
		return errors.New("not a close code that can be sent")
	}
	return s.withGateways(gateway, func(sess *session) { s.evict(sess, why, code) })
}

// DropConnections cuts every websocket without a Close frame.
func (s *Server) DropConnections() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for sess := range s.sessions {
		s.end(sess, cutCode)
	}
}

// withGateways calls do for each session of the named gateways.
func (s *Server) withGateways(name string, do func(*session)) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	devices, err := s.find(Gateway, name)
	if err != nil {
		return err
	}
	called := false
	for _, dev := range devices {
		for _, sess := range slices.Clone(dev.sessions) {
			do(sess)
			called = true
		}
	}
	if !called {
		return errNotConnected
	}
	return nil
}

func (f *Faults) concern(role Role) bool {
	return len(f.Roles) == 0 || slices.Contains(f.Roles, role)
}

func (f *Faults) mutes(role Role) bool { return f.MuteHeartbeats && f.concern(role) }

func (f *Faults) joinDelay(role Role) time.Duration {
	if !f.concern(role) {
		return 0
	}
	return f.JoinDelay
}

func (f *Faults) joinError(role Role) string {
	if !f.concern(role) {
		return ""
	}
	return f.JoinError
}

// refusal returns the answer to a handshake, nil to go on with it.
func (f *Faults) refusal(role Role) *refusal {
	r := f.Refuse
	if r == nil || !f.concern(role) {
		return nil
	}
	if r.Times > 0 {
		if r.Times--; r.Times == 0 {
			f.Refuse = nil
		}
	}
	return &refusal{Status: r.Status, Code: r.Code, Detail: http.StatusText(r.Status), Header: r.Header, Body: r.Body}
}
