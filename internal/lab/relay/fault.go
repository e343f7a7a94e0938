package relay

import (
	"errors"
	"slices"
	"sync"
	"time"

	"github.com/pion/stun/v3"
)

// Faults are ways in which the relay misbehaves on purpose. The zero value
// misbehaves in none.
type Faults struct {
	// Silent drops whatever arrives from clients and peers, as a relay that
	// hangs does. Allocations live on.
	Silent bool
	// Answers replace those that requests deserve. A request gets the first
	// that concerns it.
	Answers []Answer
}

// Answer is what the relay says to a request instead of doing what it asks.
type Answer struct {
	// Method of the requests; the zero value means all but Binding.
	Method stun.Method
	// Code of the error; 0 leaves the request unanswered. Codes are for
	// requests that the relay would have served: those with a valid nonce and
	// credentials, and Binding. A 401 or 438 comes with a new nonce.
	Code stun.ErrorCode
	// Times is how many requests are answered so; 0 means all.
	Times int
}

// SetFaults replaces the faults in force, from the next datagram on.
func (s *Server) SetFaults(f Faults) error {
	for _, a := range f.Answers {
		if a.Code != 0 && (a.Code < 300 || a.Code > 699) || a.Times < 0 {
			return errors.New("answer needs a code from 300 to 699, or none")
		}
	}
	s.faults.set(f.Answers)
	s.silent.Store(f.Silent)
	return nil
}

// ExpireNonces makes every nonce stale: the next request of each client is
// answered 438 with a new one.
func (s *Server) ExpireNonces() {
	// pion's nonces differ by the millisecond: a new one must not be an old one.
	for now := time.Now().UnixMilli(); time.Now().UnixMilli() == now; {
		time.Sleep(100 * time.Microsecond)
	}
	s.nonces.expire()
}

// faults are the answers in force.
type faults struct {
	mu      sync.Mutex
	answers []Answer // guarded by mu
}

func (f *faults) set(answers []Answer) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.answers = slices.Clone(answers)
}

// take returns the answer to a request, if one concerns it. served says that
// the relay would serve the request otherwise.
func (f *faults) take(method stun.Method, served bool) (code stun.ErrorCode, ok bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for i := range f.answers {
		a := &f.answers[i]
		if !a.concerns(method) || a.Code != 0 && !served {
			continue
		}
		code = a.Code
		if a.Times > 0 {
			if a.Times--; a.Times == 0 {
				f.answers = slices.Delete(f.answers, i, i+1)
			}
		}
		return code, true
	}
	return 0, false
}

func (a Answer) concerns(method stun.Method) bool {
	if a.Method == 0 {
		return method != stun.MethodBinding
	}
	return a.Method == method
}
