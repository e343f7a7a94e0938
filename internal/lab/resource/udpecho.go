package resource

import (
	"fmt"
	"net"
)

// socketBuffer is asked for in each direction of a UDP socket. At 1 Gbit/s it
// holds 30 ms, more than a busy machine keeps a reader waiting. The kernel
// grants less where net.core.rmem_max says so.
const socketBuffer = 4 << 20

// serveUDP returns every datagram to its sender. One reader keeps their order.
func (s *Server) serveUDP(n Network, port uint16) error {
	packets, err := n.ListenPacket("udp", s.at(port))
	if err != nil {
		return err
	}
	conn, ok := packets.(*net.UDPConn)
	if !ok {
		packets.Close()
		return fmt.Errorf("UDP socket is a %T", packets)
	}
	// Refusal costs capacity, not correctness.
	_ = conn.SetReadBuffer(socketBuffer)
	_ = conn.SetWriteBuffer(socketBuffer)
	s.ports.UDPEcho = portOf(conn.LocalAddr())
	s.closers = append(s.closers, conn.Close)
	s.running.Go(func() { s.echoDatagrams(conn) })
	return nil
}

func (s *Server) echoDatagrams(conn *net.UDPConn) {
	buffer := make([]byte, 1<<16)
	for {
		n, from, err := conn.ReadFromUDPAddrPort(buffer)
		if err != nil {
			return
		}
		// A sender that cannot be reached any more loses its datagram.
		if _, err := conn.WriteToUDPAddrPort(buffer[:n], from); err == nil {
			s.echoed.Add(1)
		}
	}
}
