package dns

import (
	"encoding/binary"
	"testing"

	"github.com/miekg/dns"
)

// BenchmarkForward asks a server for TXT records that one name server of the
// benchmark has. The name server costs time, too: it answers with copies of
// a prepared message.
func BenchmarkForward(b *testing.B) {
	for _, network := range networks {
		b.Run(string(network), func(b *testing.B) {
			q := query("a.example", dns.TypeTXT).SetEdns0(1232, false)
			wire := packed(q)
			prepared := says("v=spf1 -all")(asked{msg: q})[0]
			s := newSite(b, func(a asked) [][]byte { return [][]byte{withID(prepared, a.msg.Id)} })
			addr := start(b, network, NewForwarder(s.upstreams()))
			const atOnce = 8
			work := make(chan uint16)
			done := make(chan error)
			for range atOnce {
				c := dial(b, network, addr)
				mine, buffer := withID(wire, 0), make([]byte, minUDPAnswer)
				go func() {
					for id := range work {
						binary.BigEndian.PutUint16(mine, id)
						err := c.trySend(mine)
						if err == nil {
							_, err = c.Read(buffer) // an answer is written at once
						}
						if err != nil {
							done <- err
							for range work { // so that the sender does not wait for ever
							}
							return
						}
					}
					done <- nil
				}()
			}
			b.ReportAllocs()
			n := 0
			for b.Loop() {
				work <- uint16(n)
				n++
			}
			close(work)
			for range atOnce {
				if err := <-done; err != nil {
					b.Error(err)
				}
			}
			b.ReportMetric(float64(n)/b.Elapsed().Seconds(), "queries/s")
		})
	}
}

func BenchmarkAdmit(b *testing.B) {
	wire := packed(query("_sip._tcp.a.example", dns.TypeSRV).SetEdns0(1232, false))
	f := NewForwarder(NewUpstreams(UpstreamsConfig{}))
	b.ReportAllocs()
	for b.Loop() {
		if q, _ := f.admit(wire); q == nil {
			b.Fatal("refused")
		}
		<-f.slots
	}
}
