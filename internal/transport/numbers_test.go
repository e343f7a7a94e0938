package transport

import "testing"

func TestNumbersOfTheProtocol(t *testing.T) {
	if PreferredPort != 52625 || RoutingMark != 0xfd002021 || MaxDatagram != 1316 || MinChannel != 0x4000 || MaxChannel != 0x4fff {
		t.Error("port, mark, largest datagram or channel numbers are not those of T-01, T-05, T-03 and T-41")
	}
}
