package tour

import (
	"fmt"
	"time"

	labnet "firezone-gateway/internal/lab/net"
)

// Full returns the options of the demonstration with the given daemon.
func Full(gateway string) Options {
	return Options{
		Gateway: gateway, NAT: labnet.PortRestricted, IPv4Only: true, Clients: 3,
		Transfer: 100e6, RelayTransfer: 10e6,
		EchoRate: 50e6, EchoTime: 5 * time.Second,
		FirstPacket: 100 * time.Millisecond,
	}
}

// Steps returns what is promised about a World of these options, in order.
func Steps(o Options) []Step {
	access := []string{"joined", "authorized"}
	first := "the first inner packet is delivered soon after the portal's authorization"
	if o.FirstPacket > 0 {
		first = fmt.Sprintf("first inner packet at the resource within %d ms of the portal's authorization (median)", o.FirstPacket.Milliseconds())
	}
	return []Step{
		{Name: "joined", Promise: "gateway joins the portal and allocates at the relay", Run: gatewayJoins},
		{Name: "authorized", Promise: fmt.Sprintf("%d clients get access; the gateway acknowledges each", o.Clients), Needs: access[:1], Run: clientsAuthorized},
		{Name: "first-packet", Promise: first, Needs: access, Run: firstPacket},
		{Name: "direct", Promise: fmt.Sprintf("path is direct through NAT %v on both sides", o.NAT), Needs: access, Run: pathIsDirect},
		{Name: "ping", Promise: "ping over IPv4 and IPv6", Needs: access, Run: pingAnswered},
		{Name: "download", Promise: megabytes(o.Transfer) + " download with matching SHA-256", Needs: access, Run: download},
		{Name: "upload", Promise: megabytes(o.Transfer) + " upload with matching SHA-256", Needs: access, Run: upload},
		{Name: "echo", Promise: fmt.Sprintf("UDP echo of %d clients at once, %s in all, without loss", o.Clients, rate(o.EchoRate)), Needs: access, Run: echoWithoutLoss},
		{Name: "no-grant", Promise: "a resource without a grant is answered by ICMP prohibited", Needs: access, Run: noGrantRefused},
		{Name: "filters", Promise: "an allowed port passes, another is prohibited", Needs: access, Run: filtersHold},
		{Name: "revoked", Promise: "a revoked resource is cut with the next packet", Needs: access, Run: revocationCuts},
		{Name: "expired", Promise: "access ends when it expires, within 1 s", Needs: access, Run: expiryEnds},
		{Name: "rejoined", Promise: "gateway returns after a lost portal connection, traffic goes on", Needs: access, Run: gatewayRejoins},
		{Name: "relayed", Promise: "relayed path when the direct one is blocked, " + megabytes(o.RelayTransfer) + " with matching SHA-256", Needs: access, Run: relayWhenBlocked},
		{Name: "direct-again", Promise: "direct path again when nothing is blocked", Needs: []string{"relayed"}, Run: directAgain},
		{Name: "stopped", Promise: "SIGTERM: goodbye to clients, Close 1000 to the portal, exit code 0", Needs: access, Run: gatewayLeaves, EndsGateway: true},
		{Name: "direct-no-nat", Promise: "path is direct without NAT, ping over IPv4 and IPv6", Run: withoutNAT, EndsGateway: true},
	}
}

func megabytes(n int64) string { return fmt.Sprintf("%d MB", n/1e6) }
