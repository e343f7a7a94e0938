package dns

import (
	"net/netip"
	"slices"

	"firezone-gateway/internal/drop"
)

// receiveBuffer asks for room for MaxForwarded small queries with the kernel's
// overhead of about 800 bytes each. The kernel may grant less.
const receiveBuffer = 1 << 20

func (s *Server) serveUDP() error {
	f := s.cfg.Forwarder
	buffer := make([]byte, maxQuery+1)
	for {
		n, from, err := s.udp.ReadFromUDPAddrPort(buffer)
		if err != nil {
			return err
		}
		if !s.fromClient(from.Addr()) {
			continue
		}
		if n > maxQuery {
			f.count(&f.counts.malformed, drop.DNSMalformed)
			continue
		}
		wire := slices.Clone(buffer[:n])
		query, answer := f.admit(wire)
		if query == nil {
			s.answerUDP(answer, from)
			continue
		}
		s.work.Go(func() { s.answerUDP(f.forward(s.ctx, query, wire, false), from) })
	}
}

// answerUDP sends an answer, if there is one. What cannot be sent is lost like
// any datagram; the client asks again.
func (s *Server) answerUDP(answer []byte, to netip.AddrPort) {
	if answer != nil {
		_, _ = s.udp.WriteToUDPAddrPort(answer, to)
	}
}
