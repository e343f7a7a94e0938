package portal

import (
	"errors"
	"net"
)

// Suspend makes the portal unreachable, as the death of its machine would: it
// closes the listeners, so that connections are refused, and cuts every
// websocket without a Close frame. What the portal knows is kept and may be
// changed meanwhile; peers hear of it in the init after Resume. The HTTP control
// interface stays. Suspending again does nothing.
func (s *Server) Suspend() error {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return ErrClosed
	}
	endpoints := s.public
	s.public = nil
	for sess := range s.sessions {
		s.end(sess, cutCode)
	}
	s.mu.Unlock()

	var errs []error
	for _, e := range endpoints {
		errs = append(errs, e.close())
	}
	return errors.Join(errs...)
}

// Resume serves websockets on ln, which the Server owns and closes. The rules of
// Config.Listener hold. A portal that is not suspended serves there as well as
// where it did before.
func (s *Server) Resume(ln net.Listener) error {
	secured, err := s.cfg.secure(ln)
	if err != nil {
		return errors.Join(err, ln.Close())
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return errors.Join(ErrClosed, ln.Close())
	}
	if len(s.public) == 0 {
		s.main = ln.Addr()
	}
	s.public = append(s.public, s.serve(secured, s.Handler()))
	return nil
}
